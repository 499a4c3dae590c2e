"""Strengths of attacks that the paper has, and the pixels that ratios are of; loads nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

from rapa_cli.errors import ConfigError

# Signal-to-noise ratios in dB, about those of figure 4.
SNR = (60.0, 50.0, 45.0, 40.0, 36.0, 33.0, 30.0, 25.0, 20.0)

SpaceName = Literal["raw", "standardized"]

# Pixels that a ratio may be of, and what people call them.
SPACES = {"raw": "[0, 1] pixels", "standardized": "standardised pixels"}


def space_named(name: str) -> SpaceName:
    """The pixels of a name.

    Raises:
        ConfigError: there are no such pixels.
    """
    known: tuple[SpaceName, ...] = get_args(SpaceName)
    for space in known:
        if name == space:
            return space
    raise ConfigError(f"--snr-space: got '{name}', allowed are raw and standardized", hint="raw is the paper's")
