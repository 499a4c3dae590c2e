"""Laws that samples are tested against, with seeds that are fixed."""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor

from tests.tolerances import SIGNIFICANCE, assert_distributed


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_normal(sample: Tensor, mean: float, std: float) -> None:
    """Kolmogorov-Smirnov test of independent numbers against a normal law."""
    p = stats.kstest(sample.flatten().double().numpy(), "norm", args=(mean, std)).pvalue
    assert p > SIGNIFICANCE, f"Kolmogorov-Smirnov: p = {p}"


def assert_same_law(first: Tensor, second: Tensor) -> None:
    """Kolmogorov-Smirnov test of two independent samples."""
    p = stats.ks_2samp(first.flatten().double().numpy(), second.flatten().double().numpy()).pvalue
    assert p > SIGNIFICANCE, f"Kolmogorov-Smirnov: p = {p}"


def assert_uncorrelated(first: Tensor, second: Tensor) -> None:
    """Pearson's correlation of independent numbers is 0 within four standard errors."""
    r = float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])
    assert abs(r) * math.sqrt(first.numel()) < 4, f"correlation {r}"


def assert_mean(sample: Tensor, mean: float) -> None:
    """The mean of independent numbers is right within four standard errors."""
    sample = sample.flatten().double()
    error = float(sample.std()) / math.sqrt(len(sample))
    assert abs(float(sample.mean()) - mean) < 4 * error, f"mean {float(sample.mean())} instead of {mean}"


def assert_binomial(counts: Tensor, trials: int, p: float) -> None:
    """Chi-square test of independent counts; values too rare for it are taken together with their neighbours."""
    law = torch.tensor(stats.binom.pmf(range(trials + 1), trials, p))
    found = torch.bincount(counts.long(), minlength=trials + 1)
    assert len(found) == trials + 1
    if p == 1:
        assert int(found[trials]) == len(counts)
        return
    classes, expected, observed = [], 0.0, 0
    for k in range(trials + 1):
        expected, observed = expected + float(law[k]), observed + int(found[k])
        if expected * len(counts) >= 5:
            classes.append([expected, observed])
            expected, observed = 0.0, 0
    classes[-1][0] += expected
    classes[-1][1] += observed
    assert_distributed(torch.tensor([n for _, n in classes]), torch.tensor([share for share, _ in classes]).double())
