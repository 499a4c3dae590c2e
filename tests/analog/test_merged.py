"""Merged updates: how near their law is to that of the exact update, and how far it is from it where it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rapa_cli.analog import presets
from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.cells import VectorUnitCell
from rapa_cli.analog.device import PulsedDevice
from rapa_cli.analog.merged import moments
from rapa_cli.analog.parameters import PulseType, UpdateParameters
from rapa_cli.analog.steps import ConstantStepDevice, SoftBoundsDevice
from rapa_cli.analog.update import scales
from tests.analog.laws import assert_same_law, draws
from tests.tolerances import assert_near

_ALIKE: dict[str, Any] = {"dw_min_dtod": 0.0, "up_down_dtod": 0.0, "w_max_dtod": 0.0, "w_min_dtod": 0.0}
_TILES, _OUT, _IN, _PAIRS = 400, 3, 4, 40


def _changes(device: PulsedDevice, merge: int, gradient: float, pairs: int = _PAIRS) -> Tensor:
    """What one update does to as many tiles that get the same pairs: (tiles, out, in)."""
    bank = AnalogBank(Arrays(device=device, merge=merge), _TILES, _OUT, _IN, draws(1))
    generator = draws(2)
    x = torch.randn(pairs, _IN, generator=generator).relu()
    d = gradient * torch.randn(pairs, _OUT, generator=generator)
    start = torch.linspace(-0.3, 0.3, _OUT * _IN).view(_OUT, _IN).expand(_TILES, -1, -1)
    bank.set_weights(start, draws())
    before = bank.state.get("hidden", bank.state["weight"]).clone()
    bank.update(x.repeat(_TILES, 1), d.repeat(_TILES, 1), [pairs] * _TILES, 0.05, draws(3 + merge))
    return bank.state.get("hidden", bank.state["weight"]) - before


@pytest.mark.parametrize("signed", [False, True])
def test_moments_are_sums_over_the_pairs(signed: bool) -> None:
    generator, update = draws(6), UpdateParameters()
    x, d = torch.randn(7, 4, generator=generator), torch.randn(7, 3, generator=generator)
    x = x if signed else x.abs()
    found = moments(x, d, [3, 0, 4], 0.05, 0.001, update, draws())
    wanted = torch.zeros(4, 3, 3, 4)
    trains = scales(x, d, 0.05, 0.001, update)
    for pair, tile in enumerate([0, 0, 0, 2, 2, 2, 2]):
        for row in range(3):
            for column in range(4):
                p = min(float(trains.a[pair] * d[pair, row].abs()), 1) * min(
                    float(trains.b[pair] * x[pair, column].abs()), 1
                )
                down = int(float(d[pair, row] * x[pair, column]) > 0)
                wanted[down, tile, row, column] += float(trains.slots[pair]) * p
                wanted[2 + down, tile, row, column] += float(trains.slots[pair]) * p * (1 - p)
    for actual, expected in zip(found, wanted, strict=True):
        assert_near(actual, expected)


@pytest.mark.parametrize("gradient", [0.001, 0.02])
@pytest.mark.parametrize("name", ["Idealized", "GokmenVlasov", "Capacitor", "EcRam", "EcRamMO", "ReRamES", "ReRamSB"])
def test_means_and_spreads_are_those_of_the_exact_update(name: str, gradient: float) -> None:
    device = presets.DEVICES[name].model_copy(update=_ALIKE)
    exact, merged = (_changes(device, merge, gradient) for merge in (1, 10))
    error = exact.std(0) / _TILES**0.5
    assert float(((merged.mean(0) - exact.mean(0)) / error).pow(2).mean().sqrt()) < 1.5 * 2**0.5
    # The mean over twelve devices of the ratio of two spreads of 400 tiles has an error of 1.4 %.
    assert float((merged.std(0) / exact.std(0)).mean()) == pytest.approx(1, abs=0.05)


def test_with_many_pulses_the_law_is_that_of_the_exact_update() -> None:
    device = ConstantStepDevice(**_ALIKE, w_max=50.0, w_min=-50.0)
    exact, merged = (_changes(device, merge, 0.5) for merge in (1, 0))
    for row in range(_OUT):
        for column in range(_IN):
            assert_same_law(exact[:, row, column], merged[:, row, column])


def test_devices_of_a_line_are_correlated_only_in_the_exact_update() -> None:
    """How far the merged law deviates: correlations of 0.2 and more within a row are lost."""
    device = ConstantStepDevice(**_ALIKE, dw_min_std=0.0)
    correlations = []
    for merge in (1, 0):
        changes = _changes(device, merge, 0.02)
        rows = [torch.corrcoef(changes[:, row].T) - torch.eye(_IN) for row in range(_OUT)]
        correlations.append(float(torch.stack(rows).abs().sum() / (_OUT * _IN * (_IN - 1))))
    exact, merged = correlations
    assert exact > 0.1
    assert merged < 0.06


def test_smaller_chunks_come_nearer_where_steps_depend_on_the_weight() -> None:
    device = SoftBoundsDevice(**_ALIKE, dw_min=0.01)
    exact = _changes(device, 1, 0.5).mean(0)
    errors = [float((_changes(device, merge, 0.5).mean(0) - exact).abs().mean()) for merge in (2, 0)]
    assert errors[0] < 0.5 * errors[1]


def test_tiles_with_fewer_pairs_take_part_as_long_as_they_have_any() -> None:
    device = ConstantStepDevice(**_ALIKE, dw_min=1e-4, dw_min_std=0.0)
    generator, sizes = draws(4), [5, 0, 2]
    x, d = torch.rand(7, 3, generator=generator), torch.rand(7, 2, generator=generator)
    for merge in (0, 2):
        bank = AnalogBank(Arrays(device=device, merge=merge), 3, 2, 3, draws())
        bank.update(x, d, sizes, 1e-3, draws(1))
        wanted = -1e-3 * torch.stack([d[:5].T @ x[:5], torch.zeros(2, 3), d[5:].T @ x[5:]])
        torch.testing.assert_close(bank.get_weights(), wanted, atol=5e-4, rtol=0)
        assert not bank.get_weights()[1].any()
        assert not torch.equal(bank.get_weights()[0], wanted[0])


def test_bounds_hold_and_touched_devices_have_new_write_noise() -> None:
    device = SoftBoundsDevice(**_ALIKE, write_noise_std=5.0)
    bank = AnalogBank(Arrays(device=device, merge=0), 1, 20, 30, draws())
    bank.update(torch.ones(200, 30), -torch.ones(200, 20), [200], 1.0, draws())
    assert float(bank.state["hidden"].max()) <= 0.6 + 1e-6
    assert float((bank.get_weights() - bank.state["hidden"]).std()) == pytest.approx(0.005, rel=0.15)
    bank.update(torch.zeros(0, 30), torch.zeros(0, 20), [0], 1.0, draws())
    assert_near(bank.state["hidden"].clamp(-0.6, 0.6), bank.state["hidden"])


def test_what_cannot_be_merged_is_said_at_construction() -> None:
    device = ConstantStepDevice()
    for kind in (device, VectorUnitCell(unit_cell_devices=(device,))):
        with pytest.raises(ValidationError, match="merge: got 0, allowed is 1, or stochastic"):
            Arrays(device=kind, merge=0, update=UpdateParameters(pulse_type=PulseType.MEAN_COUNT))
    assert Arrays(device=device, merge=3, update=UpdateParameters(pulse_type=PulseType.NONE)).merge == 3
