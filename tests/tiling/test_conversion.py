"""Converting networks: the same function as before, the original untouched, and what is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.module import PulsedMatrices
from rapa_cli.analog.parameters import IOParameters
from rapa_cli.analog.presets import EcRam, Idealized
from rapa_cli.analog.steps import ConstantStepDevice
from rapa_cli.keyed import draws, keyed_layers
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.pooling import StochasticPool2d
from rapa_cli.tiling.arrays import AnyArrays, ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.conversion import convert
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


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), r"convolution '1\.depth' has groups=2 and padding_mode='zeros'"),
        (
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            r"convolution '1\.depth' has groups=1 and padding_mode='reflect'",
        ),
    ],
)
def test_what_cannot_be_tiled_is_refused_by_name(layer: nn.Module, message: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ModuleDict({"depth": layer}))
    with pytest.raises(ValueError, match=rf"^module: {message}, supported are groups=1 and padding_mode='zeros'$"):
        convert(network, tiles=2)


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
