"""Weights changed so that a network learns to live with the noise, the steps and the range of its arrays.

What is changed for one mini-batch is changed straight through: the gradient with respect to the changed weights is
that of the weights themselves. After a step of the optimizer weights are clipped, then remapped.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.noise import gauss, rounded, uniform
from rapa_cli.analog.parameters import Compat, Named, step_of
from rapa_cli.config import Frozen


class ModifierType(Named):
    """How weights are changed; see `WeightModifier`."""

    NONE = "None"
    DISCRETIZE = "Discretize"
    MULT_NORMAL = "MultNormal"
    ADD_NORMAL = "AddNormal"
    DISCRETIZE_ADD_NORMAL = "DiscretizeAddNormal"
    DROP_CONNECT = "DropConnect"


class WeightModifier(Frozen):
    """Changes weights at random or to steps; a_max is the tile's largest |w|, or `assumed_wmax`.

    - MULT_NORMAL: w + std_dev |w| xi. aihwkit's RPUCuda multiplies the noise by a_max once more ("rpucuda").
    - ADD_NORMAL: w + std_dev a_max xi.
    - DISCRETIZE: w to multiples of 2 a_max res, the range over the number of steps. aihwkit's RPUCuda takes half of it
      ("rpucuda").
    - DISCRETIZE_ADD_NORMAL: both.
    - DROP_CONNECT: only `pdrop`.

    Attributes:
        type: see above.
        std_dev: strength of the noise.
        res: step as a fraction of the range, or, above 1, the number of steps.
        sto_round: whether steps are rounded to stochastically.
        pdrop: probability with which a weight is 0, whatever the type.
        assumed_wmax: a_max without `rel_to_actual_wmax`.
        rel_to_actual_wmax: whether a_max is taken from the weights.
    """

    type: ModifierType = ModifierType.NONE
    std_dev: float = Field(0.0, ge=0)
    res: float = 0.0
    sto_round: bool = False
    pdrop: float = Field(0.0, ge=0, lt=1)
    assumed_wmax: float = Field(1.0, gt=0)
    rel_to_actual_wmax: bool = True

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        noisy = self.type in (ModifierType.ADD_NORMAL, ModifierType.MULT_NORMAL, ModifierType.DISCRETIZE_ADD_NORMAL)
        stepped = self.type in (ModifierType.DISCRETIZE, ModifierType.DISCRETIZE_ADD_NORMAL)
        if self.std_dev > 0 and not noisy:
            raise ValueError(f"std_dev: has no effect with type {self.type}")
        if stepped != (self.res > 0):
            raise ValueError(f"res: got {self.res}, allowed are numbers above 0 where weights are discretised, else 0")
        if self.type is ModifierType.DROP_CONNECT and self.pdrop <= 0:
            raise ValueError(f"pdrop: got {self.pdrop}, for DropConnect allowed are numbers above 0")
        return self

    def modify(self, weights: Tensor, generator: torch.Generator, compat: Compat = None) -> Tensor:
        """Changes the weights of a bank.

        Args:
            weights: (tiles, out, in).
            generator: for noise, rounding and dropping.
            compat: "rpucuda" scales as aihwkit's RPUCuda does.

        Returns:
            (tiles, out, in); gradients flow to `weights` unchanged.
        """
        w = weights.detach()
        largest = w.abs().amax((1, 2), keepdim=True) if self.rel_to_actual_wmax else w.new_tensor(self.assumed_wmax)
        largest = torch.where(largest > 0, largest, 1.0)
        changed = w
        if self.type in (ModifierType.DISCRETIZE, ModifierType.DISCRETIZE_ADD_NORMAL):
            step = step_of(self.res, 0.5 if compat == "rpucuda" else 1.0)
            changed = largest * rounded(w / largest, step, generator if self.sto_round else None)
        if self.type in (ModifierType.ADD_NORMAL, ModifierType.DISCRETIZE_ADD_NORMAL) and self.std_dev > 0:
            changed = changed + self.std_dev * largest * gauss(w, generator)
        if self.type is ModifierType.MULT_NORMAL and self.std_dev > 0:
            strength = self.std_dev * (largest if compat == "rpucuda" else 1.0)
            changed = changed + strength * w * gauss(w, generator)
        if self.pdrop > 0:
            changed = changed.masked_fill(uniform(w, generator) < self.pdrop, 0.0)
        return weights + (changed - w)


class RemapType(Named):
    """Whether weights are put back into their range by one scale for a tile, or one for each output line."""

    NONE = "None"
    LAYERWISE_SYMMETRIC = "LayerwiseSymmetric"
    CHANNELWISE_SYMMETRIC = "ChannelwiseSymmetric"


class WeightRemap(Frozen):
    """Moves what weights have outgrown to the scales of their output lines, after a step of the optimizer.

    The product of weights and scales stays what it is: the weights of a tile, or of each of its output lines, are
    divided by their largest |w| over `remapped_wmax`, and the scales multiplied by it.

    Attributes:
        type: see above.
        remapped_wmax: what the largest |w| becomes.
        max_scale_range: with CHANNELWISE_SYMMETRIC, how much larger than the tile's smallest scale a scale may become;
            0 is any.
        max_scale_ref: with `max_scale_range`, the least of what counts as the smallest scale.
    """

    type: RemapType = RemapType.NONE
    remapped_wmax: float = Field(1.0, gt=0)
    max_scale_range: float = Field(0.0, ge=0)
    max_scale_ref: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _works_together(self) -> Self:
        if self.max_scale_range > 0 and self.type is not RemapType.CHANNELWISE_SYMMETRIC:
            raise ValueError(f"max_scale_range: has no effect with type {self.type}, only with ChannelwiseSymmetric")
        if self.max_scale_range > 0 and self.remapped_wmax != 1:
            raise ValueError(f"remapped_wmax: got {self.remapped_wmax}, with max_scale_range allowed is 1")
        if self.max_scale_ref > 0 and self.max_scale_range <= 0:
            raise ValueError("max_scale_ref: has no effect without max_scale_range")
        return self

    def remap(self, weights: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Remapped weights and scales.

        Args:
            weights: (tiles, out, in), as they are on the array.
            scales: what each output line is multiplied by, (tiles, out).

        Returns:
            Both in the same shapes, detached. Lines of zeros stay as they are.
        """
        w, scale = weights.detach(), scales.detach()
        if self.type is RemapType.NONE:
            return w, scale
        lines = (1, 2) if self.type is RemapType.LAYERWISE_SYMMETRIC else 2
        factor = w.abs().amax(lines, keepdim=True)[..., 0] / self.remapped_wmax
        factor = torch.where(factor > 0, factor, 1.0).expand_as(scale)
        if self.max_scale_range > 0:
            least = scale.amin(1, keepdim=True).clamp_min(0)
            least = torch.where(least > 0, least.clamp_min(self.max_scale_ref), torch.inf)
            factor = torch.minimum(factor, least * self.max_scale_range / scale.abs())
        return w / factor[..., None], scale * factor


