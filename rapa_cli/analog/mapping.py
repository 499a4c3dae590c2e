"""Kernel matrices on arrays: split where they are too large, weights scaled to the devices, inputs to the DAC.

The digital side of arrays: y = r alpha F(clamp(x, -r, r) / r), where F is an array's reading, alpha the mapping scales
and r the input range; what parts of a split matrix answer is summed digitally.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.device import State, load_into
from rapa_cli.analog.parameters import Mapping
from rapa_cli.analog.periphery import Reading


class MappedReading(NamedTuple):
    """What a mapped bank answers.

    Attributes:
        values: (N, out).
        parts: the reading of each part, in the order of `MappedBank.banks`.
        inside: bool (N, in), which inputs lie within the input range.
    """

    values: Tensor
    parts: tuple[Reading, ...]
    inside: Tensor


def equal_split(size: int, largest: int) -> list[int]:
    """Splits a size into as few parts as possible, of sizes that differ by at most 1, the larger ones first."""
    if largest <= 0 or size <= largest:
        return [size]
    parts = -(-size // largest)
    least, more = divmod(size, parts)
    return [least + 1] * more + [least] * (parts - more)


class Grid(NamedTuple):
    """How a matrix lies on several arrays; what belongs to the parts comes row by row.

    Attributes:
        out_sizes: output lines of the parts of a column.
        in_sizes: input lines of the parts of a row.
    """

    out_sizes: list[int]
    in_sizes: list[int]

    @classmethod
    def of(cls, out: int, lines: int, mapping: Mapping) -> Grid:
        """As few parts as there can be for a matrix (out, lines)."""
        return cls(equal_split(out, mapping.max_output_size), equal_split(lines, mapping.max_input_size))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Output and input lines of each part."""
        return [(rows, columns) for rows in self.out_sizes for columns in self.in_sizes]

    def split(self, weights: Tensor) -> list[Tensor]:
        """The parts of matrices (tiles, out, lines)."""
        return [part for row in torch.split(weights, self.out_sizes, 1) for part in torch.split(row, self.in_sizes, 2)]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Matrices (tiles, out, lines) from their parts."""
        return torch.cat([torch.cat(row, 2) for row in self._rows(parts)], 1)

    def summed(self, answers: Sequence[Tensor]) -> Tensor:
        """Outputs (N, out) from what each part answers, (N, output lines of the part): the sum over the inputs."""
        return torch.cat([sum(row[1:], row[0]) for row in self._rows(answers)], 1)

    def _rows(self, of_parts: Sequence[Tensor]) -> list[list[Tensor]]:
        columns = len(self.in_sizes)
        return [list(of_parts[first : first + columns]) for first in range(0, len(of_parts), columns)]


def scales_to(omega: float, weights: Tensor, *, columnwise: bool) -> Tensor:
    """What a weight of 1 on an array counts, so that the largest |w| on it is omega; 1 where all weights are 0.

    Args:
        omega: above 0.
        weights: (tiles, out, lines).
        columnwise: whether each output line has a scale of its own, and not each tile.

    Returns:
        (tiles, out).
    """
    lines = weights.abs().amax(2)
    largest = lines if columnwise else lines.amax(1, keepdim=True).expand_as(lines)
    return torch.where(largest > 0, largest / omega, 1.0)


class MappedBank:
    """Matrices of any size on a grid of banks, with the same calls as `AnalogBank`.

    Args:
        arrays: what the arrays are made of, and by `mapping` how matrices are put on them; with a mapping scale alpha,
            pulses are for d / alpha.
        tiles: number of matrices.
        out_size: their rows.
        in_size: their columns.
        generator: for what is drawn once.
        place: torch's device.

    Attributes:
        grid: how matrices are split.
        banks: the parts, row by row of the grid.
        scales: alpha of each part, (tiles, rows of the part).
        input_range: r, a tensor of one number, 0 for none; may be changed in place.
        state: every tensor that a checkpoint needs, part p with "p." before its names.

    Raises:
        ValueError: as `AnalogBank`.
    """

    def __init__(
        self,
        arrays: Arrays,
        tiles: int,
        out_size: int,
        in_size: int,
        generator: torch.Generator,
        place: torch.device | str = "cpu",
    ) -> None:
        self.arrays, self.tiles, self.out_size, self.in_size = arrays, tiles, out_size, in_size
        self.grid = Grid.of(out_size, in_size, arrays.mapping)
        shapes = self.grid.shapes
        self.banks = [AnalogBank(arrays, tiles, rows, columns, generator, place) for rows, columns in shapes]
        self.scales = [torch.ones(tiles, rows, device=place) for rows, _ in shapes]
        self.input_range = torch.tensor(arrays.mapping.input_range, device=place)
        self.state: State = {"input_range": self.input_range}
        for p, (bank, scale) in enumerate(zip(self.banks, self.scales, strict=True)):
            self.state.update({f"{p}.{name}": values for name, values in bank.state.items()})
            self.state[f"{p}.scale"] = scale

    def get_weights(self) -> Tensor:
        """The weights as they are read, with their scales: (tiles, out, in)."""
        parts = [scale[:, :, None] * bank.get_weights() for bank, scale in zip(self.banks, self.scales, strict=True)]
        return self.grid.joined(parts)

    def set_weights(self, weights: Tensor, generator: torch.Generator) -> None:
        """Scales and writes weights.

        Args:
            weights: (tiles, out, in).
            generator: for write noise.

        Raises:
            ValueError: another shape.
        """
        shape = (self.tiles, self.out_size, self.in_size)
        if tuple(weights.shape) != shape:
            raise ValueError(f"weights: got shape {tuple(weights.shape)}, allowed is {shape}")
        mapping = self.arrays.mapping
        omega, columnwise = mapping.weight_scaling_omega, mapping.weight_scaling_columnwise
        for part, bank, scale in zip(self.grid.split(weights.detach()), self.banks, self.scales, strict=True):
            if omega > 0:
                scale.copy_(scales_to(omega, part, columnwise=columnwise))
            bank.set_weights(part / scale[:, :, None], generator)

    def forward(
        self, x: Tensor, sizes: Sequence[int], generator: torch.Generator, *, noise: bool = True
    ) -> MappedReading:
        """Reads y = W x for each vector: x (N, in) in the order of tiles, `sizes` vectors of each."""
        x, bound = x.detach(), float(self.input_range)
        inside = x.abs() <= bound if bound > 0 else torch.ones_like(x, dtype=torch.bool)
        inputs = torch.split(x.clamp(-bound, bound) / bound if bound > 0 else x, self.grid.in_sizes, 1)
        readings = [
            bank.forward(inputs[p % len(inputs)], sizes, generator, noise=noise) for p, bank in enumerate(self.banks)
        ]
        y = self.grid.summed([self._scaled(p, reading.values, sizes) for p, reading in enumerate(readings)])
        return MappedReading(y * bound if bound > 0 else y, tuple(readings), inside)

    def backward(
        self,
        d: Tensor,
        sizes: Sequence[int],
        generator: torch.Generator,
        reading: MappedReading | None = None,
        *,
        noise: bool = True,
    ) -> Tensor:
        """Reads dL/dx: d (N, out) in the order of tiles; inputs outside the range have gradient 0."""
        outputs = torch.split(d.detach(), self.grid.out_sizes, 1)
        columns = len(self.grid.in_sizes)
        sums: list[Tensor | None] = [None] * columns
        for p, bank in enumerate(self.banks):
            part = self._scaled(p, outputs[p // columns], sizes)
            read = bank.backward(part, sizes, generator, None if reading is None else reading.parts[p], noise=noise)
            before = sums[p % columns]
            sums[p % columns] = read if before is None else before + read
        gradient = torch.cat([part for part in sums if part is not None], 1)
        return gradient if reading is None else torch.where(reading.inside, gradient, 0.0)

    def update(self, x: Tensor, d: Tensor, sizes: Sequence[int], lr: float, generator: torch.Generator) -> None:
        """Changes each matrix by -lr d x^T: each part by pulses for x as its DAC range has it, and d / alpha.

        With an input range r, y = r alpha W clamp(x) / r, so that the change of W is for clamp(x).
        """
        bound = float(self.input_range)
        inputs = torch.split(x.detach().clamp(-bound, bound) if bound > 0 else x.detach(), self.grid.in_sizes, 1)
        outputs = torch.split(d.detach(), self.grid.out_sizes, 1)
        for p, bank in enumerate(self.banks):
            row, column = divmod(p, len(inputs))
            bank.update(inputs[column], self._scaled(p, outputs[row], sizes, inverse=True), sizes, lr, generator)

    def load_state(self, state: State) -> None:
        """Takes over the tensors of another bank's `state`, as from a checkpoint.

        Raises:
            ValueError: names or shapes differ.
        """
        load_into(self.state, state)

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Puts what `change` makes of each tensor of the state in its place."""
        self.input_range = self.state["input_range"] = change(self.input_range)
        for p, bank in enumerate(self.banks):
            bank.move(change)
            self.scales[p] = change(self.scales[p])
            self.state.update({f"{p}.{name}": values for name, values in bank.state.items()})
            self.state[f"{p}.scale"] = self.scales[p]

    def after_step(self, generator: torch.Generator) -> None:
        """Decay and diffusion of the devices."""
        for bank in self.banks:
            bank.after_step(generator)

    def _scaled(self, p: int, values: Tensor, sizes: Sequence[int], *, inverse: bool = False) -> Tensor:
        """Vectors of output lines (N, rows) times the scales of their tiles."""
        if self.arrays.mapping.weight_scaling_omega <= 0:
            return values
        scale = 1 / self.scales[p] if inverse else self.scales[p]
        return values * scale.repeat_interleave(torch.tensor(sizes, device=scale.device), 0)
