"""A weight as the difference of two devices that only ever step up, refreshed when both are nearly full (PCM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.cells import Cell, named, part, required, times_due
from rapa_cli.analog.device import Shape, State, addresses, pulse_lines
from rapa_cli.analog.merged import Chunk, Moments
from rapa_cli.analog.parameters import Compat, IOParameters, UpdateParameters
from rapa_cli.analog.periphery import Periphery
from rapa_cli.analog.update import Pairs, Rule, coincidences

_MINUS, _PLUS = 0, 1


class OneSidedUnitCell(Cell):
    """A pair of devices, w = g+ - g-: pulses upwards go to g+, pulses downwards become pulses upwards of g-.

    At a refresh every column is read with a one-hot vector, g+ and g- separately. Where the larger of the two, relative
    to `w_max`, is above `refresh_upper_thres` and the smaller above `refresh_lower_thres`, both devices are reset, and
    their difference is written by pulses to the larger one.

    State: that of `Cell` with g- as device 0 and g+ as device 1, and "refresh." the lines of the refresh reading.

    Attributes:
        refresh_every: updates from one refresh to the next; 0 is never.
        units_in_mbatch: whether these are whole batches and not vector pairs.
        refresh_upper_thres: see above.
        refresh_lower_thres: see above.
        refresh_forward: how a refresh reads.
        refresh_update: how it writes; must make pulses.
    """

    kind: Literal["OneSided"] = "OneSided"
    refresh_every: int = Field(0, ge=0)
    units_in_mbatch: bool = True
    refresh_upper_thres: float = 0.75
    refresh_lower_thres: float = 0.25
    refresh_forward: IOParameters = IOParameters()
    refresh_update: UpdateParameters = UpdateParameters()

    @model_validator(mode="after")
    def _is_pair(self) -> Self:
        devices = self.unit_cell_devices
        if len(devices) != 2 or type(devices[0]) is not type(devices[1]):
            raise ValueError("unit_cell_devices: allowed are two devices of one kind")
        if any(device.w_max <= 0 for device in devices):
            raise ValueError("unit_cell_devices: devices that step up need a w_max above 0")
        self.check(self.refresh_update)
        return self

    def factors(self) -> Sequence[float]:
        """-1 and 1."""
        return (-1.0, 1.0)

    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices, and the lines of the refresh reading."""
        state = super().draw(shape, generator, place)
        state.update(named(Periphery.draw(self.refresh_forward, shape, generator, place), "refresh"))
        return state

    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """Positive weights to g+, negative ones to g-, the other device of each pair to 0."""
        state["updates"].zero_()
        for k, values in ((_PLUS, weights.clamp_min(0)), (_MINUS, -weights.clamp_max(0))):
            self.unit_cell_devices[k].write(part(state, str(k)), values, generator)
        self.combine(state)

    def update(self, state: State, pairs: Pairs, rule: Rule, generator: torch.Generator) -> None:
        """Pulses for one pair of each tile, and a refresh of the tiles for which it is time."""
        counts = coincidences(pairs.x, pairs.d, rule.lr, self.granularity(rule.compat), rule.update, generator)
        self.pulse(state, *addresses(counts, pairs.tiles), generator)
        self.settle(state, pairs.tiles, pairs.batch, generator, rule.compat)

    def apply(self, state: State, pulses: Moments, generator: torch.Generator, chunk: Chunk | None = None) -> None:
        """Gives each device the pulses of its direction; a refresh that falls due in the chunk comes at its end."""
        counted = required(chunk)
        for k, numbers in zip((_PLUS, _MINUS), pulses.numbers(generator), strict=True):
            where = numbers.view(-1).nonzero()[:, 0]
            self.unit_cell_devices[k].pulse(part(state, str(k)), where, numbers.view(-1)[where], generator)
        self.combine(state)
        tiles = torch.arange(len(counted.pairs), device=counted.pairs.device)
        self.settle(state, tiles, counted.batch, generator, counted.compat, pairs=counted.pairs)

    def pulse(self, state: State, where: Tensor, counts: Tensor, generator: torch.Generator) -> None:
        """Gives pulses to the device of each pair that they belong to; arguments as of `PulsedDevice.pulse`."""
        for k, chosen in ((_PLUS, counts > 0), (_MINUS, counts < 0)):
            self.unit_cell_devices[k].pulse(part(state, str(k)), where[chosen], counts[chosen].abs(), generator)
        self.combine(state)

    def settle(
        self,
        state: State,
        tiles: Tensor,
        batch: Tensor,
        generator: torch.Generator,
        compat: Compat = None,
        *,
        pairs: Tensor | None = None,
    ) -> None:
        """Counts updates of some tiles, and refreshes those for which it is time.

        Args:
            state: the bank's cells.
            tiles: which tiles, int64 (m,), ascending.
            batch: how many updates each gets in the batch, int64 (m,).
            generator: for the refresh.
            compat: the granularity that pulses are counted in.
            pairs: how many updates each had now, int64 (m,); without, one.
        """
        before, pairs = state["updates"][tiles], torch.ones_like(batch) if pairs is None else pairs
        state["updates"][tiles] = before + pairs
        if self.refresh_every > 0:
            every = self.refresh_every * (batch if self.units_in_mbatch else torch.ones_like(batch))
            due = tiles[times_due(before, pairs, every) > 0]
            if len(due):
                self.refresh(state, due, generator, compat)
                self.combine(state)

    def refresh(self, state: State, tiles: Tensor, generator: torch.Generator, compat: Compat = None) -> int:
        """Refreshes the pairs of some tiles that need it.

        Args:
            state: the bank's cells.
            tiles: which tiles, int64 (m,), ascending.
            generator: for the reading, the resets and the writing.
            compat: the granularity that pulses are counted in.

        Returns:
            How many pairs were refreshed.
        """
        count, rows, columns = state["weight"].shape
        chosen = torch.zeros(count, dtype=torch.int64, device=tiles.device)
        chosen[tiles] = columns
        one_hot = torch.eye(columns, dtype=state["weight"].dtype, device=tiles.device).repeat(len(tiles), 1)
        periphery, sizes = Periphery(self.refresh_forward, part(state, "refresh")), chosen.tolist()
        minus, plus = (periphery.read(state[f"{k}.weight"], one_hot, sizes, generator).values for k in (_MINUS, _PLUS))
        positive = plus > minus
        full = torch.where(positive, self.refresh_upper_thres, self.refresh_lower_thres)
        other = torch.where(positive, self.refresh_lower_thres, self.refresh_upper_thres)
        top = [device.w_max for device in self.unit_cell_devices]
        needy = (plus / top[_PLUS] > full) & (minus / top[_MINUS] > other)
        # Each reading is one column of one tile: (m columns, rows).
        tile_of = (chosen > 0).nonzero()[:, 0].repeat_interleave(columns)
        column_of = torch.arange(columns, device=tiles.device).repeat(len(tiles))
        reading, row = needy.nonzero(as_tuple=True)
        where = (tile_of[reading] * rows + row) * columns + column_of[reading]
        for k, wins in ((_PLUS, positive), (_MINUS, ~positive)):
            device, devices = self.unit_cell_devices[k], part(state, str(k))
            device.reset_devices(devices, where, generator)
            missing = torch.where(needy & wins, (plus - minus).abs(), 0.0)
            rule, shape = Rule(1.0, self.refresh_update, compat), state["weight"].shape
            pulse_lines(device, devices, shape, tile_of, column_of, missing, rule, generator, columns=True)
        return len(where)
