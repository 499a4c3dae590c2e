"""Hardware-aware training: weights are digital and trained by any optimizer, readings are those of the arrays.

The forward product goes through modified weights, converters, noise and the management of ranges; gradients are those
of the plain product with the modified weights, straight through all rounding and noise, except where a converter
clipped: what saturates does not learn.

A matrix that is larger than an array lies on several. Each has its own scales, lines, converters and noise; what they
answer is summed digitally.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rapa_cli.analog.inference import NoiseModel
from rapa_cli.analog.mapping import scales_to
from rapa_cli.analog.modifiers import ClipType, RemapType, WeightClip, WeightModifier, WeightRemap
from rapa_cli.analog.parameters import BoundManagement, IOParameters, Mapping, NoiseManagement, WeightNoise
from rapa_cli.analog.pcm import PCMLikeNoiseModel
from rapa_cli.analog.periphery import Periphery, groups, product
from rapa_cli.analog.ranges import InputRange
from rapa_cli.config import Frozen

# What the names of buffers begin with that belong to the lines of arrays.
_LINES = "line_"


class InferenceArrays(Frozen):
    """Arrays that are programmed once, with weights that were trained for them.

    Attributes:
        forward: the periphery; the backward product is exact.
        mapping: the size of the largest array, in input lines with the bias and in output lines. Larger matrices are
            split, and each part is modified, clipped, remapped, scaled, programmed and compensated like a whole array;
            only the input range is one for the layer. What else a mapping can hold is set here, not in it.
        modifier: what is done to weights for each mini-batch of training.
        clip: what is done to them after each step of the optimizer.
        remap: how they are then put back into the range of the array, by the scales of output lines.
        input_range: how the range of inputs is found; None leaves inputs to noise management.
        weight_scaling_omega: what the largest weight is scaled to on the array; 0 leaves weights.
        weight_scaling_columnwise: whether each output line has a scale of its own.
        noise_model: what becomes of weights once they are programmed.
        drift_compensation: whether outputs are scaled by what the whole array has drifted.
    """

    forward: IOParameters = IOParameters()
    mapping: Mapping = Mapping()
    modifier: WeightModifier = WeightModifier()
    clip: WeightClip = WeightClip()
    remap: WeightRemap = WeightRemap()
    input_range: InputRange | None = None
    weight_scaling_omega: float = Field(0.0, ge=0)
    weight_scaling_columnwise: bool = False
    noise_model: NoiseModel = PCMLikeNoiseModel()
    drift_compensation: bool = True

    @model_validator(mode="after")
    def _has_one_range(self) -> Self:
        free = (NoiseManagement.NONE, NoiseManagement.CONSTANT)
        managed = not self.forward.is_perfect and self.forward.noise_management not in free
        if self.input_range is not None and managed:
            raise ValueError(
                f"input_range: with noise_management {self.forward.noise_management} inputs are scaled twice; "
                "allowed are None and Constant"
            )
        return self

    @model_validator(mode="after")
    def _maps_sizes(self) -> Self:
        sizes = ("max_input_size", "max_output_size")
        others = {name: value for name, value in self.mapping if name not in sizes}
        for name, value in others.items():
            if value != getattr(Mapping(), name):
                raise ValueError(
                    f"mapping.{name}: got {value}, but inference arrays have {name} of their own, beside mapping; "
                    f"in it allowed are {' and '.join(sizes)}"
                )
        return self


class AwareArray(nn.Module):
    """Arrays of one size, one for each tile, with what belongs to them; the weights are those of the layer.

    Args:
        arrays: what they are made of.
        tiles: number of matrices.
        out: rows of each.
        lines: columns of each.
        empty: whether parts hold the matrices, so that there is nothing here.

    Attributes:
        scale: buffer, what a weight of 1 on the arrays counts in the layer, (tiles, out), where arrays scale weights.
        weights: what is read in place of the layer's weights, scaled to the arrays, (tiles, out, lines); None are the
            layer's.
        compensation: what the outputs of each tile are multiplied by, (tiles,), or None.
    """

    scale: Tensor

    def __init__(self, arrays: InferenceArrays, tiles: int, out: int, lines: int, *, empty: bool = False) -> None:
        super().__init__()
        self.arrays = arrays
        self._shape = (tiles, out, lines)
        self._scaled = not empty and (arrays.weight_scaling_omega > 0 or arrays.remap.type is not RemapType.NONE)
        if self._scaled:
            self.register_buffer("scale", torch.ones(tiles, out))
        self.weights: Tensor | None = None
        self.compensation: Tensor | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Puts new lines in the place of the old ones."""
        place = next((buffer.device for buffer in self.buffers()), torch.device("cpu"))
        drawn = Periphery.draw(self.arrays.forward, self._shape, generator, place)
        for name, values in drawn.items():
            self.register_buffer(_LINES + name, values)

    def scales(self, weights: Tensor) -> Tensor:
        """What a weight of 1 on the arrays counts in the layer, (tiles, out)."""
        return self.scale if self._scaled else weights.new_ones(self._shape[:2])

    def on_arrays(self, weights: Tensor) -> Tensor:
        """Weights of the layer as they lie on the arrays, (tiles, out, lines)."""
        return weights / self.scales(weights)[:, :, None]

    def shown(self, weights: Tensor, modifier: torch.Generator | None) -> Tensor:
        """What is read: what was programmed, else the layer's weights, modified where there is a generator for it."""
        if self.weights is not None:
            return self.weights
        on_arrays = self.on_arrays(weights)
        return on_arrays if modifier is None else self.arrays.modifier.modify(on_arrays, modifier)

    def factors(self, weights: Tensor, bound: Tensor | None) -> Tensor:
        """What outputs are multiplied by, (tiles, out), where inputs were divided by a bound."""
        scale = self.scales(weights)
        if bound is not None:
            scale = scale * bound
        return scale if self.compensation is None else scale * self.compensation[:, None]

    def periphery(self, *, noise: bool) -> Periphery:
        """What lies around the arrays, with or without its noise."""
        state = {name.removeprefix(_LINES): v for name, v in self.named_buffers() if name.startswith(_LINES)}
        periphery = Periphery(self.arrays.forward, state)
        return periphery if noise else periphery.quiet()

    def limited(self, weights: Tensor) -> Tensor:
        """Weights of the layer (tiles, out, lines), clipped as they lie on the arrays, whose scales are remapped."""
        scale = self.scales(weights)
        on_arrays = self.on_arrays(weights)
        clipped = self.arrays.clip.clip(on_arrays)
        # What fits stays the same to the last bit.
        limited = torch.where(clipped == on_arrays, weights, clipped * scale[:, :, None])
        if self._scaled:
            self.scale.copy_(self.arrays.remap.remap(clipped, scale)[1])
        return limited

    def scale_to(self, weights: Tensor) -> None:
        """Sets the scales for new weights of the layer."""
        if not self._scaled:
            return
        omega, columnwise = self.arrays.weight_scaling_omega, self.arrays.weight_scaling_columnwise
        if omega > 0:
            self.scale.copy_(scales_to(omega, weights.detach(), columnwise=columnwise))
        else:
            self.scale.fill_(1)


