"""The error some time after programming."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rapa_cli.analog.aware import STANDARD_HWA, InferenceArrays
from rapa_cli.analog.module import AwareMatrices
from rapa_cli.analog.parameters import IOParameters, Mapping, NoiseManagement
from rapa_cli.analog.pcm import PCMLikeNoiseModel
from rapa_cli.analog.ranges import InputRange
from rapa_cli.analog.reram import ReRamWan2022NoiseModel
from rapa_cli.analysis.drift import Age, Drift, ProgrammedNetwork, drift, duration, on_inference_arrays, passes
from rapa_cli.analysis.voting import vote_error
from rapa_cli.data.augmentation import pixels
from rapa_cli.errors import ConfigError
from rapa_cli.keyed import draws, keyed_layers
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.network import Network
from rapa_cli.tiling.arrays import ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d
from tests.tolerances import assert_near
from tests.training import tiny

COUNT = 40
NOTHING = PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0, drift_scale=0.0)
CONSTANT_NU = PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0, custom_drift=((0.0, 0.06, 0.0),))
PERFECT = IOParameters(is_perfect=True)
IN_PARTS = Mapping(max_input_size=20, max_output_size=3)
TIMES = (0.0, 3600.0, 86400.0)
TILED: dict[str, Any] = {"scheme": "random", "tiles": (16, 4)}
KINDS: dict[str, dict[str, Any]] = {
    "untiled": {},
    "tiled": TILED,
    "pulsed": {**TILED, "arrays": "Idealized"},
    "inference": {**TILED, "arrays": {"noise_model": {"kind": "PCMLike"}}},
    "perforated": {"scheme": "perforated", "tiles": (4, 2)},
    "image-pad": {"scheme": "image-pad", "tiles": (4, 4)},
}


def lively(**changes: Any) -> Network:
    """Untrained, but with logits that differ between images more than between classes, so that draws disagree."""
    network = tiny.network(**changes, seed=5)
    x, last = pixels(tiny.data_set().test.images, tiny.CPU), network.linear1
    with torch.no_grad(), draws(network, images=torch.arange(len(x))):
        assert isinstance(last, (AnalogLinear, nn.Linear))
        assert last.bias is not None
        bias = last.bias - network(x).mean(0)
        if isinstance(last, AnalogLinear):
            last.set_weights(last.weight, bias)
        else:
            last.bias.copy_(bias)
    return network


def measured(network: nn.Module, times: tuple[float, ...] = TIMES, **settings: Any) -> Drift:
    test = tiny.data_set(test=COUNT).test
    return drift(network, test.images, test.labels, times, **{"repeats": 2, "votes": 3, **settings})


def layers(network: nn.Module) -> list[ArrayLayer]:
    return [layer for layer in network.modules() if isinstance(layer, ArrayLayer)]


def matrices(network: nn.Module) -> list[AwareMatrices]:
    found = [layer.matrices for layer in layers(network)]
    return [one for one in found if isinstance(one, AwareMatrices)]


def read(network: nn.Module) -> list[Tensor]:
    """What the arrays of each layer hold."""
    return [one.weights for one in matrices(network) if one.weights is not None]


def ranges(network: nn.Module) -> list[float]:
    return [one.input_range.item() for one in matrices(network) if one.input_range is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mapping", [Mapping(), IN_PARTS], ids=["whole", "in parts"])
def test_arrays_that_do_nothing_have_the_digital_error(kind: str, mapping: Mapping) -> None:
    arrays = InferenceArrays(forward=PERFECT, noise_model=NOTHING, mapping=mapping)
    found = measured(lively(**KINDS[kind]), arrays=arrays)
    for age in found.ages:
        assert (age.single_error, age.vote_error, age.compensation) == (found.digital_single, found.digital_vote, 1)
    assert found.noise_on == found.noise_off == ()


@pytest.mark.parametrize("kind", ["untiled", "tiled", "perforated", "image-pad"])
def test_the_copy_computes_what_the_network_does(kind: str) -> None:
    network = lively(**KINDS[kind])
    copy = on_inference_arrays(network, InferenceArrays(forward=PERFECT))
    ids, x = torch.arange(7), pixels(tiny.data_set().test.images[:7], tiny.CPU)
    results = []
    for model in (network, copy):
        with torch.no_grad(), draws(model, images=ids, seed=3, draw=2):
            results.append(model(x))
    assert_near(results[1], results[0])
    with torch.no_grad():
        assert_near(copy(x), network(x))  # without `draws`: from seeds, calls and indices


def test_every_kind_of_layer_comes_onto_inference_arrays() -> None:
    for changes in KINDS.values():
        network = lively(**changes)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        state = torch.get_rng_state()
        copy = on_inference_arrays(network)
        assert isinstance(copy, Network)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        assert [type(layer) for layer in layers(copy)] == [TiledConv2d, TiledConv2d, AnalogLinear]
        assert len(matrices(copy)) == 3
        for layer, name in zip(layers(copy), ("conv1", "conv2", "linear1"), strict=True):
            old = network.get_submodule(name).weight
            assert isinstance(old, Tensor)
            assert torch.equal(layer.weight, old.reshape(layer.weight.shape))
            assert not layer.training
        again = on_inference_arrays(copy)
        assert isinstance(again, Network)
        assert again.definition == copy.definition, "they keep theirs"
        other = on_inference_arrays(copy, InferenceArrays(drift_compensation=False))
        assert all(isinstance(a.arrays, InferenceArrays) and not a.arrays.drift_compensation for a in layers(other))


def test_numbers_of_layers_stay() -> None:
    network = lively(**TILED)
    old = {layer.index: int(layer.seed) for layer in keyed_layers(network)}
    new = {layer.index: int(layer.seed) for layer in keyed_layers(on_inference_arrays(network))}
    assert old.items() < new.items()


def test_constant_drift_is_a_power_of_time_and_is_compensated() -> None:
    network = lively(**TILED)
    ready = on_inference_arrays(network, InferenceArrays(forward=PERFECT, noise_model=CONSTANT_NU))
    programmed = ProgrammedNetwork(ready)
    for seconds in TIMES:
        programmed.age(seconds)
        ratio = ((seconds + 20) / 20) ** -0.06
        for layer, weights in zip(layers(programmed.network), read(programmed.network), strict=True):
            assert_near(weights, layer.to_lines(layer.weight, layer.bias).detach() * ratio)
        assert programmed.compensation == pytest.approx(1 / ratio)
    assert not read(ready), "the network is left as it is"


def test_split_arrays_are_compensated_part_by_part() -> None:
    network = lively(**TILED)
    ids, x = torch.arange(7), pixels(tiny.data_set().test.images[:7], tiny.CPU)
    arrays = InferenceArrays(forward=PERFECT, noise_model=CONSTANT_NU, mapping=IN_PARTS, weight_scaling_omega=1.0)
    programmed = ProgrammedNetwork(on_inference_arrays(network, arrays))
    assert all(len(one.parts) > 1 for one in matrices(programmed.network))
    results = []
    for seconds in TIMES:
        programmed.age(seconds)
        assert programmed.compensation == pytest.approx(((seconds + 20) / 20) ** 0.06)
        for model in (network, programmed.network):
            with torch.no_grad(), draws(model, images=ids, seed=3, draw=2):
                results.append(model(x))
        assert_near(results[-1], results[-2])


def test_results_of_split_arrays_follow_from_seed_repeat_and_time_alone() -> None:
    network, arrays = lively(**TILED), InferenceArrays(mapping=IN_PARTS)
    found = measured(network, arrays=arrays, seed=7)
    assert measured(network, times=TIMES[::-1], arrays=arrays, seed=7).ages[::-1] == found.ages
    assert found.ages[-1].compensation is not None
    assert found.ages[-1].compensation > 1.1


def test_results_follow_from_seed_repeat_and_time_alone() -> None:
    network = lively(**TILED)
    found = measured(network, repeats=3, seed=7)
    assert measured(network, repeats=3, seed=7) == found
    backwards = measured(network, times=TIMES[::-1], repeats=3, seed=7)
    assert backwards.ages[::-1] == found.ages
    assert measured(network, times=(3600.0, 3600.0), repeats=3, seed=7).ages == found.ages[1:2]
    fewer = measured(network, repeats=2, seed=7)
    assert all(few.single_errors == age.single_errors[:2] for few, age in zip(fewer.ages, found.ages, strict=True))
    assert all(len(set(age.compensations)) == 3 for age in found.ages), "each programming is another"
    assert measured(network, repeats=3, seed=8).ages[0].compensations != found.ages[0].compensations


def test_programmings_and_read_noise_are_keyed() -> None:
    ready = on_inference_arrays(tiny.network(**TILED))

    def weights(seed: int, repeat: int, *times: float) -> list[Tensor]:
        programmed = ProgrammedNetwork(ready, seed=seed, repeat=repeat)
        for seconds in times:
            programmed.age(seconds)
        return read(programmed.network)

    first = weights(1, 0, 3600.0)
    assert all(map(torch.equal, first, weights(1, 0, 86400.0, 0.0, 3600.0)))
    for other in (weights(2, 0, 3600.0), weights(1, 1, 3600.0), weights(1, 0, 3601.0)):
        assert not any(map(torch.equal, first, other))
    # A time later drift is all but the same, so that what differs is the read noise.
    assert float((first[0] - weights(1, 0, 3601.0)[0]).std()) > 1e-4


def test_layers_and_tiles_are_programmed_independently() -> None:
    pair = [TiledConv2d(2, 3, 3, tiles=2, arrays=InferenceArrays()) for _ in range(2)]
    for layer in pair:
        layer.set_weights(pair[0].weight[:1].expand(2, -1, -1, -1, -1), torch.zeros(2, 3))
    first, second = read(ProgrammedNetwork(nn.Sequential(*pair)).network)
    different = [first[0], first[1], second[0], second[1]]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(different, 2))


def test_nothing_is_left_of_a_measurement() -> None:
    io = IOParameters(noise_management=NoiseManagement.AVERAGE_ABS_MAX)
    network = on_inference_arrays(tiny.network(**TILED), InferenceArrays(forward=io)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    found = measured(network, times=(0.0, 3600.0))
    assert measured(network, times=(3600.0,)).ages == found.ages[1:], "running divisors too"
    after = network.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in network.modules())


def test_the_errors_are_those_of_votes_over_the_programmed_network() -> None:
    network, test = lively(**TILED), tiny.data_set(test=COUNT).test
    # So noisy that draws differ in their errors.
    noisy = InferenceArrays()
    found = measured(network, times=(3600.0,), seed=2, arrays=noisy)
    (age,) = found.ages
    programmed = ProgrammedNetwork(on_inference_arrays(network, noisy, seed=2), seed=2, repeat=1)
    programmed.age(3600.0)
    assert age.compensations[1] == programmed.compensation
    errors = {vote_error(programmed.network, test.images, test.labels, 3, seed=seed).vote_error for seed in range(20)}
    assert min(errors) <= age.vote_errors[1] <= max(errors)
    assert len(set(errors)) > 1


def test_noise_of_reading_can_be_switched_off() -> None:
    network = lively()
    loud, quiet = measured(network), measured(network, noise=False)
    devices = ("programming noise", "drift", "read noise of the devices")
    reading = "noise of the converters and lines"
    assert (loud.noise_on, loud.noise_off) == ((*devices, reading), ())
    assert (quiet.noise_on, quiet.noise_off) == (devices, (reading,))
    # Nothing is random from draw to draw any more, but from programming to programming.
    assert quiet.ages[0].single_errors == quiet.ages[0].vote_errors
    assert quiet.ages[0].compensations[0] != quiet.ages[0].compensations[1]
    half = InferenceArrays(noise_model=PCMLikeNoiseModel(drift_scale=0.0))
    assert measured(network, arrays=half).noise_on == ("programming noise", "read noise of the devices", reading)


def test_input_ranges_are_calibrated_where_nobody_learned_them() -> None:
    torch.manual_seed(0)
    front = nn.Sequential(TiledConv2d(3, 4, 3, tiles=2), nn.ReLU(), nn.Flatten())
    network = nn.Sequential(front, nn.Linear(144, 3, bias=False))
    images = tiny.data_set().train.images
    x = pixels(images, tiny.CPU)
    with pytest.raises(ValueError, match="training_images: got none"):
        on_inference_arrays(network, STANDARD_HWA)
    ready = on_inference_arrays(network, STANDARD_HWA, training_images=images)
    with torch.no_grad(), draws(network, images=torch.arange(len(images))):
        inputs = front(x)
    assert ranges(ready) == [pytest.approx(float(x.max()), rel=1e-3), pytest.approx(float(inputs.max()), rel=0.1)]
    # What is known stays: learned for some batches, or from the first value on.
    again = on_inference_arrays(ready, STANDARD_HWA.model_copy(update={"drift_compensation": False}))
    assert ranges(again) == ranges(ready)
    only = AnalogLinear(
        4, 3, False, arrays=STANDARD_HWA.model_copy(update={"input_range": InputRange(init_from_data=0)})
    )
    matrices(only)[0].load_state_dict({"input_range": torch.tensor(2.5)}, strict=False)
    assert ranges(on_inference_arrays(only)) == [2.5]


def test_times_and_numbers_that_cannot_be() -> None:
    network = tiny.network()
    measured_once = InferenceArrays(noise_model=ReRamWan2022NoiseModel())
    assert len(measured(network, times=(0.0, 1.0, 86400.0), arrays=measured_once).ages) == 3
    with pytest.raises(ConfigError, match="got 60 s, for this ReRAM allowed are 0, 1, 86400, 172800") as caught:
        measured(network, times=(0.0, 60.0), arrays=measured_once)
    assert caught.value.hint == "ReRamWan2022 was measured at these times only"
    for times, message in (((-1.0,), "got -1 s"), ((math.nan,), "got nan s"), ((math.inf,), "got inf s"), ((), "none")):
        with pytest.raises(ConfigError, match=message):
            measured(network, times=times)
    for name in ("repeats", "votes"):
        with pytest.raises(ValueError, match=f"{name}: got 0, allowed are numbers from 1"):
            measured(network, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="neither convolutions nor linear layers"):
        measured(nn.Sequential(nn.Flatten()))
    with pytest.raises(ValueError, match="has no inference arrays"):
        ProgrammedNetwork(network)


def test_progress_is_counted_in_images() -> None:
    counted: list[int] = []
    measured(tiny.network(), on_batch=counted.append, batch_size=15)
    assert sum(counted) == COUNT * passes(TIMES, 2)


def test_means_and_standard_errors() -> None:
    age = Age(0.0, 20.0, (10.0, 12.0, 17.0), (9.0, 9.0, 9.0), (1.0, 1.2, 1.4))
    assert (age.single_error, age.vote_error) == (13, 9)
    assert age.compensation == pytest.approx(1.2)
    assert age.single_se == pytest.approx(math.sqrt((9 + 1 + 16) / 2 / 3))
    assert age.vote_se == 0
    assert math.isnan(dataclasses.replace(age, single_errors=(10.0,)).single_se)
    assert dataclasses.replace(age, compensations=()).compensation is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.5, "0.5 s"),
        (59, "59 s"),
        (60, "1 min"),
        (100, "100 s"),
        (5400, "1.5 h"),
        (86400, "1 d"),
        (86401, "86401 s"),
        (604800, "7 d"),
        (31536000, "1 y"),
        (315360000, "10 y"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
