"""A bank of arrays: the tiles of one layer, read and updated together, each with devices and lines of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.device import PulsedBase, State, load_into
from rapa_cli.analog.kinds import AnyDevice
from rapa_cli.analog.merged import MERGEABLE, Chunk, Moments
from rapa_cli.analog.parameters import Compat, IOParameters, Mapping, UpdateParameters
from rapa_cli.analog.periphery import Periphery, Reading
from rapa_cli.analog.update import Batch, Rule
from rapa_cli.config import Frozen

# Outputs from this fraction of the bound on lose their gradient in aihwkit.
_COMPAT_MASK = 0.999
# With 8 to 11 digits the steps of devices are smaller than the distance of two numbers.
_TOO_SHORT = (torch.float16, torch.bfloat16)


class Arrays(Frozen):
    """What arrays are made of: their devices, and what lies around them.

    Attributes:
        device: what holds a weight.
        forward: the periphery in a forward reading.
        backward: the periphery in a reading with the matrix transposed; its bound management is never used.
        update: how weights are changed.
        merge: vector pairs of a tile that are applied together; 1 is the exact update, 0 takes a whole batch. See
            `merged` for what then differs; only for stochastic pulses.
        mapping: how matrices are put on arrays, for what is larger than one; a bank itself is not split.
        aihwkit_compat: imitates the faults of one of aihwkit's back ends, "rpucuda" or "torch".
    """

    device: AnyDevice
    forward: IOParameters = IOParameters()
    backward: IOParameters = IOParameters()
    update: UpdateParameters = UpdateParameters()
    merge: int = Field(1, ge=0)
    mapping: Mapping = Mapping()
    aihwkit_compat: Compat = None

    def exact(self) -> Arrays:
        """The same arrays, updated by one vector pair after the other."""
        return self.model_copy(update={"merge": 1})

    @model_validator(mode="after")
    def _works_together(self) -> Self:
        self.device.check(self.update)
        exact = self.device.adds(self.update)
        if self.merge != 1 and not exact and not self.device.merges(self.update):
            kinds = ", ".join(MERGEABLE)
            raise ValueError(f"merge: got {self.merge}, allowed is 1, or stochastic pulses ({kinds})")
        return self


class AnalogBank:
    """Arrays that multiply vectors with their weights, forwards and backwards, and learn by pulses.

    Vectors come in the order of their tiles: the first `sizes[0]` rows belong to tile 0, and so on. Every random
    number comes from the generators that are passed in, so that a call is repeated exactly from the same state.

    Args:
        arrays: what they are made of.
        tiles: how many.
        out_size: rows of each matrix.
        in_size: columns of each matrix.
        generator: for what is drawn once: the spreads of devices and lines.
        place: torch's device of the tensors.

    Attributes:
        state: every tensor that a checkpoint needs, by name: those of the devices, and those of the peripheries with
            "forward." and "backward." before their names. All are changed in place.

    Raises:
        ValueError: sizes below 1, or parts that do not work together.
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
        for name, value in (("tiles", tiles), ("out_size", out_size), ("in_size", in_size)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, allowed are whole numbers from 1")
        self.arrays, self.tiles, self.out_size, self.in_size = arrays, tiles, out_size, in_size
        place = torch.device(place)
        self.devices: State = arrays.device.draw((tiles, out_size, in_size), generator, place)
        forward = Periphery.draw(arrays.forward, (tiles, out_size, in_size), generator, place)
        backward = Periphery.draw(arrays.backward, (tiles, in_size, out_size), generator, place)
        self._forward, self._backward = Periphery(arrays.forward, forward), Periphery(arrays.backward, backward)
        self.state: State = {
            **self.devices,
            **{f"forward.{name}": values for name, values in forward.items()},
            **{f"backward.{name}": values for name, values in backward.items()},
        }

    def get_weights(self) -> Tensor:
        """A copy of the weights as they are read, without the noise of reading: (tiles, out, in)."""
        return self.arrays.device.weights(self.devices).clone()

    def set_weights(self, weights: Tensor, generator: torch.Generator) -> None:
        """Writes weights as near as the devices' bounds allow, with write noise where the devices have any.

        Args:
            weights: (tiles, out, in).
            generator: for the write noise.

        Raises:
            ValueError: another shape.
        """
        shape = (self.tiles, self.out_size, self.in_size)
        if tuple(weights.shape) != shape:
            raise ValueError(f"weights: got shape {tuple(weights.shape)}, allowed is {shape}")
        with torch.no_grad():
            self.arrays.device.write(self.devices, weights.detach(), generator)

    def load_state(self, state: State) -> None:
        """Takes over the tensors of another bank's `state`, as from a checkpoint.

        Raises:
            ValueError: names or shapes differ.
        """
        load_into(self.state, state)

    def forward(self, x: Tensor, sizes: Sequence[int], generator: torch.Generator, *, noise: bool = True) -> Reading:
        """Reads y = W x for each vector; changes no weights.

        Args:
            x: (N, in), in the order of tiles.
            sizes: vectors of each tile.
            generator: for the noise of reading.
            noise: False reads without anything random.

        Returns:
            Values (N, out), and which of them the ADC clipped.

        Raises:
            ValueError: shapes that do not fit.
            TypeError: devices in a type of 16 bits.
        """
        with torch.no_grad():
            weights = self.arrays.device.weights(self.devices)
            if weights.dtype in _TOO_SHORT:
                raise TypeError(
                    f"arrays: got devices in {weights.dtype}, in which steps are lost in rounding; allowed are "
                    "torch.float32 and torch.float64"
                )
            periphery = self._forward if noise else self._forward.quiet()
            return periphery.read(weights, x.detach(), sizes, generator, compat=self.arrays.aihwkit_compat)

    def backward(
        self,
        d: Tensor,
        sizes: Sequence[int],
        generator: torch.Generator,
        reading: Reading | None = None,
        *,
        noise: bool = True,
    ) -> Tensor:
        """Reads dL/dx = W^T d through the transposed product; changes no weights.

        Bound management is off. An output that the ADC clipped in the forward reading passes no gradient. aihwkit
        tests this after the rescaling of noise management, where outputs above the bound are usual, and so loses
        gradients of outputs that were never clipped; `aihwkit_compat="rpucuda"` does the same.

        Args:
            d: gradients of the outputs (N, out), in the order of tiles.
            sizes: vectors of each tile.
            generator: for the noise of reading.
            reading: the forward reading of these vectors; None masks nothing.
            noise: False reads without anything random.

        Returns:
            (N, in).

        Raises:
            ValueError: shapes that do not fit.
        """
        with torch.no_grad():
            d = d.detach()
            io = self.arrays.forward
            if reading is not None and not io.is_perfect:
                masked = reading.clipped
                if self.arrays.aihwkit_compat == "rpucuda" and io.out_bound > 0:
                    masked = reading.values.abs() >= _COMPAT_MASK * io.out_scale * io.out_bound
                d = torch.where(masked, 0.0, d)
            transposed = self.arrays.device.weights(self.devices).transpose(1, 2)
            periphery = self._backward if noise else self._backward.quiet()
            return periphery.read(transposed, d, sizes, generator, bound_management=False).values

    def move(self, change: Callable[[Tensor], Tensor]) -> None:
        """Puts what `change` makes of each tensor of the state in its place, as for another place or type."""
        for name, values in self.state.items():
            self.state[name] = change(values)
        for prefix, part in (
            ("", self.devices),
            ("forward.", self._forward.state),
            ("backward.", self._backward.state),
        ):
            for name in part:
                part[name] = self.state[prefix + name]

    def update(self, x: Tensor, d: Tensor, sizes: Sequence[int], lr: float, generator: torch.Generator) -> None:
        """Changes each matrix by -lr d x^T, as its devices do it, one vector pair after the other.

        In each tile the pairs are applied one at a time, in the order of their rows; tiles are independent of each
        other, so that the i-th pairs of all tiles are computed together. With `merge` chunks of so many pairs take the
        place of single ones. Where updates are exact products (ideal devices, `pulse_type` NONE) the batch is summed
        first; so are, in mixed precision, the pairs between two transfers.

        Args:
            x: inputs (N, in), in the order of tiles.
            d: gradients of the outputs (N, out), not masked.
            sizes: pairs of each tile.
            lr: learning rate, 0 or more.
            generator: for pulse trains and steps.

        Raises:
            ValueError: shapes that do not fit, or a negative learning rate.
        """
        if x.shape != (sum(sizes), self.in_size) or d.shape != (len(x), self.out_size) or len(sizes) != self.tiles:
            raise ValueError(
                f"x, d, sizes: got shapes {tuple(x.shape)} and {tuple(d.shape)} and {len(sizes)} sizes, allowed are "
                f"(N, {self.in_size}), (N, {self.out_size}) and {self.tiles} sizes that sum to N"
            )
        if lr < 0:
            raise ValueError(f"lr: got {lr}, allowed are numbers from 0")
        with torch.no_grad():
            batch = Batch(x.detach(), d.detach(), torch.tensor(sizes, device=x.device))
            rule = Rule(lr, self.arrays.update, self.arrays.aihwkit_compat)
            self.arrays.device.update_all(self.devices, batch, rule, self.arrays.merge, generator)

    def apply(self, pulses: Moments, generator: torch.Generator, chunk: Chunk | None = None) -> None:
        """Changes all devices once, by a step with the moments of the pulses of a chunk of pairs.

        Args:
            pulses: made with the learning rate `rate(lr)` and `granularity`.
            generator: for the step, and for what cells do after it.
            chunk: which pairs these are; needed by cells of several devices, which count them.

        Raises:
            ValueError: these devices are not updated by moments, or there is no chunk for cells.
        """
        device = self.arrays.device
        if not device.merges(self.arrays.update) or device.rate(1.0) is None:
            raise ValueError("pulses: the devices of these arrays take no moments of pulses; use `update`")
        with torch.no_grad():
            device.apply(self.devices, pulses, generator, chunk)

    def rate(self, lr: float) -> float | None:
        """The learning rate of the pulses that `apply` takes; None where only `update` can change the weights."""
        device, merged = self.arrays.device, self.arrays.merge != 1
        by_moments = merged and not device.adds(self.arrays.update) and device.merges(self.arrays.update)
        return device.rate(lr) if by_moments else None

    @property
    def granularity(self) -> float:
        """The step that update management counts in."""
        device = self.arrays.device
        assert isinstance(device, PulsedBase)
        return device.granularity(self.arrays.aihwkit_compat)

    @property
    def shown(self) -> Tensor:
        """The weights as they are read; not a copy, where the devices keep them so."""
        return self.arrays.device.weights(self.devices)

    def lines(self, *, forward: bool) -> State:
        """What is fixed for each line in one direction of reading."""
        return (self._forward if forward else self._backward).state

    def after_step(self, generator: torch.Generator) -> None:
        """Decay and diffusion of the devices, once for each step of the optimizer."""
        with torch.no_grad():
            self.arrays.device.after_step(self.devices, generator)
