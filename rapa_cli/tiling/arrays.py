"""Layers whose matrices lie on arrays: what a tiled convolution and a linear layer have in common."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor, nn

from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.module import AwareMatrices, Call, PulsedMatrices
from rapa_cli.analog.noise import any_generator
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.keyed import KeyedLayer

AnyArrays = Arrays | InferenceArrays


class ArrayLayer(KeyedLayer, abc.ABC):
    """A layer with matrices on arrays, each with an extra line for a bias.

    On ideal and on inference arrays `weight` and `bias` are parameters. On arrays that learn by pulses they are copies
    of what the arrays show; `set_weights` writes them. Inference arrays with an input range have their bias beside
    them, as its input, 1, may lie outside of the range.

    Attributes:
        arrays: what the arrays are made of; None are ideal ones.
        matrices: what reads the arrays, or None for ideal ones.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, arrays: AnyArrays | None) -> None:
        super().__init__()
        if arrays is not None and not isinstance(arrays, (Arrays, InferenceArrays)):
            raise ValueError(f"arrays: got {arrays!r}, allowed are None (ideal arrays), Arrays and InferenceArrays")
        self.arrays = arrays
        self.matrices: PulsedMatrices | AwareMatrices | None = None
        self._limited = -1

    @abc.abstractmethod
    def to_lines(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weights and, where there is one, the bias as they lie on arrays, (tiles, out, lines)."""

    @abc.abstractmethod
    def from_lines(self, lines: Tensor) -> tuple[Tensor, Tensor | None]:
        """The other way round."""

    def lay_out(self, weight: Tensor, bias: Tensor | None) -> None:
        """Makes parameters or arrays for weights like these, and draws them."""
        self._like = weight.shape, None if bias is None else bias.shape
        if isinstance(self.arrays, Arrays):
            bound = self.arrays.mapping.input_range
            if bias is not None and 0 < bound < 1:
                raise ValueError(
                    f"arrays: got mapping.input_range {bound:g}, which cuts the input of the bias, 1; allowed are 0, "
                    "numbers from 1, and layers without a bias"
                )
            self.matrices = PulsedMatrices(self.arrays, *self.to_lines(weight, bias).shape)
        else:
            self.weight = nn.Parameter(weight)
            self.bias = None if bias is None else nn.Parameter(bias)
            if self.arrays is not None:
                self.matrices = AwareMatrices(self.arrays, *self.lines().shape)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws all matrices independently, uniform within 1 / sqrt(fan-in) as torch does, and new devices for them."""
        of_weight, of_bias = self._like
        bound = 1 / math.sqrt(self.fan_in)
        if self.matrices is not None:
            generator = generator or any_generator()
        # Drawn in the order of the shape, whatever the order in memory, and first, so that all arrays start alike.
        weight = torch.empty(of_weight).uniform_(-bound, bound, generator=generator)
        bias = None if of_bias is None else torch.empty(of_bias).uniform_(-bound, bound, generator=generator)
        if self.matrices is not None:
            assert generator is not None
            self.matrices.draw(generator)
        self.set_weights(weight, bias, generator)

    @property
    @abc.abstractmethod
    def fan_in(self) -> int:
        """Inputs of one output, without the bias."""

    def set_weights(self, weight: Tensor, bias: Tensor | None, generator: torch.Generator | None = None) -> None:
        """Writes weights: exactly, or on pulsed arrays as near as the devices' bounds and write noise allow.

        Args:
            weight: in the shape of `weight`.
            bias: in the shape of `bias`, None where the layer has none.
            generator: for write noise; by default seeded by the layer's own seed.
        """
        with torch.no_grad():
            if isinstance(self.matrices, PulsedMatrices):
                generator = generator or torch.Generator().manual_seed(int(self.seed))
                place = self.matrices.pulses.device
                self.matrices.bank.set_weights(self.to_lines(weight, bias).to(place), generator)
                return
            self._copy(weight, bias)
            if self.matrices is not None:
                self.matrices.scale_to(self.lines())
                self._note_limits()

    def after_step(self) -> None:
        """What follows a step of the optimizer: inference arrays may clip and remap their weights."""
        if isinstance(self.matrices, AwareMatrices) and self.matrices.limits:
            with torch.no_grad():
                self._copy(*self.from_lines(self.matrices.limited(self.lines())))
            self._note_limits()

    def _copy(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def number_of_weights(self) -> int:
        """Weights and biases, whatever they lie on."""
        return self.weight.numel() + (0 if self.bias is None else self.bias.numel())

    def on_arrays(self, x: Tensor, assignment: Tensor, geometry: Geometry) -> Tensor:
        """The products of all patches as the arrays give them.

        Args:
            x: images (B, C, H, W).
            assignment: int64 (B, n_p).
            geometry: of the convolution.

        Returns:
            (B, out, h, w).
        """
        if torch.is_autocast_enabled(x.device.type):
            # Mixed precision is for digital layers.
            with torch.autocast(x.device.type, enabled=False):
                return self.on_arrays(x.float(), assignment, geometry)
        draw = self.draw_for(len(x), x.device)
        if isinstance(self.matrices, PulsedMatrices):
            tiles = self.matrices.bank.tiles
            return self.matrices.read(x, Call(assignment, tiles, geometry, draw, bias=self._like[1] is not None))
        assert self.matrices is not None
        if self.training and self.weight._version != self._limited:
            # An optimizer that knows nothing of arrays made a step.
            self.after_step()
        lines = self.lines()
        beside = self.bias.view(lines.shape[:2]) if self.bias is not None and self._bias_beside else None
        call = Call(assignment, len(lines), geometry, draw, bias=self.bias is not None and beside is None)
        return self.matrices.read(x, lines, call, beside)

    @property
    def _bias_beside(self) -> bool:
        return isinstance(self.arrays, InferenceArrays) and self.arrays.input_range is not None

    def lines(self) -> Tensor:
        """The parameters as they lie on inference arrays, (tiles, out, lines); a bias beside them is none of these."""
        return self.to_lines(self.weight, None if self._bias_beside else self.bias)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._note_limits()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._note_limits()

    def _note_limits(self) -> None:
        """Takes the weights as they are for clipped: what changes them from now on is an optimizer."""
        if "weight" in self._parameters:
            self._limited = self.weight._version

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias") and isinstance(self.__dict__.get("_modules", {}).get("matrices"), PulsedMatrices):
            raise AttributeError(f"{name}: it lies on arrays that learn by pulses; write it with set_weights()")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            matrices = self.__dict__["_modules"].get("matrices")
            if isinstance(matrices, PulsedMatrices):
                weight, bias = self.from_lines(matrices.bank.get_weights())
                return weight if name == "weight" else bias
        return super().__getattr__(name)
