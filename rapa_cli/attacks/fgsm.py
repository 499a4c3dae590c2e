"""The fast gradient sign method (Goodfellow et al. 2015): one gradient, any number of strengths."""

from __future__ import annotations

from torch import Tensor


def perturb(x: Tensor, direction: Tensor, eps: float | Tensor) -> Tensor:
    """Moves images by eps along a direction, for FGSM the sign of the gradient, and cuts them to [0, 1].

    Args:
        x: images (B, C, H, W).
        direction: the same shape.
        eps: one number, or one for each image (B,), on the [0, 1] scale.
    """
    strength = eps[:, None, None, None] if isinstance(eps, Tensor) else eps
    return (x + strength * direction).clamp(0, 1)
