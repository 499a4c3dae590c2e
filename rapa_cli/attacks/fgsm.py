"""The fast gradient sign method (Goodfellow et al. 2015): one gradient, any number of strengths."""

from __future__ import annotations

import math

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


def eps_for_snr(x: Tensor, snr_db: float) -> Tensor:
    """The strength that gives each image a signal-to-noise ratio, were nothing cut.

    RMS(x) / 10^(SNR/20), shape (B,); SNR = 20 log10(||x|| / ||noise||) in dB.
    """
    root_mean_square = x.square().flatten(1).mean(1).sqrt()
    return root_mean_square * math.pow(10.0, -snr_db / 20)


def snr_db(x: Tensor, perturbed: Tensor) -> Tensor:
    """20 log10(||x|| / ||perturbed - x||) of each image in dB, shape (B,).

    Infinite where nothing was changed, minus infinity for a black image that was.
    """
    signal = x.flatten(1).norm(dim=1)
    noise = (perturbed - x).flatten(1).norm(dim=1)
    return 20 * torch.log10(torch.where(noise > 0, signal / noise, torch.inf))
