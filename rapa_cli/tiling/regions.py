"""Images cut into regions that a convolution treats as images of their own (the paper's "image w/pad").

The regions are set apart in one larger image, zeros between them wide enough that no patch reaches from one to the
next. An ordinary geometry describes the convolution of that image; of its outputs those are kept that lie where an
output of the uncut image belongs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rapa_cli.kernels.geometry import Geometry

Convolution = Callable[[Tensor, Tensor, Geometry], Tensor]


@dataclass(frozen=True)
class Cut:
    """An image cut into q by q regions.

    Attributes:
        geometry: of the convolution of the image with its regions apart.
        pixel: which input pixel lies at each place of that image, -1 where a zero does, int64 (height width,).
        place: where each input pixel lies in it, -1 where no patch reads it, int64 (in_height in_width,).
        output: which of its outputs is each output of the uncut image, int64 (n_p,).
    """

    geometry: Geometry
    pixel: Tensor
    place: Tensor
    output: Tensor

    def convolve(self, x: Tensor, assignment: Tensor, size: tuple[int, int], convolution: Convolution) -> Tensor:
        """Convolves images whose patches read pixels of their own region only.

        Args:
            x: images (B, C, H, W).
            assignment: int64 (B, n_p).
            size: height and width of the output.
            convolution: called with images, assignment and geometry.

        Returns:
            (B, out, h, w).
        """
        spread = assignment.new_full((x.shape[0], self.geometry.patches), -1)
        spread[:, self.output] = assignment
        apart = _rows(x, self.pixel, self.place, (self.geometry.in_height, self.geometry.in_width))
        y = convolution(apart, spread, self.geometry)
        kept = torch.full((self.geometry.patches,), -1, device=x.device)
        kept[self.output] = torch.arange(len(self.output), device=x.device)
        return _rows(y, self.output, kept, size)


def region_of(q: int, size: int, device: torch.device) -> Tensor:
    """The region, 0 to q - 1, of each of `size` pixels along a side: floor(q i / size), int64 (size,)."""
    return torch.arange(size, device=device) * q // size


# What is kept is for training too, whoever asks for it first.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def cut(q: int, geometry: Geometry, device: torch.device) -> Cut:
    """Cuts images into q by q regions, for a convolution of this geometry; the host waits for no GPU."""
    top, _, left, _ = geometry.padding
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    rows = _side(q, geometry.in_height, geometry.out_height, kh, sh, dh, top, device)
    columns = _side(q, geometry.in_width, geometry.out_width, kw, sw, dw, left, device)
    apart = Geometry(len(rows.pixel), len(columns.pixel), geometry.kernel, geometry.stride, dilation=geometry.dilation)
    return Cut(
        apart,
        _grid(rows.pixel, columns.pixel, geometry.in_width),
        _grid(rows.place, columns.place, apart.in_width),
        _grid(rows.output, columns.output, apart.out_width),
    )


@dataclass(frozen=True)
class _Side:
    """As `Cut`, along one side of the image."""

    pixel: Tensor
    place: Tensor
    output: Tensor


def _side(
    q: int, size: int, out_size: int, kernel: int, stride: int, dilation: int, padding: int, device: torch.device
) -> _Side:
    own, out_own = region_of(q, size, device), region_of(q, out_size, device)
    # The largest region's outputs, ceil(out_size / q); its first output begins at a multiple of the stride.
    reach = (-(-out_size // q) - 1) * stride + dilation * (kernel - 1) + 1
    width = -(-reach // stride) * stride
    # Outputs before a region are those with q i < region out_size.
    regions = torch.arange(q, device=device)
    first = -(-regions * out_size // q)
    begin = first * stride - padding
    source = begin[:, None] + torch.arange(width, device=device)
    inside = (source >= 0) & (source < size)
    inside &= own[source.clamp(0, size - 1)] == regions[:, None]
    place = torch.arange(size, device=device) - begin[own]
    return _Side(
        torch.where(inside, source, -1).reshape(-1),
        torch.where((place >= 0) & (place < width), own * width + place, -1),
        out_own * (width // stride) + torch.arange(out_size, device=device) - first[out_own],
    )


def _grid(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Numbers row-major from those of rows and columns, -1 where one of the two is."""
    numbers = rows[:, None] * width + columns
    return numbers.masked_fill((rows[:, None] < 0) | (columns < 0), -1).reshape(-1)


def _rows(images: Tensor, source: Tensor, target: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, *size) whose pixel i is pixel source[i] of `images`, or zero where that is -1.

    Args:
        images: (B, C, H, W).
        source: int64 (height width,), no pixel twice.
        target: the other way round, int64 (H W,), -1 for pixels that are not taken.
        size: height and width.
    """
    rows: Tensor = _Rearranged.apply(images.permute(0, 2, 3, 1).flatten(1, 2), source, target)
    return rows.view(images.shape[0], *size, images.shape[1]).permute(0, 3, 1, 2)


class _Rearranged(torch.autograd.Function):
    """Rows in another order; since none is taken twice, the gradient is another order too, without a sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(target)
        return _picked(rows, source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (target,) = ctx.saved_tensors
        return _picked(gradients[0], target), None, None


def _picked(rows: Tensor, source: Tensor) -> Tensor:
    return rows.index_select(1, source.clamp(min=0)).masked_fill_((source < 0)[:, None], 0)
