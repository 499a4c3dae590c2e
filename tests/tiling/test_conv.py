"""TiledConv2d against its definition by torch's own convolution: values, gradients, arguments and state."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.kernels import cpu, reference
from rapa_cli.keyed import draws
from rapa_cli.tiling import regions
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import SCHEMES
from tests.tiling import oracles
from tests.tolerances import SIGNIFICANCE, assert_near

TILED = sorted(set(SCHEMES) - {"none"})
# Those that compute a convolution where all tiles are the same.
EXACT = sorted(set(SCHEMES) - {"image-pad"})

steady = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@dataclass(frozen=True)
class Case:
    """A layer's arguments and the size of its input."""

    channels: tuple[int, int]
    kernel: int | tuple[int, int]
    stride: int | tuple[int, int]
    padding: int | tuple[int, int] | str
    dilation: int | tuple[int, int]
    bias: bool
    input: tuple[int, int, int]
    tiles: int
    dtype: torch.dtype
    seed: int

    def layer(self, scheme: str) -> TiledConv2d:
        torch.manual_seed(self.seed)
        return TiledConv2d(
            *self.channels,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.bias,
            tiles=self.tiles,
            scheme=scheme,
        ).to(self.dtype)

    def images(self) -> Tensor:
        source = torch.Generator().manual_seed(self.seed)
        batch, height, width = self.input
        return torch.randn(batch, self.channels[0], height, width, generator=source, dtype=self.dtype)


def _pairs(least: int, most: int) -> st.SearchStrategy[int | tuple[int, int]]:
    number = st.integers(least, most)
    return st.one_of(number, st.tuples(number, number))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@st.composite
def cases(draw: st.DrawFn, scheme: str) -> Case:
    padding = draw(st.one_of(_pairs(0, 3), st.sampled_from(["same", "valid"])))
    stride = 1 if padding == "same" else draw(_pairs(1, 3))
    kernel, dilation = draw(_pairs(1, 4)), draw(_pairs(1, 2))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size = []
    for i, side in enumerate((height, width)):
        reach = _pair(dilation)[i] * (_pair(kernel)[i] - 1)
        margin = reach if padding == "same" else 0 if isinstance(padding, str) else 2 * _pair(padding)[i]
        size.append((side + margin - reach - 1) // _pair(stride)[i] + 1)
    assume(min(size) >= 1)
    patches = size[0] * size[1]
    if scheme == "none":
        tiles = 1
    elif SCHEMES[scheme].square:
        tiles = draw(st.integers(1, min(math.isqrt(patches), 4))) ** 2
    else:
        tiles = draw(st.integers(1, min(patches, 20)))
    return Case(
        (draw(st.integers(1, 4)), draw(st.integers(1, 5))),
        kernel,
        stride,
        padding,
        dilation,
        draw(st.booleans()),
        (draw(st.integers(1, 3)), height, width),
        tiles,
        draw(st.sampled_from([torch.float32, torch.float64])),
        draw(st.integers(0, 1000)),
    )


def _by_definition(layer: TiledConv2d, x: Tensor, assignment: Tensor) -> Tensor:
    return oracles.tiled(x, layer.weight, layer.bias, assignment, layer.stride, layer.padding, layer.dilation)


def _spread(layer: TiledConv2d) -> None:
    """Gives all tiles the kernel of the first."""
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:1].clone().expand_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[:1].clone().expand_as(layer.bias))


def _gradients(output: Tensor, layer: TiledConv2d, x: Tensor) -> list[Tensor]:
    towards = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=output.dtype)
    return list(torch.autograd.grad((output * towards).sum(), [x, *layer.parameters()], retain_graph=True))


def _assert_same_with_gradients(layer: TiledConv2d, x: Tensor, found: Tensor, expected: Tensor) -> None:
    assert_near(found, expected)
    for one, other in zip(_gradients(found, layer, x), _gradients(expected, layer, x), strict=True):
        assert_near(one, other)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("scheme", EXACT)
