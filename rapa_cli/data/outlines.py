"""The outlines of the ten classes of `shapes`, as signed distances.

Each function takes the coordinates of points in the frame of a shape of about unit radius (float32, any common shape,
y down) and returns the signed distance to its outline: negative inside, and right to first order near the
outline, which is all that anti-aliasing needs. Unions are minima, intersections maxima, of half-planes and disks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Outline = Callable[[Tensor, Tensor], Tensor]


def disk(x: Tensor, y: Tensor) -> Tensor:
    """A filled circle."""
    return _round(x, y, 0.88)


def ring(x: Tensor, y: Tensor) -> Tensor:
    """A circle with a wide hole."""
    return (torch.hypot(x, y) - 0.72).abs() - 0.21


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """A disk from which a second disk has bitten a moon."""
    return torch.maximum(_round(x + 0.2, y, 0.98), -_round(x - 0.3, y, 0.82))


def drop(x: Tensor, y: Tensor) -> Tensor:
    """A drop of water, its tip up: a disk and the tangents to it from the tip."""
    radius, depth, tip = 0.66, 0.36, -1.1
    sine = radius / (depth - tip)
    cosine = math.sqrt(1 - sine * sine)
    below = depth - radius * sine
    cone = torch.maximum(x.abs() * cosine - (y - tip) * sine, y - below)
    return torch.minimum(_round(x, y - depth, radius), cone)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """A heart: a square on its corner and a disk on each of its upper sides."""
    half = 0.6
    x, y = x.abs(), y - 0.08
    turned, other = (x + y) * math.sqrt(0.5), (y - x) * math.sqrt(0.5)
    body = torch.maximum(turned.abs(), other.abs()) - half
    lobe = _round(turned, other + half, half)
    return torch.minimum(body, lobe)


def star(x: Tensor, y: Tensor) -> Tensor:
    """A star with five points, one of them up."""
    tip, dent, sector = 1.1, 0.48, math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (angle - 2 * sector * torch.round(angle / (2 * sector))).abs()
    radius = torch.hypot(x, y)
    along, across = radius * torch.cos(folded), radius * torch.sin(folded)
    # The edge runs from the tip (tip, 0) to the dent, one sector further.
    edge_x, edge_y = dent * math.cos(sector) - tip, dent * math.sin(sector)
    length = math.hypot(edge_x, edge_y)
    return ((along - tip) * edge_y - across * edge_x) / length


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """A triangle with equal sides, one corner up."""
    slanted = x.abs() * math.sqrt(0.75) - y * 0.5
    return torch.maximum(slanted, y) - 0.52


def square(x: Tensor, y: Tensor) -> Tensor:
    """A square with level sides."""
    return _box(x, y, 0.78, 0.78)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """A plus sign."""
    return torch.minimum(_box(x, y, 0.98, 0.31), _box(x, y, 0.31, 0.98))


def arrow(x: Tensor, y: Tensor) -> Tensor:
    """An arrow that points up: a triangular head on a shaft."""
    head = torch.maximum(x.abs() * 0.74 - (y + 1.08) * 0.673, y + 0.08)
    return torch.minimum(head, _box(x, y - 0.45, 0.27, 0.6))


OUTLINES: dict[str, Outline] = {
    "disk": disk,
    "ring": ring,
    "crescent": crescent,
    "drop": drop,
    "heart": heart,
    "star": star,
    "triangle": triangle,
    "square": square,
    "cross": cross,
    "arrow": arrow,
}


def _round(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.hypot(x, y) - radius


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)
