"""Many vector pairs at once: the moments of their pulses, and one step of each device that has these moments.

What is exact and what is not:

- The mean and the variance of each device's numbers of pulses up and down are those of the exact update, and for
  ConstantStep devices so are the mean and the variance of the change, as long as no bound is met on the way.
- The numbers are taken to be Gaussian; the exact law is a sum of binomial ones.
- Devices of one line are independent; in the exact update they share pulse trains, and are correlated.
- Steps that depend on the weight have the size that they have at the beginning of the chunk, and bounds apply at its
  end. The error grows with the change of a chunk, relative to the range over which steps change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_cli.analog.device import PulsedDevice, State
from rapa_cli.analog.noise import gauss, rounded
from rapa_cli.analog.parameters import PulseType, UpdateParameters, step_of
from rapa_cli.analog.periphery import groups
from rapa_cli.analog.update import scales

MERGEABLE = (PulseType.STOCHASTIC_COMPRESSED, PulseType.STOCHASTIC)


class Moments(NamedTuple):
    """Means and variances of the pulses that each device gets from a chunk of pairs, (tiles, out, in) each."""

    up: Tensor
    down: Tensor
    up_variance: Tensor
    down_variance: Tensor


def moments(
    x: Tensor,
    d: Tensor,
    sizes: Sequence[int],
    lr: float,
    granularity: float,
    update: UpdateParameters,
    generator: torch.Generator,
) -> Moments:
    """Sums over the pairs of a chunk: of BL p the mean, of BL p (1 - p) the variance, p = p_x p_d.

    Four matrix products for each tile: with and without signs, of the probabilities and of their squares.

    Args:
        x: inputs (N, in), in the order of tiles.
        d: gradients (N, out).
        sizes: pairs of each tile.
        lr: learning rate.
        granularity: the size of one step.
        update: its parameters, with stochastic pulses.
        generator: for stochastic rounding.
    """
    trains = scales(x, d, lr, granularity, update)
    step, rounding = step_of(update.res), generator if update.sto_round else None
    # Probabilities with the signs of their vectors; rounding is the same on both sides of 0.
    s_x = rounded(x * trains.b[:, None], step, rounding).clamp_(-1, 1)
    s_d = rounded(d * trains.a[:, None], step, rounding).clamp_(-1, 1)
    p_d, slots = s_d.abs(), trains.slots[:, None].to(s_d.dtype)
    if bool((x >= 0).all()):
        # Behind a ReLU inputs have no signs, and each two of the products are one.
        total, net = _sums(torch.cat([slots * p_d, slots * s_d], 1), s_x, sizes).chunk(2, 1)
        weighted = torch.cat([slots * p_d * p_d, slots * s_d * p_d], 1)
        squares, net_squares = _sums(weighted, s_x * s_x, sizes).chunk(2, 1)
    else:
        p_x = s_x.abs()
        total, net = _sums(slots * p_d, p_x, sizes), _sums(slots * s_d, s_x, sizes)
        squares, net_squares = _sums(slots * p_d * p_d, s_x * s_x, sizes), _sums(slots * s_d * p_d, s_x * p_x, sizes)
    up, down = (total - net) / 2, (total + net) / 2
    # Differences of sums may come out a rounding error below 0.
    return Moments(
        up.clamp_min(0),
        down.clamp_min(0),
        (up - (squares - net_squares) / 2).clamp_min(0),
        (down - (squares + net_squares) / 2).clamp_min(0),
    )


def apply_moments(device: PulsedDevice, state: State, pulses: Moments, generator: torch.Generator) -> None:
    """Changes each device once, by a Gaussian step with the moments of all its pulses.

    With f the step at the present weight and c what its noise xi is multiplied by: the mean is n_up f_up + n_down
    f_down, the variance v_up f_up^2 + v_down f_down^2 + sigma^2 (n_up c_up^2 + n_down c_down^2).

    Args:
        device: what the devices are.
        state: the bank's devices, changed in place.
        pulses: of a chunk of pairs.
        generator: for the step and for write noise.
    """
    kept = state["hidden"] if "hidden" in state else state["weight"]
    change, variance = torch.zeros_like(kept), torch.zeros_like(kept)
    for upwards, count, spread in ((True, pulses.up, pulses.up_variance), (False, pulses.down, pulses.down_variance)):
        direction = torch.full_like(kept, upwards, dtype=torch.bool)
        step = device.step(kept, direction, state, 0.0)
        change += count * step
        variance += spread * step**2
        if device.dw_min_std > 0:
            noise = device.step(kept, direction, state, 1.0) - step
            variance += count * (device.dw_min_std * noise) ** 2
    kept.copy_(device.within(kept + change + variance.sqrt() * gauss(kept, generator), state))
    device.show(state, generator)


def _sums(d: Tensor, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum of d x^T over the pairs of each tile, (tiles, out, in)."""
    parts = zip(groups(d, sizes), groups(x, sizes), strict=True)
    return torch.stack([of_d.T @ of_x for of_d, of_x in parts])