def test_identical_tiles_are_a_convolution(scheme: str) -> None:
    @steady
    @given(cases(scheme), st.booleans())
    def holds(case: Case, training: bool) -> None:
        layer = case.layer(scheme).train(training and scheme != "perforated")
        _spread(layer)
        x = oracles.padded(case.images(), layer.kernel_size, layer.padding, layer.dilation)
        bias = None if layer.bias is None else layer.bias[0]
        assert_near(layer(case.images()), F.conv2d(x, layer.weight[0], bias, layer.stride, 0, layer.dilation))

    holds()


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("scheme", EXACT)
def test_each_pixel_is_of_its_own_tile(scheme: str) -> None:
    @steady
    @given(cases(scheme), st.booleans())
    def holds(case: Case, training: bool) -> None:
        layer = case.layer(scheme).train(training)
        x = case.images().requires_grad_()
        with draws(layer, images=torch.arange(len(x)) + case.seed, draw=case.seed, stream="train"):
            found = layer(x)
            assignment = layer.assign(len(x), (found.shape[2], found.shape[3]))
        assert assignment.shape == (len(x), found.shape[2] * found.shape[3])
        _assert_same_with_gradients(layer, x, found, _by_definition(layer, x, assignment))

    holds()


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@steady
@given(cases("image-pad"))
def test_image_pad_convolves_each_region_by_itself(case: Case) -> None:
    layer = case.layer("image-pad")
    x = case.images().requires_grad_()
    expected = oracles.image_pad(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)
    _assert_same_with_gradients(layer, x, layer(x), expected)


def test_image_pad_is_separate_images_where_these_fit() -> None:
    # The middle half of each side in this case is as four images of their own, padded with zeros.
    layer = TiledConv2d(2, 3, 3, padding=1, tiles=4, scheme="image-pad").double()
    x = torch.randn(2, 2, 8, 12, dtype=torch.float64)
    rows = [
        torch.cat([F.conv2d(part, layer.weight[s], layer.bias[s], padding=1) for s, part in pair], 3)
        for pair in (
            ((0, x[:, :, :4, :6]), (1, x[:, :, :4, 6:])),
            ((2, x[:, :, 4:, :6]), (3, x[:, :, 4:, 6:])),
        )
        if layer.bias is not None
    ]
    assert_near(layer(x), torch.cat(rows, 2))


def test_image_pad_trains_after_an_evaluation() -> None:
    regions.cut.cache_clear()
    layer, x = TiledConv2d(2, 3, 3, padding=1, tiles=4, scheme="image-pad"), torch.ones(1, 2, 8, 8, requires_grad=True)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert x.grad is not None


