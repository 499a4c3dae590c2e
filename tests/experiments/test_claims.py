"""Verdicts on claims, and their margins."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rapa_cli.experiments.claims import Estimate, State, Verdict, difference, pooled


def verdict(value: float, margin: float, *, threshold: float = 0.0, above: bool = True) -> State:
    return Verdict("", "", "", "", threshold, above, (Estimate(value, margin),)).state


def test_an_interval_on_either_side_decides_and_one_on_both_does_not() -> None:
    assert verdict(1.0, 0.5) is State.HOLDS
    assert verdict(-1.0, 0.5) is State.FAILS
    assert verdict(0.4, 0.5) is State.UNDECIDED
    assert verdict(-0.4, 0.5) is State.UNDECIDED
    assert verdict(0.5, 0.1, threshold=0.75, above=False) is State.HOLDS
    assert verdict(1.0, 0.1, threshold=0.75, above=False) is State.FAILS
    assert Verdict("", "", "", "", 0.0, True, (None,)).state is State.NOT_TESTED
    assert verdict(math.nan, 1.0) is State.NOT_TESTED


@given(st.floats(-10, 10), st.floats(0, 5), st.floats(-5, 5))
def test_a_claim_and_its_opposite_are_never_both_held(value: float, margin: float, threshold: float) -> None:
    found = {verdict(value, margin, threshold=threshold, above=above) for above in (True, False)}
    assert found in ({State.HOLDS, State.FAILS}, {State.UNDECIDED})


def test_over_seeds_the_margin_is_that_of_welchs_test() -> None:
    first, second = [20.1, 19.7, 20.6], [18.9, 19.4, 18.8, 19.9]
    found = difference(first, second, 10_000)
    low, high = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert found is not None
    assert (found.value - found.margin, found.value + found.margin) == pytest.approx((low, high))


def test_with_one_seed_it_is_that_of_the_images() -> None:
    found = difference([20.0], [10.0], 10_000)
    assert found is not None
    assert found.value == 10.0
    assert found.margin == pytest.approx(196 * math.sqrt((0.2 * 0.8 + 0.1 * 0.9) / 10_000), rel=1e-3)


def test_what_was_not_run_is_not_known() -> None:
    assert difference([], [1.0], 100) is None
    assert pooled([], []) is None


def test_seeds_that_agree_leave_the_margin_of_the_images() -> None:
    found = difference([20.0, 20.0], [10.0, 10.0], 100)
    assert found is not None
    assert found.margin == pytest.approx(196 * math.sqrt((0.2 * 0.8 + 0.1 * 0.9) / 100 / 2), rel=1e-3)
    alike = pooled([2.0, 2.0, 2.0], [5.0, 5.0, 5.0])
    assert alike is not None
    assert alike.value == 2.0
    assert alike.margin == pytest.approx(5 / math.sqrt(3))


def test_a_single_seed_is_taken_to_vary_as_the_other_network_does() -> None:
    found = difference([20.0], [19.0, 15.0, 23.0], 10_000)
    assert found is not None
    assert found.margin == pytest.approx(stats.t.ppf(0.975, 2) * 4 * math.sqrt(1 + 1 / 3))


def test_a_mean_over_seeds_has_students_interval() -> None:
    values = [1.0, 2.0, 4.0]
    found = pooled(values, [0.1, 0.1, 0.1])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found is not None
    assert (found.value - found.margin, found.value + found.margin) == pytest.approx((low, high))
    assert pooled([3.0], [0.5]) == Estimate(3.0, 0.5)


def test_of_several_one_that_fails_decides_and_one_that_is_missing_leaves_it_open() -> None:
    sure, worse, noisy = Estimate(3.0, 0.1), Estimate(-1.0, 0.5), Estimate(0.5, 6.0)

    def about(*several: Estimate | None, above: bool = True) -> tuple[State, Estimate | None]:
        found = Verdict("", "", "", "", 0.0, above, several)
        return found.state, found.estimate

    assert about(worse, noisy) == (State.FAILS, worse)
    assert about(worse, None) == (State.FAILS, worse)
    assert about(sure, None) == (State.NOT_TESTED, None)
    assert about(sure, noisy) == (State.UNDECIDED, noisy)
    assert about(Estimate(5.0, 4.0), sure) == (State.HOLDS, sure)
    assert about(sure, worse, above=False) == (State.FAILS, sure)
    assert about() == (State.NOT_TESTED, None)