class ClipType(Named):
    """What weights are clipped to; see `WeightClip`."""

    NONE = "None"
    FIXED_VALUE = "FixedValue"
    LAYER_GAUSSIAN = "LayerGaussian"
    AVERAGE_CHANNEL_MAX = "AverageChannelMax"


class WeightClip(Frozen):
    """Clips weights after a step of the optimizer, each tile by itself.

    Attributes:
        type: to `fixed_value`, to `sigma` standard deviations of the tile's weights, or to the mean over its rows of
            their largest |w|.
        fixed_value: bound, and for the others the least bound.
        sigma: see above.
    """

    type: ClipType = ClipType.NONE
    fixed_value: float = -1.0
    sigma: float = Field(2.5, gt=0)

    @model_validator(mode="after")
    def _has_bound(self) -> Self:
        if self.type is ClipType.FIXED_VALUE and self.fixed_value <= 0:
            raise ValueError(f"fixed_value: got {self.fixed_value}, for FixedValue allowed are numbers above 0")
        return self

    def clip(self, weights: Tensor) -> Tensor:
        """Clipped weights (tiles, out, in), detached."""
        w = weights.detach()
        if self.type is ClipType.NONE:
            return w
        if self.type is ClipType.LAYER_GAUSSIAN:
            bound = self.sigma * w.std((1, 2), keepdim=True)
        elif self.type is ClipType.AVERAGE_CHANNEL_MAX:
            bound = w.abs().amax(2, keepdim=True).mean(1, keepdim=True)
        else:
            bound = w.new_full((), self.fixed_value)
        if self.fixed_value > 0:
            bound = bound.clamp_min(self.fixed_value)
        return torch.maximum(torch.minimum(w, bound), -bound)
