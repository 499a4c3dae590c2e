"""Tiling: which array computes which image patch, and the convolution that works so."""
