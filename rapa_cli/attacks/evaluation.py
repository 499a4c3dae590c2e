"""Accuracy under attack, as the paper's figure 4 has it: over the images that are right without noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapa_cli.analog.module import exact_gradients, noiseless
from rapa_cli.analysis.evaluation import batches, evaluating, wilson
from rapa_cli.attacks.fgsm import eps_for_snr, gradient_sign, perturb, snr_db
from rapa_cli.keyed import draws

# The attacker's draw and the draw that scores; both belong to the attack's own stream.
_GRADIENT_DRAW = 0
_SCORING_DRAW = 1


@dataclass(frozen=True)
class Level:
    """A strength to attack with: `eps` on the [0, 1] scale, or a signal-to-noise ratio in dB."""

    eps: float | None = None
    snr_db: float | None = None


@dataclass(frozen=True)
class Point:
    """The result at one level.

    Attributes:
        level: what was asked for.
        eps: the strength, where an SNR was asked for its mean over the counted images.
        snr_db: mean of the signal-to-noise ratio that came about after cutting to [0, 1], over the counted images that
            were changed, black ones apart, since they have no ratio; infinite where none was changed.
        correct: counted images that are still right.
        counted: images that are right without noise, under the draw that scores.
    """

    level: Level
    eps: float
    snr_db: float
    correct: int
    counted: int

    @property
    def accuracy(self) -> float:
        """Percent of the counted images."""
        return 100 * self.correct / self.counted if self.counted else math.nan

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, percent."""
        return wilson(self.correct, self.counted)


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    levels: Sequence[Level],
    *,
    seed: int = 0,
    batch_size: int = 100,
    on_batch: Callable[[int], None] | None = None,
) -> list[Point]:
    """Attacks a network by FGSM: the gradient is taken on one draw, the result is scored on another.

    One gradient for each image serves all levels. On analog arrays it is that of the weights they show, without the
    noise of reading: an attacker who knows the arrays is not held up by it. The model is as before afterwards.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: uint8 (N, C, H, W); their ids are their places in the split.
        labels: int64 (N,).
        levels: the strengths.
        seed: of the draws.
        batch_size: images at a time.
        on_batch: called with the number of images after each batch.

    Returns:
        A point for each level.
    """
    device = next(model.parameters()).device
    correct = torch.zeros(len(levels), dtype=torch.int64, device=device)
    eps_sum = torch.zeros(len(levels), dtype=torch.float64, device=device)
    snr_sum = torch.zeros(len(levels), dtype=torch.float64, device=device)
    noisy_images = torch.zeros(len(levels), dtype=torch.int64, device=device)
    counted = 0
    with evaluating(model):
        for ids, x, y in batches(images, labels, batch_size, device):
            gradient_draw = draws(model, images=ids, seed=seed, draw=_GRADIENT_DRAW, stream="attack")
            with noiseless(model), exact_gradients(model), gradient_draw:
                sign = gradient_sign(model, x, y)
            with torch.no_grad(), draws(model, images=ids, seed=seed, draw=_SCORING_DRAW, stream="attack"):
                right = model(x).argmax(1) == y
                counted += int(right.sum())
                for number, level in enumerate(levels):
                    eps = _strength(level, x)
                    noisy = perturb(x, sign, eps)
                    correct[number] += ((model(noisy).argmax(1) == y) & right).sum()
                    eps_sum[number] += eps[right].sum()
                    ratio = snr_db(x, noisy)[right]
                    snr_sum[number] += ratio[ratio.isfinite()].sum()
                    noisy_images[number] += ratio.isfinite().sum()
            if on_batch:
                on_batch(len(x))
    points = []
    for n, level in enumerate(levels):
        strength = _mean(eps_sum[n], counted) if level.eps is None else level.eps
        unchanged = math.inf if counted else math.nan
        snr = _mean(snr_sum[n], int(noisy_images[n])) if noisy_images[n] else unchanged
        points.append(Point(level, strength, snr, int(correct[n]), counted))
    return points


def _mean(total: Tensor, count: int) -> float:
    return float(total) / count if count else math.nan


def _strength(level: Level, x: Tensor) -> Tensor:
    if level.eps is not None:
        return x.new_full((len(x),), level.eps)
    assert level.snr_db is not None
    return eps_for_snr(x, level.snr_db)
