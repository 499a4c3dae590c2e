"""Hardware-aware training: readings with noise, gradients straight through them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rapa_cli.analog.aware import STANDARD_HWA, InferenceArrays, aware_product
from rapa_cli.analog.modifiers import ModifierType, WeightModifier
from rapa_cli.analog.parameters import IOParameters, Mapping
from rapa_cli.analog.periphery import Periphery
from rapa_cli.analog.presets import INFERENCE_PRESETS, PRESETS, preset
from rapa_cli.analog.ranges import InputRange
from tests.analog.laws import draws
from tests.tolerances import assert_near

_CPU = torch.device("cpu")


def _periphery(io: IOParameters) -> Periphery:
    return Periphery(io, Periphery.draw(io, (2, 3, 4), draws(1), _CPU))


def _vectors() -> tuple[Tensor, Tensor, Tensor]:
    generator = draws(2)
    x = torch.randn(5, 4, generator=generator).requires_grad_()
    weights = (0.4 * torch.randn(2, 3, 4, generator=generator)).requires_grad_()
    return x, weights, torch.randn(5, 3, generator=generator)


@pytest.mark.parametrize("io", [{"is_perfect": True, "out_scale": 0.5}, {}, {"noise_management": "None"}], ids=str)
def test_gradients_are_those_of_the_plain_product_where_nothing_clips(io: dict[str, Any]) -> None:
    parameters = IOParameters(**io)
    x, weights, d = _vectors()
    values = aware_product(x, weights, [2, 3], _periphery(parameters), draws())
    tile_of = torch.tensor([0, 0, 1, 1, 1])
    seen = x.clamp(-1, 1) if parameters.noise_management.value == "None" else x
    plain = parameters.out_scale * (weights[tile_of] @ seen[:, :, None])[:, :, 0]
    found = torch.autograd.grad((values * d).sum(), (x, weights))
    wanted = torch.autograd.grad((plain * d).sum(), (x, weights))
    assert_near(found[0], wanted[0])
    assert_near(found[1], wanted[1])
    assert bool((values - plain).abs().max() > 0.01) != parameters.is_perfect


def test_outputs_that_the_adc_clipped_do_not_learn() -> None:
    io = IOParameters(out_bound=0.1, bound_management="None", out_noise=0.0)
    x, weights, d = _vectors()
    values = aware_product(x, weights, [2, 3], _periphery(io), draws())
    clipped = _periphery(io).read(weights.detach(), x.detach(), [2, 3], draws()).clipped
    assert clipped.any()
    (gradient,) = torch.autograd.grad((values * d).sum(), weights)
    masked = torch.where(clipped, 0.0, d)
    assert_near(gradient, torch.stack([masked[:2].T @ x[:2].detach(), masked[2:].T @ x[2:].detach()]))


def test_training_with_noise_learns() -> None:
    arrays = STANDARD_HWA.model_copy(
        update={"modifier": WeightModifier(type=ModifierType.ADD_NORMAL, std_dev=0.05), "input_range": InputRange()}
    )
    generator, r = draws(3), 3.0
    teacher = 0.3 * torch.randn(2, 3, 4, generator=generator)
    weights = torch.zeros(2, 3, 4, requires_grad=True)
    periphery = _periphery(arrays.forward)
    for _ in range(150):
        x = torch.randn(20, 4, generator=generator)
        target = torch.cat([x[:10] @ teacher[0].T, x[10:] @ teacher[1].T])
        read = arrays.modifier.modify(weights, generator)
        error = r * aware_product(x.clamp(-r, r) / r, read, [10, 10], periphery, generator) - target
        (gradient,) = torch.autograd.grad((error**2).mean(), weights)
        with torch.no_grad():
            weights -= 0.5 * gradient
            weights.copy_(arrays.clip.clip(weights))
    assert float((weights.detach() - teacher).pow(2).mean()) < 0.05 * float(teacher.pow(2).mean())


def test_two_ranges_for_one_input_are_refused() -> None:
    with pytest.raises(ValidationError, match="input_range"):
        InferenceArrays(input_range=InputRange())
    assert InferenceArrays.model_validate_json(STANDARD_HWA.model_dump_json()) == STANDARD_HWA


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"weight_scaling_omega": 0.5}, r"mapping\.weight_scaling_omega: got 0\.5, but inference arrays have weight_s"),
        ({"weight_scaling_columnwise": True}, r"mapping\.weight_scaling_columnwise: got True, but"),
        ({"input_range": 2.0, "max_input_size": 5}, r"allowed are max_input_size and max_output_size"),
    ],
)  # fmt: skip
def test_a_mapping_has_sizes_only(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InferenceArrays(mapping=Mapping(**setting))


def test_a_mapping_goes_through_json() -> None:
    arrays = InferenceArrays(mapping=Mapping(max_input_size=5, max_output_size=6))
    assert InferenceArrays.model_validate_json(arrays.model_dump_json()) == arrays
    assert InferenceArrays.model_validate({"mapping": {"max_input_size": 5, "max_output_size": 6}}) == arrays


def test_presets_of_inference_are_found_by_name() -> None:
    assert preset("StandardHWATraining") is STANDARD_HWA
    assert preset("StandardHWATrainingPreset") is STANDARD_HWA
    assert INFERENCE_PRESETS.keys().isdisjoint(PRESETS)
    with pytest.raises(ValueError, match=r"no preset 'StandardHWA'; did you mean 'StandardHWATraining'\?"):
        preset("StandardHWA")
