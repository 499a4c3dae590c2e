"""Signal-to-noise ratios of perturbed images, and the strengths that give them.

SNR = 20 log10(||x||_2 / ||delta||_2) in dB, x the clean image and delta the change really made. The paper and Cisse et
al. (2017) leave open in which space the norms are taken, and on CIFAR-10 that matters: 33 dB is 3.06/255 of pixels from
0 to 1 and 1.43/255 of standardised ones, which are the pixels as a network's first layer passes them on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from rapa_cli.attacks.levels import space_named
from rapa_cli.errors import ConfigError
from rapa_cli.layers.normalization import Normalize

# Halvings of the interval that a strength is looked for in: from 1 to far below what a float32 pixel can show.
_HALVINGS = 40
# A perturbation is stretched at most so far that values of a thousandth of its largest one reach the ends of the range.
_FARTHEST = 1000.0


class Outcome(IntEnum):
    """Whether an image meets the signal-to-noise ratio asked for."""

    MET = 0
    BLACK = 1  # The image has no signal, and so no ratio.
    SATURATED = 2  # All pixels that may move are at 0 or 1, and the noise is still too weak.
    UNMOVED = 3  # The attack changes nothing.


@dataclass(frozen=True)
class Space:
    """Where the norms of a signal-to-noise ratio are taken.

    Attributes:
        name: raw or standardized.
        shift: (C, 1, 1) or (C, H, W), on the [0, 1] scale; None for raw pixels.
        scale: (C, 1, 1); None for raw pixels.
    """

    name: str = "raw"
    shift: Tensor | None = None
    scale: Tensor | None = None

    def signal(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in this space."""
        return x if self.shift is None or self.scale is None else (x - self.shift) / self.scale

    def noise(self, delta: Tensor) -> Tensor:
        """Changes of images (B, C, H, W) in this space."""
        return delta if self.scale is None else delta / self.scale

    def stretch(self, x: Tensor) -> float:
        """How much larger equal changes of all pixels are in this space than on the [0, 1] scale (root mean square)."""
        return 1.0 if self.scale is None else float(self.noise(torch.ones_like(x[:1])).square().mean().sqrt())


RAW = Space()


def space_of(model: nn.Module, name: str) -> Space:
    """A space by its name; standardized is that of the network's own normalisation.

    Raises:
        ConfigError: there is no such space, or the network normalises nothing.
    """
    if space_named(name) == "raw":
        return RAW
    layer = next((layer for layer in model.modules() if isinstance(layer, Normalize)), None)
    if layer is None:
        raise ConfigError(
            "--snr-space standardized: the network has no normalisation", hint="take raw pixels: --snr-space raw"
        )
    return Space(name, layer.shift.detach(), layer.scale.detach())


def eps_for_snr(x: Tensor, snr_db: float, space: Space = RAW) -> Tensor:
    """The strength that gives each image a signal-to-noise ratio, were nothing cut; shape (B,).

    RMS(x) / 10^(SNR/20): the root mean square of the noise, and for noise of one size at all pixels that size. In
    standardised space x is standardised, and the strength, which stays one of pixels from 0 to 1, is divided by the
    root mean square of 1 / scale.

    Args:
        x: images (B, C, H, W) in [0, 1].
        snr_db: SNR in dB.
        space: where the norms are taken.
    """
    root_mean_square = space.signal(x).square().flatten(1).mean(1).sqrt()
    eps = root_mean_square * math.pow(10.0, -snr_db / 20)
    if space.scale is not None:
        eps = eps / space.stretch(x)
    return eps


def snr_db(x: Tensor, perturbed: Tensor, space: Space = RAW) -> Tensor:
    """20 log10(||x|| / ||perturbed - x||) of each image in dB, shape (B,).

    Infinite where nothing was changed, minus infinity for an image without signal that was.
    """
    signal = _length(space.signal(x))
    noise = _length(space.noise(perturbed - x))
    return 20 * torch.log10(torch.where(noise > 0, signal / noise, torch.inf))


def exact_step(x: Tensor, direction: Tensor, snr_db: float, space: Space = RAW) -> tuple[Tensor, Tensor]:
    """How far to go along a direction to meet a signal-to-noise ratio after cutting to [0, 1], by bisection.

    Cutting makes noise smaller but never larger as it is stretched, so that there is one answer or none.

    Args:
        x: images (B, C, H, W) in [0, 1].
        direction: the same shape: signs of a gradient, or a perturbation to be stretched.
        snr_db: SNR in dB.
        space: where the norms are taken.

    Returns:
        The step t (B,), for images `(x + t direction).clamp(0, 1)`, and the outcomes, uint8 (B,). Where the ratio
        cannot be met, t is 0 for images that are black or that the attack leaves alone, and the farthest step for
        those whose pixels are all at an end of the range.
    """
    size, room = direction.abs(), torch.where(direction > 0, 1 - x, x)
    target = _length(space.signal(x)) * math.pow(10.0, -snr_db / 20)

    def noise(step: Tensor) -> Tensor:
        return _length(space.noise(torch.minimum(step[:, None, None, None] * size, room)))

    largest = size.flatten(1).amax(1)
    equal = (size == 0) | (size == largest[:, None, None, None])
    # Signs have reached the ends of the range after 1.
    farthest = torch.where(equal.flatten(1).all(1), 1.0, _FARTHEST) / largest.clamp(min=torch.finfo(x.dtype).tiny)
    farthest = torch.where(largest > 0, farthest, 0.0)
    low, high = torch.zeros_like(farthest), farthest
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = noise(middle) >= target
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    outcome = torch.full_like(target, Outcome.MET, dtype=torch.uint8)
    # Rounding must not make a ratio that is met at the very end one that is not.
    outcome[noise(farthest) < target * (1 - 1e-5)] = Outcome.SATURATED
    outcome[largest == 0] = Outcome.UNMOVED
    outcome[target == 0] = Outcome.BLACK
    return torch.where(outcome == Outcome.BLACK, 0.0, high), outcome


def _length(images: Tensor) -> Tensor:
    """Euclidean norms (B,) of images (B, C, H, W)."""
    found: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return found
