"""From an outer product to pulses: how many coincidences each device of an array gets for one vector pair.

The model is that of aihwkit's pulsed update: a pair (x, d) shall change W by -lr d x^T; both vectors are turned into
trains of pulses on the lines of the array, and a device makes one step for each coincidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_cli.analog.noise import rounded, uniform
from rapa_cli.analog.parameters import Compat, PulseType, UpdateParameters, step_of
from rapa_cli.analog.periphery import groups


@dataclass(frozen=True)
class Pairs:
    """At most one pair of vectors for each tile of a bank.

    Attributes:
        tiles: which tiles, int64 (m,), each once.
        x: inputs (m, in).
        d: gradients of the outputs (m, out).
        batch: how many pairs each of these tiles gets in the whole update, int64 (m,).
    """

    tiles: Tensor
    x: Tensor
    d: Tensor
    batch: Tensor


@dataclass(frozen=True)
class Batch:
    """All pairs of vectors of an update, in the order of their tiles.

    Attributes:
        x: inputs (N, in).
        d: gradients of the outputs (N, out).
        counts: pairs of each tile, int64 (tiles,), which sum to N.
    """

    x: Tensor
    d: Tensor
    counts: Tensor

    @property
    def longest(self) -> int:
        """The largest number of pairs of a tile."""
        return int(self.counts.max())

    def pairs(self, number: int) -> Pairs:
        """The pair of this number of each tile that has so many."""
        tiles = (self.counts > number).nonzero()[:, 0]
        rows = self._first[tiles] + number
        return Pairs(tiles, self.x[rows], self.d[rows], self.counts[tiles])

    def part(self, start: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbouring pairs of each tile: `sizes` from number `start` on, both int64 (tiles,).

        Returns:
            Inputs and gradients in the order of tiles.
        """
        if torch.equal(sizes, self.counts):
            return self.x, self.d
        shift = self._first + start - (sizes.cumsum(0) - sizes)
        rows = torch.arange(int(sizes.sum()), device=shift.device) + shift.repeat_interleave(sizes)
        return self.x[rows], self.d[rows]

    def product(self, factor: float) -> Tensor:
        """The sum of d x^T over the pairs of each tile, times a factor, (tiles, out, in)."""
        sizes = self.counts.tolist()
        parts = zip(groups(self.d, sizes), groups(self.x, sizes), strict=True)
        return torch.stack([factor * (of_d.T @ of_x) for of_d, of_x in parts])

    @property
    def _first(self) -> Tensor:
        return self.counts.cumsum(0) - self.counts


class Rule(NamedTuple):
    """How pairs of vectors change weights.

    Attributes:
        lr: learning rate, 0 or more.
        update: how outer products become pulses.
        compat: the granularity that pulses are counted in.
    """

    lr: float
    update: UpdateParameters
    compat: Compat = None


class Scales(NamedTuple):
    """Lengths and scales of the pulse trains of m pairs.

    Attributes:
        slots: BL, int64 (m,); 0 where a pair makes no pulses.
        a: A (m,), what |d| is multiplied by to give probabilities.
        b: B (m,), the same for |x|.
    """

    slots: Tensor
    a: Tensor
    b: Tensor


def scales(x: Tensor, d: Tensor, lr: float, granularity: float, update: UpdateParameters) -> Scales:
    """Update management and the management of pulse lengths (aihwkit's `PulsedUpdateMetaParameter`).

    With g the granularity: BL = desired_bl and A = B = sqrt(lr / (g BL)); with `update_bl_management`
    BL = min(ceil(k), desired_bl), k = lr max|x| D / g, D = `um_grad_scale` max|d|. With either management D is cut to
    D desired_bl / k where k > desired_bl, so that x keeps its probabilities and d saturates; then
    A *= sqrt(max|x| / D), B *= sqrt(D / max|x|). A without management and without `fixed_bl`, where one slot is not
    enough, is 1 with BL = ceil(lr / g).

    Args:
        x: (m, in).
        d: (m, out).
        lr: learning rate, 0 or more.
        granularity: g, the size of one step.
        update: its parameters.
    """
    pairs, rate, g = len(x), x.new_tensor(lr), x.new_tensor(granularity)
    desired = update.desired_bl
    managed = update.update_management or update.update_bl_management
    slots = torch.full((pairs,), desired, dtype=torch.int64, device=x.device)
    if lr <= 0:
        return Scales(torch.zeros_like(slots), x.new_zeros(pairs), x.new_zeros(pairs))
    if not (update.fixed_bl or update.update_bl_management) and granularity * desired < lr:
        slots.fill_(max(int(torch.ceil(rate / g)), 1))
        a = x.new_ones(pairs)
    else:
        a = torch.sqrt(rate / (g * slots))
    b = a.clone()
    if not managed:
        return Scales(slots, a, b)
    largest_x, largest_d = x.abs().amax(1), update.um_grad_scale * d.abs().amax(1)
    k = rate * largest_x * largest_d / g
    silent = (largest_x <= 0) | (largest_d <= 0)
    if update.update_bl_management:
        slots = torch.ceil(k).clamp(1, desired).long()
        a = torch.sqrt(rate / (g * slots))
        b = a.clone()
    largest_d = torch.where(k > desired, largest_d * desired / k, largest_d)
    ratio = torch.where(silent, 1.0, largest_x / largest_d)
    slots = torch.where(silent, 0, slots)
    return Scales(slots, a * torch.sqrt(ratio), b * torch.sqrt(1 / ratio))


