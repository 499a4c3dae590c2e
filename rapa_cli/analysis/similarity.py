"""How alike the filters of different tiles have become (paper, section 4, figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity(weight: Tensor) -> float | None:
    """S: the correlation of a channel's filters in two tiles, averaged over all pairs of tiles and output channels.

    Args:
        weight: kernels (tiles, out, in, kh, kw).

    Returns:
        In [-1, 1]; None where there are no two tiles, or no filter varies.
    """
    tiles = len(weight)
    if tiles < 2:
        return None
    filters = weight.detach().to(torch.float64).flatten(2)
    centred = filters - filters.mean(2, keepdim=True)
    norm = centred.norm(dim=2, keepdim=True)
    unit = torch.where(norm > 0, centred / torch.where(norm > 0, norm, 1), torch.nan)
    # The sum over pairs follows from the sum over tiles: |sum u|² = tiles + 2 sum over pairs.
    pairs = (unit.sum(0).square().sum(1) - tiles) / (tiles * (tiles - 1))
    known = pairs[pairs.isfinite()]
    return float(known.mean()) if len(known) else None
