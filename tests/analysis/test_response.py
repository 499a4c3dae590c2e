"""Responses to pulses: laws of the curves, what cells do as a whole, and which devices sit at their bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.cells import UpdatePolicy, VectorUnitCell
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.kinds import AnyDevice
from rapa_cli.analog.mixed import MixedPrecisionCompound
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.parameters import IOParameters, PulseType, UpdateParameters
from rapa_cli.analog.presets import DEVICES
from rapa_cli.analog.steps import (
    AnyPulsed,
    ConstantStepDevice,
    ExpStepDevice,
    LinearStepDevice,
    PiecewiseStepDevice,
    PowStepDevice,
    SoftBoundsDevice,
    SoftBoundsReferenceDevice,
)
from rapa_cli.analog.transfer import BufferedTransferCompound, TransferCompound
from rapa_cli.analysis.response import AtBounds, Response, at_bounds, response
from tests.analog.laws import assert_binomial, assert_mean, draws
from tests.tolerances import assert_near

_ALIKE: dict[str, Any] = {
    "dw_min": 0.02,
    "dw_min_dtod": 0.0,
    "dw_min_std": 0.0,
    "up_down_dtod": 0.0,
    "w_max_dtod": 0.0,
    "w_min_dtod": 0.0,
}
_FALLING = {"A_up": 0.5, "A_down": 0.5, "gamma_up": 1.0, "gamma_down": 1.0, "a": 0.3, "b": 0.0}
_STEP = ConstantStepDevice(**_ALIKE)
_NOISY = SoftBoundsReferenceDevice(dw_min=0.02, write_noise_std=2.0, reference_std=0.1, subtract_symmetry_point=True)
_KINDS: list[AnyPulsed] = [
    ConstantStepDevice(dw_min=0.02),
    LinearStepDevice(dw_min=0.02, gamma_up=0.4, gamma_down=0.2),
    SoftBoundsDevice(dw_min=0.02),
    _NOISY,
    ExpStepDevice(dw_min=0.02, **_FALLING),
    PowStepDevice(dw_min=0.02, pow_gamma=0.8),
    PiecewiseStepDevice(dw_min=0.02, piecewise_up=(1.2, 1.0, 0.5), piecewise_down=(0.5, 1.0, 1.2)),
]


def _of(device: AnyDevice, seed: int = 0, **settings: int) -> Response:
    return response(device, draws(seed), **settings)


def _halves(found: Response) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pulses given up, and the noise-free weights; then down, from the end of the pulses up."""
    middle = len(found.pulses) // 2
    assert int(found.pulses[middle]) == found.train
    up, down = slice(0, middle + 1), slice(middle, None)
    given = found.pulses.float()
    return given[up], found.noise_free[up], given[down] - found.train, found.noise_free[down]


def test_constant_steps_go_straight_to_the_bounds() -> None:
    found = _of(ConstantStepDevice(**_ALIKE, w_max=0.5, w_min=-0.3))
    up, rising, down, falling = _halves(found)
    assert_near(rising, (0.02 * up).clamp_max(0.5))
    assert_near(falling, (0.5 - 0.02 * down).clamp_min(-0.3))
    assert float(falling[-1]) == pytest.approx(-0.3)
    assert (found.granularity, found.kind, found.note, found.cells) == (0.02, "ConstantStep", "", 200)
    assert found.states == pytest.approx(40)


def test_soft_bounds_are_approached_exponentially() -> None:
    up, rising, down, falling = _halves(_of(SoftBoundsDevice(**_ALIKE)))
    assert_near(rising, 0.6 * (1 - (1 - 0.02 / 0.6) ** up))
    start = float(rising[-1])
    assert_near(falling, (start + 0.6) * (1 - 0.02 / 0.6) ** down - 0.6)


def test_without_spread_and_noise_all_devices_are_the_noise_free_one() -> None:
    found = _of(LinearStepDevice(**_ALIKE, gamma_up=0.4, gamma_up_dtod=0.0, gamma_down_dtod=0.0))
    for curve in (found.mean, *found.band, *found.singles):
        assert_near(curve, found.noise_free)
    assert_near(found.steps.up_band, found.steps.up.expand(2, -1))
    assert found.lower_bound == pytest.approx((-0.6, 0))
    assert found.upper_bound == pytest.approx((0.6, 0))
    assert found.after_up == AtBounds(1, 0, 1)
    assert found.after_down == AtBounds(1, 1, 0)


