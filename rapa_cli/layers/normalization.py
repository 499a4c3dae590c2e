"""Normalisation of images and of local responses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normalize(nn.Module):
    """(x - shift) / scale, the first layer of a network.

    Attributes:
        shift: buffer, (C, 1, 1) or (C, H, W), on the [0, 1] pixel scale.
        scale: buffer, (C, 1, 1).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalises images (B, C, H, W) on the [0, 1] scale."""
        return (x - self.shift) / self.scale


class LocalResponseNorm(nn.Module):
    """y = x (1 + alpha/n² sum x²)^-beta, the sum over n x n pixels of the same channel, zeros outside the image.

    Caffe's WITHIN_CHANNEL normalisation; the divisor is n² at the border too.

    Args:
        kernel: n, odd.
        alpha: strength.
        beta: exponent.
    """

    def __init__(self, kernel: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel: got {kernel}, allowed are odd numbers")
        self.kernel, self.alpha, self.beta = kernel, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, H, W)."""
        mean_square = F.avg_pool2d(x.square(), self.kernel, stride=1, padding=self.kernel // 2)
        return x * torch.pow(1 + self.alpha * mean_square, -self.beta)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"kernel={self.kernel}, alpha={self.alpha}, beta={self.beta}"
