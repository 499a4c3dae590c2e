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
from rapa_cli.analog.parameters import IOParameters, NoiseManagement
from rapa_cli.analog.pcm import PCMLikeNoiseModel
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


def test_times_that_cannot_be(weights: Tensor) -> None:
    programmed = ProgrammedMatrices(matrices(), weights, draws())
    with pytest.raises(ValueError, match="t_inference: got -1"):
        programmed.age(-1.0, draws())
