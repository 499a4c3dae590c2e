"""The fast gradient sign method (Goodfellow et al. 2015): one gradient, any number of strengths."""

from __future__ import annotations

from torch import Tensor


def perturb(x: Tensor, sign: Tensor, eps: float | Tensor) -> Tensor:
    """Moves images by eps along a sign, and cuts them to [0, 1].

    Args:
        x: images (B, C, H, W).
        sign: of the gradient, the same shape.
        eps: one number, or one for each image (B,), on the [0, 1] scale.
    """
    strength = eps[:, None, None, None] if isinstance(eps, Tensor) else eps
    return (x + strength * sign).clamp(0, 1)
