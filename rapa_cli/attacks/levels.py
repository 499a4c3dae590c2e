"""Strengths of attacks that the paper has, and the pixels that ratios are of; loads nothing heavy."""

from __future__ import annotations

# Signal-to-noise ratios in dB, about those of figure 4.
SNR = (60.0, 50.0, 45.0, 40.0, 36.0, 33.0, 30.0, 25.0, 20.0)

# Pixels that a ratio may be of, and what people call them.
SPACES = {"raw": "[0, 1] pixels", "standardized": "standardised pixels"}
