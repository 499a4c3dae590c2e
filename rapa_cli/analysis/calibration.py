"""What a classifier gets right, class by class, and whether it is right as often as it is confident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# As many as Guo et al. (2017) take.
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy, in bins of equal width over (0, 1] (Guo et al. 2017, section 2).

    Attributes:
        count: how many predictions have a confidence in each bin, float64 (bins,).
        confidence: sum of their confidences, float64 (bins,).
        right: how many of them are right, float64 (bins,).
    """

    count: Tensor
    confidence: Tensor
    right: Tensor

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(self.count + other.count, self.confidence + other.confidence, self.right + other.right)

    @property
    def ece(self) -> float:
        """Expected calibration error, points: |accuracy - confidence| of a bin, averaged over predictions.

        Its estimate from few images is too large, since chance alone parts the two (Guo et al. 2017, equation 3).
        """
        return 100 * float((self.right - self.confidence).abs().sum() / self.count.sum())

    @property
    def mean_confidence(self) -> float:
        """Mean confidence, percent; above the accuracy where the classifier is too sure."""
        return 100 * float(self.confidence.sum() / self.count.sum())

    @property
    def accuracy(self) -> float:
        """How many predictions are right, percent."""
        return 100 * float(self.right.sum() / self.count.sum())

    def rows(self) -> list[dict[str, Any]]:
        """The reliability diagram: for each bin its limits, confidence and accuracy in percent, and its count.

        Confidence and accuracy are None where a bin is empty.
        """
        bins = len(self.count)
        table = zip(self.count.tolist(), self.confidence.tolist(), self.right.tolist(), strict=True)
        return [
            {
                "low": 100 * number / bins,
                "high": 100 * (number + 1) / bins,
                "count": int(count),
                "confidence": 100 * confidence / count if count else None,
                "accuracy": 100 * right / count if count else None,
            }
            for number, (count, confidence, right) in enumerate(table)
        ]


def calibration(confidence: Tensor, right: Tensor, bins: int = BINS) -> Calibration:
    """Puts predictions into bins by their confidence.

    Args:
        confidence: of the chosen class, (N,), in [0, 1].
        right: whether that is the image's class, bool (N,).
        bins: how many.

    Raises:
        ValueError: the shapes differ.
    """
    if confidence.shape != right.shape or confidence.ndim != 1:
        raise ValueError(f"right: got shape {tuple(right.shape)}, for confidences of {tuple(confidence.shape)}")
    confidence = confidence.to(torch.float64)
    # A bin has its upper limit, not its lower one.
    number = ((confidence * bins).ceil().to(torch.int64) - 1).clamp(0, bins - 1)
    member = torch.nn.functional.one_hot(number, bins).to(torch.float64)
    # A product adds up in the same order always, which scattered additions on a GPU do not.
    sums = member.T @ torch.stack([torch.ones_like(confidence), confidence, right.to(torch.float64)], 1)
    return Calibration(*sums.unbind(1))


@dataclass(frozen=True)
class Outcomes:
    """How predictions came out.

    Attributes:
        confusion: how often an image of the class of the row was taken for that of the column, int64
            (classes, classes).
        calibration: of the confidences.
    """

    confusion: Tensor
    calibration: Calibration

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(self.confusion + other.confusion, self.calibration + other.calibration)

    @property
    def error(self) -> float:
        """How many predictions are wrong, percent."""
        return 100 * (1 - int(self.confusion.diagonal().sum()) / int(self.confusion.sum()))

    @property
    def rates(self) -> Tensor:
        """Share of the images of each class that were taken for each, float64 (classes, classes), percent.

        A class without images has a row of NaN.
        """
        counts = self.confusion.to(torch.float64)
        return 100 * counts / counts.sum(1, keepdim=True)

    @property
    def class_errors(self) -> list[float]:
        """How many images of each class were taken for another, percent; NaN for a class without images."""
        return [float(100 - rate) for rate in self.rates.diagonal()]


def outcomes(labels: Tensor, chosen: Tensor, confidence: Tensor, classes: int) -> Outcomes:
    """How predictions came out.

    Args:
        labels: int64 (N,), in [0, classes).
        chosen: likewise, the predictions.
        confidence: of the chosen class, (N,), in [0, 1].
        classes: how many.
    """
    pairs = torch.zeros(classes * classes, dtype=torch.int64, device=labels.device)
    pairs.scatter_add_(0, labels * classes + chosen, torch.ones_like(labels))
    return Outcomes(pairs.view(classes, classes), calibration(confidence, chosen == labels))
