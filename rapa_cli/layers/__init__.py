"""Layers that torch lacks, and networks built from their definitions."""