def coincidences(
    x: Tensor, d: Tensor, lr: float, granularity: float, update: UpdateParameters, generator: torch.Generator
) -> Tensor:
    """The pulses that each device gets for one pair of vectors.

    - STOCHASTIC_COMPRESSED: each of BL slots draws one Bernoulli variable for each line, p = min(|x| B, 1) and
      min(|d| A, 1); a device makes a step for each slot in which both its lines have a pulse. Devices of one line
      share its train; each device's count is binomial (BL, p_x p_d), with mean lr |d x| / g where nothing is cut.
    - STOCHASTIC: the same with trains of their own for positive and for negative inputs.
    - MEAN_COUNT: round(c_x c_d / BL), where c = round(BL p).
    - DETERMINISTIC_IMPLICIT: round(BL q_d q_x), with q the probabilities at the implicit resolutions.

    Args:
        x: (m, in).
        d: (m, out).
        lr: learning rate, 0 or more.
        granularity: the size of one step.
        update: its parameters, with one of these pulse types.
        generator: for the trains, and for stochastic rounding.

    Returns:
        Whole numbers as float32, (m, out, in); positive ones are steps up, those where d x < 0.
    """
    trains = scales(x, d, lr, granularity, update)
    implicit = update.pulse_type is PulseType.DETERMINISTIC_IMPLICIT
    rounding = generator if update.sto_round else None
    x_step, d_step = (
        step_of(res) for res in ((update.x_res_implicit, update.d_res_implicit) if implicit else (update.res,) * 2)
    )
    p_x = rounded(x.abs() * trains.b[:, None], x_step, rounding).clamp(0, 1)
    p_d = rounded(d.abs() * trains.a[:, None], d_step, rounding).clamp(0, 1)
    slots = trains.slots[:, None, None]
    if implicit:
        counts = torch.round(slots * p_d[:, :, None] * p_x[:, None, :])
    elif update.pulse_type is PulseType.MEAN_COUNT:
        c_x, c_d = torch.round(slots[:, 0] * p_x), torch.round(slots[:, 0] * p_d)
        counts = torch.round(c_d[:, :, None] * c_x[:, None, :] / slots.clamp_min(1))
    elif update.pulse_type is PulseType.STOCHASTIC_COMPRESSED:
        counts = _meeting(p_x, p_d, trains.slots, generator)
    elif update.pulse_type is PulseType.STOCHASTIC:
        counts = _meeting(torch.where(x > 0, p_x, 0.0), p_d, trains.slots, generator)
        counts += _meeting(torch.where(x < 0, p_x, 0.0), p_d, trains.slots, generator)
    else:
        raise ValueError(f"pulse_type: {update.pulse_type} makes no pulses")
    # Adding 0 turns the -0 of silent lines into 0.
    return counts * -(d.sign()[:, :, None] * x.sign()[:, None, :]) + 0.0


def _meeting(p_x: Tensor, p_d: Tensor, slots: Tensor, generator: torch.Generator) -> Tensor:
    """Slots in which both trains of a device have a pulse, (m, out, in)."""
    longest = int(slots.max()) if len(slots) else 0
    inside = torch.arange(longest, device=p_x.device)[None, :, None] < slots[:, None, None]
    on_x = uniform(p_x[:, None, :].expand(-1, longest, -1), generator) < p_x[:, None, :]
    on_d = uniform(p_d[:, None, :].expand(-1, longest, -1), generator) < p_d[:, None, :]
    return (on_d & inside).to(p_x.dtype).transpose(1, 2) @ on_x.to(p_x.dtype)
