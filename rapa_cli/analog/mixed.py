"""Mixed precision: the outer products are accumulated digitally, and whole steps of the sum are written to devices."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rapa_cli.analog.cells import named, part, times_due
from rapa_cli.analog.device import Device, Shape, State, pulse_lines
from rapa_cli.analog.noise import numbers, rounded
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.parameters import PulseType, UpdateParameters
from rapa_cli.analog.periphery import groups
from rapa_cli.analog.steps import AnyPulsed
from rapa_cli.analog.update import Batch, Rule


class MixedPrecisionCompound(Device):
    """Devices updated through a digital sum (Nandakumar et al., 2020).

    Each vector pair adds lr d x^T to chi, both vectors first quantised to bins. After `transfer_every` updates rows
    of chi are transferred: n = trunc(chi / g) steps go to the devices as pulses with both managements on, and n g is
    taken from chi. (aihwkit transfers before it counts the pair, one pair later.)

    State: the devices' with "device." before their names; `chi` (tiles, out, in); `updates` and `row`, int64 (tiles,).

    Attributes:
        device: what holds the weights; a one-sided pair counts each transfer as an update.
        transfer_every: updates from one transfer to the next; 0 is never.
        units_in_mbatch: whether these are whole batches and not vector pairs.
        n_rows_per_transfer: rows of one transfer; -1 is all.
        random_row: whether a transfer starts at a random row.
        granularity: g; 0 takes that of the device.
        transfer_lr: factor of the steps.
        n_x_bins: bins of the inputs over their range; 0 is no quantisation.
        n_d_bins: bins of the gradients.
        stoc_round_x: whether inputs are rounded to bins stochastically.
        stoc_round_d: whether gradients are.
    """

    kind: Literal["MixedPrecision"] = "MixedPrecision"
    device: AnyPulsed | OneSidedUnitCell
    transfer_every: int = Field(1, ge=0)
    units_in_mbatch: bool = True
    n_rows_per_transfer: int = Field(-1, ge=-1)
    random_row: bool = False
    granularity: float = Field(0.0, ge=0)
    transfer_lr: float = Field(1.0, gt=0)
    n_x_bins: int = Field(0, ge=0)
    n_d_bins: int = Field(0, ge=0)
    stoc_round_x: bool = True
    stoc_round_d: bool = True

    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices and an empty sum."""
        state = named(self.device.draw(shape, generator, place), "device")
        state["chi"] = torch.zeros(shape, device=place)
        state["updates"] = torch.zeros(shape[0], dtype=torch.int64, device=place)
        state["row"] = torch.zeros(shape[0], dtype=torch.int64, device=place)
        return state

    def weights(self, state: State) -> Tensor:
        """Those of the devices."""
        return state["device.weight"]

    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """Sets the devices and empties the sum."""
        self.device.write(part(state, "device"), weights, generator)
        for name in ("chi", "updates", "row"):
            state[name].zero_()

    def check(self, update: UpdateParameters) -> None:
        """Raises ValueError unless the update makes pulses."""
        if update.pulse_type in (PulseType.NONE, PulseType.NONE_WITH_DEVICE):
            raise ValueError(f"pulse_type: got {update.pulse_type}, for mixed precision it must make pulses")

    def update_all(self, state: State, batch: Batch, rule: Rule, merge: int, generator: torch.Generator) -> None:
        """Adds the pairs between two transfers as one product: exact, whatever `merge` is."""
        del merge
        done = torch.zeros_like(batch.counts)
        while bool((done < batch.counts).any()):
            every = self._every(batch.counts)
            until = torch.where(every > 0, every - state["updates"] % every.clamp_min(1), batch.counts)
            sizes = torch.minimum(until, batch.counts - done)
            self._add(state, *batch.part(done, sizes), sizes, rule.lr, generator)
            due = times_due(state["updates"], sizes, every) > 0
            state["updates"] += sizes
            if bool(due.any()):
                self._transfer(state, due.nonzero()[:, 0], rule, generator)
            done += sizes

    def merges(self, update: UpdateParameters) -> bool:
        """Always, exactly."""
        del update
        return True

    def _add(self, state: State, x: Tensor, d: Tensor, counts: Tensor, lr: float, generator: torch.Generator) -> None:
        """Adds pairs in the order of tiles to the sums, in bins."""
        x = _binned(x, self.n_x_bins, generator if self.stoc_round_x else None)
        d = _binned(d, self.n_d_bins, generator if self.stoc_round_d else None)
        sizes = counts.tolist()
        for tile, (of_d, of_x) in enumerate(zip(groups(d, sizes), groups(x, sizes), strict=True)):
            if sizes[tile]:
                state["chi"][tile].addmm_(of_d.T, of_x, alpha=lr)

    def _every(self, batch: Tensor) -> Tensor:
        """Updates from one transfer to the next, int64 (tiles,)."""
        return self.transfer_every * (batch if self.units_in_mbatch else torch.ones_like(batch))

    def _transfer(self, state: State, tiles: Tensor, rule: Rule, generator: torch.Generator) -> None:
        """Writes whole steps of the next rows of some tiles."""
        rows = state["chi"].shape[1]
        count = rows if self.n_rows_per_transfer < 0 else min(self.n_rows_per_transfer, rows)
        start = state["row"][tiles]
        if self.random_row and count < rows:
            start = numbers(len(tiles), rows, generator, tiles.device)
        row = (start[:, None] + torch.arange(count, device=tiles.device)) % rows
        tile_of, row_of = tiles.repeat_interleave(count), row.flatten()
        granularity = self.granularity or self.device.granularity(rule.compat)
        sums = state["chi"][tile_of, row_of]
        steps = torch.trunc(sums / granularity)
        state["chi"][tile_of, row_of] = sums - steps * granularity
        managed = rule.update.model_copy(update={"update_management": True, "update_bl_management": True})
        own = Rule(granularity * self.transfer_lr, managed, rule.compat)
        devices = part(state, "device")
        pulse_lines(self.device, devices, state["chi"].shape, tile_of, row_of, -steps, own, generator, columns=False)
        if isinstance(self.device, OneSidedUnitCell):
            self.device.settle(devices, tiles, torch.ones_like(tiles), generator, rule.compat)
        state["row"][tiles] = (start + count) % rows

    def after_step(self, state: State, generator: torch.Generator) -> None:
        """Decay and diffusion of the devices."""
        self.device.after_step(part(state, "device"), generator)


def _binned(vectors: Tensor, bins: int, generator: torch.Generator | None) -> Tensor:
    """Vectors quantised to `bins` over the range of each, unchanged for 0 bins or a vector of zeros."""
    half = bins // 2
    if half == 0:
        return vectors
    width = vectors.abs().amax(1, keepdim=True) / half
    width = torch.where(width > 0, width, 1.0)
    return rounded(vectors / width, 1.0, generator).clamp(-half, half) * width
