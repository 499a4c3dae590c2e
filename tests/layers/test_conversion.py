"""Converting networks: the same function as before, the original untouched, and what is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision import models

from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.module import PulsedMatrices
from rapa_cli.analog.parameters import IOParameters
from rapa_cli.analog.presets import EcRam, Idealized
from rapa_cli.analog.steps import ConstantStepDevice
from rapa_cli.analysis.analog_time import balanced as of_plan
from rapa_cli.analysis.analog_time import costs
from rapa_cli.analysis.modules import layers_of_module
from rapa_cli.keyed import draws, keyed_layers
from rapa_cli.layers.conversion import balanced, convert, kept_whole
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.pooling import StochasticPool2d
from rapa_cli.tiling.arrays import AnyArrays, ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.training.sgd import AnalogSGD
from tests.tolerances import assert_near

SCHEMES = ["random", "random-fixed", "image-overlap", "alternate", "perforated"]


class Block(nn.Module):
    """A residual block, as users write them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, (1, 3), padding="same", dilation=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.second(torch.relu(self.norm(self.first(x))))
        return result


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, (1, 0)), nn.ReLU(), nn.Sequential(Block(8), nn.Identity()), nn.Flatten(), nn.LazyLinear(4)
    ).eval()


def _images() -> Tensor:
    return torch.randn(4, 3, 12, 11, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_converted_network_computes_the_same(scheme: str) -> None:
    network, x = _network(), _images()
    before = network(x)
    assert_near(convert(network, tiles=4, scheme=scheme)(x), before)


def test_the_original_stays_as_it_was() -> None:
    network, x = _network(), _images()
    expected, state = network(x), copy.deepcopy(network.state_dict())
    converted = convert(network, tiles=4)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    assert not any(isinstance(module, TiledConv2d) for module in network.modules())
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(network(x), expected)


def test_every_convolution_is_replaced_in_its_place() -> None:
    network = _network()
    network(_images())
    converted = convert(network, tiles=[1, 4, 9], scheme="alternate")
    plain = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    tiled = {name: layer for name, layer in converted.named_modules() if isinstance(layer, TiledConv2d)}
    assert list(tiled) == list(plain) == ["0", "2.0.first", "2.0.second"]
    assert [layer.tiles for layer in tiled.values()] == [1, 4, 9]
    assert [layer.index for layer in tiled.values()] == [0, 1, 2]
    for name, layer in tiled.items():
        source = plain[name]
        assert layer.scheme == "alternate"
        assert layer.training is source.training
        assert (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == (
            source.kernel_size,
            source.stride,
            source.padding,
            source.dilation,
        )
        assert all(torch.equal(kernel, source.weight) for kernel in layer.weight)
        assert (layer.bias is None) == (source.bias is None)
        if layer.bias is not None and source.bias is not None:
            assert all(torch.equal(bias, source.bias) for bias in layer.bias)
    kinds = [type(module) for module in network.modules() if not isinstance(module, nn.Conv2d)]
    assert [type(module) for module in converted.modules() if not isinstance(module, TiledConv2d)] == kinds


def test_tiles_are_trained_apart() -> None:
    converted = convert(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), tiles=4)
    layer = converted[0]  # type: ignore[index]
    converted(torch.randn(2, 1, 6, 6)).square().sum().backward()
    assert len(torch.unique(layer.weight.grad[:, 0, 0, 1, 1])) == 4


def test_a_convolution_is_a_network() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1).double()
    x = _images().double()
    converted = convert(layer, tiles=4)
    assert isinstance(converted, TiledConv2d)
    assert converted.weight.dtype == torch.float64
    assert_near(converted(x), layer(x))


def test_a_network_without_convolutions_is_copied() -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    converted = convert(network, tiles=4)
    assert isinstance(converted, nn.Sequential)
    assert converted[0] is not network[0]


