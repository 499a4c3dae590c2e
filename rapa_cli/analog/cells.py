"""Several devices at each cross-point: what all such cells share, and the cell whose devices are weighted and added."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.device import PulsedBase, Shape, State, addresses
from rapa_cli.analog.merged import Chunk, Moments
from rapa_cli.analog.noise import gauss, numbers
from rapa_cli.analog.parameters import Compat, Named, PulseType, UpdateParameters
from rapa_cli.analog.steps import AnyPulsed
from rapa_cli.analog.update import Pairs, Rule, coincidences


class UpdatePolicy(Named):
    """Which devices of a cell are updated by a vector pair: all, one, the next one, or one drawn for each tile."""

    ALL = "All"
    SINGLE_FIXED = "SingleFixed"
    SINGLE_SEQUENTIAL = "SingleSequential"
    SINGLE_RANDOM = "SingleRandom"


class Cell(PulsedBase, abc.ABC):
    """Devices whose weighted sum is the weight.

    State: `weight`; the tensors of device k with "k." before their names; `updates`, int64 (tiles,), the vector pairs
    so far.

    Attributes:
        unit_cell_devices: the devices of one cross-point.
    """

    unit_cell_devices: tuple[AnyPulsed, ...] = Field(min_length=1)

    @abc.abstractmethod
    def factors(self) -> Sequence[float]:
        """What each device's weight counts."""

    def granularity(self, compat: Compat = None) -> float:
        """The mean of the devices' granularities."""
        return sum(device.granularity(compat) for device in self.unit_cell_devices) / len(self.unit_cell_devices)

    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices, independent of each other."""
        state: State = {"weight": torch.zeros(shape, device=place)}
        state["updates"] = torch.zeros(shape[0], dtype=torch.int64, device=place)
        for k, device in enumerate(self.unit_cell_devices):
            state.update(named(device.draw(shape, generator, place), str(k)))
        self.combine(state)
        return state

    def combine(self, state: State) -> None:
        """Takes the weight from the devices."""
        parts = (factor * state[f"{k}.weight"] for k, factor in enumerate(self.factors()) if factor)
        state["weight"].copy_(sum(parts, torch.zeros_like(state["weight"])))

    def after_step(self, state: State, generator: torch.Generator) -> None:
        """Decay and diffusion of each device."""
        for k, device in enumerate(self.unit_cell_devices):
            device.after_step(part(state, str(k)), generator)
        self.combine(state)

    def check(self, update: UpdateParameters) -> None:
        """Raises ValueError unless the update makes pulses."""
        if update.pulse_type in (PulseType.NONE, PulseType.NONE_WITH_DEVICE):
            pulsed = [str(kind) for kind in PulseType if kind not in (PulseType.NONE, PulseType.NONE_WITH_DEVICE)]
            raise ValueError(
                f"pulse_type: got {update.pulse_type}, for cells of several devices allowed are {', '.join(pulsed)}"
            )


class VectorUnitCell(Cell):
    """Devices that are read together, and updated together or in turns.

    Weights that are set are divided among the devices so that their weighted sum is the weight: each gets
    w / sum(gamma); with SINGLE_FIXED only the updated device is set, so that the sum comes right. (aihwkit sets each
    device to w itself, which is the same for factors that sum to 1.)

    State: that of `Cell`, and `turn`, int64 (tiles,), the device of the last update.

    Attributes:
        update_policy: which devices are updated.
        first_update_idx: the device of SINGLE_FIXED, and the one before the first of SINGLE_SEQUENTIAL.
        gamma_vec: the factors of the devices; without any each has 1 / n.
    """

    kind: Literal["Vector"] = "Vector"
    update_policy: UpdatePolicy = UpdatePolicy.ALL
    first_update_idx: int = Field(0, ge=0)
    gamma_vec: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        devices = len(self.unit_cell_devices)
        if self.gamma_vec and len(self.gamma_vec) != devices:
            raise ValueError(f"gamma_vec: got {len(self.gamma_vec)} factors, allowed are {devices} or none")
        if self.first_update_idx >= devices:
            raise ValueError(f"first_update_idx: got {self.first_update_idx}, allowed are 0 to {devices - 1}")
        fixed = self.update_policy is UpdatePolicy.SINGLE_FIXED
        if (self.factors()[self.first_update_idx] if fixed else sum(self.factors())) == 0:
            raise ValueError("gamma_vec: the devices that are set must not count 0 together")
        return self

    def factors(self) -> Sequence[float]:
        """`gamma_vec`, or 1 / n."""
        return self.gamma_vec or (1 / len(self.unit_cell_devices),) * len(self.unit_cell_devices)

    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices."""
        state = super().draw(shape, generator, place)
        state["turn"] = torch.full((shape[0],), self.first_update_idx, dtype=torch.int64, device=place)
        return state

    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """Divides the weights among the devices."""
        factors, fixed = self.factors(), self.first_update_idx
        state["updates"].zero_()
        if self.update_policy is UpdatePolicy.SINGLE_FIXED:
            others = [factor * state[f"{k}.weight"] for k, factor in enumerate(factors) if k != fixed]
            rest = (weights - sum(others, torch.zeros_like(weights))) / factors[fixed]
            self.unit_cell_devices[fixed].write(part(state, str(fixed)), rest, generator)
        else:
            state["turn"].fill_(fixed)
            for k, device in enumerate(self.unit_cell_devices):
                device.write(part(state, str(k)), weights / sum(factors), generator)
        self.combine(state)

    def update(self, state: State, pairs: Pairs, rule: Rule, generator: torch.Generator) -> None:
        """The same pulses for each device whose turn it is."""
        counts = coincidences(pairs.x, pairs.d, rule.lr, self.granularity(rule.compat), rule.update, generator)
        devices, tiles = len(self.unit_cell_devices), pairs.tiles
        if self.update_policy is UpdatePolicy.SINGLE_SEQUENTIAL:
            state["turn"][tiles] = (state["turn"][tiles] + 1) % devices
        elif self.update_policy is UpdatePolicy.SINGLE_RANDOM:
            state["turn"][tiles] = numbers(len(tiles), devices, generator, tiles.device)
        for k, device in enumerate(self.unit_cell_devices):
            due = counts
            if self.update_policy is not UpdatePolicy.ALL:
                due = torch.where((state["turn"][tiles] == k)[:, None, None], counts, 0.0)
            device.pulse(part(state, str(k)), *addresses(due, tiles), generator)
        state["updates"][tiles] += 1
        self.combine(state)

    def apply(self, state: State, pulses: Moments, generator: torch.Generator, chunk: Chunk | None = None) -> None:
        """Divides the pulses of a chunk among the devices, as pairs of vectors take turns.

        The number of pulses of each cross-point is drawn once, as the devices of a cell share it. With ALL each device
        gets all of them. In turns each gets its share, and what chance makes of it as if every pulse went to a device
        by itself; in truth all pulses of a pair go to the same one. The weight has the exact mean and, up to the
        differences between devices of a cell, variance; that of a single device lacks s (1 - s) times the sum of
        squares of the pairs' mean numbers of pulses, s its share, little as long as a pair makes less than a pulse.
        """
        counted, devices, policy = required(chunk), self.unit_cell_devices, self.update_policy
        if policy is UpdatePolicy.SINGLE_FIXED:
            k = self.first_update_idx
            devices[k].shift(part(state, str(k)), pulses, generator)
        elif policy is UpdatePolicy.ALL:
            excess = pulses.excess(generator)
            for k, device in enumerate(devices):
                device.shift(part(state, str(k)), pulses, generator, excess)
        else:
            shares = self._shares(state, counted.pairs)
            up, down = (
                _divided(mean, excess, shares, generator)
                for mean, excess in zip((pulses.up, pulses.down), pulses.excess(generator), strict=True)
            )
            for k, device in enumerate(devices):
                share = Moments(*(shares[k] * values for values in pulses))
                device.shift(part(state, str(k)), share, generator, (up[k], down[k]))
            self._take_turns(state, counted.pairs, generator)
        state["updates"] += counted.pairs
        self.combine(state)

    def _shares(self, state: State, pairs: Tensor) -> list[Tensor]:
        """Which part of so many pairs each device is updated by, (tiles, 1, 1) each."""
        devices = len(self.unit_cell_devices)
        if self.update_policy is UpdatePolicy.SINGLE_RANDOM:
            return [torch.full((len(pairs), 1, 1), 1 / devices, device=pairs.device)] * devices
        shares = []
        for k in range(devices):
            # Its first turn is that of this pair, counted from 1.
            turn = (k - state["turn"] - 1) % devices + 1
            times = (pairs - turn + devices) // devices
            shares.append((times / pairs.clamp_min(1)).float()[:, None, None])
        return shares

    def _take_turns(self, state: State, pairs: Tensor, generator: torch.Generator) -> None:
        devices = len(self.unit_cell_devices)
        if self.update_policy is UpdatePolicy.SINGLE_SEQUENTIAL:
            state["turn"].copy_((state["turn"] + pairs) % devices)
        else:
            last = numbers(len(pairs), devices, generator, pairs.device)
            state["turn"].copy_(torch.where(pairs > 0, last, state["turn"]))


