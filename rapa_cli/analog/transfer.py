"""Tiki-Taka: gradients are accumulated on a fast array, which is read now and then to update a slow one.

Version 1 (Gokmen and Haensch, 2020) writes each reading to the slow array; version 2 (Gokmen, 2021) adds it to a
digital buffer first, and writes whole steps of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.cells import Cell, named, part, required, times_due
from rapa_cli.analog.device import Shape, State, pulse_lines
from rapa_cli.analog.merged import Chunk, Moments
from rapa_cli.analog.noise import numbers, uniform
from rapa_cli.analog.parameters import Compat, IOParameters, UpdateParameters
from rapa_cli.analog.periphery import Periphery, groups
from rapa_cli.analog.update import Pairs, Rule


class TransferCompound(Cell):
    """Tiki-Taka version 1: a chain of devices, each passed on to the next by reading its columns or rows.

    Vector pairs update device 0. Every `transfer_every` of them (device k: times (in / n_reads_per_transfer)^k),
    the next column is read with a one-hot vector, and the result y is written to the next device by pulses that change
    the column by `transfer_lr` y. The weight is the sum of gamma^(n - 1 - k) times device k.

    State: that of `Cell`; `slice`, int64 (tiles, n), the next column or row of each device; "transfer." the lines of
    the transfer reading.

    Attributes:
        gamma: see above; at 0 only the last device is the weight.
        gamma_vec: the factors themselves; without any they come from `gamma`.
        transfer_every: updates from one transfer of device 0 to the next; 0 is never.
        transfer_every_vec: the same for each device but the last.
        units_in_mbatch: whether these are whole batches and not vector pairs.
        n_reads_per_transfer: columns or rows of one transfer.
        transfer_columns: whether columns are transferred, and not rows.
        with_reset_prob: probability that a column is reset once it is read.
        random_selection: whether a transfer starts at a random column or row.
        fast_lr: the learning rate of device 0; 0 takes that of the update.
        transfer_lr: see above.
        transfer_lr_vec: the same for each device but the last.
        scale_transfer_lr: whether these are multiplied by the update's learning rate.
        transfer_forward: how a transfer reads; bound management is not used.
        transfer_update: how it writes; must make pulses.
    """

    kind: Literal["Transfer"] = "Transfer"
    gamma: float = 0.0
    gamma_vec: tuple[float, ...] = ()
    transfer_every: float = Field(1.0, ge=0)
    transfer_every_vec: tuple[float, ...] = ()
    units_in_mbatch: bool = True
    n_reads_per_transfer: int = Field(1, ge=1)
    transfer_columns: bool = True
    with_reset_prob: float = Field(0.0, ge=0, le=1)
    random_selection: bool = False
    fast_lr: float = Field(0.0, ge=0)
    transfer_lr: float = Field(1.0, ge=0)
    transfer_lr_vec: tuple[float, ...] = ()
    scale_transfer_lr: bool = True
    transfer_forward: IOParameters = IOParameters()
    transfer_update: UpdateParameters = UpdateParameters()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        devices = len(self.unit_cell_devices)
        if devices < 2:
            raise ValueError(f"unit_cell_devices: got {devices}, allowed are 2 or more")
        if self.gamma_vec and (len(self.gamma_vec) != devices or self.gamma_vec[-1] == 0):
            raise ValueError(f"gamma_vec: allowed are {devices} factors, the last not 0")
        for name in ("transfer_every_vec", "transfer_lr_vec"):
            if getattr(self, name) and len(getattr(self, name)) != devices - 1:
                raise ValueError(f"{name}: got {len(getattr(self, name))} numbers, allowed are {devices - 1} or none")
        if self.with_reset_prob > 0 and not self.transfer_columns:
            raise ValueError("with_reset_prob: allowed only with transfer_columns")
        self.check(self.transfer_update)
        return self

    def factors(self) -> Sequence[float]:
        """`gamma_vec`, or the powers of `gamma`, 1 for the last device."""
        devices = len(self.unit_cell_devices)
        return self.gamma_vec or tuple(self.gamma ** (devices - 1 - k) for k in range(devices))

    def granularity(self, compat: Compat = None) -> float:
        """That of the device that the vector pairs update."""
        return self.unit_cell_devices[0].granularity(compat)

    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices, and the lines of the transfer reading.

        Raises:
            ValueError: a transfer reads more columns or rows than there are.
        """
        lines = self._lines(shape)
        if self.n_reads_per_transfer > lines:
            raise ValueError(f"n_reads_per_transfer: got {self.n_reads_per_transfer}, allowed are 1 to {lines}")
        state = super().draw(shape, generator, place)
        state["slice"] = torch.zeros(shape[0], len(self.unit_cell_devices), dtype=torch.int64, device=place)
        seen = shape if self.transfer_columns else (shape[0], shape[2], shape[1])
        state.update(named(Periphery.draw(self.transfer_forward, seen, generator, place), "transfer"))
        return state

    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """The weight to the last device, by its factor; 0 to the others."""
        last = len(self.unit_cell_devices) - 1
        for k, device in enumerate(self.unit_cell_devices):
            target = weights / self.factors()[last] if k == last else torch.zeros_like(weights)
            device.write(part(state, str(k)), target, generator)
        state["updates"].zero_()
        state["slice"].zero_()
        self.combine(state)

    def update(self, state: State, pairs: Pairs, rule: Rule, generator: torch.Generator) -> None:
        """Pulses for one pair of each tile, and the transfers for which it is time."""
        now, batch = torch.zeros_like(state["updates"]), torch.zeros_like(state["updates"])
        now[pairs.tiles], batch[pairs.tiles] = 1, pairs.batch
        d, rate = self.rated(state, pairs.x, pairs.d, now.tolist(), rule)
        fast = Pairs(pairs.tiles, pairs.x, d, pairs.batch)
        self.unit_cell_devices[0].update(part(state, "0"), fast, rule._replace(lr=rate), generator)
        self._count(state, Chunk(now, batch, rule.lr, rule.compat), generator)

    def apply(self, state: State, pulses: Moments, generator: torch.Generator, chunk: Chunk | None = None) -> None:
        """Gives device 0 the pulses of a chunk, then makes the transfers that fall due in it, one after the other.

        The last pair of a chunk thus counts in the first of its transfers, too. Where a transfer comes at the end of a
        chunk, as with whole batches in both, nothing is moved.
        """
        self.unit_cell_devices[0].apply(part(state, "0"), pulses, generator)
        self._count(state, required(chunk), generator)

    def rate(self, lr: float) -> float | None:
        """`fast_lr`, or that of the update."""
        return self.fast_lr or lr

    def _count(self, state: State, chunk: Chunk, generator: torch.Generator) -> None:
        """Counts pairs, and makes the transfers for which it is time."""
        before, lines = state["updates"].clone(), self._lines(state["weight"].shape)
        state["updates"] += chunk.pairs
        for k in range(len(self.unit_cell_devices) - 1):
            times = times_due(before, chunk.pairs, self._every(k, lines, chunk.batch))
            rate = (self.transfer_lr_vec or (self.transfer_lr,) * (k + 1))[k]
            rate *= chunk.lr if self.scale_transfer_lr else 1.0
            if rate > 0 and bool(times.any()):
                self._transfer(state, k, times, Rule(rate, self.transfer_update, chunk.compat), generator)
        self.combine(state)

    def _lines(self, shape: Sequence[int]) -> int:
        """How many columns, or rows, there are to transfer in arrays (tiles, out, in)."""
        return shape[2 if self.transfer_columns else 1]

    def _every(self, k: int, lines: int, batch: Tensor) -> Tensor:
        """Vector pairs from one transfer of device k to the next, int64 (tiles,)."""
        if self.transfer_every_vec:
            every = self.transfer_every_vec[k]
        else:
            every = self.transfer_every * (lines / self.n_reads_per_transfer) ** k
        if self.units_in_mbatch:
            return torch.ceil(every * batch.double()).long()
        return torch.full_like(batch, round(every))

    def _transfer(self, state: State, k: int, times: Tensor, rule: Rule, generator: torch.Generator) -> None:
        """Reads the next lines of device k, so many times in each tile (tiles,), and passes each on.

        Different lines of a tile do not depend on each other, and go together.
        """
        lines, left = self._lines(state["weight"].shape), times * self.n_reads_per_transfer
        most = self.n_reads_per_transfer if self.random_selection else lines
        while bool(left.any()):
            start, now = state["slice"][:, k], left.clamp_max(most)
            if self.random_selection:
                start = torch.where(left > 0, numbers(len(left), lines, generator, left.device), start)
            tiles = torch.arange(len(left), device=left.device).repeat_interleave(now)
            read = torch.arange(len(tiles), device=left.device) - (now.cumsum(0) - now)[tiles]
            line = (start[tiles] + read) % lines
            y = self._read(state, k, tiles, line, generator)
            if self.with_reset_prob > 0:
                chance = uniform(torch.empty(len(tiles), device=tiles.device), generator)
                self._reset(state, k, tiles, line, chance < self.with_reset_prob, generator)
            self._pass_on(state, k, tiles, line, y, rule, generator)
            state["slice"][:, k] = (start + now) % lines
            left = left - now

    def _read(self, state: State, k: int, tiles: Tensor, line: Tensor, generator: torch.Generator) -> Tensor:
        """Lines of device k in these tiles, which ascend: (m, out) of columns, (m, in) of rows."""
        weights = state[f"{k}.weight"]
        if not self.transfer_columns:
            weights = weights.transpose(1, 2)
        sizes = torch.bincount(tiles, minlength=len(weights)).tolist()
        periphery = Periphery(self.transfer_forward, part(state, "transfer"))
        one_hot = torch.nn.functional.one_hot(line, weights.shape[2]).to(weights.dtype)
        return periphery.read(weights, one_hot, sizes, generator, bound_management=False).values

    def _reset(
        self, state: State, k: int, tiles: Tensor, line: Tensor, chosen: Tensor, generator: torch.Generator
    ) -> None:
        """Resets the columns just read, where chosen."""
        _, rows, columns = state["weight"].shape
        first = (tiles * rows * columns + line)[chosen]
        where = (first[:, None] + torch.arange(rows, device=tiles.device) * columns).flatten()
        self.unit_cell_devices[k].reset_devices(part(state, str(k)), where, generator)

    def _pass_on(
        self, state: State, k: int, tiles: Tensor, line: Tensor, y: Tensor, rule: Rule, generator: torch.Generator
    ) -> None:
        """Changes lines of device k + 1 by lr y."""
        device, devices, shape = self.unit_cell_devices[k + 1], part(state, str(k + 1)), state["weight"].shape
        pulse_lines(device, devices, shape, tiles, line, y, rule, generator, columns=self.transfer_columns)