def test_a_shared_convolution_stays_shared() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer))
    x = torch.randn(2, 4, 6, 6)
    converted = convert(network, tiles=[4])
    assert isinstance(converted, nn.Sequential)
    assert isinstance(converted[0], TiledConv2d)
    assert converted.get_submodule("2.0") is converted[0]
    assert_near(converted(x), network(x))


def test_frozen_weights_stay_frozen() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, bias=False))
    network[0].requires_grad_(False)
    assert network[1].bias is not None
    network[1].bias.requires_grad_(False)
    converted = convert(network, tiles=4)
    wanted = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in converted.named_parameters()} == wanted


def test_stochastic_layers_are_counted_with_the_convolutions() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), StochasticPool2d(2, 2), nn.Conv2d(4, 4, 1))
    converted = convert(network, tiles=2)
    assert [layer.index for layer in keyed_layers(converted)] == [0, 1, 2]
    x, ids = _images(), torch.arange(4)
    with draws(converted, images=ids, draw=1):
        found = converted(x)
    with draws(network, images=ids, draw=1):
        # The pooling's place among the layers is another one, and so is its draw.
        assert not torch.equal(network(x), found)


class Scaled(nn.Conv2d):
    """A convolution with a product of its own, as with standardised weights."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(input, self.weight / self.weight.norm(), self.bias)
        return result


class Kept(nn.Conv2d):
    """A convolution of a derived class that computes as all do."""


def _hooked() -> nn.Conv2d:
    layer = nn.Conv2d(4, 4, 3)
    layer.register_forward_hook(lambda *_: None)
    return layer


WHOLE = [
    (lambda: nn.Conv2d(4, 8, 3, groups=2), "has 2 groups"),
    (lambda: nn.Conv2d(4, 4, 3, groups=4), "has 4 groups"),
    (lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "has weights that are made from others"),
    (lambda: Scaled(4, 4, 3), "is a Scaled with a product of its own"),
    (_hooked, "has hooks"),
]


@pytest.mark.parametrize(("layer", "message"), WHOLE)
def test_what_cannot_be_tiled_is_refused_by_name(layer: Callable[[], nn.Module], message: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ModuleDict({"depth": layer()}))
    with pytest.raises(ValueError, match=rf"^module: convolution '1\.depth' {message}, and cannot be put on 2 tiles$"):
        convert(network, tiles=2)
    with pytest.raises(ValueError, match=rf"^module: convolution '1\.depth' {message}, and cannot be put on arrays$"):
        convert(network, tiles=1, arrays=EXACT)


@pytest.mark.parametrize(("layer", "message"), WHOLE)
def test_what_cannot_be_tiled_stays_where_it_has_one_tile(layer: Callable[[], nn.Module], message: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layer())
    converted = convert(network, tiles=[4, 1])
    assert isinstance(converted.get_submodule("0"), TiledConv2d)
    assert type(converted.get_submodule("1")) is type(network[1])
    assert_near(converted(_images()), network(_images()))


def test_a_convolution_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^module: convolution '0' has no weights yet, and cannot be put on 4 tiles$"):
        convert(nn.Sequential(nn.LazyConv2d(4, 3)), tiles=4)


def test_a_derived_class_that_computes_alike_is_tiled() -> None:
    network = nn.Sequential(Kept(3, 4, 3))
    converted = convert(network, tiles=4)
    assert isinstance(converted.get_submodule("0"), TiledConv2d)
    assert_near(converted(_images()), network(_images()))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=30, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 3), st.integers(0, 3))),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    tiles=st.sampled_from([1, 4]),
    scheme=st.sampled_from(SCHEMES),
)
def test_every_kind_of_convolution_computes_the_same(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: str | tuple[int, int],
    mode: str,
    bias: bool,
    tiles: int,
    scheme: str,
) -> None:
    stride = (1, 1) if padding == "same" else stride
    layer = nn.Conv2d(3, 5, kernel, stride, padding, dilation, bias=bias, padding_mode=mode)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 12, 13)
    expected = layer(x)
    converted = convert(layer.eval(), tiles=tiles, scheme=scheme)
    assert isinstance(converted, TiledConv2d)
    geometry = converted.geometry(12, 13)
    assert (geometry.out_height, geometry.out_width) == expected.shape[2:]
    assert_near(converted(x), expected)


@pytest.mark.parametrize("arrays", [None, "exact"])
def test_the_border_of_other_paddings_is_trained_through(arrays: str | None) -> None:
    layer = nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect")
    converted = convert(layer, tiles=4, arrays=None if arrays is None else EXACT)
    x = torch.randn(2, 2, 6, 6)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(first).square().sum().backward()
    torch.autograd.backward(converted(second).square().sum())
    assert first.grad is not None
    assert second.grad is not None
    assert_near(second.grad, first.grad)


def test_a_padding_mode_that_regions_do_not_have_is_refused() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match=r"^module: convolution '' has padding_mode='circular', while scheme"):
        convert(layer, tiles=4, scheme="image-pad")
    with pytest.raises(ValueError, match=r"^padding_mode: got 'circular', but scheme 'image-pad'"):
        TiledConv2d(2, 3, 3, tiles=4, scheme="image-pad", padding_mode="circular")
    with pytest.raises(ValueError, match=r"^padding_mode: got 'mirror', allowed are zeros, reflect, replicate, circ"):
        TiledConv2d(2, 3, 3, padding_mode="mirror")  # type: ignore[arg-type]


def test_balanced_tiles_are_those_of_the_plan() -> None:
    network = _network()
    network(_images())
    # 12 x 11 pixels become 6 x 5 and stay so.
    assert balanced(network, (3, 12, 11)) == {"0": 1, "2.0.first": 1, "2.0.second": 1}
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1)
    )
    network.append(nn.Conv2d(4, 8, 1))
    found = layers_of_module(network, (3, 20, 16))
    wanted = dict(zip((layer.name for layer in found.convolutions), of_plan(found.convolutions), strict=True))
    assert balanced(network, (3, 20, 16)) == wanted == {"0": 16, "2": 1}
    assert balanced(network, (3, 20, 16), "none") == {"0": 1, "2": 1}
    assert balanced(nn.Sequential(nn.Flatten()), (3, 20, 16)) == {}
    converted = convert(network, shape=(3, 20, 16))
    tiled = {name: layer.tiles for name, layer in converted.named_modules() if isinstance(layer, TiledConv2d)}
    assert tiled == {"0": 16, "2": 1, "4": 1}
    x = torch.rand(2, 3, 20, 16)
    assert_near(converted(x), network(x))


def test_tiles_by_name() -> None:
    network = classifier()
    converted = convert(network, tiles={"2.0.second": 4})
    tiled = {name: layer.tiles for name, layer in converted.named_modules() if isinstance(layer, TiledConv2d)}
    assert tiled == {"0": 1, "2.0.first": 1, "2.0.second": 4}
    with pytest.raises(ValueError, match=r"^tiles: there is no convolution '2\.0\.secnd'; did you mean '2\.0\.second'"):
        convert(network, tiles={"2.0.secnd": 4})


def test_balanced_tiles_need_a_size() -> None:
    with pytest.raises(ValueError, match=r"^tiles: balanced ones depend on the size of the images; give shape="):
        convert(classifier())
    with pytest.raises(ValueError, match=r"^the network cannot take an image of 1 x 12 x 11: "):
        convert(classifier(), shape=(1, 12, 11))
    with pytest.raises(ValueError, match=r"^tiles: got 'many', allowed are 'auto' and numbers$"):
        convert(classifier(), tiles="many")  # type: ignore[arg-type]
    assert isinstance(convert(nn.Linear(2, 3)), nn.Linear)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 40),
        ("squeezenet1_1", 64),
        ("densenet121", 32),
        # 130 million weights.
        pytest.param("vgg11_bn", 32, marks=pytest.mark.slow),
        pytest.param("alexnet", 224, marks=pytest.mark.slow),
    ],
)
def test_networks_of_torchvision_compute_the_same(name: str, side: int) -> None:
    torch.manual_seed(0)
    network = models.get_model(name, num_classes=5).eval()
    x = torch.rand(2, 3, side, side)
    converted = convert(network, shape=(3, side, side))
    layers = [layer for layer in converted.modules() if isinstance(layer, TiledConv2d)]
    assert max(layer.tiles for layer in layers) > 1
    assert not any(type(layer) is nn.Conv2d for layer in converted.modules())
    with torch.no_grad():
        assert_near(converted(x), network(x))


def test_depthwise_convolutions_of_torchvision_stay_where_the_rest_is_tiled() -> None:
    network = models.get_model("mobilenet_v2", num_classes=5).eval()
    shape = (3, 32, 32)
    whole = {name for name, layer in network.named_modules() if getattr(layer, "groups", 1) > 1}
    tiles = balanced(network, shape)
    assert {count for name, count in tiles.items() if name in whole} == {1}
    assert tiles["features.0.0"] == 64
    converted = convert(network, shape=shape)
    kept = {name for name, layer in converted.named_modules() if type(layer) is nn.Conv2d}
    assert kept == whole == set(kept_whole(network, "random"))
    with pytest.raises(
        ValueError, match=r"^module: convolution 'features\.1\.conv\.0\.0' has 32 groups, and cannot be"
    ):
        convert(network, tiles=tiles | {"features.1.conv.0.0": 64})
    x = torch.rand(2, *shape)
    with torch.no_grad():
        assert_near(converted(x), network(x))


@pytest.mark.parametrize(("layer", "message"), WHOLE)
def test_balanced_tiles_are_one_where_there_can_be_no_more(layer: Callable[[], nn.Module], message: str) -> None:
    whole = layer()
    assert isinstance(whole, nn.Conv2d)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), whole, nn.MaxPool2d(4), nn.Conv2d(whole.out_channels, 4, 1))
    # 12 x 11 pixels, then 10 x 9, then 2 x 2; what has one tile is in the plan too, with its reason.
    assert balanced(network, (3, 12, 11)) == {"0": 33, "1": 1, "3": 1}
    found = layers_of_module(network, (3, 12, 11)).convolutions
    assert of_plan(found) == (33, 1, 1)
    assert [one.whole for one in found] == [None, message, None]
    with pytest.raises(ValueError, match=f"^tiles: 1 {message}, and cannot be put on 2 tiles$"):
        costs(found, (33, 2, 1))
    x = torch.rand(2, 3, 12, 11)
    assert_near(convert(network, shape=(3, 12, 11))(x), network(x))


def _tied() -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=4))
    network[1].weight = network[0].weight
    return network


def test_tied_weights_stay_tied_or_are_refused() -> None:
    network, reason = _tied(), "has weights that another layer holds too"
    with pytest.raises(ValueError, match=f"^module: convolution '0' {reason}, and cannot be put on 4 tiles$"):
        convert(network, tiles=4)
    with pytest.raises(ValueError, match=f"^module: convolution '0' {reason}, and cannot be put on arrays$"):
        convert(network, tiles=1, arrays=EXACT)
    for converted in (
        convert(network, tiles=[1, 1, 4]),
        convert(network, shape=(4, 16, 16)),
        convert(network, tiles=1),
    ):
        first, second = converted.get_submodule("0"), converted.get_submodule("1")
        assert first.weight is second.weight
        assert isinstance(converted.get_submodule("2"), TiledConv2d)
    assert balanced(network, (4, 16, 16)) == {"0": 1, "1": 1, "2": 1}
    linear = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    linear[1].weight = linear[0].weight
    with pytest.raises(ValueError, match=f"^module: linear layer '0' {reason}, and cannot be put on arrays$"):
        convert(linear, arrays=EXACT)


@pytest.mark.parametrize(
    ("module", "tiles", "message"),
    [
        (TiledConv2d(2, 3, 3, tiles=4), 9, r"^tiles: got 9, but all convolutions are tiled or compiled already$"),
        (nn.Conv2d(2, 3, 3), 2.0, r"^tiles: got 2\.0, allowed are 'auto' and whole numbers$"),
    ],
)
def test_tiles_for_nothing_are_refused(module: nn.Module, tiles: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(module, tiles=tiles)


def test_two_schemes_compute_otherwise() -> None:
    """As the docstring has it: regions of image-pad end in zeros, and perforated leaves patches out in training."""
    layer, x = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False), torch.rand(2, 3, 12, 12)
    for scheme in ("random", "random-fixed", "image-overlap", "alternate"):
        assert_near(convert(layer, tiles=4, scheme=scheme).train()(x), layer(x))
    padded, perforated = convert(layer, tiles=4, scheme="image-pad"), convert(layer, tiles=4, scheme="perforated")
    assert float((padded(x) - layer(x)).abs().max()) > 0.01
    assert float((perforated.train()(x) - layer(x)).abs().max()) > 0.01
    assert_near(perforated.eval()(x), layer(x))


@pytest.mark.parametrize(
    ("tiles", "scheme", "message"),
    [
        ([4, 4], "random", r"^tiles: got 2 numbers for 3 convolutions \(0, 2\.0\.first, 2\.0\.second\)$"),
        ([], "random", r"^tiles: got 0 numbers"),
        ([4, 5, 4], "alternate", r"^tiles: got 5, but scheme 'alternate' needs a square number \(4, 9"),
        (0, "random", r"^tiles: got 0"),
        (4, "rand", r"^scheme: there is no 'rand'"),
        (4, "none", r"^tiles: got 4, but scheme 'none' has one tile"),
    ],
)
def test_wrong_tiles_are_refused(tiles: int | list[int], scheme: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(_network(), tiles=tiles, scheme=scheme)


PERFECT = IOParameters(is_perfect=True)
EXACT = Arrays(device=IdealDevice(), forward=PERFECT, backward=PERFECT)
AWARE = InferenceArrays(forward=PERFECT, weight_scaling_omega=1.0)
# Exact up to its bounds, +-0.05.
NARROW = EXACT.model_copy(
    update={"device": ConstantStepDevice(w_max=0.05, w_min=-0.05, w_max_dtod=0.0, w_min_dtod=0.0)}
)


def classifier() -> nn.Sequential:
    network = _network()
    network(_images())
    return network


@pytest.mark.parametrize("arrays", [EXACT, AWARE], ids=["pulsed", "inference"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_network_on_perfect_arrays_computes_the_same(arrays: AnyArrays, scheme: str) -> None:
    network, x = classifier(), _images()
    converted = convert(network, tiles=4, scheme=scheme, arrays=arrays)
    assert_near(converted(x), network(x))
    layers = {name: layer for name, layer in converted.named_modules() if isinstance(layer, ArrayLayer)}
    assert {name: type(layer) for name, layer in layers.items()} == {
        **dict.fromkeys(("0", "2.0.first", "2.0.second"), TiledConv2d),
        "4": AnalogLinear,
    }
    assert all(layer.arrays is arrays and not layer.training for layer in layers.values())
    assert [layer.index for layer in layers.values()] == [0, 1, 2, 3]
    assert type(network[4]) is nn.Linear


def test_weights_on_devices_stay_within_their_bounds() -> None:
    network = classifier()
    converted = convert(network, arrays=NARROW)
    for name in ("0", "2.0.first", "2.0.second", "4"):
        source, layer = network.get_submodule(name), converted.get_submodule(name)
        assert isinstance(source, nn.Conv2d | nn.Linear)
        assert isinstance(layer, ArrayLayer)
        assert bool((source.weight.abs() > 0.05).any())
        for before, after in ((source.weight, layer.weight), (source.bias, layer.bias)):
            assert (before is None) == (after is None)
            if before is not None and after is not None:
                assert_near(after.reshape(before.shape), before.clamp(-0.05, 0.05))


def test_a_converted_network_learns_on_its_arrays() -> None:
    torch.manual_seed(0)
    network = convert(classifier(), tiles=4, arrays=Idealized())
    sgd, x = AnalogSGD(network, lr=0.05), _images()
    losses = []
    for _ in range(20):
        sgd.zero_grad()
        loss = nn.functional.cross_entropy(network(x), torch.arange(4))
        losses.append(float(loss.detach()))
        torch.autograd.backward(loss)
        sgd.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tiles_go_onto_arrays_as_they_are(scheme: str) -> None:
    tiled = nn.Sequential(TiledConv2d(3, 4, 3, tiles=4, scheme=scheme), TiledConv2d(4, 4, 3, arrays=EXACT))
    converted = convert(tiled, arrays=AWARE)
    first, second = converted.get_submodule("0"), converted.get_submodule("1")
    assert isinstance(first, TiledConv2d)
    assert isinstance(second, TiledConv2d)
    assert (first.arrays, first.tiles, first.scheme, second.arrays) == (AWARE, 4, scheme, EXACT)
    x, ids = _images(), torch.arange(4)
    with draws(tiled, images=ids), draws(converted, images=ids):
        assert_near(converted(x), tiled(x))


def test_what_was_frozen_stays_so_on_arrays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3).requires_grad_(False), nn.Flatten(), nn.Linear(2, 3).double())
    for arrays in (EXACT, AWARE):
        converted = convert(network, arrays=arrays)
        assert [p.requires_grad for p in converted[0].parameters()] == [False] * (1 if arrays is EXACT else 2)  # type: ignore[index]
        assert all(p.requires_grad for p in converted[2].parameters())  # type: ignore[index]
        assert converted[2].weight.dtype == torch.float64  # type: ignore[index]
    assert isinstance(convert(nn.Linear(2, 3), arrays=EXACT).matrices, PulsedMatrices)


def test_a_shared_linear_layer_stays_shared() -> None:
    layer = nn.Linear(3, 3)
    converted = convert(nn.Sequential(layer, nn.ReLU(), layer), arrays=EXACT)
    assert isinstance(converted.get_submodule("0"), AnalogLinear)
    assert converted.get_submodule("0") is converted.get_submodule("2")


def test_linear_layers_with_a_use_of_their_own_stay() -> None:
    attention = nn.MultiheadAttention(4, 2)
    converted = convert(nn.ModuleDict({"attention": attention, "out": nn.Linear(4, 2)}), arrays=EXACT)
    assert isinstance(converted.get_submodule("out"), AnalogLinear)
    assert type(converted.get_submodule("attention.out_proj")) is type(attention.out_proj)


def test_what_cannot_go_onto_arrays_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^module: linear layer '4' has no weights yet; give the network a batch"):
        convert(_network(), arrays=EXACT)
    with pytest.raises(ValueError, match=r"^arrays: got the preset EcRam itself, .*: arrays=EcRam\(\)$"):
        convert(nn.Linear(2, 3), arrays=EcRam)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (EcRam, r"^arrays: got the preset EcRam itself, allowed are the arrays it makes: arrays=EcRam\(\)$"),
        ("EcRam", r"^arrays: got 'EcRam', allowed are None .*; those of the preset: arrays=preset\('EcRam'\)$"),
        ("EcRum", r"^arrays: got 'EcRum', allowed are None \(ideal arrays\), Arrays and InferenceArrays$"),
        (lambda: EXACT, r"^arrays: got <function .*> itself, allowed are the arrays it makes: call it$"),
        (3, r"^arrays: got 3, allowed are None"),
    ],
)
def test_layers_say_what_arrays_may_be(arrays: AnyArrays, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiledConv2d(2, 3, 3, arrays=arrays)
    with pytest.raises(ValueError, match=message):
        AnalogLinear(2, 3, arrays=arrays)
