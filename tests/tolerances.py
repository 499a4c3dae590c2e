"""How far results may be from what they should be: rounding of floats, and chance in samples."""

from __future__ import annotations

import math

import torch
from scipy import stats
from torch import Tensor

# Sums of up to some hundred terms in another order.
_ROUNDING = {torch.float32: (1e-5, 1e-5), torch.float64: (1e-11, 1e-11)}

# Keys are fixed, so a test that passes once passes always; a wrong law fails by many orders of magnitude.
SIGNIFICANCE = 1e-4


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Equal shapes, types and, up to rounding, values; large terms may cancel in a small sum."""
    relative, absolute = _ROUNDING[expected.dtype]
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute * max(largest, 1.0))


def assert_equally_likely(counts: Tensor) -> None:
    """Chi-square test of counts that have the same expectation and are independent apart from their sum."""
    assert_plausible(float(_chi_square(counts.flatten(), 0)), counts.numel() - 1)


def assert_distributed(counts: Tensor, probabilities: Tensor) -> None:
    """Chi-square test of counts against the probabilities of their classes."""
    expected = counts.sum() * probabilities.double()
    assert float(expected.min()) >= 5, "too small a sample for a chi-square test"
    assert_plausible(float(((counts - expected) ** 2 / expected).sum()), counts.numel() - 1)


def assert_balanced_uniform(assignment: Tensor, tiles: int) -> None:
    """Every patch is uniform over tiles of equal sizes, assignments (N, n_p) of independent images.

    The sizes fix the sum over the patches of an image, which takes n_p - 1 from n_p patches.
    """
    images, patches = assignment.shape
    counts = torch.stack([(assignment == tile).sum(0) for tile in range(tiles)])
    expected = images / tiles
    statistic = float(((counts - expected) ** 2 / expected).sum()) * (patches - 1) / patches
    assert_plausible(statistic, (patches - 1) * (tiles - 1))


def assert_independent(first: Tensor, second: Tensor, tiles: int) -> None:
    """Row n of `first` tells nothing about row n of `second`; both (N, n_p), balanced with equal sizes.

    The joint tables of the rows are looked at added up, where labels agree more or less often than by chance, and one
    by one, where one partition is the other with other labels.
    """
    images, patches = first.shape
    joint = torch.zeros(images, tiles * tiles, dtype=torch.int64)
    joint.scatter_add_(1, first * tiles + second, torch.ones_like(first))
    freedom = (tiles - 1) ** 2
    # The sizes of the tiles are fixed in both, so that tables are hypergeometric, not multinomial.
    fixed = (patches - 1) / patches
    assert_plausible(float(_chi_square(joint.sum(0), 0)) * fixed, freedom)
    each = _chi_square(joint, 1) * fixed
    z = float(each.mean() - freedom) / math.sqrt(2 * freedom / images)
    assert 2 * stats.norm.sf(abs(z)) > SIGNIFICANCE, f"joint tables of single images: z = {z}"


def assert_uniform(sample: Tensor) -> None:
    """Kolmogorov-Smirnov test of independent numbers against the uniform law on [0, 1)."""
    assert float(sample.min()) >= 0
    assert float(sample.max()) < 1
    p = stats.kstest(sample.flatten().double().numpy(), "uniform").pvalue
    assert p > SIGNIFICANCE, f"Kolmogorov-Smirnov: p = {p}"


def assert_plausible(statistic: float, freedom: int) -> None:
    """A chi-square statistic that is neither too large, nor too small for independent samples."""
    upper, lower = stats.chi2.sf(statistic, freedom), stats.chi2.cdf(statistic, freedom)
    assert upper > SIGNIFICANCE, f"chi-square {statistic} with {freedom} degrees of freedom: p = {upper}"
    if freedom > 1:
        assert lower > SIGNIFICANCE, (
            f"chi-square {statistic} with {freedom} degrees of freedom is too small: p = {lower}"
        )


def _chi_square(counts: Tensor, dim: int) -> Tensor:
    expected = counts.sum(dim, keepdim=True) / counts.shape[dim]
    return ((counts - expected) ** 2 / expected).sum(dim)
