"""Weights as differences of two conductances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """Conductances that stand for weights.

    Attributes:
        plus: (tiles, out, in), microsiemens.
        minus: likewise; the weight is their difference over the scale.
        scale: microsiemens for each unit of weight, (tiles, 1, 1).
    """

    plus: Tensor
    minus: Tensor
    scale: Tensor

    def weights(self) -> Tensor:
        """(plus - minus) / scale."""
        return (self.plus - self.minus) / self.scale


def single_pair(weights: Tensor, g_max: float, g_min: float = 0.0) -> Pair:
    """Puts each weight on one device of a pair, the other at the least conductance.

    Args:
        weights: (tiles, out, in); the largest |w| of each tile goes to `g_max`.
        g_max: microsiemens.
        g_min: microsiemens.
    """
    largest = weights.abs().amax((1, 2), keepdim=True)
    scale = (g_max - g_min) / torch.where(largest > 0, largest, 1.0)
    g = weights * scale
    return Pair(g.clamp_min(0) + g_min, (-g).clamp_min(0) + g_min, scale)