@pytest.mark.parametrize("device", _KINDS, ids=lambda device: device.kind)
def test_the_trains_reach_the_bounds(device: AnyPulsed) -> None:
    found = _of(device)
    _, rising, _, falling = _halves(found)
    span = device.w_max - device.w_min
    assert abs(float(rising[-1]) - device.w_max) <= max(0.01 * span, 0.02)
    assert abs(float(falling[-1]) - device.w_min) <= max(0.01 * span, 0.02)
    assert found.train <= 8 * 1.25 * found.states + 2
    assert (found.band[0] <= found.band[1]).all()
    assert found.singles.shape == (4, len(found.pulses))
    assert (found.singles[:, 1:] != found.mean[1:]).any()
    assert found.steps.down is not None
    assert float(found.steps.weights[0]) == pytest.approx(device.w_min)
    assert (found.steps.up[1:-1] > 0).all()
    assert (found.steps.down[1:-1] > 0).all()


def test_the_spread_of_devices_is_seen() -> None:
    device = ConstantStepDevice(**_ALIKE | {"w_max_dtod": 0.1})
    found = _of(device, devices=2000)
    mean, std = found.upper_bound
    assert mean == pytest.approx(0.6, abs=0.01)
    assert std == pytest.approx(0.06, rel=0.1)
    end = found.band[:, len(found.pulses) // 2]
    assert_near((end / 0.01).round(), torch.tensor([0.6 - 1.2816 * 0.06, 0.6 + 1.2816 * 0.06]).div(0.01).round())


def test_weights_are_read_with_write_noise() -> None:
    found = _of(SoftBoundsReferenceDevice(**_ALIKE, write_noise_std=5.0), devices=2000)
    middle = len(found.pulses) // 2
    assert float(found.mean[middle]) == pytest.approx(float(found.noise_free[middle]), abs=0.01)
    width = float(found.band[1, middle] - found.band[0, middle])
    assert width == pytest.approx(2 * 1.2816 * 0.1, rel=0.1)
    assert found.after_up is not None
    assert found.after_up.upper == 1, "what counts is what is kept"


def test_steps_and_the_symmetry_point_of_exponential_steps() -> None:
    device = DEVICES["ReRamES"]
    assert isinstance(device, ExpStepDevice)
    found = _of(device)
    w = found.steps.weights
    up = 0.00135 * (1 + 1.18445 * torch.exp(5 * (-0.5 * w - 0.5)))
    down = 0.00135 * (1 - 0.259359) * (1 + 0.081404 * torch.exp(-5 * (-0.5 * w - 0.5)))
    assert_near(found.steps.up, up)
    assert found.steps.down is not None
    assert_near(found.steps.down, down)
    point = found.symmetry_point
    assert point is not None
    at = torch.tensor(point)
    rising = 0.00135 * (1 + 1.18445 * torch.exp(5 * (-0.5 * at - 0.5)))
    falling = 0.00135 * (1 - 0.259359) * (1 + 0.081404 * torch.exp(-5 * (-0.5 * at - 0.5)))
    assert float(rising) == pytest.approx(float(falling), rel=1e-3)
    assert found.symmetry_std == pytest.approx(0.13, abs=0.05)


def test_the_symmetry_point_of_linear_steps() -> None:
    """Steps up 1 - w / 2 and down (1 - rho) (1 + w / 2) are equal at w = 2 rho / (2 - rho)."""
    device = LinearStepDevice(
        **_ALIKE, w_max=1.0, w_min=-1.0, gamma_up=0.5, gamma_down=0.5, gamma_up_dtod=0.0, gamma_down_dtod=0.0
    )
    found = _of(device.model_copy(update={"up_down": 0.2}))
    assert found.symmetry_point == pytest.approx(0.4 / 1.8, abs=1e-4)
    assert found.symmetry_std == pytest.approx(0, abs=1e-4)
    assert _of(device).symmetry_point == pytest.approx(0, abs=1e-4)


def test_constant_steps_have_no_symmetry_point() -> None:
    assert _of(_STEP).symmetry_point is None
    found = _of(_STEP.model_copy(update={"up_down": 0.2}))
    assert (found.symmetry_point, found.symmetry_std) == (None, None)


def test_the_same_seed_gives_the_same_response() -> None:
    first, again, other = _of(_NOISY), _of(_NOISY), _of(_NOISY, seed=1)
    assert torch.equal(first.singles, again.singles)
    assert first.after_up == again.after_up
    assert not torch.equal(first.mean, other.mean)
    assert torch.equal(first.noise_free, other.noise_free), "nothing in it is left to chance"


def test_devices_of_a_perfect_bias_line_are_not_what_is_shown() -> None:
    found = _of(_STEP.model_copy(update={"perfect_bias": True}))
    assert float(found.mean.max()) == pytest.approx(0.6)


def test_stuck_devices() -> None:
    found = _of(_STEP.model_copy(update={"corrupt_devices_prob": 1.0}))
    assert (found.after_up, found.after_down) == (None, None)
    assert torch.equal(found.mean, found.mean[:1].expand_as(found.mean))
    assert float(found.noise_free.max()) == pytest.approx(0.6)
    half = _of(_STEP.model_copy(update={"corrupt_devices_prob": 0.5}))
    assert half.after_up == AtBounds(1, 0, 1)


def test_an_ideal_device_has_no_response() -> None:
    with pytest.raises(ValueError, match="has no response to pulses"):
        _of(IdealDevice())


@pytest.mark.parametrize("singles", [0, 11])
def test_wrong_numbers_are_refused(singles: int) -> None:
    with pytest.raises(ValueError, match="singles: got"):
        _of(_STEP, devices=10, singles=singles)


def _pulse_by_pulse(device: VectorUnitCell | OneSidedUnitCell, count: int) -> Tensor:
    """Weights of one cell of a bank after each of so many updates that make one pulse, first up, then down."""
    update = UpdateParameters(
        desired_bl=1, pulse_type=PulseType.MEAN_COUNT, update_management=False, update_bl_management=False
    )
    arrays, generator = Arrays(device=device, update=update), draws()
    bank = AnalogBank(arrays, 1, 1, 1, generator)
    weights = [0.0]
    for d in [-1.0] * count + [1.0] * count:
        bank.update(torch.ones(1, 1), torch.tensor([[d]]), [1], device.granularity(), generator)
        weights.append(float(bank.get_weights()))
    return torch.tensor(weights)


@pytest.mark.parametrize("policy", [UpdatePolicy.ALL, UpdatePolicy.SINGLE_FIXED, UpdatePolicy.SINGLE_SEQUENTIAL])
def test_a_cell_does_what_single_updates_do_to_it(policy: UpdatePolicy) -> None:
    device = SoftBoundsDevice(**_ALIKE)
    cell = VectorUnitCell(unit_cell_devices=(device, device, device), update_policy=policy, gamma_vec=(0.5, 0.3, 0.2))
    found = _of(cell)
    assert_near(found.noise_free, _pulse_by_pulse(cell, found.train)[found.pulses])
    assert_near(found.mean, found.noise_free)
    assert found.note.startswith("cells of 3 devices")


def test_a_pair_does_what_single_updates_do_to_it() -> None:
    device = ConstantStepDevice(**_ALIKE | {"w_min": 0.0, "w_max": 1.0})
    pair = OneSidedUnitCell(
        unit_cell_devices=(device.model_copy(update={"reset_std": 0.0}),) * 2,
        refresh_every=1,
        refresh_forward=IOParameters(is_perfect=True),
        refresh_update=UpdateParameters(pulse_type=PulseType.MEAN_COUNT),
    )
    found = _of(pair)
    assert_near(found.noise_free, _pulse_by_pulse(pair, found.train)[found.pulses])
    assert_near(found.mean, found.noise_free)
    assert found.steps.down is None
    assert found.symmetry_point is None
    assert found.after_up == AtBounds(1, 0, 1), "only g+ got pulses"


def test_turns_at_random() -> None:
    device = _STEP.model_copy(update={"w_max": 20.0, "w_min": -20.0, "dw_min": 1.0})
    cell = VectorUnitCell(
        unit_cell_devices=(device, device), update_policy=UpdatePolicy.SINGLE_RANDOM, gamma_vec=(1.0, 0.0)
    )
    found = _of(cell, devices=2000, singles=2000)
    at = int((found.pulses == 12).nonzero())
    assert_binomial(found.singles[:, at].round(), 12, 0.5)
    assert_mean(found.singles[:, at], 6)


def test_what_is_shown_of_cells_without_a_response() -> None:
    soft = SoftBoundsDevice(dw_min=0.02)
    alone = _of(soft)
    for cell in (
        TransferCompound(unit_cell_devices=(_STEP, soft)),
        BufferedTransferCompound(unit_cell_devices=(soft, soft)),
        MixedPrecisionCompound(device=soft),
    ):
        found = _of(cell)
        assert torch.equal(found.mean, alone.mean)
        assert found.note
    assert "slow device (the fast one is alike)" in _of(TransferCompound(unit_cell_devices=(soft, soft))).note
    assert "alike" not in _of(TransferCompound(unit_cell_devices=(_STEP, soft))).note
    pair = OneSidedUnitCell(unit_cell_devices=(_STEP, _STEP))
    assert "pairs" in _of(MixedPrecisionCompound(device=pair)).note


def _state(weight: list[float], *, prefix: str = "", **others: float) -> dict[str, Tensor]:
    """Devices with bounds -1 and 1 and steps of 0.001 at these weights."""
    values = {"max_bound": 1.0, "min_bound": -1.0, "dwmin_up": 0.001, "dwmin_down": 0.001, **others}
    state = {name: torch.full((1, 1, len(weight)), value) for name, value in values.items()}
    state["weight"] = torch.tensor([[weight]])
    return {prefix + name: tensor for name, tensor in state.items()}


def test_devices_at_their_bounds() -> None:
    found = at_bounds(_state([-1.0, 1.0, 0.9995, 0.0, 0.5]))
    assert found is not None
    assert (found.fraction, found.lower, found.upper) == pytest.approx((0.6, 0.2, 0.4))
    assert at_bounds(_state([0.9985, -0.9985])) == AtBounds(0, 0, 0)


def test_large_steps_do_not_make_a_bound_wide() -> None:
    assert at_bounds(_state([0.9, -0.97], dwmin_up=0.5, dwmin_down=0.5)) == AtBounds(0, 0, 0)
    assert at_bounds(_state([0.99, -0.99], dwmin_up=0.5, dwmin_down=0.5)) == AtBounds(1, 0.5, 0.5)


def test_what_is_kept_counts_and_not_what_is_read() -> None:
    assert at_bounds(_state([0.0, 0.0], hidden=1.0)) == AtBounds(1, 0, 1)


def test_bounds_of_devices_with_a_reference() -> None:
    assert at_bounds(_state([0.75, -1.25], reference=0.25)) == AtBounds(1, 0.5, 0.5)


def test_stuck_devices_do_not_count() -> None:
    state = _state([1.0, 0.0, 0.0])
    state["max_bound"][..., 2] = state["min_bound"][..., 2] = 0.0
    assert at_bounds(state) == AtBounds(0.5, 0, 0.5)
    assert at_bounds(_state([0.2], max_bound=0.2, min_bound=0.2)) is None


def test_devices_of_cells_and_of_parts_all_count() -> None:
    state = _state([1.0, 0.0], prefix="0.") | _state([-1.0, -1.0], prefix="device.1.")
    state |= {"weight": torch.zeros(1, 1, 2), "updates": torch.zeros(1, dtype=torch.int64)}
    assert at_bounds(state) == AtBounds(0.75, 0.5, 0.25)


@pytest.mark.parametrize("preset", ["PCM", "ReRamSB"])
def test_the_state_of_a_bank(preset: str) -> None:
    bank = AnalogBank(Arrays(device=DEVICES[preset]), 2, 3, 4, draws())
    bank.set_weights(torch.full((2, 3, 4), 50.0), draws())
    assert at_bounds(bank.state) == AtBounds(1, 0, 1)


def test_what_has_no_bounds() -> None:
    assert at_bounds(AnalogBank(Arrays(device=IdealDevice()), 1, 2, 2, draws()).state) is None
    assert at_bounds({}) is None
