"""Pooling against Caffe's definition in plain loops, and stochastic pooling against its law."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.keyed import draws
from rapa_cli.layers.pooling import MixedPool2d, StochasticPool2d, pooled_size, pooling
from tests.tolerances import assert_distributed, assert_near

steady = settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
# Windows that reach over the border on one side, on both, and on none.
SHAPES = [(7, 7, 3, 2), (8, 6, 3, 2), (5, 9, 2, 3), (4, 4, 2, 2), (6, 5, 1, 1), (3, 3, 3, 1), (5, 5, 4, 3)]


def _side(size: int, kernel: int, stride: int) -> int:
    """Output pixels along a side as Caffe's pooling layer without padding reckons them."""
    return math.ceil((size - kernel) / stride) + 1


def _windows(x: Tensor, kernel: int, stride: int) -> list[list[list[list[Tensor]]]]:
    """The pixels of each window, clipped to the image: [image][channel][row][column]."""
    height, width = _side(x.shape[2], kernel, stride), _side(x.shape[3], kernel, stride)
    # Torch leaves out windows that begin outside the image, which Caffe's rounding has with strides above the kernel.
    height -= (height - 1) * stride >= x.shape[2]
    width -= (width - 1) * stride >= x.shape[3]
    return [
        [
            [
                [
                    channel[
                        i * stride : min(i * stride + kernel, x.shape[2]),
                        j * stride : min(j * stride + kernel, x.shape[3]),
                    ].flatten()
                    for j in range(width)
                ]
                for i in range(height)
            ]
            for channel in image
        ]
        for image in x
    ]


def _stacked(values: list[list[list[list[Tensor]]]]) -> Tensor:
    return torch.stack(
        [torch.stack([torch.stack([torch.stack(row) for row in plane]) for plane in image]) for image in values]
    )


def _each(x: Tensor, kernel: int, stride: int, method: str) -> Tensor:
    def reduce(window: Tensor) -> Tensor:
        match method:
            case "max":
                return window.max()
            case "average":
                return window.sum() / len(window)
            case _:
                return window.square().sum() / window.sum() if window.sum() > 0 else window.sum()

    windows = _windows(x, kernel, stride)
    return _stacked([[[[reduce(window) for window in row] for row in plane] for plane in image] for image in windows])


def _images(height: int, width: int, *, channels: int = 2, batch: int = 2) -> Tensor:
    source = torch.Generator().manual_seed(height * 100 + width)
    return torch.rand(batch, channels, height, width, generator=source, dtype=torch.float64)


@steady
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))
def test_sizes_are_torchs_and_caffes(size: int, kernel: int, stride: int) -> None:
    found = pooled_size(size, kernel, stride)
    if found < 1:
        with pytest.raises(RuntimeError, match="Output size is too small"):
            F.max_pool2d(torch.zeros(1, 1, size, size), kernel, stride, ceil_mode=True)
        return
    assert F.max_pool2d(torch.zeros(1, 1, size, size), kernel, stride, ceil_mode=True).shape[-1] == found
    if stride <= kernel:
        assert found == _side(size, kernel, stride)


def test_sizes_of_the_papers_network() -> None:
    assert [pooled_size(size, 3, 2) for size in (32, 16, 8)] == [16, 8, 4]


@pytest.mark.parametrize(("height", "width", "kernel", "stride"), SHAPES)
@pytest.mark.parametrize("method", ["max", "average"])
def test_maximum_and_average_are_caffes(method: str, height: int, width: int, kernel: int, stride: int) -> None:
    x = _images(height, width) - 0.5
    assert_near(pooling(method, 2, kernel, stride)(x), _each(x, kernel, stride, method))


def test_averages_count_only_pixels_that_exist() -> None:
    assert torch.equal(pooling("average", 1, 3, 2)(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 2, 2))
    # Negative numbers, where a zero outside the image would be the maximum.
    assert torch.equal(pooling("max", 1, 3, 2)(-torch.ones(1, 1, 4, 4)), -torch.ones(1, 1, 2, 2))


def test_the_mixture_starts_near_the_maximum() -> None:
    layer = MixedPool2d(5, 3, 2)
    assert layer.beta.shape == (5,)
    assert layer.beta.tolist() == pytest.approx([0.2] * 5)
    assert layer.average_share.tolist() == pytest.approx([1 / (1 + math.exp(2))] * 5)


