"""Merged updates: how near their law is to that of the exact update, and how far it is from it where it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rapa_cli.analog import presets
from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.cells import UpdatePolicy, VectorUnitCell
from rapa_cli.analog.device import Device, PulsedDevice
from rapa_cli.analog.merged import Chunk, Moments, moments
from rapa_cli.analog.mixed import MixedPrecisionCompound
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.parameters import IOParameters, PulseType, UpdateParameters
from rapa_cli.analog.steps import ConstantStepDevice, SoftBoundsDevice
from rapa_cli.analog.transfer import BufferedTransferCompound, TransferCompound
from rapa_cli.analog.update import scales
from tests.analog.laws import assert_same_law, assert_uncorrelated, draws
from tests.tolerances import assert_near

_ALIKE: dict[str, Any] = {"dw_min_dtod": 0.0, "up_down_dtod": 0.0, "w_max_dtod": 0.0, "w_min_dtod": 0.0}
_TILES, _OUT, _IN, _PAIRS = 400, 3, 4, 40


def _alike(device: Device) -> Device:
    """The same without spreads between devices and without write noise."""
    if isinstance(device, PulsedDevice):
        none = dict.fromkeys(
            {"gamma_up_dtod", "gamma_down_dtod", "write_noise_std"} & set(type(device).model_fields), 0.0
        )
        return device.model_copy(update=_ALIKE | none)
    parts = getattr(device, "unit_cell_devices", ())
    return device.model_copy(update={"unit_cell_devices": tuple(_alike(part) for part in parts)})


def _kept(bank: AnalogBank) -> Tensor:
    return bank.state["hidden"].clone() if "hidden" in bank.state else bank.get_weights()


def _assert_near_in_law(exact: Tensor, merged: Tensor, *, within: float = 0.05) -> None:
    """Means and spreads of the change of each device over many tiles, the mean relative to the root mean square.

    What the finite sample makes of both is taken off: the expected square of the error of the means, and nothing of
    the ratio of spreads, whose mean over the devices has an error far below the limit.
    """
    mean, size = exact.mean(0), exact.pow(2).mean(0)
    chance = (exact.var(0) + merged.var(0)) / len(exact)
    bias = float((((merged.mean(0) - mean) ** 2 - chance) / size).mean())
    assert max(bias, 0.0) ** 0.5 < within, f"means are off by {max(bias, 0.0) ** 0.5}"
    assert float((merged.std(0) / exact.std(0)).mean()) == pytest.approx(1, abs=within)


def _changes(device: Device, merge: int, gradient: float, pairs: int = _PAIRS) -> Tensor:
    """What one update does to as many tiles that get the same pairs: (tiles, out, in)."""
    bank = AnalogBank(Arrays(device=device, merge=merge), _TILES, _OUT, _IN, draws(1))
    generator = draws(2)
    x = torch.randn(pairs, _IN, generator=generator).relu()
    d = gradient * torch.randn(pairs, _OUT, generator=generator)
    start = torch.linspace(-0.3, 0.3, _OUT * _IN).view(_OUT, _IN).expand(_TILES, -1, -1)
    bank.set_weights(start, draws())
    before = _kept(bank)
    bank.update(x.repeat(_TILES, 1), d.repeat(_TILES, 1), [pairs] * _TILES, 0.05, draws(3 + merge))
    return _kept(bank) - before


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


def test_tiles_are_independent_and_have_one_law() -> None:
    device = ConstantStepDevice(w_max=5.0, w_min=-5.0)
    for merge in (1, 0):
        bank = AnalogBank(Arrays(device=device, merge=merge), 3, 40, 50, draws(1))
        x, d = torch.rand(10, 50, generator=draws(2)), torch.rand(10, 40, generator=draws(3)) - 0.5
        bank.update(x.repeat(3, 1), d.repeat(3, 1), [10] * 3, 0.01, draws(4 + merge))
        mean, pulses = -0.01 * d.T @ x, d.abs().T @ x
        # What is left is the spread of devices and of chance, the same in every tile.
        rest = [((bank.get_weights()[tile] - mean) / pulses.sqrt())[::3, ::5] for tile in range(3)]
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert_same_law(rest[first], rest[second])
            assert_uncorrelated(rest[first], rest[second])


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


def _layer_changes(device: Device, merge: int, gradient: float, lr: float, pairs: int = 4 * presets.CHUNK) -> Tensor:
    """Changes of a slice of a layer by pairs like those of `full`: x from 0 to 1, many of them 0, small gradients."""
    tiles, out, columns = 200, 4, 6
    bank = AnalogBank(Arrays(device=device, merge=merge), tiles, out, columns, draws(1))
    generator = draws(2)
    x = torch.rand(pairs, columns, generator=generator) ** 2 * (torch.rand(pairs, columns, generator=generator) < 0.6)
    # Lines with the largest values of a layer, which set the scales of all: that of the bias, and the steepest.
    x[:, -1] = 1
    d = gradient * torch.randn(pairs, out, generator=generator) * torch.rand(pairs, 1, generator=generator)
    d += 0.1 * gradient * torch.tensor([1.0, -1.0, 0.5, 0.0])
    start = torch.linspace(-0.7, 0.7, out * columns)[torch.randperm(out * columns, generator=generator)]
    bank.set_weights(start.view(out, columns).expand(tiles, -1, -1), draws())
    before = _kept(bank)
    bank.update(x.repeat(tiles, 1), d.repeat(tiles, 1), [pairs] * tiles, lr, draws(3 + merge))
    return _kept(bank) - before


@pytest.mark.parametrize(
    ("name", "gradient", "lr"),
    [
        ("GokmenVlasov", 1e-3, 0.03),
        ("EcRamMO", 1e-2, 0.1),
        ("ReRamES", 1e-3, 0.03),
        ("ReRamES", 1e-2, 0.1),
        ("ReRamSB", 1e-2, 0.1),
        ("PCM", 1e-2, 0.1),
        ("ReRamES2", 1e-2, 0.1),
    ],
)
def test_presets_merge_within_five_percent_of_exact(name: str, gradient: float, lr: float) -> None:
    arrays = presets.PRESETS[name]()
    device = _alike(arrays.device)
    exact, merged = (_layer_changes(device, merge, gradient, lr) for merge in (1, arrays.merge))
    _assert_near_in_law(exact, merged)


def test_one_sided_pairs_may_get_a_whole_batch() -> None:
    """Steps of PCM are so large that a few pulses fill a device; the chunk does not matter all the same."""
    device = _alike(presets.PCM().device)
    exact = _changes(device, 1, 0.5)
    assert float(exact.std(0).mean()) > 0.1
    for merge in (0, 10):
        _assert_near_in_law(exact, _changes(device, merge, 0.5))


@pytest.mark.parametrize("policy", list(UpdatePolicy))
def test_vector_cells_divide_pulses_as_pairs_take_turns(policy: UpdatePolicy) -> None:
    wide: dict[str, Any] = _ALIKE | {"w_max": 2.0, "w_min": -2.0}
    steps = tuple(ConstantStepDevice(**wide, dw_min=step, dw_min_std=0.2) for step in (0.002, 0.001, 0.0015))
    cell = VectorUnitCell(unit_cell_devices=steps, update_policy=policy)
    exact, merged = (_changes(cell, merge, 0.002, pairs=200) for merge in (1, 0))
    _assert_near_in_law(exact, merged)


def test_vector_cells_with_many_pulses_for_each_pair_deviate_where_devices_differ() -> None:
    """How far the merged law deviates: which device gets the large pairs is left to chance for each pulse."""
    steps = tuple(ConstantStepDevice(**_ALIKE, dw_min=step, dw_min_std=0.0) for step in (0.0002, 0.00005))
    cell = VectorUnitCell(unit_cell_devices=steps, update_policy=UpdatePolicy.SINGLE_RANDOM)
    exact, merged = (_changes(cell, merge, 0.02).std(0).mean() for merge in (1, 0))
    assert 0.3 < float(merged / exact) < 0.9
    even = VectorUnitCell(unit_cell_devices=steps[:1] * 2, update_policy=UpdatePolicy.SINGLE_RANDOM)
    exact, merged = (_changes(even, merge, 0.02).std(0).mean() for merge in (1, 0))
    assert float(merged / exact) == pytest.approx(1, abs=0.05)


def test_turns_go_on_where_the_last_chunk_left_them() -> None:
    fine = ConstantStepDevice(**_ALIKE, dw_min=1e-6, dw_min_std=0.0)
    cell = VectorUnitCell(unit_cell_devices=(fine,) * 3, update_policy=UpdatePolicy.SINGLE_SEQUENTIAL)
    bank = AnalogBank(Arrays(device=cell, merge=5), 2, 1, 1, draws())
    bank.update(torch.ones(8, 1), torch.full((8, 1), -1.0), [7, 1], 2e-5, draws())
    # Pairs 1 to 7 go to the devices 1, 2, 0, 1, 2, 0, 1; within the chunks their shares are exact.
    shares = torch.stack([bank.state[f"{k}.weight"].flatten() for k in range(3)], 1) / 2e-5
    torch.testing.assert_close(shares, torch.tensor([[2.0, 3.0, 2.0], [0.0, 1.0, 0.0]]), atol=0.8, rtol=0)
    assert bank.state["turn"].tolist() == [1, 1]
    assert bank.state["updates"].tolist() == [7, 1]


_FINE = ConstantStepDevice(**_ALIKE, dw_min=1e-6, dw_min_std=0.0, w_max=1.0, w_min=-1.0)
_PERFECT = IOParameters(is_perfect=True)


def test_tiki_taka_makes_the_transfers_of_a_chunk_after_it() -> None:
    """Every second pair a column is due; a chunk of all pairs comes before all of them."""
    mean = UpdateParameters(pulse_type=PulseType.MEAN_COUNT, desired_bl=4096)
    cell = TransferCompound(
        unit_cell_devices=(_FINE, _FINE),
        transfer_forward=_PERFECT,
        transfer_update=mean,
        units_in_mbatch=False,
        transfer_every=2.0,
        fast_lr=0.002,
        transfer_lr=0.5,
    )
    generator = draws(1)
    x, d = torch.rand(7, 3, generator=generator), torch.randn(7, 2, generator=generator)
    for merge, seen in ((0, (6, 6, 6)), (4, (4, 4, 6))):
        update = UpdateParameters(desired_bl=4096)
        bank = AnalogBank(Arrays(device=cell, update=update, merge=merge), 2, 2, 3, draws())
        bank.update(x, d, [6, 1], 0.1, draws(2))
        sums = [-0.002 * d[:n].T @ x[:n] for n in range(7)]
        torch.testing.assert_close(bank.state["0.weight"][0], sums[6], atol=2e-4, rtol=0)
        wanted = torch.stack([0.1 * 0.5 * sums[n][:, column] for column, n in enumerate(seen)], 1)
        torch.testing.assert_close(bank.get_weights()[0], wanted, atol=2e-5, rtol=0)
        assert not bank.get_weights()[1].any()
        assert bank.state["slice"][:, 0].tolist() == [0, 0]


def test_with_whole_batches_tiki_taka_keeps_its_order() -> None:
    device = _alike(presets.DEVICES["EcRam"])
    cell = TransferCompound(unit_cell_devices=(device, device), gamma=1.0, transfer_forward=_PERFECT, transfer_lr=20.0)
    exact, merged = (_changes(cell, merge, 0.01) for merge in (1, 0))
    _assert_near_in_law(exact, merged)


def test_transfers_of_every_pair_come_chunk_by_chunk() -> None:
    """How far the second version deviates: chunks below the number of columns stay near, a whole batch does not."""
    cell = _alike(presets.TTv2EcRam().device)
    assert isinstance(cell, BufferedTransferCompound)
    tiles, columns, pairs = 20, 64, 640
    x, d = torch.rand(pairs, columns, generator=draws(4)), torch.randn(pairs, 2, generator=draws(5)) + 0.3
    means = []
    for merge in (1, 32, 0):
        bank = AnalogBank(Arrays(device=cell, merge=merge), tiles, 2, columns, draws())
        bank.update(x.repeat(tiles, 1), d.repeat(tiles, 1), [pairs] * tiles, 0.1, draws(6 + merge))
        assert bank.state["slice"][:, 0].eq(0).all()
        means.append(torch.stack([bank.state[f"{k}.weight"].mean(0) for k in range(2)]))
    exact, chunks, whole = means
    largest = exact.abs().mean((1, 2))
    errors = [((other - exact).abs().mean((1, 2)) / largest).tolist() for other in (chunks, whole)]
    # Of the fast device, which does not depend on transfers, and of the slow one.
    assert errors[0][0] < 0.05
    assert errors[0][1] < 0.1
    assert errors[1][1] > 0.3


def test_mixed_precision_adds_the_pairs_between_two_transfers_at_once() -> None:
    device = _FINE.model_copy(update={"dw_min": 0.01})
    cell = MixedPrecisionCompound(device=device, transfer_every=3, units_in_mbatch=False)
    update = UpdateParameters(pulse_type=PulseType.MEAN_COUNT)
    generator, sizes = draws(4), [5, 0, 7]
    x, d = torch.randn(12, 4, generator=generator), torch.randn(12, 3, generator=generator)
    together, alone = (AnalogBank(Arrays(device=cell, update=update), 3, 3, 4, draws()) for _ in range(2))
    together.update(x, d, sizes, 0.02, draws())
    for row in range(12):
        alone.update(x[row : row + 1], d[row : row + 1], [int(row < 5), 0, int(row >= 5)], 0.02, draws())
    assert together.get_weights()[0].any()
    assert together.state["updates"].tolist() == sizes
    for name, values in together.state.items():
        torch.testing.assert_close(values, alone.state[name])


def test_cells_count_the_pairs_of_a_chunk() -> None:
    cell = OneSidedUnitCell(unit_cell_devices=(_FINE, _FINE), refresh_every=1)
    bank = AnalogBank(Arrays(device=cell, merge=0), 2, 2, 3, draws())
    none = torch.zeros(2, 2, 3)
    pulses = Moments(none + 50, none + 20, none, none)
    with pytest.raises(ValueError, match="chunk: got none"):
        bank.apply(pulses, draws())
    bank.apply(pulses, draws(), Chunk(torch.tensor([3, 0]), torch.tensor([3, 0]), 0.1))
    assert_near(bank.get_weights(), none + 30e-6)
    assert bank.state["updates"].tolist() == [3, 0]
    assert bank.rate(0.1) == 0.1
    digital = AnalogBank(Arrays(device=MixedPrecisionCompound(device=_FINE), merge=0), 2, 2, 3, draws())
    assert digital.rate(0.1) is None
    with pytest.raises(ValueError, match="take no moments"):
        digital.apply(pulses, draws())
    single = AnalogBank(Arrays(device=_FINE, merge=0), 2, 2, 3, draws())
    single.apply(pulses, draws())
    assert_near(single.get_weights(), none + 30e-6)
