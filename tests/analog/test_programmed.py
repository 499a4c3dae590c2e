"""A layer's matrices that were programmed: what they read, and the compensation of drift."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rapa_cli.analog import inference
from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.inference import Programmed
from rapa_cli.analog.module import AwareMatrices
from rapa_cli.analog.parameters import IOParameters, Mapping, NoiseManagement
from rapa_cli.analog.pcm import PCMLikeNoiseModel
from rapa_cli.analog.periphery import Periphery
from rapa_cli.analog.programmed import ProgrammedMatrices
from tests.analog.laws import draws
from tests.tolerances import assert_near

TILES, OUT, LINES = 3, 4, 5
# All devices drift alike, and there is nothing else.
CONSTANT_NU = PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0, custom_drift=((0.0, 0.06, 0.0),))
PERFECT = IOParameters(is_perfect=True)


def matrices(**changes: Any) -> AwareMatrices:
    arrays = InferenceArrays(**{"forward": PERFECT, "noise_model": CONSTANT_NU, **changes})
    return AwareMatrices(arrays, TILES, OUT, LINES, draws(1)).eval()


@pytest.fixture
def weights() -> Tensor:
    return torch.randn(TILES, OUT, LINES, generator=draws(2))


@pytest.mark.parametrize("seconds", [0.0, 60.0, 86400.0])
def test_weights_drift_by_a_power_of_time_and_the_compensation_is_its_inverse(weights: Tensor, seconds: float) -> None:
    found = matrices()
    ProgrammedMatrices(found, weights, draws()).age(seconds, draws())
    ratio = ((seconds + 20) / 20) ** -0.06
    assert found.weights is not None
    assert found.compensation is not None
    assert_near(found.weights, weights * ratio)
    assert_near(found.compensation, torch.full((TILES,), 1 / ratio))


def test_the_first_answer_is_that_of_the_programmed_weights(weights: Tensor) -> None:
    found = matrices(noise_model=PCMLikeNoiseModel())
    programmed = ProgrammedMatrices(found, weights, draws())
    assert found.weights is not None
    assert_near(found.weights, Programmed(weights, PCMLikeNoiseModel(), draws()).weights())
    assert found.compensation is None
    assert programmed.reference is not None
    assert_near(programmed.reference, found.weights.abs().mean((1, 2)))


def test_without_compensation(weights: Tensor) -> None:
    found = matrices(drift_compensation=False)
    programmed = ProgrammedMatrices(found, weights, draws())
    programmed.age(3600.0, draws())
    assert programmed.reference is None
    assert found.compensation is None


def test_answers_go_through_the_periphery_and_its_noise(weights: Tensor) -> None:
    found = matrices(forward=IOParameters())
    twice = []
    for seed in (0, 1):
        programmed = ProgrammedMatrices(found, weights, draws())
        programmed.age(3600.0, draws(seed))
        assert found.compensation is not None
        twice.append(found.compensation)
    assert not torch.equal(*twice)
    found.noise = False
    first = ProgrammedMatrices(found, weights, draws(0)).reference
    second = ProgrammedMatrices(found, weights, draws(1)).reference
    assert first is not None
    assert second is not None
    assert torch.equal(first, second), "quiet arrays answer the same each time"


def test_answers_leave_the_running_divisor_as_it_was(weights: Tensor) -> None:
    found = matrices(forward=IOParameters(noise_management=NoiseManagement.AVERAGE_ABS_MAX))
    before = found.get_buffer("line_nm_average").clone()
    ProgrammedMatrices(found, weights, draws()).age(3600.0, draws())
    assert torch.equal(found.get_buffer("line_nm_average"), before)


def test_a_few_inputs_at_a_time_give_the_same_answer(weights: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = ProgrammedMatrices(matrices(), weights, draws()).reference
    monkeypatch.setattr(inference, "_AT_A_TIME", 2 * LINES)
    apart = ProgrammedMatrices(matrices(), weights, draws()).reference
    assert at_once is not None
    assert apart is not None
    assert_near(apart, at_once)


IN_PARTS = Mapping(max_input_size=3, max_output_size=2)
PLACES = [(rows, columns) for rows in (slice(0, 2), slice(2, 4)) for columns in (slice(0, 3), slice(3, 5))]


@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_parts_drift_and_are_compensated_each_by_itself(weights: Tensor, omega: float) -> None:
    found = matrices(mapping=IN_PARTS, weight_scaling_omega=omega)
    found.scale_to(weights)
    programmed = ProgrammedMatrices(found, weights, draws())
    programmed.age(3600.0, draws())
    ratio = (3620 / 20) ** -0.06
    assert programmed.reference is not None
    assert programmed.compensation is not None
    assert_near(programmed.compensation, torch.full((4 * TILES,), 1 / ratio))
    for part, place, first in zip(found.parts, PLACES, torch.split(programmed.reference, TILES), strict=True):
        own = weights[:, *place]
        scale = own.abs().amax((1, 2)) if omega else torch.ones(TILES)
        assert part.weights is not None
        assert_near(part.weights, ratio * own / scale[:, None, None])
        assert_near(first, (own / scale[:, None, None]).abs().sum((1, 2)) / own[0].numel())
    assert (found.weights, found.compensation) == (None, None)


def test_parts_are_programmed_each_within_its_own_range(weights: Tensor) -> None:
    """Like whole arrays one after the other, with independent noise."""
    model, generator = PCMLikeNoiseModel(), draws()
    found = matrices(noise_model=model, mapping=IN_PARTS)
    programmed = ProgrammedMatrices(found, weights, draws())
    for part, place in zip(found.parts, PLACES, strict=True):
        assert part.weights is not None
        assert_near(part.weights, Programmed(weights[:, *place], model, generator).weights())
    programmed.age(86400.0, draws(1))
    assert programmed.compensation is not None
    assert len(set(programmed.compensation.tolist())) == 4 * TILES


def test_answers_of_parts_go_through_their_own_periphery(weights: Tensor) -> None:
    io = IOParameters(out_nonlinearity=0.5, out_nonlinearity_std=0.5)
    found = matrices(forward=io, mapping=IN_PARTS)
    found.noise = False
    reference = ProgrammedMatrices(found, weights, draws()).reference
    assert reference is not None
    for part, place, first in zip(found.parts, PLACES, torch.split(reference, TILES), strict=True):
        own = weights[:, *place].contiguous()
        alone = Periphery(io, {"out_nonlinearity": part.get_buffer("line_out_nonlinearity")}).quiet()
        inputs = torch.eye(own.shape[2]).repeat(TILES, 1)
        answers = alone.read(own, inputs, [own.shape[2]] * TILES, draws()).values
        assert_near(first, answers.view(TILES, -1).abs().mean(1))


def test_times_that_cannot_be(weights: Tensor) -> None:
    programmed = ProgrammedMatrices(matrices(), weights, draws())
    with pytest.raises(ValueError, match="t_inference: got -1"):
        programmed.age(-1.0, draws())
