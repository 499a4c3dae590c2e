"""The paper's claims as checks, each with its margin of error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy import stats

Z = 1.96
"""Of a normal distribution 95 % lie within so many standard deviations."""


class State(StrEnum):
    """What was found of a claim: undecided where its threshold lies within the margin of error."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Estimate:
    """A figure with the half width of its 95 % interval; 0 where none is known."""

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
        estimates: the figure; of a claim about several networks, one for each. None where what it needs was not run.
    """

    experiment: str
    claim: str
    source: str
    figure: str
    threshold: float
    above: bool
    estimates: tuple[Estimate | None, ...]

    @property
    def state(self) -> State:
        """Whether the interval lies on the claim's side of the threshold, on the other, or on both.

        A claim about several networks holds where it does of all, and one that refutes it is enough.
        """
        states = [self._state_of(each) for each in self.estimates]
        worst = (State.FAILS, State.NOT_TESTED, State.UNDECIDED, State.HOLDS)
        return next((state for state in worst if state in states), State.NOT_TESTED)

    @property
    def estimate(self) -> Estimate | None:
        """The figure that decides: of those with the claim's state the worst; None where it was not tested."""
        state = self.state
        deciding = [each for each in self.estimates if each is not None and self._state_of(each) is state]
        if state is State.NOT_TESTED:
            return None
        return min(deciding, key=lambda each: each.value if self.above else -each.value)

    def _state_of(self, estimate: Estimate | None) -> State:
        if estimate is None or not math.isfinite(estimate.value):
            return State.NOT_TESTED
        distance = estimate.value - self.threshold
        distance = distance if self.above else -distance
        if distance > estimate.margin:
            return State.HOLDS
        return State.FAILS if distance < -estimate.margin else State.UNDECIDED


def difference(first: Sequence[float], second: Sequence[float], images: int) -> Estimate | None:
    """The difference of two mean errors in percent, with Welch's interval over seeds, or that of the images if wider.

    With one seed of each how much trainings differ is not in the margin.

    Args:
        first: errors, one for each seed.
        second: likewise.
        images: on which they were measured.

    Returns:
        None where one of the two was not measured.
    """
    if not first or not second:
        return None
    of_images = Z * math.hypot(*(_binomial(each, images) for each in (first, second)))
    return Estimate(statistics.fmean(first) - statistics.fmean(second), max(of_images, _over_seeds(first, second)))


def pooled(values: Sequence[float], margins: Sequence[float]) -> Estimate | None:
    """The mean of estimates of several seeds, with Student's interval over seeds, or that of their margins if wider."""
    if not values:
        return None
    own = math.hypot(*margins) / len(values)
    if len(values) == 1:
        return Estimate(values[0], own)
    se = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), max(own, float(stats.t.ppf(0.975, len(values) - 1)) * se))


def _over_seeds(first: Sequence[float], second: Sequence[float]) -> float:
    """Half width of Welch's interval; of a single seed the variance is taken to be that of the other's, if known."""
    several = [each for each in (first, second) if len(each) > 1]
    if not several:
        return 0.0
    parts = [statistics.variance(each if len(each) > 1 else several[0]) / len(each) for each in (first, second)]
    if not sum(parts):
        return 0.0
    if len(several) == 1:
        freedom = float(len(several[0]) - 1)
    else:
        freedom = sum(parts) ** 2 / sum(
            part**2 / (len(each) - 1) for part, each in zip(parts, (first, second), strict=True)
        )
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(parts))


def _binomial(errors: Sequence[float], images: int) -> float:
    """Standard error of an error in percent that `images` images were measured for."""
    share = statistics.fmean(errors) / 100
    return 100 * math.sqrt(max(share * (1 - share), 1 / images) / images / len(errors))