def _divided(mean: Tensor, excess: Tensor, shares: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """What each device's number of pulses exceeds its share of the mean by, where every pulse goes to one of them."""
    chances = [(mean * share).sqrt() * gauss(mean, generator) for share in shares]
    together = sum(chances[1:], chances[0])
    return [chance + share * (excess - together) for chance, share in zip(chances, shares, strict=True)]


def required(chunk: Chunk | None) -> Chunk:
    """The chunk, which cells must know.

    Raises:
        ValueError: there is none.
    """
    if chunk is None:
        raise ValueError("chunk: got none, cells of several devices count the pairs of a chunk")
    return chunk


def times_due(before: Tensor, pairs: Tensor, every: Tensor) -> Tensor:
    """How often it is time within so many pairs after `before` ones, once every so many (0 is never), int64 (m,)."""
    often = every.clamp_min(1)
    return torch.where(every > 0, (before + pairs) // often - before // often, 0)


def named(state: State, prefix: str) -> State:
    """The tensors of a part of a cell, as they are named in the cell's state."""
    return {f"{prefix}.{name}": values for name, values in state.items()}


def part(state: State, prefix: str) -> State:
    """The tensors of a part of a cell under their own names; they are the same tensors."""
    start = f"{prefix}."
    return {name[len(start) :]: values for name, values in state.items() if name.startswith(start)}