def aware_product(
    x: Tensor, weights: Tensor, sizes: Sequence[int], periphery: Periphery, generator: torch.Generator
) -> Tensor:
    """The product that arrays give, differentiable in inputs and weights.

    Args:
        x: (N, in), in the order of tiles.
        weights: (tiles, out, in), as they are read.
        sizes: vectors of each tile.
        periphery: what lies around the arrays.
        generator: for the noise of reading.

    Returns:
        (N, out). Gradients flow to `x` and `weights`: those of the plain product with inputs as the DAC cut them, 0
        from outputs that the ADC clipped.

    Raises:
        ValueError: shapes that do not fit.
    """
    values: Tensor = _AwareProduct.apply(x, weights, sizes, periphery, generator)
    return values


class _AwareProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, sizes: Sequence[int], periphery: Periphery, generator: torch.Generator
    ) -> Tensor:
        reading = periphery.read(weights, x, sizes, generator)
        ctx.save_for_backward(x, weights, reading.clipped, reading.seen)
        ctx.sizes, ctx.out_scale = list(sizes), periphery.io.out_scale
        return reading.values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, clipped, seen = ctx.saved_tensors
        d = torch.where(clipped, 0.0, gradients[0]) * ctx.out_scale
        to_x = to_weights = None
        if ctx.needs_input_grad[0]:
            to_x = torch.where(seen == x, product(d, weights.transpose(1, 2), ctx.sizes), 0.0)
        if ctx.needs_input_grad[1]:
            parts = zip(groups(d, ctx.sizes), groups(seen, ctx.sizes), strict=True)
            to_weights = torch.stack([of_d.T @ of_x for of_d, of_x in parts])
        return to_x, to_weights, None, None, None


INFERENCE = InferenceArrays(weight_scaling_omega=1.0, weight_scaling_columnwise=True)
"""Converters of aihwkit's `InferenceRPUConfig`, with each output line's weights scaled to the range of its devices.

aihwkit leaves weights as they are, unless it is told otherwise; small ones are then lost in the noise of the output,
and drift cannot be compensated, since the read-out is mostly noise.
"""

STANDARD_HWA = InferenceArrays(
    forward=IOParameters(
        inp_res=1 / 254,
        out_res=1 / 254,
        out_bound=10.0,
        out_noise=0.04,
        w_noise=0.0175,
        w_noise_type=WeightNoise.PCM_READ,
        ir_drop=1.0,
        noise_management=NoiseManagement.CONSTANT,
        nm_thres=1.0,
        bound_management=BoundManagement.NONE,
    ),
    clip=WeightClip(type=ClipType.FIXED_VALUE, fixed_value=1.0),
    remap=WeightRemap(type=RemapType.CHANNELWISE_SYMMETRIC),
    input_range=InputRange(),
    weight_scaling_omega=1.0,
    weight_scaling_columnwise=True,
)
"""aihwkit's `StandardHWATrainingPreset`: converters of 8 bits, PCM read noise, IR drop, learned input ranges, and
weights clipped and remapped to 1 for each output line."""
