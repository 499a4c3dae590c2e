"""The paper's claims as checks, each with its margin of error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy import stats

# Of a normal distribution: 95 % lie within so many standard deviations.
_Z = 1.96


class State(StrEnum):
    """What was found of a claim: undecided where its threshold lies within the margin of error."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Estimate:
    """A figure with the half width of its 95 % interval."""

    value: float
    margin: float


@dataclass(frozen=True)
class Verdict:
    """What was found of a claim.

    Attributes:
        experiment: that it is checked in.
        claim: of the paper, in a sentence.
        source: where the paper says so.
        figure: what is compared with the threshold, in words and with its unit.
        threshold: what the figure must be above, or below.
        above: whether above.
        estimate: the figure; None where what it needs was not run.
    """

    experiment: str
    claim: str
    source: str
    figure: str
    threshold: float
    above: bool
    estimate: Estimate | None

    @property
    def state(self) -> State:
        """Whether the interval lies on the claim's side of the threshold, on the other, or on both."""
        if self.estimate is None or not math.isfinite(self.estimate.value):
            return State.NOT_TESTED
        distance = self.estimate.value - self.threshold
        distance = distance if self.above else -distance
        if distance > self.estimate.margin:
            return State.HOLDS
        return State.FAILS if distance < -self.estimate.margin else State.UNDECIDED


def difference(first: Sequence[float], second: Sequence[float], images: int) -> Estimate | None:
    """The difference of two mean errors in percent, with Welch's interval over seeds.

    With one seed of each the margin is that of the test images alone: how much trainings differ is not in it.

    Args:
        first: errors, one for each seed.
        second: likewise.
        images: on which they were measured.

    Returns:
        None where one of the two was not measured.
    """
    if not first or not second:
        return None
    value = statistics.fmean(first) - statistics.fmean(second)
    if min(len(first), len(second)) < 2:
        return Estimate(value, _Z * math.hypot(*(_binomial(each, images) for each in (first, second))))
    parts = [statistics.variance(each) / len(each) for each in (first, second)]
    if not sum(parts):
        return Estimate(value, 0.0)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(each) - 1) for part, each in zip(parts, (first, second), strict=True)
    )
    return Estimate(value, float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts)))


def pooled(values: Sequence[float], margins: Sequence[float]) -> Estimate | None:
    """The mean of estimates of several seeds: with one seed its own margin, else Student's interval over seeds."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], margins[0])
    se = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * se)


def nearest(estimates: Sequence[Estimate | None], *, above: bool) -> Estimate | None:
    """The one that decides a claim about all of them: the least for `above`, else the greatest.

    None where one of them is not known.
    """
    known = [each for each in estimates if each is not None]
    if not known or len(known) < len(estimates):
        return None
    return min(known, key=lambda each: each.value - each.margin if above else -each.value - each.margin)


def _binomial(errors: Sequence[float], images: int) -> float:
    """Standard error of an error in percent that `images` images were measured for."""
    share = statistics.fmean(errors) / 100
    return 100 * math.sqrt(max(share * (1 - share), 1 / images) / images / len(errors))