@pytest.mark.parametrize(("height", "width", "kernel", "stride"), SHAPES)
def test_mixed_follows_the_papers_formula(height: int, width: int, kernel: int, stride: int) -> None:
    layer = MixedPool2d(3, kernel, stride).double()
    with torch.no_grad():
        layer.beta.copy_(torch.tensor([-0.1, 0.0, 0.3], dtype=torch.float64))
    x = _images(height, width, channels=3) - 0.5
    average, largest = _each(x, kernel, stride, "average"), _each(x, kernel, stride, "max")
    expected = []
    for channel, beta in enumerate((-0.1, 0.0, 0.3)):
        alpha = 1 / (1 + math.exp(10 * beta))
        expected.append(alpha * average[:, channel] + (1 - alpha) * largest[:, channel])
    assert_near(layer(x), torch.stack(expected, 1))


def test_the_mixture_is_learned_for_each_channel() -> None:
    layer = MixedPool2d(2, 3, 2).double()
    x = _images(7, 6).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, beta: torch.func.functional_call(layer, {"beta": beta}, (x,)), (x, layer.beta)
    )
    layer(x)[:, 1].sum().backward()
    assert layer.beta.grad is not None
    assert float(layer.beta.grad[0]) == 0
    # A smaller beta means more of the average, which is below the maximum.
    assert float(layer.beta.grad[1]) > 0


@pytest.mark.parametrize("beta", [-100.0, 100.0])
def test_the_mixture_stays_finite(beta: float) -> None:
    layer = MixedPool2d(1, 2, 2)
    with torch.no_grad():
        layer.beta.fill_(beta)
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert_near(output, F.avg_pool2d(x, 2) if beta < 0 else F.max_pool2d(x, 2))
    assert layer.beta.grad is not None
    assert layer.beta.grad.isfinite().all()


@pytest.mark.parametrize(("height", "width", "kernel", "stride"), SHAPES)
def test_stochastic_in_test_weighs_by_probability(height: int, width: int, kernel: int, stride: int) -> None:
    layer = StochasticPool2d(kernel, stride).eval()
    x = torch.relu(_images(height, width) - 0.4)
    assert_near(layer(x), _each(x, kernel, stride, "stochastic"))
    assert int(layer.calls) == 0


@pytest.mark.parametrize(("height", "width", "kernel", "stride"), SHAPES)
def test_stochastic_picks_an_activation_of_the_window(height: int, width: int, kernel: int, stride: int) -> None:
    layer = StochasticPool2d(kernel, stride)
    x = torch.relu(_images(height, width) - 0.6)
    for _ in range(5):
        found = layer(x)
        for b, image in enumerate(_windows(x, kernel, stride)):
            for c, plane in enumerate(image):
                for i, row in enumerate(plane):
                    for j, window in enumerate(row):
                        value = float(found[b, c, i, j])
                        assert value in window.tolist()
                        assert value > 0 or not window.any()


def test_stochastic_picks_in_proportion() -> None:
    window = torch.tensor([0.0, 1.0, 2.5, 0.0, 0.5, 4.0, 0.25, 1.75, 0.0])
    x = window.view(1, 1, 3, 3).expand(200, 20, 3, 3)
    layer = StochasticPool2d(3, 1)
    with draws(layer, images=torch.arange(200)):
        found = layer(x)
    positive = window[window > 0]
    counts = torch.stack([(found == value).sum() for value in positive])
    assert int(counts.sum()) == 4000
    assert_distributed(counts, positive / positive.sum())


def test_stochastic_picks_in_proportion_at_the_border() -> None:
    # Two of the last window's nine pixels lie in the image.
    column = torch.tensor([3.0, 1.0])
    x = torch.zeros(400, 5, 5, 4)
    x[:, :, 3:, 3] = column
    layer = StochasticPool2d(3, 3)
    with draws(layer, images=torch.arange(400)):
        found = layer(x)[:, :, 1, 1].flatten()
    assert_distributed(torch.stack([(found == value).sum() for value in column]), column / 4)