@steady
@given(cases("random"), st.data())
def test_given_assignments_are_used(case: Case, data: st.DataObject) -> None:
    layer = case.layer("random")
    x = case.images().requires_grad_()
    patches = layer.geometry(*case.input[1:]).patches
    # Few values, so that some tiles have most patches and others none.
    values = data.draw(st.lists(st.integers(-1, case.tiles - 1), min_size=1, max_size=3))
    chosen = torch.randint(len(values), (len(x), patches), generator=torch.Generator().manual_seed(case.seed))
    assignment = torch.tensor(values)[chosen]
    found = layer(x, assignment)
    assert int(layer.calls) == 0
    _assert_same_with_gradients(layer, x, found, _by_definition(layer, x, assignment))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_nothing_computed_is_zero_and_has_zero_gradients(dtype: torch.dtype, bias: bool) -> None:
    layer = TiledConv2d(2, 3, 3, padding=1, bias=bias, tiles=3).to(dtype)
    x = torch.randn(2, 2, 5, 4, dtype=dtype, requires_grad=True)
    output = layer(x, torch.full((2, 20), -1))
    assert output.shape == (2, 3, 5, 4)
    assert not output.any()
    assert not any(gradient.any() for gradient in _gradients(output, layer, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unused_tiles_have_zero_gradients(dtype: torch.dtype) -> None:
    layer = TiledConv2d(2, 3, 3, padding=1, tiles=4).to(dtype)
    x = torch.randn(2, 2, 5, 4, dtype=dtype, requires_grad=True)
    assignment = torch.full((2, 20), 2)
    assignment[0, 0] = 1
    output = layer(x, assignment)
    _assert_same_with_gradients(layer, x, output, _by_definition(layer, x, assignment))
    _, weight, bias = _gradients(output, layer, x)
    assert not weight[[0, 3]].any()
    assert not bias[[0, 3]].any()
    assert weight[1].any()
    assert bias[1].any()


@pytest.mark.parametrize("scheme", TILED)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(scheme: str, training: bool) -> None:
    torch.manual_seed(0)
    layer = TiledConv2d(2, 2, (3, 2), (1, 2), (1, 0), tiles=4, scheme=scheme).double().train(training)
    x = torch.randn(2, 2, 3, 5, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with draws(layer, images=torch.arange(2)):
            output: Tensor = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
            return output

    assert layer.bias is not None
    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))


def test_only_wanted_gradients_are_computed() -> None:
    for dtype in (torch.float32, torch.float64):
        layer = TiledConv2d(2, 3, 3, padding=1, tiles=3).to(dtype)
        assert layer.bias is not None
        assignment = layer.assign(2, (5, 4))
        x = torch.randn(2, 2, 5, 4, dtype=dtype)
        inputs = (x, layer.weight, layer.bias)
        for wanted in inputs:
            for tensor in inputs:
                tensor.requires_grad_(tensor is wanted)
            found, expected = layer(x, assignment), _by_definition(layer, x, assignment)
            assert_near(*(torch.autograd.grad(output.square().sum(), wanted)[0] for output in (found, expected)))
        for tensor in inputs:
            tensor.requires_grad_(False)
        assert not layer(x, assignment).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scheme", ["random", "image-pad", "perforated"])
def test_parts_of_a_batch_agree_with_the_whole(
    monkeypatch: pytest.MonkeyPatch, scheme: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cpu, "available", lambda: False)
    layer = TiledConv2d(3, 4, 3, padding=1, tiles=4, scheme=scheme).to(dtype)
    x = torch.randn(7, 3, 6, 5, dtype=dtype, requires_grad=True)
    results = []
    for cached, rows, expected in ((1 << 40, 1, 7), (2 * 30 * 27, 1, 2), (1, 1, 1), (1, 3 * 30 // 4, 3)):
        monkeypatch.setattr(reference, "_CACHED_NUMBERS", cached)
        monkeypatch.setattr(reference, "_ROWS_OF_A_TILE", rows)
        matrices = len(layer.weight)
        if matrices == 4:
            assert min(reference._images_at_once(x, layer.weight, layer.geometry(6, 5)), 7) == expected
        with draws(layer, images=torch.arange(7)):
            output = layer(x)
        results.append([output, *_gradients(output, layer, x)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_near(two, one)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_layout_in_memory_gives_the_same(scheme: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for channels in (1, 3):
        layer = TiledConv2d(channels, 2, 3, padding=1, tiles=1 if scheme == "none" else 4, scheme=scheme).to(dtype)
        x = torch.randn(2, channels, 5, 6, dtype=dtype)
        with draws(layer, images=torch.arange(2)):
            expected = layer(x)
            wide = torch.randn(3, channels, 5, 12, dtype=dtype)
            wide[1:, :, :, ::2] = x
            layouts = [
                x.to(memory_format=torch.channels_last),
                wide[1:, :, :, ::2],
                x.transpose(2, 3).contiguous().transpose(2, 3),
                x[:, :1].expand(2, channels, 5, 6) if channels == 1 else x.flip(0).flip(0),
            ]
            for other in layouts:
                assert_near(layer(other), expected)
            same = x[:1].expand(2, -1, -1, -1)
            assert_near(layer(same), layer(same.contiguous()))
            target = torch.randn(2, 2, 5, 6, dtype=dtype)
            by_layout = [
                torch.autograd.grad(layer(x), layer.weight, gradient)[0]
                for gradient in (target, target.to(memory_format=torch.channels_last), target.flip(3).flip(3))
            ]
            assert_near(by_layout[1], by_layout[0])
            assert_near(by_layout[2], by_layout[0])
            everywhere = torch.ones(1, 1, 1, 1, dtype=dtype).expand(2, 2, 5, 6)
            assert_near(*(torch.autograd.grad(layer(x), layer.weight, g)[0] for g in (everywhere, everywhere.clone())))


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_image_needs_no_batch(scheme: str, dtype: torch.dtype) -> None:
    layer = TiledConv2d(3, 4, 3, tiles=1 if scheme == "none" else 4, scheme=scheme).to(dtype)
    x = torch.randn(3, 6, 7, dtype=dtype)
    with draws(layer, images=torch.tensor([3])):
        assert torch.equal(layer(x), layer(x[None])[0])
    assignment = torch.full((1, 20), 0)
    assert torch.equal(layer(x, assignment), layer(x[None], assignment)[0])


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_may_be_empty(scheme: str, dtype: torch.dtype) -> None:
    layer = TiledConv2d(3, 4, 3, tiles=1 if scheme == "none" else 4, scheme=scheme).to(dtype)
    x = torch.zeros(0, 3, 6, 7, dtype=dtype, requires_grad=True)
    output = layer(x)
    assert output.shape == nn.Conv2d(3, 4, 3)(torch.zeros(0, 3, 6, 7)).shape
    output.sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert x.grad.shape == x.shape
    assert not layer.weight.grad.any()


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("padding", [0, (1, 2), "same", "valid"])
@pytest.mark.parametrize("kernel", [3, (2, 3), (4, 1)])
@pytest.mark.parametrize("tiles", [1, 4])
def test_identical_tiles_are_torchs_layer(padding: int | tuple[int, int] | str, kernel: int, tiles: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, kernel, padding=padding, dilation=(1, 2))
    layer = TiledConv2d(3, 4, kernel, padding=padding, dilation=(1, 2), tiles=tiles)
    assert plain.bias is not None
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(plain.weight)
        layer.bias.copy_(plain.bias)
    x = torch.randn(2, 3, 7, 8)
    assert_near(layer(x), plain(x))


def test_bias_belongs_to_the_tile() -> None:
    layer = TiledConv2d(2, 3, 3, tiles=4)
    with torch.no_grad():
        layer.weight.zero_()
    assignment = layer.assign(2, (4, 4))
    assert layer.bias is not None
    expected = layer.bias[assignment].permute(0, 2, 1).reshape(2, 3, 4, 4)
    assert torch.equal(layer(torch.randn(2, 2, 6, 6), assignment), expected)


def test_perforated_skips_in_training_only() -> None:
    layer = TiledConv2d(2, 3, 3, padding=1, tiles=4, scheme="perforated")
    x = torch.randn(5, 2, 6, 6)
    with draws(layer, images=torch.arange(5)):
        output = layer(x)
        assignment = layer.assign(5, (6, 6)).view(5, 1, 6, 6)
    assert layer.bias is not None
    full = F.conv2d(x, layer.weight[0], layer.bias[0], padding=1)
    assert_near(output, torch.where(assignment == 0, full, 0))
    assert (output != 0).all(1).sum((1, 2)).tolist() == [9] * 5
    assert_near(layer.eval()(x), full)


def test_shapes_of_parameters() -> None:
    layer = TiledConv2d(3, 5, (2, 4), tiles=6)
    assert layer.weight.shape == (6, 5, 3, 2, 4)
    assert layer.bias is not None
    assert layer.bias.shape == (6, 5)
    single = TiledConv2d(3, 5, (2, 4), tiles=6, scheme="perforated", bias=False)
    assert single.weight.shape == (1, 5, 3, 2, 4)
    assert single.bias is None
    assert single.tiles == 6
    default = TiledConv2d(3, 5, 3)
    assert (default.tiles, default.scheme, default.stride, default.padding) == (1, "random", (1, 1), (0, 0))


def test_tiles_start_apart_with_the_fan_in_of_one_array() -> None:
    torch.manual_seed(3)
    layer = TiledConv2d(8, 16, 5, tiles=6)
    bound = 1 / math.sqrt(8 * 25)
    assert layer.bias is not None
    # Both are uniform within the bound, as the weights of torch's own layer are.
    for parameter in (layer.weight, layer.bias):
        assert float(parameter.detach().abs().max()) <= bound
        p = stats.kstest(parameter.detach().flatten().numpy(), "uniform", (-bound, 2 * bound)).pvalue
        assert p > SIGNIFICANCE
    plain = nn.Conv2d(8, 16, 5)
    assert float(layer.weight.detach().std()) == pytest.approx(float(plain.weight.detach().std()), rel=0.05)
    correlation = torch.corrcoef(layer.weight.detach().flatten(1))
    size = layer.weight[0].numel()
    for i in range(6):
        for j in range(i):
            assert 2 * stats.norm.sf(abs(float(correlation[i, j])) * math.sqrt(size)) > SIGNIFICANCE
    assert len(torch.unique(layer.bias)) == layer.bias.numel()


def test_starting_weights_come_from_torchs_generator() -> None:
    torch.manual_seed(1)
    one = TiledConv2d(2, 3, 3, tiles=2).state_dict()
    torch.manual_seed(1)
    other = TiledConv2d(2, 3, 3, tiles=2).state_dict()
    third = TiledConv2d(2, 3, 3, tiles=2).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(torch.equal(other[name], third[name]) for name in ("weight", "bias", "seed"))


@pytest.mark.parametrize("scheme", TILED)
def test_copies_and_saved_states_compute_the_same(scheme: str) -> None:
    torch.manual_seed(0)
    layer = TiledConv2d(2, 3, 3, padding=1, tiles=4, scheme=scheme)
    x = torch.randn(3, 2, 6, 6)
    layer(x)
    fresh = TiledConv2d(2, 3, 3, padding=1, tiles=4, scheme=scheme)
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    twin = copy.deepcopy(layer)
    assert set(layer.state_dict()) == {"weight", "bias", "seed", "calls"}
    expected = [layer(x) for _ in range(3)]
    for other in (fresh, twin):
        for result in expected:
            assert torch.equal(other(x), result)
    with torch.no_grad():
        twin.weight.zero_()
    assert layer.weight.any()


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_layers_move_to_other_types(scheme: str) -> None:
    torch.manual_seed(0)
    layer = TiledConv2d(2, 3, 3, tiles=1 if scheme == "none" else 4, scheme=scheme)
    x = torch.randn(2, 2, 6, 6)
    with draws(layer, images=torch.arange(2)):
        single = layer(x)
    double = copy.deepcopy(layer).double()
    assert (double.seed.dtype, double.calls.dtype) == (torch.int64, torch.int64)
    assert int(double.seed) == int(layer.seed)
    with draws(double, images=torch.arange(2)):
        found = double(x.double())
        half = double.bfloat16()(x.bfloat16())
    assert found.dtype == torch.float64
    assert_near(found.float(), single)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, r"^in_channels: got 0"),
        ({"in_channels": 1.5}, r"^in_channels: got 1\.5"),
        ({"out_channels": -1}, r"^out_channels: got -1"),
        ({"kernel_size": 0}, r"^kernel_size: got 0"),
        ({"kernel_size": 3.0}, r"^kernel_size: got 3\.0"),
        ({"kernel_size": (3, 3, 3)}, r"^kernel_size: got \(3, 3, 3\)"),
        ({"kernel_size": None}, r"^kernel_size: got None"),
        ({"stride": (1, 0)}, r"^stride: got \(1, 0\)"),
        ({"stride": 0.5}, r"^stride: got 0\.5"),
        ({"dilation": 0}, r"^dilation: got 0"),
        ({"padding": -1}, r"^padding: got -1"),
        ({"padding": "full"}, r"^padding: got 'full', allowed are numbers, 'same' and 'valid'$"),
        ({"padding": "same", "stride": 2}, r"^padding: 'same' needs stride 1$"),
        ({"tiles": 0}, r"^tiles: got 0, allowed are whole numbers from 1$"),
        ({"tiles": 2.0}, r"^tiles: got 2\.0, allowed are whole numbers from 1$"),
        ({"tiles": "4"}, r"^tiles: got '4', allowed are whole numbers from 1$"),
        ({"scheme": "randon"}, r"^scheme: there is no 'randon'; did you mean 'random'\?$"),
        ({"scheme": None}, r"^scheme: there is no 'None'"),
        ({"arrays": "ideal"}, r"^arrays: got 'ideal', allowed are None"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiledConv2d(**({"in_channels": 2, "out_channels": 3, "kernel_size": 3, "tiles": 4} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize("shape", [(6, 6), (2, 3, 6, 6), (1, 2, 2, 6, 6)])
def test_wrong_images_are_named(tiles: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^x: got shape \(.*\), allowed is \(B, 2, H, W\)"):
        TiledConv2d(2, 3, 3, tiles=tiles)(torch.zeros(shape))


def test_too_small_images_are_named() -> None:
    with pytest.raises(ValueError, match=r"^kernel_size: a kernel of \(3, 3\) .* does not fit into an input of 2 x 6"):
        TiledConv2d(2, 3, 3)(torch.zeros(1, 2, 2, 6))


@pytest.mark.parametrize(
    "assignment",
    [
        torch.zeros(2, 15, dtype=torch.int64),
        torch.zeros(1, 16, dtype=torch.int64),
        torch.zeros(2, 4, 4, dtype=torch.int64),
        torch.zeros(2, 16, dtype=torch.int32),
        torch.zeros(2, 16),
        torch.full((2, 16), 4),
        torch.full((2, 16), -2),
    ],
)
def test_wrong_assignments_are_named(assignment: Tensor) -> None:
    layer = TiledConv2d(2, 3, 3, tiles=4)
    with pytest.raises(ValueError, match=r"^assignment: "):
        layer(torch.zeros(2, 2, 6, 6), assignment)


def test_a_perforated_layer_has_one_matrix_to_assign_to() -> None:
    layer = TiledConv2d(2, 3, 3, tiles=4, scheme="perforated")
    with pytest.raises(ValueError, match=r"^assignment: values from 1 to 1, allowed are -1 to 0"):
        layer(torch.zeros(2, 2, 6, 6), torch.ones(2, 16, dtype=torch.int64))


@pytest.mark.parametrize("scheme", TILED)
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, dtype=torch.int64),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int32),
        torch.tensor([2**32]),
        -1,
    ],
)
def test_wrong_image_ids_are_named(scheme: str, images: int | Tensor) -> None:
    with pytest.raises(ValueError, match=r"^images: got "):
        TiledConv2d(2, 3, 3, tiles=4, scheme=scheme).assign(images, (4, 4))


def test_it_prints_its_arguments() -> None:
    text = repr(TiledConv2d(2, 3, (3, 1), padding="same", bias=False, tiles=4, scheme="alternate"))
    assert text == (
        "TiledConv2d(2, 3, kernel_size=(3, 1), stride=(1, 1), padding='same', dilation=(1, 1), bias=False, "
        "tiles=4, scheme='alternate')"
    )


def test_a_state_dictionary_holds_contiguous_tensors() -> None:
    layer, other = (TiledConv2d(3, 8, 5, tiles=4) for _ in range(2))
    state = layer.state_dict()
    assert all(tensor.is_contiguous() for tensor in state.values())
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    assert torch.equal(other.weight, layer.weight)
    assert other.weight.stride() == layer.weight.stride()


@pytest.mark.parametrize("tiles", [True, 2.0, "4", None])
def test_tiles_of_another_type_are_refused(tiles: Any) -> None:
    with pytest.raises(ValueError, match=r"^tiles: got"):
        TiledConv2d(3, 8, 5, tiles=tiles)