class BufferedTransferCompound(TransferCompound):
    """Tiki-Taka version 2: readings are added to a digital buffer, and whole steps of it are written.

    With g the granularity of the next device and h = `thres_scale` g: the line's buffer omega grows by `transfer_lr` y
    (times the ratio of the two devices' factors, where both count); n = trunc(omega / h), at most `desired_bl` of
    `transfer_update`, steps are written; what is left is `momentum` omega with `forget_buffer`, else
    omega - (1 - momentum) n h.

    State: that of `TransferCompound`; `buffer.k` of each device but the last, (tiles, out, in); with `auto_scale`
    `largest`, (tiles, 2), the running means of max|x| and max|d|, -1 before the first pair.

    Attributes:
        thres_scale: see above.
        auto_granularity: h is multiplied by this over the pairs in which every line is read once; 0 leaves it.
        auto_scale: whether the rate of device 0 is `fast_lr` times `desired_bl` g / (max|x| max|d|), of running means,
            so that pulse trains stay equally full however large gradients are.
        auto_momentum: what these means keep with each pair.
        step: what each step is multiplied by when it is written.
        momentum: see above.
        forget_buffer: see above.
    """

    kind: Literal["BufferedTransfer"] = "BufferedTransfer"  # type: ignore[assignment]
    thres_scale: float = Field(1.0, gt=0)
    auto_granularity: float = Field(0.0, ge=0)
    auto_scale: bool = False
    auto_momentum: float = Field(0.99, ge=0, lt=1)
    step: float = Field(1.0, gt=0)
    momentum: float = Field(0.1, ge=0, le=1)
    forget_buffer: bool = True
    transfer_update: UpdateParameters = UpdateParameters(
        desired_bl=1, update_bl_management=False, update_management=False
    )

    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices, lines and empty buffers."""
        state = super().draw(shape, generator, place)
        for k in range(len(self.unit_cell_devices) - 1):
            state[f"buffer.{k}"] = torch.zeros(shape, device=place)
        if self.auto_scale:
            state["largest"] = torch.full((shape[0], 2), -1.0, device=place)
        return state

    def rate(self, lr: float) -> float | None:
        """None with `auto_scale`."""
        return None if self.auto_scale else super().rate(lr)

    def rated(self, state: State, x: Tensor, d: Tensor, sizes: Sequence[int], rule: Rule) -> tuple[Tensor, float]:
        """With `auto_scale` a rate for every pair, which is put into d: pulses and management are linear in it."""
        if not self.auto_scale:
            return super().rated(state, x, d, sizes, rule)
        largest = torch.stack([x.abs().amax(1), d.abs().amax(1)], 1).double()
        running, means = state["largest"].double(), torch.empty_like(largest)
        first = 0
        for tile, values in enumerate(groups(largest, sizes)):
            if len(values):
                means[first : first + len(values)] = _running_means(running[tile], values, self.auto_momentum)
                first += len(values)
                running[tile] = means[first - 1]
        state["largest"].copy_(running)
        fast_lr, product = self.fast_lr or rule.lr, means.prod(1)
        full = rule.update.desired_bl * self.granularity(rule.compat) * fast_lr
        rate = torch.where(product > 0, full / product, 0.0).to(d.dtype)
        return d * rate[:, None], 1.0

    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """Sets the weights and empties the buffers (aihwkit leaves them)."""
        super().write(state, weights, generator)
        for k in range(len(self.unit_cell_devices) - 1):
            state[f"buffer.{k}"].zero_()

    def _pass_on(
        self, state: State, k: int, tiles: Tensor, line: Tensor, y: Tensor, rule: Rule, generator: torch.Generator
    ) -> None:
        factors, lr = self.factors(), rule.lr
        if factors[k] > 0 and factors[k + 1] > 0:
            lr *= factors[k] / factors[k + 1]
        granularity = self.unit_cell_devices[k + 1].granularity(rule.compat)
        threshold, most = self.thres_scale * granularity, self.transfer_update.desired_bl
        buffer = state[f"buffer.{k}"]
        if self.auto_granularity > 0:
            threshold *= self.auto_granularity / (self._lines(buffer.shape) * (self.transfer_every or 1.0))
        lines = buffer.transpose(1, 2) if self.transfer_columns else buffer
        omega = lines[tiles, line] + lr * y
        steps = torch.trunc(omega / threshold).clamp(-most, most)
        left = omega * self.momentum if self.forget_buffer else omega - (1 - self.momentum) * steps * threshold
        lines[tiles, line] = torch.where(steps != 0, left, omega)
        due = (steps != 0).any(1)
        if bool(due.any()):
            whole = rule._replace(lr=self.step * granularity)
            super()._pass_on(state, k, tiles[due], line[due], steps[due], whole, generator)


def _running_means(before: Tensor, values: Tensor, momentum: float) -> Tensor:
    """m_i = momentum m_(i-1) + (1 - momentum) v_i of each column of (n, 2); a mean below 0 begins with v_1."""
    means, mean = [], [float(value) for value in before]
    for row in values.tolist():
        mean = [v if m < 0 else momentum * m + (1 - momentum) * v for m, v in zip(mean, row, strict=True)]
        means.append(mean)
    return values.new_tensor(means)
