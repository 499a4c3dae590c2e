"""Cells of several devices: who is updated, what is transferred when, and that nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rapa_cli.analog import presets
from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.cells import UpdatePolicy, VectorUnitCell
from rapa_cli.analog.device import Device
from rapa_cli.analog.mixed import MixedPrecisionCompound
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.parameters import IOParameters, PulseType, UpdateParameters
from rapa_cli.analog.steps import ConstantStepDevice, LinearStepDevice
from rapa_cli.analog.transfer import BufferedTransferCompound, TransferCompound
from tests.analog.laws import assert_binomial, draws
from tests.tolerances import assert_near

_EVEN = ConstantStepDevice(
    dw_min=0.01,
    dw_min_dtod=0.0,
    dw_min_std=0.0,
    up_down_dtod=0.0,
    w_max=1.0,
    w_max_dtod=0.0,
    w_min=-1.0,
    w_min_dtod=0.0,
    reset_std=0.0,
)
_FINE = _EVEN.model_copy(update={"dw_min": 5e-6})
_PERFECT = IOParameters(is_perfect=True)
_MEAN = UpdateParameters(pulse_type=PulseType.MEAN_COUNT)
_EXACT = UpdateParameters(pulse_type=PulseType.DETERMINISTIC_IMPLICIT, desired_bl=4096, fixed_bl=False)


def _bank(device: Any, tiles: int, out: int, columns: int, update: UpdateParameters = _MEAN) -> AnalogBank:
    return AnalogBank(Arrays(device=device, update=update), tiles, out, columns, draws(3))


def _ones(bank: AnalogBank, sizes: list[int], sign: float = -1.0, lr: float = 0.01, seed: int = 0) -> None:
    """Pairs of ones: each device gets `lr` / 0.01 pulses, upwards for the sign -1."""
    n = sum(sizes)
    bank.update(torch.ones(n, bank.in_size), torch.full((n, bank.out_size), sign), sizes, lr, draws(seed))


def test_devices_of_a_vector_cell_share_pulses_and_are_averaged() -> None:
    other = _EVEN.model_copy(update={"dw_min": 0.03})
    bank = _bank(VectorUnitCell(unit_cell_devices=(_EVEN, other)), 2, 2, 3)
    bank.set_weights(torch.full((2, 2, 3), 0.2), draws())
    assert_near(bank.get_weights(), torch.full((2, 2, 3), 0.2))
    # The granularity is the mean of both, 0.02, so that this is one pulse for each.
    _ones(bank, [1, 0], lr=0.02)
    assert_near(bank.state["0.weight"][0], torch.full((2, 3), 0.21))
    assert_near(bank.state["1.weight"][0], torch.full((2, 3), 0.23))
    assert_near(bank.get_weights(), torch.tensor([0.22, 0.2])[:, None, None].expand(2, 2, 3))


def test_devices_in_turns() -> None:
    bank = _bank(
        VectorUnitCell(
            unit_cell_devices=(_EVEN,) * 3, update_policy=UpdatePolicy.SINGLE_SEQUENTIAL, gamma_vec=(1.0, 1.0, 1.0)
        ),
        2,
        1,
        1,
    )
    _ones(bank, [4, 2])
    pulses = torch.stack([bank.state[f"{k}.weight"][:, 0, 0] for k in range(3)], 1) / 0.01
    assert_near(pulses, torch.tensor([[1.0, 2.0, 1.0], [0.0, 1.0, 1.0]]))


def test_a_device_at_random_for_each_tile() -> None:
    cell = VectorUnitCell(
        unit_cell_devices=(_EVEN,) * 2, update_policy=UpdatePolicy.SINGLE_RANDOM, gamma_vec=(1.0, 1.0)
    )
    bank = _bank(cell, 3000, 1, 2)
    _ones(bank, [8] * 3000)
    counts = torch.round(bank.state["0.weight"] / 0.01)
    assert torch.equal(counts[:, 0, 0], counts[:, 0, 1])
    assert_binomial(counts[:, 0, 0], 8, 0.5)
    assert_near(bank.get_weights(), torch.full((3000, 1, 2), 0.08))


def test_one_device_and_a_fixed_reference() -> None:
    cell = VectorUnitCell(
        unit_cell_devices=(_EVEN,) * 2, update_policy=UpdatePolicy.SINGLE_FIXED, gamma_vec=(1.0, -1.0)
    )
    bank = _bank(cell, 1, 1, 1)
    bank.state["1.weight"].fill_(0.1)
    bank.set_weights(torch.full((1, 1, 1), 0.3), draws())
    assert float(bank.state["0.weight"]) == pytest.approx(0.4)
    _ones(bank, [2], sign=1.0)
    assert float(bank.get_weights()) == pytest.approx(0.28)
    assert float(bank.state["1.weight"]) == pytest.approx(0.1)


def test_a_one_sided_pair_only_steps_up() -> None:
    bank = _bank(OneSidedUnitCell(unit_cell_devices=(_EVEN, _EVEN)), 2, 1, 2)
    bank.set_weights(torch.tensor([[[0.3, -0.2]], [[0.0, 0.1]]]), draws())
    minus, plus = bank.state["0.weight"], bank.state["1.weight"]
    assert_near(plus.flatten(), torch.tensor([0.3, 0.0, 0.0, 0.1]))
    assert_near(minus.flatten(), torch.tensor([0.0, 0.2, 0.0, 0.0]))
    bank.update(torch.tensor([[1.0, -1.0]]), torch.ones(1, 1), [0, 1], 0.03, draws())
    assert_near(plus.flatten(), torch.tensor([0.3, 0.0, 0.0, 0.13]))
    assert_near(minus.flatten(), torch.tensor([0.0, 0.2, 0.03, 0.0]))
    assert_near(bank.get_weights().flatten(), torch.tensor([0.3, -0.2, -0.03, 0.13]))


def test_a_refresh_keeps_the_weights_of_pairs_that_are_full() -> None:
    cell = OneSidedUnitCell(
        unit_cell_devices=(_EVEN, _EVEN),
        refresh_every=2,
        units_in_mbatch=False,
        refresh_forward=_PERFECT,
        refresh_update=UpdateParameters(pulse_type=PulseType.DETERMINISTIC_IMPLICIT),
    )
    bank = _bank(cell, 2, 2, 2)
    full = torch.tensor([[[0.8, 0.9], [0.8, 0.65]]] * 2)
    other = torch.tensor([[[0.7, 0.95], [0.2, 0.9]]] * 2)
    bank.state["1.weight"].copy_(full)
    bank.state["0.weight"].copy_(other)
    weights = full - other
    # The first tile has its two updates, and is refreshed; the other has one.
    bank.update(torch.zeros(3, 2), torch.zeros(3, 2), [2, 1], 0.01, draws())
    assert_near(bank.get_weights(), weights)
    plus, minus = bank.state["1.weight"], bank.state["0.weight"]
    # One pair is not refreshed, for its smaller device is nearly empty; in the last g- is the larger one.
    assert_near(plus[0], torch.tensor([[0.1, 0.0], [0.8, 0.0]]))
    assert_near(minus[0], torch.tensor([[0.0, 0.05], [0.2, 0.25]]))
    assert torch.equal(plus[1], full[1])


def test_the_first_tiki_taka_moves_a_column_each_time() -> None:
    cell = TransferCompound(
        unit_cell_devices=(_FINE, _FINE),
        transfer_forward=_PERFECT,
        transfer_update=_EXACT,
        units_in_mbatch=False,
        transfer_every=2.0,
        fast_lr=0.001,
        transfer_lr=0.5,
    )
    generator = draws(1)
    bank = _bank(cell, 2, 3, 4, _EXACT)
    bank.set_weights(torch.full((2, 3, 4), 0.1), draws())
    assert not bank.state["0.weight"].any()
    x, d = torch.randn(5, 4, generator=generator), torch.randn(5, 3, generator=generator)
    bank.update(x, d, [4, 1], 0.1, draws())
    sums = [torch.zeros(3, 4)]
    for pair in range(4):
        sums.append(sums[-1] - 0.001 * d[pair][:, None] * x[pair][None, :])
    torch.testing.assert_close(bank.state["0.weight"][0], sums[4], atol=3e-5, rtol=0)
    wanted = torch.full((3, 4), 0.1)
    wanted[:, 0] += 0.1 * 0.5 * sums[2][:, 0]
    wanted[:, 1] += 0.1 * 0.5 * sums[4][:, 1]
    torch.testing.assert_close(bank.get_weights()[0], wanted, atol=3e-5, rtol=0)
    assert torch.equal(bank.get_weights()[1], torch.full((3, 4), 0.1))
    assert bank.state["slice"][:, 0].tolist() == [2, 0]


def test_transfers_by_rows_wrap_around_and_count_batches() -> None:
    cell = TransferCompound(
        unit_cell_devices=(_FINE, _FINE),
        transfer_forward=_PERFECT,
        transfer_update=_EXACT,
        transfer_columns=False,
        n_reads_per_transfer=2,
        scale_transfer_lr=False,
        gamma=0.5,
    )
    bank = _bank(cell, 1, 3, 2, _EXACT)
    bank.state["0.weight"].copy_(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]) / 1000)
    fast = bank.state["0.weight"][0].clone()
    for rows in ([0, 1], [2, 0]):
        before = bank.state["1.weight"].clone()
        bank.update(torch.zeros(5, 2), torch.zeros(5, 3), [5], 0.1, draws())
        wanted = torch.zeros(3, 2)
        wanted[rows] = fast[rows]
        torch.testing.assert_close((bank.state["1.weight"] - before)[0], wanted, atol=3e-5, rtol=0)
    assert_near(bank.get_weights()[0], 0.5 * fast + bank.state["1.weight"][0])


def test_columns_that_were_read_are_reset_in_their_tile_only() -> None:
    cell = TransferCompound(
        unit_cell_devices=(_EVEN, _EVEN),
        transfer_forward=_PERFECT,
        with_reset_prob=1.0,
        transfer_lr=1e-6,
        random_selection=True,
    )
    bank = _bank(cell, 2, 3, 4)
    bank.state["0.weight"].fill_(0.5)
    bank.update(torch.zeros(1, 4), torch.zeros(1, 3), [0, 1], 0.1, draws())
    fast = bank.state["0.weight"]
    assert (fast[0] == 0.5).all()
    assert ((fast[1] == 0).all(0).sum() == 1) and (fast[1] != 0).sum() == 9


def test_the_second_tiki_taka_loses_nothing_of_what_it_reads() -> None:
    cell = BufferedTransferCompound(
        unit_cell_devices=(_EVEN, _EVEN),
        transfer_forward=_PERFECT,
        units_in_mbatch=False,
        scale_transfer_lr=False,
        forget_buffer=False,
        momentum=0.0,
        transfer_lr=0.4,
    )
    bank = _bank(cell, 1, 3, 2)
    fast = torch.tensor([[[0.01, -0.04], [0.02, 0.0], [-0.03, 0.05]]])
    bank.state["0.weight"].copy_(fast)
    for _ in range(10):
        bank.update(torch.zeros(2, 2), torch.zeros(2, 3), [2], 0.1, draws())
        total = bank.get_weights() + bank.state["buffer.0"]
    # Each column was read ten times, and at most one step was written each time.
    assert_near(total, 10 * 0.4 * fast)
    assert bank.get_weights().abs().max() >= 0.05
    forgetful = cell.model_copy(update={"forget_buffer": True, "momentum": 0.25})
    second = _bank(forgetful, 1, 1, 1)
    second.state["0.weight"].fill_(0.06)
    second.update(torch.zeros(1, 1), torch.zeros(1, 1), [1], 0.1, draws())
    assert float(second.get_weights()) == pytest.approx(0.01)
    assert float(second.state["buffer.0"]) == pytest.approx(0.25 * 0.024)


def test_automatic_scales_fill_the_trains_whatever_the_gradient() -> None:
    cell = BufferedTransferCompound(
        unit_cell_devices=(_EVEN, _EVEN), transfer_every=0.0, auto_scale=True, fast_lr=0.1, auto_granularity=100.0
    )
    for size in (1.0, 1e-4):
        bank = _bank(cell, 1, 1, 2, UpdateParameters(pulse_type=PulseType.DETERMINISTIC_IMPLICIT))
        bank.update(torch.tensor([[1.0, 0.5]]), torch.full((1, 1), -size), [1], 0.1, draws())
        # 31 slots times 0.1 make 3.1 steps of 0.01.
        assert_near(bank.state["0.weight"].flatten(), torch.tensor([0.03, 0.02]))
        assert_near(bank.state["largest"], torch.tensor([[1.0, size]]))


def test_mixed_precision_loses_nothing_of_the_sum() -> None:
    bank = _bank(MixedPrecisionCompound(device=_EVEN), 2, 3, 4)
    generator = draws(4)
    x, d = torch.randn(6, 4, generator=generator), torch.randn(6, 3, generator=generator)
    bank.update(x, d, [4, 2], 0.02, draws())
    wanted = -0.02 * torch.stack([d[:4].T @ x[:4], d[4:].T @ x[4:]])
    assert_near(bank.get_weights() - bank.state["chi"], wanted)
    assert (bank.state["chi"].abs() <= 0.01 + 1e-6).all()
    assert bank.get_weights().any()


def test_mixed_precision_transfers_some_rows_and_bins_its_vectors() -> None:
    cell = MixedPrecisionCompound(device=_EVEN, n_rows_per_transfer=2, n_x_bins=2, n_d_bins=4, stoc_round_x=False)
    bank = _bank(cell.model_copy(update={"stoc_round_d": False}), 1, 3, 2)
    bank.update(torch.tensor([[1.0, -0.6]]), torch.tensor([[1.0, 0.6, -0.2]]), [1], 0.1, draws())
    # x has the levels -1, 0, 1, d also 1/2.
    assert_near(bank.get_weights()[0], torch.tensor([[-0.1, 0.1], [-0.05, 0.05], [0.0, 0.0]]))
    assert bank.state["row"].tolist() == [2]
    waiting = _bank(MixedPrecisionCompound(device=_EVEN, transfer_every=3, units_in_mbatch=False), 1, 1, 1)
    _ones(waiting, [2])
    assert not waiting.get_weights().any()
    _ones(waiting, [1])
    assert float(waiting.get_weights()) == pytest.approx(0.03)


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_a_bank_of_any_preset_goes_on_from_its_state(name: str) -> None:
    arrays = presets.PRESETS[name]()
    assert presets.preset(f"{name}Preset") == arrays
    assert presets.preset(name, merge=1) == presets.PRESETS[name](1) == arrays.exact()
    assert Arrays.model_validate_json(arrays.model_dump_json()) == arrays
    assert hash(Arrays.model_validate(arrays.model_dump(mode="json"))) == hash(arrays)
    generator, sizes = draws(2), [2, 3]
    x, d = torch.randn(5, 4, generator=generator), torch.randn(5, 3, generator=generator)

    def work(bank: AnalogBank, seed: int) -> list[Tensor]:
        reading = bank.forward(x, sizes, draws(seed))
        gradient = bank.backward(d, sizes, draws(seed), reading)
        weights = bank.get_weights()
        bank.update(x, d, sizes, 0.05, draws(seed))
        bank.after_step(draws(seed))
        return [reading.values, gradient, weights, bank.get_weights()]

    others = torch.get_rng_state()
    first = AnalogBank(arrays, 2, 3, 4, draws(1))
    first.set_weights(0.3 * torch.randn(2, 3, 4, generator=generator), draws())
    work(first, 5)
    second = AnalogBank(arrays, 2, 3, 4, draws(9))
    second.load_state({key: values.clone() for key, values in first.state.items()})
    for here, there in zip(work(first, 6), work(second, 6), strict=True):
        assert torch.equal(here, there)
        assert here.isfinite().all()
    for key, values in first.state.items():
        assert torch.equal(values, second.state[key]), key
    assert torch.equal(torch.get_rng_state(), others), "torch's global generator was used"


@pytest.mark.parametrize(("prefix", "lr"), [("", 0.03), ("TikiTaka", 0.03), ("TTv2", 0.5), ("MixedPrecision", 0.03)])
def test_presets_learn_a_matrix(prefix: str, lr: float) -> None:
    """A regression: what the forward reading gives comes near that of a teacher, with every way of training."""
    arrays = presets.PRESETS[f"{prefix}EcRam"]()
    bank = AnalogBank(arrays, 2, 2, 3, draws(1))
    generator, sizes = draws(5), [10, 10]
    teacher = 0.3 * torch.randn(2, 2, 3, generator=generator)
    start = float(teacher.pow(2).mean())
    for _ in range(60):
        x = torch.randn(20, 3, generator=generator)
        target = torch.cat([x[:10] @ teacher[0].T, x[10:] @ teacher[1].T])
        error = bank.forward(x, sizes, generator).values - target
        bank.update(x, error, sizes, lr, generator)
    assert float((bank.get_weights() - teacher).pow(2).mean()) < 0.25 * start


@pytest.mark.parametrize(
    ("kind", "fields", "word"),
    [
        (VectorUnitCell, {"unit_cell_devices": ()}, "unit_cell_devices"),
        (VectorUnitCell, {"unit_cell_devices": (_EVEN,), "gamma_vec": (1.0, 2.0)}, "gamma_vec"),
        (VectorUnitCell, {"unit_cell_devices": (_EVEN, _EVEN), "gamma_vec": (1.0, -1.0)}, "gamma_vec"),
        (VectorUnitCell, {"unit_cell_devices": (_EVEN,), "first_update_idx": 1}, "first_update_idx"),
        (OneSidedUnitCell, {"unit_cell_devices": (_EVEN,)}, "unit_cell_devices"),
        (OneSidedUnitCell, {"unit_cell_devices": (_EVEN, LinearStepDevice())}, "one kind"),
        (
            OneSidedUnitCell,
            {"unit_cell_devices": (_EVEN, _EVEN), "refresh_update": UpdateParameters(pulse_type=PulseType.NONE)},
            "pulse_type",
        ),
        (TransferCompound, {"unit_cell_devices": (_EVEN,)}, "unit_cell_devices"),
        (TransferCompound, {"unit_cell_devices": (_EVEN, _EVEN), "gamma_vec": (1.0, 0.0)}, "gamma_vec"),
        (TransferCompound, {"unit_cell_devices": (_EVEN, _EVEN), "transfer_lr_vec": (1.0, 1.0)}, "transfer_lr_vec"),
        (
            TransferCompound,
            {"unit_cell_devices": (_EVEN, _EVEN), "with_reset_prob": 0.1, "transfer_columns": False},
            "with_reset_prob",
        ),
    ],
)
def test_what_does_not_work_is_said_at_construction(kind: type[Device], fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        kind(**fields)


def test_what_does_not_fit_a_bank_is_said_when_it_is_made() -> None:
    none = UpdateParameters(pulse_type=PulseType.NONE)
    for device in (VectorUnitCell(unit_cell_devices=(_EVEN,)), MixedPrecisionCompound(device=_EVEN)):
        with pytest.raises(ValueError, match="pulse_type: got None"):
            _bank(device, 1, 2, 3, none)
    many = TransferCompound(unit_cell_devices=(_EVEN, _EVEN), n_reads_per_transfer=4)
    with pytest.raises(ValueError, match="n_reads_per_transfer: got 4, allowed are 1 to 3"):
        _bank(many, 1, 2, 3)
    with pytest.raises(ValueError, match=r"no preset 'ReRamEX'; did you mean 'ReRamES'\?"):
        presets.preset("ReRamEX")
