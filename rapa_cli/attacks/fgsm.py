"""The fast gradient sign method (Goodfellow et al. 2015): one gradient, any number of strengths."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def gradient_sign(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The sign of the loss's gradient at each pixel, in {-1, 0, 1}, shape (B, C, H, W).

    The model's mode and its parameters' gradients stay as they are. The caller sets the draw.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        x: images.
        labels: int64 (B,).
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        loss = nn.functional.cross_entropy(model(point), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
    return gradient.sign()


def perturb(x: Tensor, sign: Tensor, eps: float | Tensor) -> Tensor:
    """Moves images by eps along a sign, and cuts them to [0, 1].

    Args:
        x: images (B, C, H, W).
        sign: of the gradient, the same shape.
        eps: one number, or one for each image (B,), on the [0, 1] scale.
    """
    strength = eps[:, None, None, None] if isinstance(eps, Tensor) else eps
    return (x + strength * sign).clamp(0, 1)
