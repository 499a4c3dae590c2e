"""Intervals against the laws they must follow."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from rapa_cli.analysis.evaluation import wilson
from rapa_cli.attacks.intervals import Bootstrap, accuracy, excess, gap_closed, gap_interval, percentiles


def coins(share: float, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def everyone(like: Tensor) -> Tensor:
    return torch.ones_like(like)


def test_accuracy_is_a_mean_over_draws() -> None:
    right = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]]).bool()
    counted = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0]]).bool()
    # 2 of 3 in the first draw, 1 of 1 in the second.
    assert accuracy(right, counted) == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert math.isnan(accuracy(right, torch.zeros_like(counted)))


def test_one_draw_has_wilsons_interval() -> None:
    right, counted = coins(0.4, (200, 1)), coins(0.8, (200, 1), 1)
    expected = wilson(int((right & counted).sum()), int(counted.sum()))
    assert Bootstrap(200).interval(right, counted) == expected
    assert Bootstrap(200).interval(right, torch.zeros_like(counted)) == (0.0, 100.0)
    assert Bootstrap(50).interval(torch.zeros(50, 3).bool(), torch.ones(50, 3).bool()) == wilson(0, 50)


def test_resamples_follow_the_law_of_a_mean() -> None:
    right = coins(0.3, (2000, 1)).expand(-1, 4)
    low, high = Bootstrap(2000).interval(right, everyone(right))
    share = float(right.double().mean())
    half = 100 * 1.96 * math.sqrt(share * (1 - share) / 2000)
    assert (low, high) == pytest.approx((100 * share - half, 100 * share + half), abs=0.25)
    # With draws that are independent of each other the mean over four has half the spread.
    low, high = Bootstrap(2000).interval(coins(0.3, (2000, 4)), everyone(right))
    assert high - low == pytest.approx(half, rel=0.1)


def test_resampled_ratios_follow_the_delta_method() -> None:
    counted = coins(0.6, (3000, 1), 1).expand(-1, 2)
    right = coins(0.5, (3000, 1), 2).expand(-1, 2)
    low, high = Bootstrap(3000).interval(right, counted)
    half = 100 * 1.96 * math.sqrt(0.25 / int(counted[:, 0].sum()))
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)


def test_coverage() -> None:
    hits = 0
    for seed in range(300):
        # Images that a network finds easy or hard, each in three draws.
        ease = torch.rand(100, 1, generator=torch.Generator().manual_seed(seed))
        right = torch.rand(100, 3, generator=torch.Generator().manual_seed(1000 + seed)) < ease
        low, high = Bootstrap(100, seed, count=200).interval(right, everyone(right))
        hits += low <= 50 <= high
    assert stats.binomtest(hits, 300, 0.94).pvalue > 1e-4


def test_the_same_resamples_for_the_same_images() -> None:
    right = coins(0.5, (60, 2))
    first, again, other = (Bootstrap(60, seed).accuracies(right, everyone(right)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    before = torch.get_rng_state()
    Bootstrap(60).interval(right, everyone(right))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_gap_closed() -> None:
    assert gap_closed(80, 60) == pytest.approx(0.5)
    assert gap_closed(60, 80) == pytest.approx(-1)
    assert math.isnan(gap_closed(90, 100))


def test_the_gap_of_pairs() -> None:
    baseline = coins(0.5, (1000, 2))
    # The other network is right where the baseline is, and on half of the rest.
    network = baseline | coins(0.5, (1000, 2), 1)
    bootstrap = Bootstrap(1000)
    mine, theirs = (bootstrap.accuracies(right, everyone(right)) for right in (network, baseline))
    low, high = gap_interval(mine, theirs)
    expected = gap_closed(accuracy(network, everyone(network)), accuracy(baseline, everyone(baseline)))
    assert low < expected < high
    # Of the baseline's errors a binomial share is gone; with unpaired resamples this would be wider.
    errors = int((~baseline).sum())
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / errors), rel=0.15)
    shuffled = gap_interval(mine, theirs[torch.randperm(len(theirs), generator=torch.Generator().manual_seed(0))])
    assert high - low < 0.8 * (shuffled[1] - shuffled[0])


def test_excess_is_mcnemars() -> None:
    first, second = torch.zeros(50, 1).bool(), torch.zeros(50, 1).bool()
    first[:9], second[9:13] = True, True
    by, errors = excess(first, second)
    assert by == pytest.approx(10)
    assert errors == pytest.approx((9 - 4) / math.sqrt(9 + 4))
    assert excess(first, first) == (0.0, 0.0)


def test_percentiles() -> None:
    assert percentiles(torch.arange(1001.0, dtype=torch.float64)) == pytest.approx((25, 975))
    assert all(map(math.isnan, percentiles(torch.tensor([math.nan]))))
