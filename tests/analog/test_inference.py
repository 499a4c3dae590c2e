"""Trained weights on arrays: modifiers, clipping, programming, drift, read noise, compensation."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.conductance import single_pair
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.inference import Programmed, compensation, mean_answer
from rapa_cli.analog.modifiers import ClipType, ModifierType, RemapType, WeightClip, WeightModifier, WeightRemap
from rapa_cli.analog.parameters import IOParameters
from rapa_cli.analog.pcm import PCMLikeNoiseModel
from rapa_cli.analog.reram import ReRamWan2022NoiseModel
from tests.analog.laws import assert_mean, assert_normal, assert_uncorrelated, draws
from tests.tolerances import assert_near


def test_conductances_are_the_weights() -> None:
    weights = torch.tensor([[[0.5, -0.25]], [[0.0, 0.0]]])
    pair = single_pair(weights, 25.0, 1.0)
    assert_near(pair.plus, torch.tensor([[[25.0, 1.0]], [[1.0, 1.0]]]))
    assert_near(pair.minus, torch.tensor([[[1.0, 13.0]], [[1.0, 1.0]]]))
    assert_near(pair.weights(), weights)


@pytest.mark.parametrize("g_max", [25.0, 50.0])
def test_programming_noise_and_drift_coefficients_have_their_laws(g_max: float) -> None:
    model, q = PCMLikeNoiseModel(g_max=g_max, prog_noise_scale=0.5), 0.8
    target = torch.full((2, 50, 80), q * g_max)
    std = 0.5 * (0.26348 + 1.9650 * q - 1.1731 * q**2) * g_max / 25
    for tile in model.program(target, draws()):
        assert_normal(tile, q * g_max, std)
    assert_normal(model.coefficients(target, draws(1)), 0.049, 0.008)


def test_drift_is_a_power_of_time_and_read_noise_grows_with_it() -> None:
    model = PCMLikeNoiseModel(custom_drift=((5.0, 0.02, 0.0), (15.0, 0.06, 0.0)))
    g = torch.full((8000,), 10.0)
    nu = model.coefficients(g, draws())
    assert_near(nu, torch.full((8000,), 0.04))
    quiet = model.model_copy(update={"read_noise_scale": 0.0})
    for t in (0.0, 3600.0):
        mean = 10 * ((t + 20) / 20) ** -0.04
        assert_near(quiet.at(g, nu, t, draws()), torch.full((8000,), mean))
        std = mean * 0.0088 / 0.4**0.65 * math.sqrt(math.log((t + 20 + 2.5e-7) / 5e-7))
        assert_normal(model.at(g, nu, t, draws()), mean, std)


def test_drifted_arrays_are_compensated_exactly_where_all_devices_drift_alike() -> None:
    quiet = PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0, custom_drift=((0.0, 0.06, 0.0),))
    weights = torch.randn(3, 4, 5, generator=draws(1))
    programmed = Programmed(weights, quiet, draws())
    assert_near(programmed.weights(), weights)
    bank = AnalogBank(Arrays(device=IdealDevice(), forward=IOParameters(is_perfect=True)), 3, 4, 5, draws())
    bank.set_weights(programmed.weights(), draws())

    def answer() -> torch.Tensor:
        return mean_answer(lambda x, sizes: bank.forward(x, sizes, draws()).values, bank.get_weights())

    first = answer()
    assert_near(first, weights.abs().mean((1, 2)))
    for t in (0.0, 60.0, 86400.0):
        now = programmed.at(t, draws())
        assert_near(now, weights * ((t + 20) / 20) ** -0.06)
        bank.set_weights(now, draws())
        assert_near(compensation(first, answer()), torch.full((3,), ((t + 20) / 20) ** 0.06))


def test_both_devices_of_a_pair_are_programmed_and_read_for_themselves() -> None:
    weights = torch.ones(2, 60, 60)
    model = PCMLikeNoiseModel(read_noise_scale=0.0)
    programmed = Programmed(weights, model, draws(2))
    assert_mean((programmed.state["minus"] == 0).float(), 0.5)
    assert_uncorrelated(programmed.state["plus"], programmed.state["minus"])
    assert_uncorrelated(programmed.state["plus"][0], programmed.state["plus"][1])
    later = programmed.at(86400.0, draws())
    # The coefficients of devices that were programmed to nothing are larger: what is noise on them fades sooner.
    plus = (programmed.state["plus"] * ((86420 / 20) ** -programmed.state["nu_plus"])) / 25
    assert_mean(
        later - plus, float(-(programmed.state["minus"] * (86420 / 20) ** -programmed.state["nu_minus"]).mean() / 25)
    )
    faulty = Programmed(weights, model, draws(2), compat="rpucuda")
    assert_near(faulty.weights(), programmed.weights())
    assert not faulty.state["minus"].any()
    with pytest.raises(ValueError, match="t_inference: got -1"):
        programmed.at(-1.0, draws())


def test_reram_deviates_at_the_times_that_were_measured() -> None:
    model = ReRamWan2022NoiseModel(g_max=20.0)
    weights = torch.full((1, 60, 60), 0.5)
    weights[0, 0, 0] = 1.0
    programmed = Programmed(weights, model, draws())
    assert_near(programmed.at(0.0, draws()), programmed.weights())
    q, half = torch.full((5000,), 10.0), 0.5
    std = half * (0.701 + 22.086 * half - 50.773 * half**2 + 47.095 * half**3 - 16.458 * half**4)
    assert_normal(model.at(q, q, 86400.0, draws()), 10.0, std)
    first = half * (0.348 + 16.030 * half - 43.853 * half**2 + 45.393 * half**3 - 16.815 * half**4)
    assert_normal(model.program(q, draws()), 10.0, first)
    with pytest.raises(ValueError, match="t_inference: got 60 s, for this ReRAM allowed are 0, 1, 86400, 172800"):
        programmed.at(60.0, draws())


def test_noise_of_modifiers_has_its_law_in_every_tile() -> None:
    weights = torch.full((2, 50, 80), 0.25)
    weights[0, 0, 0], weights[1, 0, 0] = 0.5, 1.0
    add = WeightModifier(type=ModifierType.ADD_NORMAL, std_dev=0.1)
    changed = add.modify(weights, draws()) - weights
    assert_normal(changed[0], 0, 0.05)
    assert_normal(changed[1], 0, 0.1)
    fixed = add.model_copy(update={"rel_to_actual_wmax": False, "assumed_wmax": 2.0})
    assert_normal(fixed.modify(weights, draws()) - weights, 0, 0.2)
    mult = WeightModifier(type=ModifierType.MULT_NORMAL, std_dev=0.1)
    assert_normal((mult.modify(weights, draws()) - weights).flatten(1)[:, 1:], 0, 0.025)
    assert_normal((mult.modify(weights, draws(), "rpucuda") - weights)[0].flatten()[1:], 0, 0.0125)


def test_discretised_and_dropped_weights() -> None:
    weights = torch.tensor([[[0.5, 0.11, -0.24, 0.0]]])
    steps = WeightModifier(type=ModifierType.DISCRETIZE, res=5)
    assert_near(steps.modify(weights, draws()), torch.tensor([[[0.4, 0.2, -0.2, 0.0]]]))
    assert_near(steps.modify(weights, draws(), "rpucuda"), torch.tensor([[[0.5, 0.1, -0.2, 0.0]]]))
    stochastic = steps.model_copy(update={"sto_round": True, "rel_to_actual_wmax": False, "assumed_wmax": 0.5})
    many = torch.full((1, 100, 100), 0.11)
    assert_mean(stochastic.modify(many, draws()), 0.11)
    drop = WeightModifier(type=ModifierType.DROP_CONNECT, pdrop=0.3)
    assert_mean((drop.modify(many, draws()) == 0).float(), 0.3)
    both = WeightModifier(type=ModifierType.DISCRETIZE_ADD_NORMAL, res=5, std_dev=0.1)
    assert_normal(both.modify(torch.full((1, 50, 80), 0.5), draws()), 0.4, 0.05)


def test_gradients_go_straight_through_a_modifier() -> None:
    weights = torch.rand(1, 3, 4, generator=draws()).requires_grad_()
    modifier = WeightModifier(type=ModifierType.DISCRETIZE_ADD_NORMAL, res=0.1, std_dev=0.1, pdrop=0.5)
    (gradient,) = torch.autograd.grad((modifier.modify(weights, draws()) * 2).sum(), weights)
    assert torch.equal(gradient, torch.full((1, 3, 4), 2.0))
    assert torch.equal(WeightModifier().modify(weights, draws()), weights)


def test_clipped_weights() -> None:
    weights = torch.tensor([[[1.0, -3.0], [0.5, 0.2]]])
    assert torch.equal(WeightClip().clip(weights), weights)
    fixed = WeightClip(type=ClipType.FIXED_VALUE, fixed_value=0.8)
    assert_near(fixed.clip(weights), weights.clamp(-0.8, 0.8))
    rows = WeightClip(type=ClipType.AVERAGE_CHANNEL_MAX)
    assert_near(rows.clip(weights), weights.clamp(-1.75, 1.75))
    spread = WeightClip(type=ClipType.LAYER_GAUSSIAN, sigma=1.0)
    assert_near(spread.clip(weights), weights.clamp(-float(weights.std()), float(weights.std())))
    assert_near(spread.model_copy(update={"fixed_value": 2.9}).clip(weights), weights.clamp(-2.9, 2.9))


def test_what_does_not_work_is_said_at_construction() -> None:
    with pytest.raises(ValidationError, match="g_min"):
        PCMLikeNoiseModel(g_min=30.0)
    with pytest.raises(ValidationError, match="g_min"):
        ReRamWan2022NoiseModel(g_min=40.0)
    with pytest.raises(ValidationError, match="custom_drift"):
        PCMLikeNoiseModel(custom_drift=((5.0, 0.1, 0.0), (4.0, 0.1, 0.0)))
    with pytest.raises(ValidationError, match="fixed_value"):
        WeightClip(type=ClipType.FIXED_VALUE)
    with pytest.raises(ValidationError, match="res"):
        WeightModifier(type=ModifierType.DISCRETIZE)
    with pytest.raises(ValidationError, match="pdrop"):
        WeightModifier(type=ModifierType.DROP_CONNECT)
    with pytest.raises(ValidationError, match="std_dev"):
        WeightModifier(type=ModifierType.NONE, std_dev=0.1)


def test_remapping_moves_the_range_of_weights_to_their_scales() -> None:
    weights = torch.randn(3, 4, 5, generator=draws(1))
    weights[1, 2] = 0
    scales = torch.rand(3, 4, generator=draws(2)) + 0.5
    product = scales[..., None] * weights
    whole, of_whole = WeightRemap(type=RemapType.LAYERWISE_SYMMETRIC, remapped_wmax=0.5).remap(weights, scales)
    assert_near(whole.abs().amax((1, 2)), torch.full((3,), 0.5))
    assert_near(of_whole[..., None] * whole, product)
    lines, of_lines = WeightRemap(type=RemapType.CHANNELWISE_SYMMETRIC).remap(weights, scales)
    largest = torch.ones(3, 4)
    largest[1, 2] = 0
    assert_near(lines.abs().amax(2), largest)
    assert_near(of_lines[..., None] * lines, product)
    assert float(of_lines[1, 2]) == float(scales[1, 2])
    limited = WeightRemap(type=RemapType.CHANNELWISE_SYMMETRIC, max_scale_range=1.2)
    rest, of_rest = limited.remap(weights, scales)
    assert_near(of_rest[..., None] * rest, product)
    assert_near(of_rest, torch.minimum(of_lines, 1.2 * scales.amin(1, keepdim=True)))
    same, unchanged = WeightRemap().remap(weights, scales)
    assert torch.equal(same, weights)
    assert torch.equal(unchanged, scales)
    for fields, word in (
        ({"max_scale_range": 2.0}, "max_scale_range"),
        ({"type": "ChannelwiseSymmetric", "max_scale_range": 2.0, "remapped_wmax": 0.5}, "remapped_wmax"),
        ({"type": "ChannelwiseSymmetric", "max_scale_ref": 2.0}, "max_scale_ref"),
        ({"type": "ChannelwiseAsymmetric"}, "type"),
    ):
        with pytest.raises(ValidationError, match=word):
            WeightRemap.model_validate(fields)
