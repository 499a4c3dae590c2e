"""Devices: their spreads, the law of their steps, and what happens between updates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rapa_cli.analog.device import IdealDevice, PulsedDevice, State
from rapa_cli.analog.steps import (
    ConstantStepDevice,
    ExpStepDevice,
    LinearStepDevice,
    PiecewiseStepDevice,
    PowStepDevice,
    SoftBoundsDevice,
    SoftBoundsReferenceDevice,
)
from tests.analog.laws import assert_mean, assert_normal, assert_same_law, assert_uncorrelated, draws
from tests.tolerances import assert_near

_CPU = torch.device("cpu")
_ALIKE: dict[str, Any] = {
    "dw_min": 0.01,
    "dw_min_dtod": 0.0,
    "dw_min_std": 0.0,
    "up_down_dtod": 0.0,
    "w_max_dtod": 0.0,
    "w_min_dtod": 0.0,
}


def _draw(device: PulsedDevice, *shape: int, seed: int = 0) -> State:
    return device.draw((shape[0], shape[1], shape[2]), draws(seed), _CPU)


def _pulsed(device: PulsedDevice, counts: list[int], w: float = 0.0, seed: int = 1) -> Tensor:
    """One device for each count of pulses, from the weight w; those with 0 pulses stay."""
    state = _draw(device, 1, 1, len(counts))
    device.write(state, torch.full((1, 1, len(counts)), w), draws())
    where = torch.tensor(counts).nonzero()[:, 0]
    device.pulse(state, where, torch.tensor(counts, dtype=torch.float32)[where], draws(seed))
    return device.weights(state).flatten()


def test_spreads_have_their_laws_in_every_tile() -> None:
    device = ConstantStepDevice(up_down=0.1, up_down_dtod=0.05, dw_min_dtod=0.1, w_max_dtod=0.1, w_min_dtod=0.2)
    state = _draw(device, 3, 40, 50)
    for tile in range(3):
        assert_normal(state["max_bound"][tile], 0.6, 0.06)
        assert_normal(state["min_bound"][tile], -0.6, 0.12)
        assert_normal(state["dwmin_up"][tile], 0.001, 0.001 * math.hypot(0.1, 0.05))
        assert_normal(state["dwmin_down"][tile], 0.0009, 0.001 * math.hypot(0.1, 0.05))
        # Their sum has only the gain, their difference only the imbalance.
        up, down = state["dwmin_up"][tile], state["dwmin_down"][tile]
        assert_normal((up + down) / 2, 0.00095, 0.0001)
        assert_normal((up - down) / 2, 0.00005, 0.00005)
        assert_uncorrelated(state["max_bound"][tile], state["min_bound"][tile])
        assert_uncorrelated(up, state["max_bound"][tile])
    assert_uncorrelated(state["max_bound"][0], state["max_bound"][1])
    assert_uncorrelated(state["dwmin_up"][0], state["dwmin_up"][2])


def test_a_positive_imbalance_weakens_steps_down_and_a_negative_one_steps_up() -> None:
    for up_down, up, down in ((0.2, 0.01, 0.008), (-0.2, 0.008, 0.01)):
        state = _draw(ConstantStepDevice(**_ALIKE, up_down=up_down), 1, 1, 1)
        assert float(state["dwmin_up"]) == pytest.approx(up)
        assert float(state["dwmin_down"]) == pytest.approx(down)


def test_log_normal_steps() -> None:
    device = ConstantStepDevice(dw_min_dtod=0.7, dw_min_dtod_log_normal=True, up_down_dtod=0.0)
    assert_normal((_draw(device, 2, 40, 50)["dwmin_up"] / 0.001).log(), 0, 0.7)


def test_consistency_gives_steps_and_bounds_their_signs() -> None:
    wild: dict[str, Any] = {"dw_min_dtod": 2.0, "w_max_dtod": 2.0, "w_min_dtod": 2.0}
    state = _draw(ConstantStepDevice(**wild), 1, 50, 50)
    assert (state["dwmin_up"] >= 0).all()
    assert (state["dwmin_down"] >= 0).all()
    assert (state["max_bound"] >= 0).all()
    assert (state["min_bound"] <= 0).all()
    free = _draw(ConstantStepDevice(**wild, enforce_consistency=False), 1, 50, 50)
    assert (free["dwmin_up"] < 0).any()
    crossed = free["max_bound"] == free["min_bound"]
    assert crossed.any()
    assert (free["max_bound"] >= free["min_bound"]).all()


def test_stuck_devices_never_move() -> None:
    device = ConstantStepDevice(corrupt_devices_prob=0.25, corrupt_devices_range=0.1, w_max_dtod=0.0, w_min_dtod=0.0)
    state = _draw(device, 2, 60, 60)
    stuck = state["max_bound"] == state["min_bound"]
    assert_mean(stuck.float(), 0.25)
    places = device.weights(state)[stuck]
    assert_same_law(places, torch.rand(20000, generator=draws(7)) * 0.2 - 0.1)
    device.write(state, torch.ones_like(stuck, dtype=torch.float32), draws())
    device.pulse(state, torch.arange(stuck.numel()), torch.full((stuck.numel(),), -3.0), draws())
    device.reset_devices(state, torch.arange(stuck.numel()), draws())
    assert torch.equal(device.weights(state)[stuck], places)


def test_a_perfect_bias_line_has_no_spread() -> None:
    state = _draw(ConstantStepDevice(perfect_bias=True), 2, 5, 4)
    assert (state["dwmin_up"][..., -1] == torch.tensor(0.001)).all()
    assert (state["max_bound"][..., -1] == 60).all()
    assert (state["max_bound"][..., :-1] < 60).all()


def test_constant_steps_stop_at_the_bounds() -> None:
    weights = _pulsed(ConstantStepDevice(**_ALIKE, w_max=0.6, w_min=-0.3), [1, 7, 100, -1, -100, 0])
    assert_near(weights, torch.tensor([0.01, 0.07, 0.6, -0.01, -0.3, 0.0]))


def test_linear_steps_approach_their_fixed_point_geometrically() -> None:
    """W after n steps up of size up (1 - G w / w_max): (w_max / G) (1 - (1 - up G / w_max)^n)."""
    device = LinearStepDevice(**_ALIKE, gamma_up=0.5, gamma_up_dtod=0.0, gamma_down=0.25, gamma_down_dtod=0.0)
    weights = _pulsed(device, [20, -20])
    up, down = (0.6 / g * (1 - (1 - 0.01 * g / 0.6) ** 20) for g in (0.5, 0.25))
    assert_near(weights, torch.tensor([up, -down]))


def test_reversed_linear_steps_grow_towards_the_bound() -> None:
    device = LinearStepDevice(
        **_ALIKE, gamma_up=1.0, gamma_up_dtod=0.0, reverse_up=True, reverse_offset=0.0, gamma_down_dtod=0.0
    )
    first, second = _pulsed(device, [1, 2])
    assert float(first) == pytest.approx(0.01)
    assert float(second - first) == pytest.approx(0.01 * (1 + 0.01 / 0.6))


def test_soft_bounds_use_the_bounds_of_each_device() -> None:
    device = SoftBoundsDevice(**(_ALIKE | {"w_max_dtod": 0.3}))
    state = _draw(device, 1, 1, 20)
    bounds = state["max_bound"].clone()
    device.pulse(state, torch.arange(20), torch.full((20,), 30.0), draws())
    assert_near(device.weights(state), bounds * (1 - (1 - 0.01 / bounds) ** 30))


def test_a_reference_shifts_soft_bounds() -> None:
    device = SoftBoundsReferenceDevice(**_ALIKE, reference_mean=0.2, reference_std=0.0)
    up = 0.6 * (1 - (1 - 0.01 / 0.6) ** 30) + 0.2 * (1 - 0.01 / 0.6) ** 30 - 0.2
    assert_near(_pulsed(device, [30, 5000, -5000]), torch.tensor([up, 0.4, -0.8]))
    assert_near(_pulsed(device, [0], w=2.0), torch.tensor([0.4]))


def test_subtracting_the_symmetry_point_puts_it_at_zero() -> None:
    device = SoftBoundsReferenceDevice(dw_min_std=0.0, up_down_dtod=0.1, subtract_symmetry_point=True)
    state = _draw(device, 2, 20, 20)
    w = torch.zeros(800)
    flat = {name: values.flatten() for name, values in state.items()}
    up = device.step(w, torch.ones(800, dtype=torch.bool), flat, 0.0)
    down = device.step(w, torch.zeros(800, dtype=torch.bool), flat, 0.0)
    torch.testing.assert_close(up, -down, atol=1e-8, rtol=1e-4)


def test_slopes_of_soft_bounds_have_a_spread_of_their_own() -> None:
    device = SoftBoundsReferenceDevice(**_ALIKE, slope_up_dtod=0.1, slope_down_dtod=0.2)
    state = _draw(device, 1, 50, 60)
    assert_normal(0.6 / state["max_bound"], 1, 0.1)
    assert_normal(-0.6 / state["min_bound"], 1, 0.2)


def test_exponential_steps() -> None:
    device = ExpStepDevice(**_ALIKE, A_up=0.1, A_down=0.2, gamma_up=1.5, gamma_down=2.5, a=0.5, b=0.25)
    z = 2 * 0.5 * 0.3 / 1.2 + 0.25
    up, down = 0.01 * (1 - 0.1 * math.exp(1.5 * z)), 0.01 * (1 - 0.2 * math.exp(-2.5 * z))
    assert_near(_pulsed(device, [1, -1], w=0.3), torch.tensor([0.3 + up, 0.3 - down]))


def test_the_granularity_of_exponential_steps_is_the_mean_of_both_directions() -> None:
    device = ExpStepDevice(**_ALIKE, A_up=0.1, A_down=0.2, gamma_up=1.5, gamma_down=2.5, a=0.5, b=0.25)
    up, down = (float(abs(w)) for w in _pulsed(device, [1, -1]))
    assert device.granularity() == pytest.approx((up + down) / 2, rel=1e-5)
    assert device.granularity("rpucuda") == pytest.approx(down, rel=1e-5)
    assert device.states() == pytest.approx(1.2 / device.granularity())


@pytest.mark.parametrize(
    ("device", "std"),
    [
        (ConstantStepDevice(**(_ALIKE | {"dw_min_std": 0.5})), 0.005),
        (
            LinearStepDevice(
                **(_ALIKE | {"dw_min_std": 0.5}), gamma_up=0.5, gamma_up_dtod=0.0, gamma_down_dtod=0.0, mult_noise=False
            ),
            0.005,
        ),
        (SoftBoundsDevice(**(_ALIKE | {"dw_min_std": 0.5})), 0.0025),
        (SoftBoundsReferenceDevice(**(_ALIKE | {"dw_min_std": 0.5})), 0.005),
        (SoftBoundsReferenceDevice(**(_ALIKE | {"dw_min_std": 0.5}), mult_noise=True), 0.0025),
        (ExpStepDevice(**(_ALIKE | {"dw_min_std": 0.5}), A_up=0.0, dw_min_std_add=0.02, dw_min_std_slope=0.1), 0.03),
        (PowStepDevice(**(_ALIKE | {"dw_min_std": 0.5}), pow_gamma=2.0, pow_gamma_dtod=0.0), 0.005 / 16),
        (PiecewiseStepDevice(**(_ALIKE | {"dw_min_std": 0.5}), piecewise_up=(1, 0), piecewise_down=(0, 1)), 0.00125),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_noise_of_one_step_has_its_law(device: PulsedDevice, std: float) -> None:
    moved = _pulsed(device, [1] * 4000, w=0.3)
    quiet = _pulsed(device.model_copy(update={"dw_min_std": 0.0}), [1], w=0.3)
    assert_normal(moved, float(quiet), std)


def test_noise_of_many_steps_adds_up() -> None:
    device = ConstantStepDevice(**(_ALIKE | {"dw_min_std": 0.5, "dw_min": 0.001}))
    assert_normal(_pulsed(device, [25] * 4000), 0.025, 0.0005 * 5)


def test_power_steps() -> None:
    device = PowStepDevice(**_ALIKE, pow_gamma=2.0, pow_gamma_dtod=0.0, pow_up_down=0.5)
    weights = _pulsed(device, [1, -1], w=0.3)
    assert_near(weights, torch.tensor([0.3 + 0.01 * 0.25**2, 0.3 - 0.01 * 0.75**1]))
    spread = _draw(PowStepDevice(pow_gamma_dtod=0.1), 1, 50, 50)
    assert_normal(spread["gamma_up"], 1, 0.1)
    assert torch.equal(spread["gamma_up"], spread["gamma_down"])


def test_piecewise_steps_are_interpolated() -> None:
    device = PiecewiseStepDevice(**_ALIKE, piecewise_up=(2.0, 1.0, 0.5), piecewise_down=(1.0, 2.0, 4.0))
    for w, up, down in ((0.3, 0.75, 3.0), (-0.3, 1.5, 1.5), (0.0, 1.0, 2.0)):
        assert_near(_pulsed(device, [1, -1], w=w), torch.tensor([w + 0.01 * up, w - 0.01 * down]))
    flat = PiecewiseStepDevice(**_ALIKE)
    assert_near(_pulsed(flat, [3, -2]), torch.tensor([0.03, -0.02]))


def test_write_noise_is_drawn_for_the_devices_that_are_touched() -> None:
    device = SoftBoundsDevice(**_ALIKE, write_noise_std=5.0)
    state = _draw(device, 1, 1, 4000)
    device.write(state, torch.full((1, 1, 4000), 0.1), draws())
    before = device.weights(state).clone()
    assert_normal(before, 0.1, 0.05)
    assert_near(state["hidden"], torch.full((1, 1, 4000), 0.1))
    device.pulse(state, torch.arange(2000), torch.ones(2000), draws(1))
    after = device.weights(state)
    assert torch.equal(after[..., 2000:], before[..., 2000:])
    assert_normal(after[..., :2000], float(state["hidden"][0, 0, 0]), 0.05)
    assert_uncorrelated(after[..., :2000], before[..., :2000])
    silent = device.model_copy(update={"apply_write_noise_on_set": False})
    silent.write(state, torch.full((1, 1, 4000), 0.1), draws())
    assert torch.equal(silent.weights(state), state["hidden"])


def test_decay_goes_to_the_reset_value_and_diffusion_spreads() -> None:
    device = ConstantStepDevice(**_ALIKE, lifetime=10.0, reset=0.1)
    state = _draw(device, 1, 1, 2)
    device.write(state, torch.tensor([[[0.5, -0.5]]]), draws())
    for _ in range(3):
        device.after_step(state, draws())
    assert_near(device.weights(state).flatten(), torch.tensor([0.1 + 0.4 * 0.9**3, 0.1 - 0.6 * 0.9**3]))
    walker = ConstantStepDevice(**_ALIKE, diffusion=0.01)
    walking = _draw(walker, 1, 1, 4000)
    for seed in range(4):
        walker.after_step(walking, draws(seed))
    assert_normal(walker.weights(walking), 0, 0.02)
    short = ConstantStepDevice(**_ALIKE, lifetime=0.5)
    assert not _draw(short, 1, 1, 3)["decay_scales"].any()


def test_resets_have_their_law() -> None:
    device = ConstantStepDevice(reset=0.1, reset_dtod=0.03, reset_std=0.04, w_max=5.0, w_min=-5.0)
    state = _draw(device, 1, 1, 8000)
    device.reset_devices(state, torch.arange(4000), draws(1))
    weights = device.weights(state).flatten()
    assert_normal(weights[:4000], 0.1, 0.05)
    assert not weights[4000:].any()
    assert_normal(weights[:4000] - state["reset_bias"].flatten()[:4000], 0, 0.04)


def test_weights_that_are_set_are_cut_to_each_device() -> None:
    device = ConstantStepDevice()
    state = _draw(device, 2, 10, 10)
    device.write(state, torch.full((2, 10, 10), 9.0), draws())
    assert torch.equal(device.weights(state), state["max_bound"])


def test_the_ideal_device_decays_and_diffuses() -> None:
    device = IdealDevice(lifetime=10.0, diffusion=0.01)
    state = device.draw((1, 1, 4000), draws(), _CPU)
    device.write(state, torch.full((1, 1, 4000), 0.5), draws())
    device.after_step(state, draws())
    assert_normal(device.weights(state), 0.45, 0.01)


@pytest.mark.parametrize(
    ("kind", "fields", "word"),
    [
        (ConstantStepDevice, {"dw_min": 0.0}, "dw_min"),
        (ConstantStepDevice, {"w_min": 0.1}, "w_min"),
        (ConstantStepDevice, {"w_max": 0.0, "w_min": 0.0}, "w_max"),
        (ConstantStepDevice, {"write_noise_std": 1.0}, "write_noise_std"),
        (LinearStepDevice, {"reverse_up": True, "mult_noise": False}, "mult_noise"),
        (ExpStepDevice, {"A_up": 2.0, "A_down": 30.0}, "A_up"),
        (PiecewiseStepDevice, {"piecewise_up": (1.0, 2.0)}, "piecewise_down"),
    ],
)
def test_what_does_not_work_is_said_at_construction(
    kind: type[PulsedDevice], fields: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValidationError, match=word):
        kind(**fields)
