"""Normalisation against the paper's formula in plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rapa_cli.layers.normalization import LocalResponseNorm, Normalize
from tests.tolerances import assert_near

steady = settings(deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def _by_loops(x: Tensor, n: int, alpha: float, beta: float) -> Tensor:
    y = torch.empty_like(x)
    batch, channels, height, width = x.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    rows = range(max(i - n // 2, 0), min(i + n // 2 + 1, height))
                    columns = range(max(j - n // 2, 0), min(j + n // 2 + 1, width))
                    total = sum(float(x[b, c, r, s]) ** 2 for r in rows for s in columns)
                    y[b, c, i, j] = float(x[b, c, i, j]) * (1 + alpha / n**2 * total) ** -beta
    return y


@steady
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3, 5]),
    st.floats(0, 10),
    st.floats(0, 2),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_follows_the_formula(
    height: int, width: int, kernel: int, alpha: float, beta: float, dtype: torch.dtype
) -> None:
    x = 3 * torch.randn(2, 2, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert_near(LocalResponseNorm(kernel, alpha, beta)(x), _by_loops(x, kernel, alpha, beta))


def test_the_papers_constants() -> None:
    layer = LocalResponseNorm()
    x = 100 * torch.rand(1, 3, 6, 5, dtype=torch.float64)
    assert (layer.kernel, layer.alpha, layer.beta) == (3, 5e-5, 0.75)
    assert_near(layer(x), _by_loops(x, 3, 5e-5, 0.75))
    assert repr(layer) == "LocalResponseNorm(kernel=3, alpha=5e-05, beta=0.75)"


def test_a_lone_pixel_at_the_border_is_divided_by_all_nine() -> None:
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 0, 0] = 2
    expected = 2 * (1 + 0.9 / 9 * 4) ** -0.5
    assert float(LocalResponseNorm(3, 0.9, 0.5)(x)[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(0, 0.75), (5e-5, 0)])
def test_without_strength_it_changes_nothing(alpha: float, beta: float) -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(LocalResponseNorm(3, alpha, beta)(x), x)


def test_channels_are_normalised_apart() -> None:
    x = torch.randn(1, 3, 5, 5)
    other = x.clone()
    other[:, 1] *= 50
    layer = LocalResponseNorm(alpha=1.0)
    assert torch.equal(layer(x)[:, ::2], layer(other)[:, ::2])
    assert not torch.equal(layer(x)[:, 1], layer(other)[:, 1])


def test_gradient() -> None:
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LocalResponseNorm(alpha=2.0), (x,))


@pytest.mark.parametrize("kernel", [0, 2, 4])
def test_even_windows_are_refused(kernel: int) -> None:
    with pytest.raises(ValueError, match=rf"^kernel: got {kernel}, allowed are odd numbers$"):
        LocalResponseNorm(kernel)


def test_normalize_shifts_and_scales_by_buffers() -> None:
    shift, scale = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    layer = Normalize(shift, scale)
    x = torch.rand(2, 3, 4, 5)
    expected = torch.stack([(x[:, c] - shift[c]) / scale[c] for c in range(3)], 1)
    assert torch.equal(layer(x), expected)
    assert sorted(layer.state_dict()) == ["scale", "shift"]
    assert not list(layer.parameters())
    shift.zero_()
    assert torch.equal(layer(x), expected)
    image = torch.rand(3, 4, 5)
    assert torch.equal(Normalize(image, torch.ones(3, 1, 1))(x), x - image)
