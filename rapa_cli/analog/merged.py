"""Many vector pairs at once: the moments of their pulses, and one step of each device that has these moments.

What is exact and what is not:

- The mean and the variance of each device's numbers of pulses up and down are those of the exact update, and for
  ConstantStep devices so are the mean and the variance of the change, as long as no bound is met on the way.
- The numbers are taken to be Gaussian; the exact law is a sum of binomial ones.
- Devices of one line are independent; in the exact update they share pulse trains, and are correlated.
- Steps that depend on the weight have the size that they have at the beginning of the chunk, and bounds apply at its
  end. The error grows with the change of a chunk, relative to the range over which steps change.
- Devices with write noise are read with new noise after every chunk, those too that got no pulse.

Of cells of several devices:

- One-sided pairs: whole numbers of pulses are drawn and given to the device of their direction one after the other.
  Order does not matter to devices that only step up, so that steps and bounds are exact, however large the chunk is;
  the numbers are Poisson variables. A refresh that falls due comes at the end of the chunk.
- Vector cells: the number of pulses of a cross-point is drawn once and divided among the devices that take turns, as if
  every pulse went to one of them by itself; see `VectorUnitCell.apply`.
- Tiki-Taka: a chunk is applied to the fast device; then come the transfers that fall due in it, in their order. With
  whole batches, and transfers after whole batches, this is the exact order; where every pair is followed by a transfer,
  each is moved back by less than a chunk.
- Mixed precision accumulates products digitally; its update is exact, and never one pair after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_cli.analog.noise import gauss, poisson, rounded
from rapa_cli.analog.parameters import Compat, PulseType, UpdateParameters, step_of
from rapa_cli.analog.periphery import groups
from rapa_cli.analog.update import scales

MERGEABLE = (PulseType.STOCHASTIC_COMPRESSED, PulseType.STOCHASTIC)


class Moments(NamedTuple):
    """Means and variances of the pulses that each device gets from a chunk of pairs, (tiles, out, in) each."""

    up: Tensor
    down: Tensor
    up_variance: Tensor
    down_variance: Tensor

    def excess(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws what the numbers of pulses up and down exceed their means by."""
        up = self.up_variance.sqrt() * gauss(self.up, generator)
        return up, self.down_variance.sqrt() * gauss(self.down, generator)

    def numbers(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws whole numbers of pulses up and down: a Poisson variable with the variance, and the rest, rounded.

        Their means are exact. Their variances are exact where they equal the means, as those of rare pulses do, and
        else lie between both.
        """
        up, down = (
            poisson(variance, generator) + rounded(mean - variance, 1.0, generator)
            for mean, variance in ((self.up, self.up_variance), (self.down, self.down_variance))
        )
        return up.clamp_min_(0), down.clamp_min_(0)


class Chunk(NamedTuple):
    """Which part of an update the pairs are that are applied together.

    Attributes:
        pairs: how many of each tile, int64 (tiles,).
        batch: how many each tile has in the whole update, int64 (tiles,).
        lr: learning rate of the update.
        compat: the granularity that pulses are counted in where a cell makes new ones.
    """

    pairs: Tensor
    batch: Tensor
    lr: float
    compat: Compat = None


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


def _sums(d: Tensor, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum of d x^T over the pairs of each tile, (tiles, out, in)."""
    parts = zip(groups(d, sizes), groups(x, sizes), strict=True)
    return torch.stack([of_d.T @ of_x for of_d, of_x in parts])
