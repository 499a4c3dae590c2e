"""Analog time: the paper's figures, tiles against the assignments that schemes make, tilings against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import models

from rapa_cli import config
from rapa_cli.analysis import balancing, hardware
from rapa_cli.analysis.analog_time import (
    Layer,
    acceleration,
    acceleration_sequential,
    balanced,
    costs,
    largest_tile,
    layer_costs,
    layers_of,
    widened,
    widened_linear,
)
from rapa_cli.analysis.hardware import SOURCES, Hardware
from rapa_cli.analysis.modules import layers_of_module
from rapa_cli.analysis.planning import find, plan, tiles_for_arrays
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.layers.network import build, patches_per_layer, resolve
from rapa_cli.tiling.conv import TiledConv2d

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)
SCHEMES: tuple[str, ...] = config.SchemeName.__args__  # type: ignore[attr-defined]
SQUARE = ("image-overlap", "image-pad", "alternate")


def layer(height: int, width: int = 1, name: str = "conv") -> Layer:
    return Layer(name, height, width, (3, 3), 4, 8)


def full(scheme: str = "random", tiles: Sequence[int] | None = None) -> config.Network:
    return resolve(config.load_network("full"), CIFAR, scheme=scheme, tiles=tiles)


def test_the_papers_network() -> None:
    found = layer_costs(full(), CIFAR)
    assert [cost.name for cost in found] == ["conv1", "conv2", "conv3"]
    assert [cost.n_p for cost in found] == [1024, 256, 64]
    assert [cost.k for cost in found] == [75, 800, 800]
    assert [cost.c_out for cost in found] == [32, 32, 64]
    assert [cost.tiles for cost in found] == [16, 4, 1]
    assert [cost.array_cycles for cost in found] == [64, 64, 64], "perfect balance"
    assert acceleration(found) == 16
    assert acceleration_sequential(found) == (1024 + 256 + 64) / (3 * 64)
    macs = [cost.macs for cost in found]
    assert macs == [1024 * 75 * 32, 256 * 800 * 32, 64 * 800 * 64]
    assert max(macs) == macs[1], "compute peaks at the second layer, time at the first (figure 1)"
    assert plan(*layers_of(config.load_network("full"), CIFAR)).idle_arrays == 0


def test_128_times_as_fast_with_more_tiles() -> None:
    assert acceleration(layer_costs(full(tiles=(128, 32, 8)), CIFAR)) == 128


@pytest.mark.parametrize("name", ["alexnet", "torchvision:alexnet"])
def test_alexnet_as_the_paper_has_it(name: str) -> None:
    subject = find(name)
    assert subject.shape == IMAGENET
    found = plan(subject.convolutions, subject.linear)
    assert [cost.n_p for cost in found.layers] == [3025, 729, 169, 169, 169]
    assert [cost.tiles for cost in found.layers] == [17, 4, 1, 1, 1]
    assert [cost.array_cycles for cost in found.layers] == [178, 183, 169, 169, 169]
    assert round(found.acceleration, 1) == 16.5
    assert found.bottleneck.name == found.layers[1].name
    assert [found.utilisation(cost) for cost in found.layers[:2]] == [178 / 183, 1]
    busy = (3025 + 729 + 3 * 169) / 183
    assert found.idle_arrays == pytest.approx(24 - busy)


def test_images_of_227_pixels_without_padding_give_the_same_patches() -> None:
    definition = config.load_network("alexnet")
    first = definition.layers[0].model_copy(update={"padding": 0})
    unpadded = definition.model_copy(update={"layers": (first, *definition.layers[1:])})
    assert patches_per_layer(unpadded, (3, 227, 227)) == patches_per_layer(definition, IMAGENET)


def test_an_open_definition_is_resolved() -> None:
    untiled = layer_costs(config.load_network("full"), CIFAR)
    assert [cost.tiles for cost in untiled] == [1, 1, 1]
    assert [cost.array_cycles for cost in untiled] == [cost.n_p for cost in untiled]
    assert acceleration(untiled) == acceleration_sequential(untiled) == 1


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "none"])
@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 9), width=st.integers(1, 9), data=st.data())
def test_the_largest_tile_is_that_of_the_assignment(scheme: str, height: int, width: int, data: st.DataObject) -> None:
    if scheme in SQUARE:
        tiles = data.draw(st.integers(1, math.isqrt(height * width))) ** 2
    else:
        tiles = data.draw(st.integers(1, height * width))
    conv = TiledConv2d(1, 1, 1, tiles=tiles, scheme=scheme).train()
    assignment = conv.assign(3, (height, width))
    sizes = [torch.bincount(image[image >= 0], minlength=1) for image in assignment]
    expected = largest_tile(layer(height, width), tiles, scheme)
    # Which part of a balanced partition is computed changes, and one may be smaller by a patch.
    smaller = {expected - 1} if scheme == "perforated" else set()
    assert {int(size.max()) for size in sizes} <= {expected} | smaller


def test_only_computed_patches_of_perforated_count() -> None:
    found = layer_costs(full("perforated"), CIFAR)
    assert [(cost.matrices, cost.array_cycles, cost.computed) for cost in found] == [(1, 64, 64)] * 3
    assert [cost.macs for cost in found] == [64 * 75 * 32, 64 * 800 * 32, 64 * 800 * 64]
    assert [cost.n_p for cost in found] == [1024, 256, 64]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_balanced_tiles_are_those_of_training(scheme: str) -> None:
    convolutions, _ = layers_of(config.load_network("alexnet"), IMAGENET)
    assert balanced(convolutions, scheme) == resolve(config.load_network("alexnet"), IMAGENET, scheme=scheme).tiles


def test_weights_are_those_that_the_network_has() -> None:
    definition = full()
    network = build(definition, CIFAR, 10)
    convolutions, linear = layers_of(definition, CIFAR, 10)
    for cost, module in zip(
        [*costs(convolutions, (16, 4, 1)), *costs(linear, (1,))],
        [*(network.get_submodule(f"conv{number}") for number in (1, 2, 3)), network.get_submodule("linear1")],
        strict=True,
    ):
        assert cost.weights == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("tiles", "scheme", "message"),
    [
        ((1,), "random", "got 1 numbers (1) for 2 convolutions"),
        ((1, 2, 3), "random", "got 3 numbers (1,2,3) for 2 convolutions"),
        ((11, 1), "random", "first got 11 tiles, but its output has only 10 patches"),
        ((1, 3), "alternate", "second: tiles: got 3, but scheme 'alternate' needs a square number"),
        ((2, 1), "none", "first: tiles: got 2, but scheme 'none' has one tile"),
        ((0, 1), "random", "first: tiles: got 0, allowed are whole numbers from 1"),
    ],
)
def test_tiles_that_do_not_fit(tiles: Sequence[int], scheme: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        costs([layer(10, name="first"), layer(5, name="second")], tiles, scheme)
    assert message in caught.value.message


# Tilings.

few_layers = st.lists(st.integers(1, 12), min_size=1, max_size=3).map(lambda sizes: [layer(size) for size in sizes])


def every_tiling(layers: Sequence[Layer]) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*(range(1, one.n_p + 1) for one in layers))


def speed(layers: Sequence[Layer], tiles: Sequence[int]) -> Fraction:
    slowest = max(-(-one.n_p // count) for one, count in zip(layers, tiles, strict=True))
    return Fraction(max(one.n_p for one in layers), slowest)


@settings(deadline=None)
@given(layers=few_layers, wanted=st.fractions(1, 12))
def test_the_fewest_arrays_for_an_acceleration(layers: list[Layer], wanted: Fraction) -> None:
    reaching = [tiles for tiles in every_tiling(layers) if speed(layers, tiles) >= wanted]
    if not reaching:
        with pytest.raises(ConfigError, match="is not possible"):
            balancing.for_acceleration(layers, wanted)
        return
    found = balancing.for_acceleration(layers, wanted)
    assert speed(layers, found) >= wanted
    assert sum(found) == min(map(sum, reaching))


@settings(deadline=None)
@given(layers=few_layers, budget=st.integers(1, 40), data=st.data())
def test_the_best_acceleration_for_a_number_of_arrays(layers: list[Layer], budget: int, data: st.DataObject) -> None:
    each = data.draw(st.lists(st.integers(1, 3), min_size=len(layers), max_size=len(layers)))

    def needed(tiles: Sequence[int]) -> int:
        return sum(count * size for count, size in zip(tiles, each, strict=True))

    fitting = [tiles for tiles in every_tiling(layers) if needed(tiles) <= budget]
    if not fitting:
        with pytest.raises(ConfigError, match="too few"):
            balancing.for_arrays(layers, budget, arrays=each)
        return
    best = max(speed(layers, tiles) for tiles in fitting)
    found = balancing.for_arrays(layers, budget, arrays=each)
    assert speed(layers, found) == best
    assert needed(found) == min(needed(tiles) for tiles in fitting if speed(layers, tiles) == best)


@settings(deadline=None)
@given(height=st.integers(1, 30), width=st.integers(1, 30), cycles=st.integers(1, 900), scheme=st.sampled_from(SQUARE))
def test_the_fewest_squares(height: int, width: int, cycles: int, scheme: str) -> None:
    one = layer(height, width)
    squares = (q * q for q in itertools.count(1))
    assert balancing.fewest_tiles(one, cycles, scheme) == next(
        tiles for tiles in squares if largest_tile(one, tiles, scheme) <= cycles
    )


def test_square_tilings_never_have_more_tiles_than_patches() -> None:
    flat = [layer(2, 50)]
    # 50 by 50 regions would give each patch an array, but most of them would have nothing to compute.
    (tiles,) = balancing.for_arrays(flat, 5000, "alternate")
    assert tiles == 100
    assert costs(flat, (tiles,), "alternate")[0].array_cycles == 5


@pytest.mark.parametrize(("wanted", "tiles"), [(16, (16, 4, 1)), (32, (32, 8, 2)), (17, (18, 5, 2)), (1, (1, 1, 1))])
def test_tilings_of_the_papers_network(wanted: int, tiles: tuple[int, ...]) -> None:
    convolutions, _ = layers_of(config.load_network("full"), CIFAR)
    assert balancing.for_acceleration(convolutions, wanted) == tiles
    assert balancing.for_arrays(convolutions, sum(tiles)) == tiles


@pytest.mark.parametrize("wanted", [0.5, -1, 0, float("nan"), float("inf"), 1025])
def test_accelerations_that_no_tiling_has(wanted: float) -> None:
    convolutions, _ = layers_of(config.load_network("full"), CIFAR)
    with pytest.raises(ConfigError, match="is not possible"):
        balancing.for_acceleration(convolutions, wanted)


# Hardware.


def test_time_is_operations() -> None:
    found = plan(*layers_of(config.load_network("full"), CIFAR), figures=Hardware(integration_ns=100))
    assert found.interval == pytest.approx(64 * 0.1)
    assert found.latency == pytest.approx((3 * 64 + 1) * 0.1), "the linear layer takes one operation"


def test_energy_by_hand() -> None:
    one = costs([layer(10)], (1,))
    figures = Hardware(dac_pj=2, adc_pj=3, device_fj=5)
    found = hardware.energy(one, figures)
    assert found.dac == pytest.approx(10 * 37 * 2e-3), "36 weights of a filter and the bias"
    assert found.adc == pytest.approx(10 * 8 * 3e-3)
    assert found.devices == pytest.approx(10 * 37 * 8 * 5e-6)
    assert found.total == pytest.approx(found.dac + found.adc + found.devices)


def test_tiles_cost_no_energy() -> None:
    layers = layers_of(config.load_network("full"), CIFAR)
    assert plan(*layers, tiles=(1, 1, 1)).energy == plan(*layers, tiles=(128, 32, 8)).energy


@settings(deadline=None)
@given(rows=st.integers(1, 50), columns=st.integers(1, 12), groups=st.sampled_from([1, 2, 4]), bias=st.booleans())
def test_cut_matrices_against_counting(rows: int, columns: int, groups: int, bias: bool) -> None:
    one = costs([Layer("conv", 10, 1, (3, 3), 4, 8, groups, bias)], (1,))
    figures = Hardware(dac_pj=1e3, adc_pj=1e3, device_fj=0, rows=rows, columns=columns)
    arrays = dac = adc = 0
    for _ in range(groups):
        for row in range(0, 9 * 4 // groups + bias, rows):
            for column in range(0, 8 // groups, columns):
                arrays += 1
                dac += 10 * min(rows, 9 * 4 // groups + bias - row)
                adc += 10 * min(columns, 8 // groups - column)
    assert hardware.arrays(one, figures) == arrays
    found = hardware.energy(one, figures)
    assert (found.dac, found.adc) == pytest.approx((dac, adc))


def test_arrays_of_a_limited_size_change_no_time_but_the_budget() -> None:
    layers, linear = layers_of(config.load_network("full"), CIFAR)
    cut = Hardware(rows=256, columns=32)
    found = plan(layers, linear, (16, 4, 1), figures=cut)
    assert [hardware.arrays_per_tile(cost, cut) for cost in found.layers] == [1, 4, 8]
    assert found.arrays == 16 + 4 * 4 + 8
    assert found.acceleration == 16
    assert tiles_for_arrays(layers, 40, "random", cut) == (16, 4, 1)
    assert tiles_for_arrays(layers, 39, "random", cut) < (16, 4, 1)


def test_every_default_has_a_source() -> None:
    assert SOURCES.keys() == {name for name, value in vars(Hardware()).items() if value is not None}


# Free width.


def test_wider_networks_take_as_long() -> None:
    layers = layers_of(config.load_network("full"), CIFAR)
    before = plan(*layers)
    after = plan(widened(layers[0], 2, 9), widened_linear(layers[1], 2))
    assert [cost.array_cycles for cost in after.layers] == [cost.array_cycles for cost in before.layers]
    assert (after.interval, after.latency) == (before.interval, before.latency)
    assert [cost.k for cost in after.layers] == [81 * 3, 81 * 64, 81 * 64]
    assert after.macs > 10 * before.macs
    assert after.weights > 10 * before.weights


def test_widened_layers_are_those_of_the_wider_network() -> None:
    definition = config.load_network("alexnet")
    wider = []
    for one in definition.layers:
        if isinstance(one, config.Conv):
            one = one.model_copy(  # noqa: PLW2901
                update={"channels": 3 * one.channels, "kernel": 5, "padding": one.padding + (5 - one.kernel) // 2}
            )
        wider.append(one)
    # Padding cannot be negative, so that images grow instead.
    wider[0] = wider[0].model_copy(update={"padding": 0})
    expected = layers_of(definition.model_copy(update={"layers": tuple(wider)}), (3, 223, 223))
    convolutions, linear = layers_of(definition, IMAGENET)
    got = widened(convolutions, 3, 5)
    sized = [replace(one, height=two.height, width=two.width) for one, two in zip(expected[0], got, strict=True)]
    assert got[1:] == sized[1:]
    assert (got[0].k, got[0].c_out) == (expected[0][0].k, expected[0][0].c_out)
    assert widened_linear(linear, 3)[0].k == 3 * linear[0].k
    assert widened_linear(linear, 3)[1:] == linear[1:]


def test_depthwise_convolutions_stay_depthwise() -> None:
    found = widened(find("torchvision:mobilenet_v2").convolutions, 2, 5)
    depthwise = [one for one in found if one.groups > 1]
    assert depthwise
    assert all(one.groups == one.c_in == one.c_out and one.k == 25 for one in depthwise)
    assert any(one.kernel == (1, 1) for one in found), "those that mix channels only stay as they are"


# Any network.


def test_layers_of_a_module_are_those_of_its_definition() -> None:
    definition = full()
    network = build(definition, CIFAR, 10).train()
    found = layers_of_module(network, CIFAR)
    convolutions, linear = layers_of(definition, CIFAR, 10)
    assert found.convolutions == convolutions
    assert found.linear == linear
    assert found.elsewhere == 0
    assert network.training, "its mode is as it was"
    assert not any(module._forward_hooks for module in network.modules())


def test_groups_have_matrices_of_their_own() -> None:
    network = nn.Sequential(nn.Conv2d(8, 16, 3, groups=4, bias=False), nn.Conv2d(16, 16, 3, padding=1, groups=16))
    found = plan(layers_of_module(network, (8, 10, 12)).convolutions, tiles=(1, 1))
    grouped, depthwise = found.layers
    assert (grouped.n_p, grouped.k, grouped.groups, grouped.matrices) == (80, 18, 4, 1)
    assert grouped.macs == 80 * 18 * 16
    assert grouped.weights == sum(parameter.numel() for parameter in network[0].parameters())
    assert (depthwise.k, depthwise.weights) == (9, 160)
    assert found.arrays == 4 + 16


def test_linear_layers_of_many_pixels_are_convolutions() -> None:
    class Pixelwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.last = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 5), nn.Linear(5, 2)
            self.position = nn.Parameter(torch.zeros(5, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed = self.mix(self.conv(x).permute(0, 2, 3, 1)) @ self.position
            logits: torch.Tensor = self.last(mixed.mean((1, 2)))
            return logits

    network = Pixelwise()
    found = layers_of_module(network, (3, 8, 6))
    assert [(one.name, one.n_p, one.k, one.c_out) for one in found.convolutions] == [
        ("conv", 12, 12, 8),
        ("mix", 12, 8, 5),
    ]
    assert [one.name for one in found.linear] == ["last"]
    assert found.elsewhere == pytest.approx(25 / sum(one.numel() for one in network.parameters()))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 9)), "cannot take an image of 3 x 8 x 8"),
        (nn.Sequential(nn.Conv2d(1, 3, 3)), "cannot take an image of 3 x 8 x 8"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "has no convolution"),
        (nn.Sequential(*[nn.Conv2d(3, 3, 1)] * 2), "layer '0' computes more than once"),
    ],
)
def test_modules_that_cannot_be_planned(network: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layers_of_module(network, (3, 8, 8))
    assert message in caught.value.message
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnext50_32x4d", "mobilenet_v2", "vgg11", "convnext_tiny", "efficientnet_b0", "regnet_y_400mf"],
)
def test_networks_of_torchvision_against_what_it_says_of_them(name: str) -> None:
    found = find(f"torchvision:{name}")
    both = [*costs(found.convolutions, [1] * len(found.convolutions)), *costs(found.linear, [1] * len(found.linear))]
    said = models.get_model_weights(name).DEFAULT.meta
    # What it calls GFLOPS are multiply-adds.
    assert round(sum(cost.macs for cost in both) / 1e9, 2) == pytest.approx(round(said["_ops"], 2), abs=0.011)
    # Normalisations have the rest.
    assert 0.98 * said["num_params"] < sum(cost.weights for cost in both) <= said["num_params"]
    assert found.elsewhere < 1e-3


def test_what_lies_elsewhere_is_told() -> None:
    assert find("torchvision:vit_b_16").elsewhere == pytest.approx(0.33, abs=0.01)


def test_names() -> None:
    with pytest.raises(ConfigError, match="no classification network 'resnet19'") as caught:
        find("torchvision:resnet19")
    assert caught.value.hint == "did you mean 'resnet18'?"
    with pytest.raises(FileError, match="no network and no checkpoint 'alexnett'") as missing:
        find("alexnett")
    assert missing.value.hint == "did you mean 'alexnet'?"
    with pytest.raises(ConfigError, match="needs larger images than 32 x 32"):
        find("alexnet", size=32)


def test_layers_of_one_tile_bound_every_tiling() -> None:
    first, grouped, last = (
        Layer("a", 8, 8, (3, 3), 3, 4),
        Layer("b", 4, 4, (3, 3), 4, 4, 4),
        Layer("c", 2, 2, (1, 1), 4, 4),
    )
    layers = [first, replace(grouped, whole="has 4 groups"), last]
    assert balanced(layers) == (16, 1, 1)
    assert balancing.for_acceleration(layers, 4) == (4, 1, 1)
    assert balancing.for_arrays(layers, 100) == (4, 1, 1), "further tiles make nothing faster"
    with pytest.raises(
        ConfigError, match=r"^an acceleration of 5 is not possible; b has 4 groups and keeps one tile, .* 4$"
    ):
        balancing.for_acceleration(layers, 5)
    with pytest.raises(ConfigError, match=r"^scheme 'none' has one array for each layer, so that nothing"):
        balancing.for_acceleration(layers, 2, "none")
    mirrored = replace(first, padding_mode="reflect")
    assert balanced([mirrored, last], "image-pad") == (1, 1)
    assert balanced([mirrored, last], "image-overlap") == (16, 1)


class Excited(nn.Module):
    """Squeeze-and-excitation by convolutions or by linear layers, then a head of two."""

    def __init__(self, width: int, squeeze: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.deep = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        linear = squeeze is nn.Linear
        self.squeeze = nn.Linear(2 * width, width // 2) if linear else nn.Conv2d(2 * width, width // 2, 1)
        self.excite = nn.Linear(width // 2, 2 * width) if linear else nn.Conv2d(width // 2, 2 * width, 1)
        self.last = nn.Conv2d(2 * width, 4 * width, 8)
        # As wide as the layer before it, by accident.
        self.hidden, self.head = nn.Linear(4 * width, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.middle(self.stem(x)))
        shape = (len(x), -1) if isinstance(self.squeeze, nn.Linear) else (len(x), -1, 1, 1)
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3)).view(shape)))).view(len(x), -1, 1, 1)
        logits: torch.Tensor = self.head(torch.relu(self.hidden(self.last(x * gate.sigmoid()).flatten(1))))
        return logits


@pytest.mark.parametrize("squeeze", [nn.Conv2d, nn.Linear])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_free_width_is_the_network_with_more_channels(squeeze: type[nn.Module], times: int) -> None:
    narrow, wide = (layers_of_module(Excited(width, squeeze), (3, 32, 32)) for width in (8, 8 * times))
    assert [layer.name for layer in narrow.linear] == ["squeeze", "excite", "last", "hidden", "head"]
    for found, wanted in (
        (widened(narrow.convolutions, times), wide.convolutions),
        (widened_linear(narrow.linear, times), wide.linear),
    ):
        assert [replace(layer, whole=None) for layer in found] == [replace(layer, whole=None) for layer in wanted]


def test_free_width_keeps_the_classes() -> None:
    """Also of a network whose last layer is a convolution."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    first, last = widened(layers_of_module(network, (3, 8, 8)).convolutions, 3)
    assert (first.c_in, first.c_out, last.c_in, last.c_out) == (3, 12, 12, 10)
