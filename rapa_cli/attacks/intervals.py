"""How sure a measured accuracy is: intervals for single draws and for means over draws, pairs of networks.

One draw of n images is a binomial sample, and has Wilson's interval. Over several draws the images stay the same, so
that their answers are not independent: there the images are resampled (Efron 1979), all draws of an image together. The
same resamples serve every network that is measured on the images, so that what two have in common cancels when they are
compared.
"""

from __future__ import annotations

import math
import statistics
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rapa_cli.analysis.evaluation import wilson

RESAMPLES = 2000
_AT_ONCE = 100


class Bootstrap:
    """Resamples of a set of images, the same for the same seed and number of images.

    Args:
        images: how many there are.
        seed: of the resamples.
        count: how many resamples.
    """

    def __init__(self, images: int, seed: int = 0, count: int = RESAMPLES) -> None:
        self._images, self._seed, self._count = images, seed, count

    @cached_property
    def _weights(self) -> Tensor:
        """How often each image is in each resample, uint8 (count, images)."""
        random = np.random.Generator(np.random.Philox(key=self._seed))
        weights = torch.empty(self._count, self._images, dtype=torch.uint8)
        for row in weights:
            chosen = random.integers(self._images, size=self._images)
            row.copy_(torch.from_numpy(np.bincount(chosen, minlength=self._images)))
        return weights

    def totals(self, columns: Tensor) -> Tensor:
        """Sums of columns (images, k) over the images of each resample: float64 (count, k)."""
        numbers = columns.cpu().to(torch.float32)
        parts = (self._weights[start : start + _AT_ONCE] for start in range(0, self._count, _AT_ONCE))
        return torch.cat([part.to(torch.float32) @ numbers for part in parts]).double()

    def accuracies(self, right: Tensor, counted: Tensor) -> Tensor:
        """`accuracy` of each resample, percent, float64 (count,); NaN where a draw has no counted image."""
        draws = right.shape[1]
        totals = self.totals(torch.cat([right & counted, counted], 1))
        return 100 * (totals[:, :draws] / totals[:, draws:]).mean(1)

    def interval(self, right: Tensor, counted: Tensor) -> tuple[float, float]:
        """The 95 % interval of `accuracy`, percent: Wilson's for one draw, else from the resampled images.

        Where all answers are equal resamples have no spread, and Wilson's interval of one draw is given.
        """
        if not counted.any():
            return (0.0, 100.0)
        if right.shape[1] > 1:
            found = percentiles(self.accuracies(right, counted))
            if found[0] < found[1]:
                return found
        return wilson(int((right & counted)[:, 0].sum()), int(counted[:, 0].sum()))


def accuracy(right: Tensor, counted: Tensor) -> float:
    """Accuracy over the counted images of each draw, then the mean over the draws, percent; NaN without such images.

    Args:
        right: whether an image is classified correctly in a draw, bool (N, draws).
        counted: whether it counts in that draw, the same shape.
    """
    return statistics.fmean(accuracies(right, counted))


def accuracies(right: Tensor, counted: Tensor) -> list[float]:
    """Those of each draw of `accuracy`."""
    sums = zip((right & counted).sum(0).tolist(), counted.sum(0).tolist(), strict=True)
    return [100 * good / all_of_them if all_of_them else math.nan for good, all_of_them in sums]


def gap_closed(accuracy: float, baseline: float) -> float:
    """1 - (100 - accuracy) / (100 - baseline): the share of the baseline's errors that are gone.

    NaN where the baseline makes none.
    """
    return 1 - (100 - accuracy) / (100 - baseline) if baseline < 100 else math.nan


def gap_interval(accuracies: Tensor, baselines: Tensor) -> tuple[float, float]:
    """The 95 % interval of `gap_closed` from the accuracies of both networks in the same resamples (count,)."""
    return percentiles(1 - (100 - accuracies) / (100 - baselines))


def excess(first: Tensor, second: Tensor) -> tuple[float, float]:
    """By how much the first accuracy is larger, percent, and how many standard errors that is.

    A paired comparison over the images; 0 standard errors where no image differs.

    Args:
        first: whether an image is right in a draw, bool (N, draws).
        second: likewise under another attack, with as many images; the number of draws may be another.
    """
    difference = first.double().mean(1) - second.double().mean(1)
    if not difference.any():
        return (0.0, 0.0)
    # As in McNemar's test the error is that of equal accuracies.
    error = float(difference.square().mean().sqrt()) / math.sqrt(len(difference))
    mean = float(difference.mean())
    return (100 * mean, mean / error)


def percentiles(sample: Tensor) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of a sample; numbers that are not finite are left out, NaN if there are no others."""
    finite = sample[sample.isfinite()]
    if not len(finite):
        return (math.nan, math.nan)
    low, high = torch.quantile(finite, torch.tensor([0.025, 0.975], dtype=finite.dtype)).tolist()
    return (low, high)
