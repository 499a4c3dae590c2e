"""Weights changed for one mini-batch, so that a network learns to live with the noise and the steps of its arrays.

The change is straight through: the gradient with respect to the changed weights is that of the weights themselves.
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
