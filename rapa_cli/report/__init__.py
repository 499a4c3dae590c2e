"""Figures, and pages of HTML in one file."""
