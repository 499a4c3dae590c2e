"""Networks built from definitions: the paper's counts, default tiles, initial weights, and what does not fit."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from rapa_cli import config
from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.modifiers import ModifierType, WeightModifier
from rapa_cli.analog.presets import preset
from rapa_cli.analog.specification import arrays_of
from rapa_cli.analog.steps import ConstantStepDevice
from rapa_cli.errors import ConfigError
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.keyed import KeyedLayer, draws
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.network import Network, Statistics, build, parameter_count, patches_per_layer, resolve
from rapa_cli.layers.normalization import LocalResponseNorm
from rapa_cli.layers.pooling import MixedPool2d, StochasticPool2d
from rapa_cli.philox import Purpose, generator
from rapa_cli.tiling.arrays import ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d
from tests.tiling import oracles
from tests.tolerances import SIGNIFICANCE, assert_near

CIFAR = (3, 32, 32)
FULL = config.load_network("full")
SCHEMES: tuple[str, ...] = config.SchemeName.__args__  # type: ignore[attr-defined]
POOLS: tuple[str, ...] = config.PoolMethod.__args__  # type: ignore[attr-defined]


def _definition(*layers: dict[str, object], **keys: object) -> config.Network:
    return config.validate(config.Network, {"name": "mine", "layers": layers, **keys}, "test")


def _small(**keys: object) -> config.Network:
    return _definition(
        {"kind": "conv", "channels": 6, "kernel": 3, "padding": 1},
        {"kind": "relu"},
        {"kind": "pool"},
        {"kind": "lrn"},
        {"kind": "conv", "channels": 5, "kernel": 3, "stride": 2, "dilation": 2, "padding": 1},
        {"kind": "relu"},
        {"kind": "pool", "kernel": 2, "method": "average"},
        {"kind": "linear", "features": 8},
        {"kind": "relu"},
        {"kind": "linear"},
        **keys,
    )


def _convolutions(network: nn.Module) -> list[nn.Conv2d | TiledConv2d]:
    return [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, TiledConv2d))]


@pytest.mark.parametrize(
    ("name", "tiles", "convolutions"),
    [
        ("full", None, 79_328),
        ("full", (16, 4, 1), 192_704),
        ("enlarged", None, 193_032),
    ],
)
def test_the_papers_parameter_counts(name: str, tiles: tuple[int, ...] | None, convolutions: int) -> None:
    network = build(resolve(config.load_network(name), CIFAR, tiles=tiles), CIFAR, 10)
    linear = 64 * 4 * 4 * 10 + 10
    assert parameter_count(network, convolutions_only=True) == convolutions
    assert parameter_count(network) == convolutions + linear
    assert sum(parameter.numel() for parameter in network.parameters()) == convolutions + linear


def test_perforation_adds_no_weights_and_mixed_pooling_one_for_each_channel() -> None:
    perforated = build(resolve(FULL, CIFAR, scheme="perforated", tiles=(16, 4, 1)), CIFAR, 10)
    assert parameter_count(perforated, convolutions_only=True) == 79_328
    mixed = build(resolve(FULL, CIFAR, pool="mixed"), CIFAR, 10)
    assert parameter_count(mixed) == parameter_count(build(FULL, CIFAR, 10)) + 32 + 32


def test_the_papers_patches_and_tiles() -> None:
    assert patches_per_layer(FULL, CIFAR) == [1024, 256, 64]
    assert resolve(FULL, CIFAR).tiles == (1, 1, 1)
    for scheme in SCHEMES:
        assert resolve(FULL, CIFAR, scheme=scheme).tiles == ((1, 1, 1) if scheme == "none" else (16, 4, 1))


def test_the_full_network_is_the_papers() -> None:
    network = build(resolve(FULL, CIFAR, tiles=(16, 4, 1)), CIFAR, 10)
    assert [name for name, _ in network.named_children()] == [
        "normalize", "conv1", "relu1", "pool1", "lrn1", "conv2", "relu2", "pool2", "lrn2", "conv3", "relu3", "pool3",
        "lrn3", "flatten", "linear1",
    ]  # fmt: skip
    sizes = {}
    x = torch.rand(2, *CIFAR)
    for name, layer in network.named_children():
        x = layer(x)
        sizes[name] = tuple(x.shape[1:])
    assert [sizes[f"{kind}{i}"] for i in (1, 2, 3) for kind in ("conv", "pool")] == [
        (32, 32, 32), (32, 16, 16), (32, 16, 16), (32, 8, 8), (64, 8, 8), (64, 4, 4),
    ]  # fmt: skip
    assert sizes["linear1"] == (10,)
    for layer in _convolutions(network):
        assert (layer.kernel_size, layer.padding, layer.stride) == ((5, 5), (2, 2), (1, 1))
    for layer in network:
        if isinstance(layer, LocalResponseNorm):
            assert (layer.kernel, layer.alpha, layer.beta) == (3, 5e-5, 0.75)


@pytest.mark.parametrize("pool", POOLS)
def test_the_last_pooling_is_average(pool: str) -> None:
    network = build(resolve(FULL, CIFAR, pool=pool), CIFAR, 10)
    kinds = {"max": nn.MaxPool2d, "average": nn.AvgPool2d, "mixed": MixedPool2d, "stochastic": StochasticPool2d}
    found = [type(network.get_submodule(f"pool{i}")) for i in (1, 2, 3)]
    assert found == [kinds[pool], kinds[pool], nn.AvgPool2d]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("shape", [(1, 9, 12), (3, 10, 10)])
def test_every_scheme_and_pooling_builds_and_learns(scheme: str, pool: str, shape: tuple[int, int, int]) -> None:
    network = build(resolve(_small(), shape, scheme=scheme, pool=pool), shape, 4)
    x = torch.rand(3, *shape)
    with draws(network, images=torch.arange(3), stream="train"):
        logits = network(x)
    assert logits.shape == (3, 4)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_patches_agree_with_what_layers_compute() -> None:
    shape = (1, 9, 12)
    network = build(resolve(_small(), shape, scheme="random"), shape, 4)
    found = []
    for layer in _convolutions(network):
        layer.register_forward_hook(lambda _, __, output: found.append(output.shape[2] * output.shape[3]))
    network(torch.rand(2, *shape))
    assert found == patches_per_layer(_small(), shape) == [108, 2]
    assert network.definition.tiles == (54, 1)


def test_square_schemes_get_square_default_tiles() -> None:
    shape = (1, 9, 12)
    for scheme in ("image-overlap", "image-pad", "alternate"):
        assert resolve(_small(), shape, scheme=scheme).tiles == (49, 1)


def test_what_the_caller_names_replaces_the_definition() -> None:
    tiled = resolve(FULL, CIFAR, tiles=[4, 4, 1])
    assert (tiled.scheme, tiled.tiles) == ("random", (4, 4, 1))
    alternate = resolve(tiled, CIFAR, scheme="alternate")
    assert (alternate.scheme, alternate.tiles) == ("alternate", (16, 4, 1))
    again = resolve(alternate, CIFAR, tiles=[9, 1, 1])
    assert (again.scheme, again.tiles) == ("alternate", (9, 1, 1))
    assert resolve(again, CIFAR, pool="mixed").pool == "mixed"
    assert resolve(again, CIFAR) == again
    assert (FULL.scheme, FULL.tiles, FULL.pool) == ("none", None, "max")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            {"tiles": (16, 4)},
            r"^tiles: got 2 numbers \(16,4\), but network 'full' has 3 convolutions$",
            "--tiles 16,4,1",
        ),
        ({"tiles": (16, 4, 1, 1)}, r"^tiles: got 4 numbers", "--tiles 16,4,1"),
        (
            {"tiles": (1025, 4, 1)},
            r"^tiles: convolution 1 got 1025 tiles, but its output has only 1024 pat",
            "1 to 1024",
        ),
        ({"tiles": (1, 1, 65)}, r"^tiles: convolution 3 got 65 tiles, but its output has only 64 patches$", "1 to 64"),
        ({"tiles": (4, 3, 1), "scheme": "alternate"}, r"^convolution 2: tiles: got 3, but scheme 'alternate'", None),
        ({"tiles": (2, 1, 1), "scheme": "none"}, r"^convolution 1: tiles: got 2, but scheme 'none' has one", None),
        ({"tiles": (0, 4, 1)}, r"tiles.*greater than or equal to 1", None),
        ({"scheme": "rand"}, r"scheme", None),
        ({"pool": "median"}, r"pool", None),
    ],
)
def test_what_does_not_fit_the_network_is_refused(
    arguments: dict[str, str | tuple[int, ...]], message: str, hint: str | None
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(FULL, CIFAR, **arguments)  # type: ignore[arg-type]
    assert hint is None or (caught.value.hint is not None and hint in caught.value.hint)


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([{"kind": "conv", "channels": 2, "kernel": 7}], (1, 6, 9), r"does not fit into an input of 6 x 9 pixels"),
        (
            [{"kind": "conv", "channels": 2, "kernel": 3}, {"kind": "pool", "kernel": 5}],
            (1, 4, 9),
            r"^network 'mine' needs larger images than 4 x 9 pixels$",
        ),
        (
            [{"kind": "conv", "channels": 2, "kernel": 3}, {"kind": "linear"}, {"kind": "pool"}],
            (1, 9, 9),
            r"^network 'mine': a layer of kind 'pool' comes after a linear one$",
        ),
        (
            [
                {"kind": "conv", "channels": 2, "kernel": 1},
                {"kind": "linear"},
                {"kind": "conv", "channels": 2, "kernel": 1},
            ],
            (1, 9, 9),
            r"^network 'mine': a layer of kind 'conv' comes after a linear one$",
        ),
        ([{"kind": "linear"}], (1, 9, 9), r"^network 'mine' has no convolution$"),
        (
            [{"kind": "conv", "channels": 2, "kernel": 3}],
            (1, 9, 9),
            r"^network 'mine' has no linear layer at its end$",
        ),
        (
            [{"kind": "conv", "channels": 4, "kernel": 9}],
            (1, 9, 9),
            r"^network 'mine' has no linear layer at its end$",
        ),
        (
            [{"kind": "conv", "channels": 4, "kernel": 9}, {"kind": "linear", "features": 5}],
            (1, 9, 9),
            r"^network 'mine' ends with 5 outputs for 4 classes$",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused(
    layers: list[dict[str, object]], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(_definition(*layers), shape, 4)


def test_too_small_images_are_refused() -> None:
    assert build(resolve(FULL, (3, 8, 8), tiles=(16, 4, 1)), (3, 8, 8), 10)(torch.rand(1, 3, 8, 8)).shape == (1, 10)
    with pytest.raises(ConfigError, match=r"^tiles: convolution 3 got 5 tiles, but its output has only 4 patches$"):
        resolve(FULL, (3, 8, 8), tiles=(16, 4, 5))
    # The pixels that poolings leave: 7, 3, 1, and the third finds no window.
    with pytest.raises(ConfigError, match=r"^network 'full' needs larger images than 7 x 7 pixels$"):
        build(FULL, (3, 7, 7), 10)


@pytest.mark.parametrize("scheme", ["none", "random", "random-fixed", "perforated"])
def test_initial_weights_depend_on_the_seed_only(scheme: str) -> None:
    definition = resolve(_small(), (3, 9, 9), scheme=scheme, pool="stochastic")

    def weights(seed: int, torch_seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch_seed)
        return build(definition, (3, 9, 9), 4, seed=seed).state_dict()

    one, other, third = weights(7, 0), weights(7, 1), weights(8, 0)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(torch.equal(one[name], third[name]) for name in one if name.endswith(("weight", "bias", "seed")))


def test_initial_weights_are_uniform_within_the_fan_in_of_one_array() -> None:
    network = build(resolve(FULL, CIFAR, tiles=(16, 4, 1)), CIFAR, 10, seed=3)
    layers = [*_convolutions(network), network.get_submodule("linear1")]
    starts = []
    for layer, fan_in in zip(layers, (75, 800, 800, 1024), strict=True):
        bound = 1 / math.sqrt(fan_in)
        parameters = dict(layer.named_parameters())
        for parameter in parameters.values():
            numbers = parameter.detach().flatten()
            assert float(numbers.abs().max()) <= bound
            p = stats.kstest(numbers.numpy(), "uniform", (-bound, 2 * bound)).pvalue
            assert p > SIGNIFICANCE
        starts.append(parameters["weight"].detach().flatten()[:2000] / bound)
    for one, other in itertools.combinations(starts, 2):
        correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        assert 2 * stats.norm.sf(abs(correlation) * math.sqrt(2000)) > SIGNIFICANCE


def test_each_layer_starts_from_a_key_of_its_own() -> None:
    network = build(FULL, CIFAR, 10, seed=5)
    for index, name in enumerate(("conv1", "conv2", "conv3", "linear1")):
        layer = network.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        bound = layer.weight[0].numel() ** -0.5
        source = generator(Purpose.INITIALISATION, 5, layer=index)
        assert torch.equal(layer.weight, torch.empty_like(layer.weight).uniform_(-bound, bound, generator=source))


def test_layers_are_numbered_and_know_the_seed() -> None:
    network = build(resolve(FULL, CIFAR, scheme="random-fixed", pool="stochastic"), CIFAR, 10, seed=9)
    keyed = [layer for layer in network if isinstance(layer, KeyedLayer)]
    assert [(layer.index, int(layer.seed)) for layer in keyed] == [(i, 9) for i in range(5)]
    layer = network.get_submodule("conv2")
    assert isinstance(layer, TiledConv2d)
    expected = oracles.partition(9, "fixed", 256, 0, 2, 256, 4)
    assert layer.assign(1, (16, 16)).tolist() == [expected]
    with draws(network, images=torch.arange(2), seed=4, draw=1):
        network(torch.rand(2, *CIFAR))
        assert layer.assign(1, (16, 16)).tolist() == [expected]


def test_one_network_under_all_schemes_starts_from_the_same_first_tile() -> None:
    plain = build(FULL, CIFAR, 10, seed=1)
    single = build(resolve(FULL, CIFAR, scheme="perforated", tiles=(4, 2, 1)), CIFAR, 10, seed=1)
    x = torch.rand(2, *CIFAR)
    assert_near(single.eval()(x), plain(x))


def test_statistics_become_the_first_layer() -> None:
    statistics = Statistics(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.0]), torch.rand(2, 9, 9))
    x = torch.rand(3, 2, 9, 9)

    def first(normalization: str, given: Statistics | None) -> Tensor:
        network = build(_small(normalization=normalization), (2, 9, 9), 4, statistics=given)
        output: Tensor = network.get_submodule("normalize")(x)
        return output

    expected = torch.stack([(x[:, 0] - 0.1) / 0.5, x[:, 1] - 0.2], 1)
    assert_near(first("mean-std", statistics), expected)
    assert torch.equal(first("mean-image", statistics), x - statistics.mean_image)
    assert torch.equal(first("none", statistics), x)
    for normalization in ("mean-std", "mean-image", "none"):
        assert torch.equal(first(normalization, None), x)


def test_a_network_knows_what_it_is() -> None:
    network = build(resolve(_small(), (1, 9, 12), scheme="random"), (1, 9, 12), 4)
    assert isinstance(network, Network)
    assert (network.shape, network.classes) == ((1, 9, 12), 4)
    assert network.definition == resolve(_small(), (1, 9, 12), scheme="random")
    again = build(network.definition, network.shape, network.classes, seed=1)
    again.load_state_dict(network.state_dict())
    x = torch.rand(2, 1, 9, 12)
    with draws(network, images=torch.arange(2)):
        expected = network(x)
    with draws(again, images=torch.arange(2)):
        assert torch.equal(again(x), expected)


def test_a_seed_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^seed: got -1"):
        build(FULL, CIFAR, 10, seed=-1)


def test_geometry_of_the_definition_is_that_of_the_layers() -> None:
    layer = config.validate(
        config.Conv, {"kind": "conv", "channels": 1, "kernel": 3, "stride": 2, "padding": 1, "dilation": 2}, "test"
    )
    assert (layer.kernel, layer.stride, layer.padding, layer.dilation) == (3, 2, 1, 2)
    geometry = Geometry(9, 12, (3, 3), (2, 2), (1, 1, 1, 1), (2, 2))
    assert (geometry.out_height, geometry.out_width) == (4, 5)


PULSED = {"preset": "Idealized", "merge": 0}
HWA = "StandardHWATraining"


def _on_arrays(network: nn.Module) -> list[ArrayLayer]:
    return [layer for layer in network.modules() if isinstance(layer, ArrayLayer)]


@pytest.mark.parametrize("arrays", [PULSED, HWA, "ReRamESPreset"], ids=str)
@pytest.mark.parametrize("tiles", [None, (16, 4, 1)])
def test_a_network_on_arrays_counts_like_an_ideal_one(arrays: Any, tiles: tuple[int, ...] | None) -> None:
    plain = build(resolve(FULL, CIFAR, tiles=tiles), CIFAR, 10)
    network = build(resolve(FULL, CIFAR, tiles=tiles, arrays=arrays), CIFAR, 10)
    kinds = [type(layer) for layer in _on_arrays(network)]
    assert kinds == [TiledConv2d, TiledConv2d, TiledConv2d, AnalogLinear]
    assert not any(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in network.modules())
    for convolutions_only in (True, False):
        found = parameter_count(network, convolutions_only=convolutions_only)
        assert found == parameter_count(plain, convolutions_only=convolutions_only)
        if tiles is None:
            assert found == (79_328 if convolutions_only else 89_578)
    assert network.definition.arrays == arrays
    assert [layer.index for layer in _on_arrays(network)] == [0, 1, 2, 3]
    assert {int(layer.seed) for layer in _on_arrays(network)} == {0}


@pytest.mark.parametrize("scheme", ["none", "random", "perforated"])
def test_a_network_on_arrays_starts_from_the_weights_of_an_ideal_one(scheme: str) -> None:
    """As near as the bounds of the devices allow."""
    shape = (3, 9, 9)
    plain = build(resolve(_small(), shape, scheme=scheme), shape, 4, seed=7)
    layers = [layer for layer in plain.modules() if isinstance(layer, (nn.Conv2d, TiledConv2d, nn.Linear))]
    for arrays in (PULSED, HWA):
        network = build(resolve(_small(arrays=arrays), shape, scheme=scheme), shape, 4, seed=7)
        for ideal, layer in zip(layers, _on_arrays(network), strict=True):
            assert isinstance(ideal.weight, Tensor)
            assert isinstance(ideal.bias, Tensor)
            assert layer.bias is not None
            weight, bias = ideal.weight.view(layer.weight.shape), ideal.bias.view(layer.bias.shape)
            lines, expected = layer.to_lines(layer.weight, layer.bias), layer.to_lines(weight, bias)
            state = layer.state_dict()
            if arrays is PULSED:
                low, high = state["matrices.0.min_bound"], state["matrices.0.max_bound"]
                expected = torch.maximum(torch.minimum(expected, high), low)
            assert torch.equal(lines, expected)
    again = build(resolve(_small(arrays=PULSED), shape, scheme=scheme), shape, 4, seed=7).state_dict()
    network = build(resolve(_small(arrays=PULSED), shape, scheme=scheme), shape, 4, seed=7)
    assert all(torch.equal(values, again[name]) for name, values in network.state_dict().items())


def test_devices_of_layers_are_independent() -> None:
    network = build(resolve(FULL, CIFAR, tiles=(16, 4, 1), arrays=PULSED), CIFAR, 10, seed=3)
    steps = [layer.state_dict()["matrices.0.dwmin_up"].flatten()[:2000] for layer in _on_arrays(network)]
    for one, other in itertools.combinations(steps, 2):
        correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        assert 2 * stats.norm.sf(abs(correlation) * math.sqrt(2000)) > SIGNIFICANCE


@pytest.mark.parametrize(
    ("arrays", "message", "hint"),
    [
        ("ReRamE", "arrays: there is no preset 'ReRamE'", "did you mean 'ReRamES'?"),
        ("StandardHWATrainin", "arrays: there is no preset", "did you mean 'StandardHWATraining'?"),
        ("nothing", "arrays: there is no preset 'nothing'", "`rapa inspect --presets` lists all"),
        ({"preset": "ideal", "merge": 0}, "arrays: preset 'ideal' has no parameters", "`rapa inspect --presets`"),
        ({"merge": 0}, "arrays: 'device' is missing", "see `rapa inspect NAME`"),
        ({"modifier": {"type": "AddNorml"}}, "arrays: modifier.type: ", "did you mean 'AddNormal'?"),
        ({"preset": "EcRam", "updat": {}}, "arrays: unknown key 'updat'", "did you mean 'update'?"),
        ({"preset": "EcRam", "device": {"kind": "LinerStep"}}, "device.kind: ", "did you mean 'LinearStep'?"),
        (
            {"preset": "EcRam", "forward": {"inp_bound": 2.0}},
            "arrays: forward: inp_bound: got 2.0, with noise_management AbsMax allowed is 1; with 'None' any bound",
            "see `rapa inspect NAME`",
        ),
        (
            {"preset": "EcRam", "merge": 0, "update": {"pulse_type": "MeanCount"}},
            "arrays: merge: got 0, allowed is 1, or stochastic pulses (StochasticCompressed, Stochastic)",
            "see `rapa inspect NAME`",
        ),
        (
            {"preset": "EcRam", "mapping": {"input_range": 0.5}},
            "arrays: got mapping.input_range 0.5, which cuts the input of the bias, 1",
            "change the arrays",
        ),
    ],
)
def test_arrays_that_cannot_be_are_refused_in_one_line(arrays: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(resolve(_small(), (1, 9, 9), arrays=arrays), (1, 9, 9), 4)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in str(caught.value.hint)


def test_tables_change_presets() -> None:
    arrays = arrays_of({"preset": "ReRamESPreset", "merge": 7, "device": {"w_max": 0.9}, "forward": {"out_noise": 0.0}})
    assert isinstance(arrays, Arrays)
    base = preset("ReRamES")
    assert isinstance(base, Arrays)
    expected = base.model_copy(
        update={
            "merge": 7,
            "device": base.device.model_copy(update={"w_max": 0.9}),
            "forward": base.forward.model_copy(update={"out_noise": 0.0}),
        }
    )
    assert arrays == expected
    other = arrays_of({"preset": "ReRamES", "device": {"kind": "ConstantStep", "w_max": 0.5}})
    assert isinstance(other, Arrays)
    assert other.device == ConstantStepDevice(w_max=0.5), "another kind of device has its own defaults"
    inference = arrays_of({"preset": HWA, "forward": {"out_noise": 0.0}})
    assert isinstance(inference, InferenceArrays)
    assert inference.forward.out_noise == 0
    own = arrays_of({"modifier": {"type": "AddNormal", "std_dev": 0.1}})
    assert own == InferenceArrays(modifier=WeightModifier(type=ModifierType.ADD_NORMAL, std_dev=0.1))
    assert arrays_of("ideal") is None
