"""Strengths for a signal-to-noise ratio, in both spaces, and ratios met exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rapa_cli.attacks.fgsm import perturb
from rapa_cli.attacks.snr import RAW, Outcome, Space, eps_for_snr, exact_step, snr_db, space_of
from rapa_cli.errors import ConfigError
from rapa_cli.layers.normalization import Normalize
from tests.training import tiny

# Of CIFAR-10's training images.
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
CIFAR = Space("standardized", MEAN[:, None, None], STD[:, None, None])


def images(count: int = 3, seed: int = 0, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)


def signs(like: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, like.shape, generator=generator).to(like.dtype) * 2 - 1


def test_33_db_on_cifar10_is_two_strengths() -> None:
    # Half of the pixels a standard deviation above the mean, half below: an image with CIFAR-10's moments.
    x = torch.stack([MEAN - STD, MEAN + STD], 1)[None, :, None, :]
    raw, standardized = (float(255 * eps_for_snr(x, 33, space)) for space in (RAW, CIFAR))
    assert (round(raw, 2), round(standardized, 2)) == (3.06, 1.43)
    assert 20 * math.log10(raw / standardized) == pytest.approx(6.6, abs=0.02)


@given(st.floats(5, 70), st.integers(0, 100))
def test_standardised_ratios_come_out_as_asked(snr: float, seed: int) -> None:
    x = 0.3 + 0.4 * images(seed=seed)
    noisy = x + eps_for_snr(x, snr, CIFAR)[:, None, None, None] * signs(x)
    assert snr_db(x, noisy, CIFAR).tolist() == pytest.approx([snr] * 3, abs=1e-6)
    by_hand = [
        20
        * math.log10(
            float(((a - MEAN[:, None, None]) / STD[:, None, None]).norm())
            / float(((b - a) / STD[:, None, None]).norm())
        )
        for a, b in zip(x, noisy, strict=True)
    ]
    assert by_hand == pytest.approx([snr] * 3, abs=1e-6)


def test_a_networks_own_constants() -> None:
    network = tiny.network()
    space = space_of(network, "standardized")
    layer = next(layer for layer in network.modules() if isinstance(layer, Normalize))
    x = torch.rand(2, *tiny.SHAPE)
    assert torch.equal(space.signal(x), layer(x))
    assert space_of(network, "raw") == RAW
    with pytest.raises(ConfigError, match="no normalisation"):
        space_of(nn.Linear(2, 2), "standardized")
    with pytest.raises(ConfigError, match="allowed are raw and standardized"):
        space_of(network, "rwa")


@pytest.mark.parametrize("space", [RAW, CIFAR], ids=["raw", "standardized"])
@given(snr=st.floats(8, 60), seed=st.integers(0, 100))
def test_exact_ratios_are_met_after_cutting(space: Space, snr: float, seed: int) -> None:
    x = images(seed=seed)
    step, outcome = exact_step(x, signs(x), snr, space)
    assert outcome.tolist() == [Outcome.MET] * 3
    assert snr_db(x, perturb(x, signs(x), step), space).tolist() == pytest.approx([snr] * 3, abs=1e-3)
    # What is cut must be made up for.
    assert (step >= eps_for_snr(x, snr, space) * (1 - 1e-6)).all()


def test_a_perturbation_of_any_shape_is_stretched() -> None:
    x = images().float()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) / 100
    step, outcome = exact_step(x, direction, 25)
    assert outcome.tolist() == [Outcome.MET] * 3
    assert snr_db(x, perturb(x, direction, step)).tolist() == pytest.approx([25] * 3, abs=1e-2)


def test_where_a_ratio_cannot_be_met() -> None:
    x = torch.cat([torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)])
    direction = torch.ones_like(x)
    direction[3] = 0
    step, outcome = exact_step(x, direction, 20)
    assert outcome.tolist() == [Outcome.BLACK, Outcome.SATURATED, Outcome.MET, Outcome.UNMOVED]
    assert step.tolist() == pytest.approx([0, 1, 0.05, 0])
    # Half of grey is as far as it can go: 0 dB, and no less.
    grey = x[2:3]
    assert exact_step(grey, torch.ones_like(grey), 0.001)[1].tolist() == [Outcome.MET]
    assert exact_step(grey, torch.ones_like(grey), -0.001)[1].tolist() == [Outcome.SATURATED]