def test_stochastic_picks_are_independent() -> None:
    x = torch.ones(1000, 2, 2, 4)
    x[:, :, :, 1::2] = 3
    x[:, :, 1] = 0
    layer = StochasticPool2d(2, 2)

    def picks(draw: int) -> Tensor:
        with draws(layer, images=torch.arange(1000), draw=draw):
            picked: Tensor = layer(x) == 3
            return picked.flatten(1).long()

    first, second = picks(0), picks(1)
    pairs = [(first[:, 0], first[:, i]) for i in (1, 2, 3)] + [(first[:, i], second[:, i]) for i in range(4)]
    pairs.append((first[:-1, 0], first[1:, 0]))
    law = torch.tensor([1, 3, 3, 9]) / 16
    for one, other in pairs:
        assert_distributed(torch.bincount(2 * one + other, minlength=4), law)


def test_stochastic_picks_belong_to_the_image() -> None:
    layer = StochasticPool2d(3, 2)
    x = torch.rand(4, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([8, 1, 2**32 - 1, 5])
    with draws(layer, images=ids, seed=2, draw=6):
        whole = layer(x)
        again = layer(x)
    assert torch.equal(whole, again)
    for chosen in ([3], [2, 0], [3, 2, 1, 0]):
        with draws(layer, images=ids[chosen], seed=2, draw=6):
            assert torch.equal(layer(x[chosen]), whole[chosen])
    assert not torch.equal(layer(x), layer(x))


def test_an_empty_window_gives_zero() -> None:
    layer = StochasticPool2d(3, 2)
    x = torch.zeros(2, 3, 7, 6, requires_grad=True)
    for training in (True, False):
        output = layer.train(training)(x)
        assert output.shape == (2, 3, 3, 3)
        assert not output.any()
        (gradient,) = torch.autograd.grad(output.sum(), x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e30])
def test_stochastic_works_at_any_scale(scale: float) -> None:
    layer = StochasticPool2d(2, 2)
    x = scale * torch.tensor([[0.0, 1.0], [0.5, 0.0]]).expand(50, 40, 2, 2)
    with draws(layer, images=torch.arange(50)):
        found = layer(x)
    one, half = (found == scale).sum(), (found == scale / 2).sum()
    assert_distributed(torch.stack([one, half]), torch.tensor([2 / 3, 1 / 3]))


def test_stochastic_gradient_goes_to_the_picked_pixel() -> None:
    layer = StochasticPool2d(2, 2)
    x = torch.relu(_images(6, 5) - 0.5).requires_grad_()
    found = layer(x)
    towards = torch.rand_like(found)
    (gradient,) = torch.autograd.grad((found * towards).sum(), x)
    expected = torch.zeros_like(x)
    for b, c, i, j in torch.cartesian_prod(*(torch.arange(size) for size in found.shape)).tolist():
        window = x.detach()[b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        if found[b, c, i, j] > 0:
            mine = (window == found[b, c, i, j]).nonzero()
            assert len(mine) == 1
            expected[b, c, 2 * i + mine[0, 0], 2 * j + mine[0, 1]] = towards[b, c, i, j]
    positive = x.detach() > 0
    assert torch.equal(gradient[positive], expected[positive])


def test_stochastic_gradient_in_test() -> None:
    x = (_images(5, 6) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(StochasticPool2d(3, 2).eval(), (x,))


@steady
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_all_methods_give_the_same_size(height: int, width: int, kernel: int, stride: int) -> None:
    size = [pooled_size(side, kernel, stride) for side in (height, width)]
    assume(min(size) >= 1)
    for method in ("max", "average", "mixed", "stochastic"):
        layer = pooling(method, 2, kernel, stride)
        assert layer(torch.ones(3, 2, height, width)).tolist() == torch.ones(3, 2, *size).tolist()
        assert layer.eval()(torch.ones(0, 2, height, width)).shape == (0, 2, *size)
        assert layer.train()(torch.ones(0, 2, height, width)).shape == (0, 2, *size)


def test_methods_go_by_their_names() -> None:
    assert isinstance(pooling("mixed", 2, 3, 2), MixedPool2d)
    assert isinstance(pooling("stochastic", 2, 3, 2), StochasticPool2d)
    assert repr(pooling("stochastic", 2, 3, 2)) == "StochasticPool2d(kernel=3, stride=2)"
    with pytest.raises(ValueError, match=r"^method: got 'median', allowed are max, average, mixed and stochastic$"):
        pooling("median", 2, 3, 2)
