"""Pulsed updates: the law of coincidences, their management, and the order in which pairs are applied."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.parameters import PulseType, UpdateParameters
from rapa_cli.analog.steps import ConstantStepDevice, SoftBoundsDevice
from rapa_cli.analog.update import coincidences, scales
from tests.analog.laws import assert_binomial, assert_mean, assert_uncorrelated, draws
from tests.tolerances import assert_near

_ALIKE: dict[str, Any] = {
    "dw_min_dtod": 0.0,
    "dw_min_std": 0.0,
    "up_down_dtod": 0.0,
    "w_max": 5.0,
    "w_max_dtod": 0.0,
    "w_min": -5.0,
    "w_min_dtod": 0.0,
}


def _bank(tiles: int, out: int, columns: int, device: Any = None, seed: int = 0, **update: Any) -> AnalogBank:
    device = device or ConstantStepDevice(**_ALIKE)
    return AnalogBank(Arrays(device=device, update=UpdateParameters(**update)), tiles, out, columns, draws(seed))


def _counts(x: list[float], d: list[float], n: int, lr: float = 0.01, **update: Any) -> Tensor:
    vectors = torch.tensor([x]).expand(n, -1), torch.tensor([d]).expand(n, -1)
    return coincidences(*vectors, lr, 0.001, UpdateParameters(**update), draws())


@pytest.mark.parametrize("pulse_type", ["StochasticCompressed", "Stochastic"])
def test_coincidences_are_binomial_and_share_their_lines(pulse_type: str) -> None:
    n = 8000
    counts = _counts([0.5, 0.8, 1.0], [0.4, -0.7, 1.0], n, pulse_type=pulse_type)
    for row, p_d in enumerate((0.4, 0.7, 1.0)):
        for column, p_x in enumerate((0.5, 0.8, 1.0)):
            assert_binomial(counts[:, row, column].abs(), 10, p_x * p_d)
    assert (counts[:, 0] <= 0).all()
    assert (counts[:, 1] >= 0).all()
    # Two devices of a row share the train of d: cov = BL p_d (1 - p_d) p_x p_x'.
    centred = counts - counts.mean(0)
    assert_mean(centred[:, 0, 0] * centred[:, 0, 1], 10 * 0.4 * 0.6 * 0.5 * 0.8)
    # Devices in another row and another column share nothing.
    assert_uncorrelated(counts[:, 0, 0], counts[:, 1, 1])


def test_two_phases_give_inputs_of_opposite_signs_trains_of_their_own() -> None:
    counts = _counts([0.5, -0.8], [0.4, 1.0], 8000, pulse_type="Stochastic", update_bl_management=False)
    assert_uncorrelated(counts[:, 0, 0], counts[:, 0, 1])
    together = _counts([0.5, -0.8], [0.4, 1.0], 8000, update_bl_management=False)
    centred = together - together.mean(0)
    assert float((centred[:, 0, 0] * centred[:, 0, 1]).mean()) < -0.1


def test_the_mean_update_is_that_of_gradient_descent_in_every_tile() -> None:
    tiles, generator = 400, draws(1)
    x, d = torch.rand(1, 5, generator=generator) * 2 - 1, torch.rand(1, 4, generator=generator) * 2 - 1
    bank = _bank(tiles, 4, 5)
    bank.update(x.repeat(tiles * 3, 1), d.repeat(tiles * 3, 1), [3] * tiles, 0.01, draws(2))
    change = bank.get_weights()
    wanted = -0.03 * d[0][:, None] * x[0][None, :]
    for row in range(4):
        for column in range(5):
            assert_mean(change[:, row, column], float(wanted[row, column]))


def test_tiles_get_the_pairs_that_are_theirs_in_their_order() -> None:
    """With deterministic pulses a bank is its tiles one by one, and a tile its pairs one by one."""
    generator, sizes = draws(3), [2, 0, 4, 1]
    x, d = torch.randn(7, 3, generator=generator), torch.randn(7, 2, generator=generator)
    device = SoftBoundsDevice(dw_min=0.05, dw_min_std=0.0)
    bank = _bank(4, 2, 3, device, pulse_type="MeanCount")
    start = {name: values.clone() for name, values in bank.state.items()}
    bank.update(x, d, sizes, 0.5, draws())
    first = 0
    for tile, size in enumerate(sizes):
        alone = _bank(1, 2, 3, device, pulse_type="MeanCount")
        alone.load_state({name: values[tile : tile + 1] for name, values in start.items()})
        for row in range(first, first + size):
            alone.update(x[row : row + 1], d[row : row + 1], [1], 0.5, draws())
        assert torch.equal(alone.get_weights()[0], bank.get_weights()[tile])
        first += size
    # Steps that depend on the weight make the order of a tile's pairs matter.
    backwards = _bank(4, 2, 3, device, pulse_type="MeanCount")
    backwards.load_state(start)
    order = [1, 0, 5, 4, 3, 2, 6]
    backwards.update(x[order], d[order], sizes, 0.5, draws())
    assert not torch.equal(backwards.get_weights()[2], bank.get_weights()[2])
    assert torch.equal(backwards.get_weights()[3], bank.get_weights()[3])


def test_an_update_is_repeated_by_the_same_generator_and_state() -> None:
    x, d = torch.rand(6, 3, generator=draws(1)), torch.rand(6, 2, generator=draws(2))
    results = []
    for seed in (5, 5, 6):
        bank = _bank(2, 2, 3, ConstantStepDevice())
        bank.update(x, d, [3, 3], 0.01, draws(seed))
        results.append(bank.get_weights())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_exact_updates_of_a_batch_are_one_product() -> None:
    x, d = torch.rand(6, 3, generator=draws(1)), torch.rand(6, 2, generator=draws(2))
    wanted = -0.1 * torch.stack([d[:2].T @ x[:2], d[2:].T @ x[2:]])
    for bank in (_bank(2, 2, 3, IdealDevice()), _bank(2, 2, 3, pulse_type="None")):
        bank.update(x, d, [2, 4], 0.1, draws())
        assert_near(bank.get_weights(), wanted)


def test_exact_updates_with_a_device_stop_at_its_bounds() -> None:
    bank = _bank(1, 1, 2, ConstantStepDevice(**(_ALIKE | {"w_max": 0.1})), pulse_type="NoneWithDevice")
    bank.update(torch.tensor([[1.0, 0.5], [-1.0, 0.5]]), torch.full((2, 1), -1.0), [2], 0.15, draws())
    assert_near(bank.get_weights().flatten(), torch.tensor([0.1 - 0.15, 0.1]))


def test_nothing_happens_without_a_rate_an_input_or_a_gradient() -> None:
    for x, d, lr in (([1.0, 0.5], [0.3], 0.0), ([0.0, 0.0], [0.3], 0.1), ([1.0, 0.5], [0.0], 0.1)):
        assert not _counts(x, d, 3, lr).any()
    bank = _bank(1, 1, 2)
    bank.update(torch.zeros(0, 2), torch.zeros(0, 1), [0], 0.1, draws())
    assert not bank.get_weights().any()


def test_management_fills_the_trains_as_far_as_they_are_needed() -> None:
    x, d = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.2, 0.4]])
    short = scales(x, d, 0.01, 0.001, UpdateParameters())
    assert int(short.slots) == 4
    long = scales(x, d, 0.1, 0.001, UpdateParameters())
    assert int(long.slots) == 31
    # x keeps its probabilities, d saturates.
    assert float(long.b * x.max()) == pytest.approx(1)
    assert float(long.a * d.max()) == pytest.approx(40 / 31)
    # Twice the scale of the gradient gives it half of x's share.
    uneven = scales(x, d, 0.001, 0.001, UpdateParameters(um_grad_scale=4.0, update_bl_management=False))
    even = scales(x, d, 0.001, 0.001, UpdateParameters(update_bl_management=False))
    assert float(even.a / uneven.a) == pytest.approx(2)
    assert float(uneven.b / even.b) == pytest.approx(2)


def test_resolutions_are_fractions_or_numbers_of_steps() -> None:
    for res in (0.01, 100):
        counts = _counts([0.5, 1.0], [0.4, 1.0], 200, res=res)
        assert float(counts[:, 0, 0].mean()) == pytest.approx(-2, abs=0.4)
    coarse = _counts([0.5, 1.0], [0.24, 1.0], 1, pulse_type="DeterministicImplicit", d_res_implicit=0.5)
    assert coarse.flatten().tolist() == [0, 0, -5, -10]
    rounded = _counts([0.5, 1.0], [0.25, 1.0], 4000, pulse_type="MeanCount", res=0.5, sto_round=True)
    assert_mean((rounded[:, 0, 1] < 0).float(), 0.5)


def test_the_largest_updates_are_cut_to_the_slots() -> None:
    counts = _counts([1.0], [1.0], 5, lr=1.0)
    assert (counts == -31).all()
    free = scales(
        torch.ones(1, 1),
        torch.ones(1, 1),
        0.1,
        0.001,
        UpdateParameters(fixed_bl=False, update_management=False, update_bl_management=False, desired_bl=10),
    )
    assert int(free.slots) == 100
    assert float(free.a) == 1


def test_what_does_not_work_is_said() -> None:
    with pytest.raises(ValidationError, match="x_res_implicit"):
        UpdateParameters(x_res_implicit=0.1)
    with pytest.raises(ValidationError, match="pulse_type"):
        UpdateParameters(pulse_type="Sometimes")
    bank = _bank(1, 2, 3)
    with pytest.raises(ValueError, match="lr: got -1"):
        bank.update(torch.zeros(1, 3), torch.zeros(1, 2), [1], -1, draws())
    with pytest.raises(ValueError, match="x, d, sizes"):
        bank.update(torch.zeros(1, 3), torch.zeros(1, 3), [1], 0.1, draws())
    with pytest.raises(ValueError, match="pulse_type: None makes no pulses"):
        coincidences(torch.ones(1, 1), torch.ones(1, 1), 0.1, 0.1, UpdateParameters(pulse_type=PulseType.NONE), draws())
    with pytest.raises(ValueError, match="state: got"):
        bank.load_state({})
    assert math.isfinite(float(bank.get_weights().sum()))
