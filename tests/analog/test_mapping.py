"""Matrices on arrays: splitting, scaling, ranges of inputs; and the ranges that are learned or calibrated."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.mapping import MappedBank, equal_split
from rapa_cli.analog.parameters import IOParameters, Mapping
from rapa_cli.analog.ranges import Calibration, InputRange, calibrated
from rapa_cli.analog.steps import ConstantStepDevice
from tests.analog.laws import assert_normal, assert_uncorrelated, draws
from tests.tolerances import assert_near

_PERFECT = IOParameters(is_perfect=True)


def _bank(mapping: dict[str, Any], io: IOParameters = _PERFECT, device: Any = None) -> tuple[MappedBank, Tensor]:
    arrays = Arrays(device=device or IdealDevice(), forward=io, backward=io, mapping=Mapping(**mapping))
    bank = MappedBank(arrays, 2, 5, 7, draws(1))
    weights = torch.randn(2, 5, 7, generator=draws(2))
    bank.set_weights(weights, draws())
    return bank, weights


def test_parts_differ_by_at_most_one() -> None:
    assert equal_split(10, 4) == [4, 3, 3]
    assert equal_split(6, 4) == [3, 3]
    assert equal_split(4, 4) == [4]
    assert equal_split(9, 0) == [9]


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"max_input_size": 3, "max_output_size": 2},
        {"max_input_size": 4, "weight_scaling_omega": 0.5},
        {"max_output_size": 2, "weight_scaling_omega": 0.5, "weight_scaling_columnwise": True, "input_range": 9.0},
    ],
    ids=str,
)
def test_perfect_arrays_give_the_product_however_it_is_mapped(mapping: dict[str, Any]) -> None:
    bank, weights = _bank(mapping)
    assert_near(bank.get_weights(), weights)
    generator, sizes = draws(3), [3, 4]
    x, d = torch.randn(7, 7, generator=generator), torch.randn(7, 5, generator=generator)
    tile_of = torch.tensor([0] * 3 + [1] * 4)
    reading = bank.forward(x, sizes, draws())
    assert_near(reading.values, (weights[tile_of] @ x[:, :, None])[:, :, 0])
    assert_near(bank.backward(d, sizes, draws(), reading), (d[:, None, :] @ weights[tile_of])[:, 0])
    bank.update(x, d, sizes, 0.1, draws())
    change = -0.1 * torch.stack([d[:3].T @ x[:3], d[3:].T @ x[3:]])
    assert_near(bank.get_weights(), weights + change)


def test_scales_put_the_largest_weight_of_each_part_or_line_at_omega() -> None:
    bank, _ = _bank({"weight_scaling_omega": 0.6})
    assert_near(bank.banks[0].get_weights().abs().amax((1, 2)), torch.full((2,), 0.6))
    lines, _ = _bank({"weight_scaling_omega": 0.6, "weight_scaling_columnwise": True})
    assert_near(lines.banks[0].get_weights().abs().amax(2), torch.full((2, 5), 0.6))


def test_inputs_outside_the_range_are_clipped_and_have_no_gradient() -> None:
    bank, weights = _bank({"input_range": 1.0})
    x = torch.zeros(1, 7)
    x[0, :3] = torch.tensor([0.5, 2.0, -3.0])
    reading = bank.forward(x, [1, 0], draws())
    assert_near(reading.values[0], weights[0] @ x[0].clamp(-1, 1))
    gradient = bank.backward(torch.ones(1, 5), [1, 0], draws(), reading)
    assert_near(gradient[0], weights[0].sum(0) * torch.tensor([1.0, 0, 0, 1, 1, 1, 1]))


def test_each_part_has_converters_of_its_own() -> None:
    """Each part rounds in units of its own largest input."""
    io = IOParameters(out_noise=0.0, inp_res=0.25, out_res=-1, out_bound=0)
    bank, weights = _bank({"max_input_size": 4}, io)
    x = torch.tensor([[4.0, 1.2, 0, 0, 0.1, 0.03, 0]])
    seen = torch.tensor([[4.0, 2.0, 0, 0, 0.1, 0.05, 0]])
    assert_near(bank.forward(x, [1, 0], draws()).values[0], weights[0] @ seen[0])


def test_the_state_of_all_parts_is_named() -> None:
    bank, _ = _bank({"max_input_size": 4}, IOParameters(out_noise_std=0.1), ConstantStepDevice())
    assert {"input_range", "0.scale", "1.weight", "1.forward.out_noise"} <= bank.state.keys()
    bank.after_step(draws())
    other, _ = _bank({"max_input_size": 4}, IOParameters(out_noise_std=0.2), ConstantStepDevice())
    other.state["0.scale"].fill_(2.0)
    other.load_state({name: values.clone() for name, values in bank.state.items()})
    x, sizes = torch.randn(3, 7, generator=draws(4)), [1, 2]
    readings = []
    for one in (bank, other):
        one.update(x, torch.ones(3, 5), sizes, 0.1, draws(5))
        readings.append(one.forward(x, sizes, draws(6)).values)
    assert torch.equal(*readings)
    assert torch.equal(bank.get_weights(), other.get_weights())
    with pytest.raises(ValueError, match=r"state: 0\.max_bound has shape \(1, 5, 4\), allowed is \(2, 5, 4\)"):
        bank.load_state(bank.state | {"0.max_bound": torch.zeros(1, 5, 4)})
    with pytest.raises(ValueError, match="state: got"):
        bank.load_state({})
    with pytest.raises(ValueError, match="weights: got shape"):
        bank.set_weights(torch.zeros(5, 7), draws())


def test_devices_of_all_parts_and_tiles_are_independent() -> None:
    mapping = Mapping(max_input_size=40, max_output_size=50)
    bank = MappedBank(Arrays(device=ConstantStepDevice(), forward=_PERFECT, mapping=mapping), 2, 100, 80, draws(1))
    steps = [part.state["dwmin_up"][tile] for part in bank.banks for tile in range(2)]
    assert len(steps) == 8
    for sample in steps:
        assert_normal(sample, 0.001, 0.001 * math.hypot(0.3, 0.01))
    for first, second in itertools.combinations(steps, 2):
        assert_uncorrelated(first, second)


def test_a_learned_range_starts_from_data_and_follows_its_gradient() -> None:
    settings = InputRange(init_from_data=2, decay=0.01)
    state = settings.draw()
    batches = [torch.randn(1000, generator=draws(seed)) for seed in range(3)]
    for batch in batches:
        settings.observe(state, batch)
    wanted = 1.5 * sum(float(batch.std(unbiased=False)) for batch in batches[:2])
    assert float(state["input_range"]) == pytest.approx(wanted)
    r = float(state["input_range"])
    x, gradient = torch.tensor([2 * r, -2 * r, 0.0, 0.5]), torch.tensor([1.0, 3.0, 5.0, 7.0])
    assert float(settings.gradient(state, x, gradient)) == pytest.approx(1 - 3)
    assert float(settings.gradient(state, x[2:], gradient[2:])) == pytest.approx(0.01 * r)


def test_a_calibrated_range() -> None:
    batches = [torch.tensor([1.0, -3.0, 0.0, 2.0]), torch.tensor([0.5, -1.0, 0.0, 0.0])]
    for calibration, wanted in (
        (Calibration.MAX, 3.0),
        (Calibration.MOVING_QUANTILE, 2.0),
        (Calibration.MOVING_STD, sum(1.5 * float(batch.std(unbiased=False)) for batch in batches)),
    ):
        state = InputRange().draw()
        for batch in batches:
            calibrated(state, batch, calibration)
        assert float(state["input_range"]) == pytest.approx(wanted)
