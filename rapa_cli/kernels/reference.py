"""The tiled convolution in plain torch, on any device: patches gathered by tile, one batched product.

This is the definition that every other kernel is held to (paper, section 2): row l of the output is b_l^T K_s(l).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.kernels.geometry import Geometry

# What the patches computed at once should not exceed, in numbers, and how many rows a tile's product should have.
_CACHED_NUMBERS = 1 << 20
_ROWS_OF_A_TILE = 128


@dataclass(frozen=True)
class Blocks:
    """Patches sorted by tile and cut into blocks of one size, each block of one tile.

    Attributes:
        patch: int64 (blocks, rows), the patch's number b n_p + i in the batch, or B n_p in a block's unused rows.
        tile: int64 (blocks,).
        one_each: whether block j is the whole of tile j, so that nothing is padded or repeated.
        complete: whether every patch of the batch is in a block.
    """

    patch: Tensor
    tile: Tensor
    one_each: bool
    complete: bool


def blocks_of(assignment: Tensor, tiles: int) -> Blocks:
    """Groups the patches of a batch by tile.

    Blocks hold ceil(patches / tiles) rows, so that unequal tiles waste less than one block each.

    Args:
        assignment: int64 (B, n_p), values in [-1, tiles).
        tiles: number of kernel matrices.
    """
    flat = assignment.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1, minlength=tiles + 1)
    skipped = int(counts[0])
    order, counts = order[skipped:], counts[1:]
    rows = max(-(-len(order) // tiles), 1)
    if bool((counts == rows).all()):
        return Blocks(order.view(tiles, rows), torch.arange(tiles, device=flat.device), True, not skipped)
    per_tile = -(-counts // rows)
    tile = torch.repeat_interleave(torch.arange(tiles, device=flat.device), per_tile)
    first_block = torch.cumsum(per_tile, 0) - per_tile
    within = torch.arange(len(tile), device=flat.device) - first_block[tile]
    end = torch.cumsum(counts, 0)
    position = ((end - counts)[tile] + within * rows)[:, None] + torch.arange(rows, device=flat.device)
    inside = position < end[tile][:, None]
    patch = order[position.clamp(max=len(order) - 1)].masked_fill(~inside, len(flat))
    return Blocks(patch, tile, False, not skipped)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, assignment: Tensor, geometry: Geometry) -> Tensor:
    """The convolution; see `kernels.operator.tiled_conv2d`.

    Returns:
        (B, out, h, w), channels last in memory.
    """
    images = _images_at_once(x, weight, geometry)
    parts = [
        _forward(x[i : i + images], weight, bias, assignment[i : i + images], geometry)
        for i in range(0, max(len(x), 1), images)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    assignment: Tensor,
    geometry: Geometry,
    *,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias, those that are wanted.

    Args:
        gradient: of the output, (B, out, h, w).
        x: as in `forward`.
        weight: as in `forward`.
        assignment: as in `forward`.
        geometry: as in `forward`.
        wanted: which of the three.
    """
    images = _images_at_once(x, weight, geometry)
    x_parts, weight_grad, bias_grad = [], None, None
    for i in range(0, max(len(x), 1), images):
        part = slice(i, i + images)
        x_part, weight_part, bias_part = _backward(gradient[part], x[part], weight, assignment[part], geometry, wanted)
        x_parts.append(x_part)
        weight_grad = weight_part if weight_grad is None or weight_part is None else weight_grad + weight_part
        bias_grad = bias_part if bias_grad is None or bias_part is None else bias_grad + bias_part
    return torch.cat([part for part in x_parts if part is not None]) if wanted[0] else None, weight_grad, bias_grad


def no_view(found: Tensor) -> Tensor:
    """The same in the same memory, but no view: one that a function gives cannot be changed in place, as ReLU may."""
    return found.new_empty(0).set_(found.untyped_storage(), found.storage_offset(), found.shape, found.stride())


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, assignment: Tensor, geometry: Geometry) -> Tensor:
    batch, tiles, out_channels = len(x), weight.shape[0], weight.shape[1]
    blocks = blocks_of(assignment, tiles)
    patches = gather(x, blocks.patch, geometry)
    kernels = _kernel_matrices(weight, blocks)
    if bias is None:
        product = torch.bmm(patches, kernels)
    else:
        product = torch.baddbmm(bias[blocks.tile][:, None], patches, kernels)
    rows = scatter(product, blocks.patch, batch * geometry.patches, complete=blocks.complete)
    return rows.view(batch, geometry.out_height, geometry.out_width, out_channels).permute(0, 3, 1, 2)


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    assignment: Tensor,
    geometry: Geometry,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    tiles, out_channels, in_channels = weight.shape[:3]
    blocks = blocks_of(assignment, tiles)
    per_pixel = gradient.permute(0, 2, 3, 1).reshape(-1, out_channels)
    error = per_pixel[blocks.patch.clamp(max=max(len(per_pixel) - 1, 0))]
    if not blocks.one_each:
        error *= (blocks.patch < len(per_pixel))[..., None]

    def to_tiles(by_block: Tensor) -> Tensor:
        if blocks.one_each:
            return by_block
        return by_block.new_zeros(tiles, *by_block.shape[1:]).index_add_(0, blocks.tile, by_block)

    x_grad = weight_grad = bias_grad = None
    if wanted[1]:
        patches = gather(x, blocks.patch, geometry)
        by_tile = to_tiles(torch.bmm(patches.transpose(1, 2), error))
        weight_grad = by_tile.view(tiles, *geometry.kernel, in_channels, out_channels).permute(0, 4, 3, 1, 2)
    if wanted[2]:
        bias_grad = to_tiles(error.sum(1))
    if wanted[0]:
        products = torch.bmm(error, _kernel_matrices(weight, blocks).transpose(1, 2))
        back = scatter(products, blocks.patch, len(per_pixel), complete=blocks.complete)
        x_grad = fold(back, x.shape, geometry)
    return x_grad, weight_grad, bias_grad


def _images_at_once(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
    """On a CPU so few that their patches stay in its caches, but enough to keep every tile's product efficient."""
    if x.device.type != "cpu":
        return max(len(x), 1)
    cached = _CACHED_NUMBERS // (geometry.patches * weight[0, 0].numel())
    efficient = -(-_ROWS_OF_A_TILE * len(weight) // geometry.patches)
    return max(cached, efficient, 1)


def _kernel_matrices(weight: Tensor, blocks: Blocks) -> Tensor:
    """The kernel matrix of each block, (blocks, k, out) with k ordered (kh, kw, C), as the gathered patches are."""
    tiles, out_channels = weight.shape[:2]
    kernels = weight.permute(0, 3, 4, 2, 1).reshape(tiles, -1, out_channels)
    return kernels if blocks.one_each else kernels[blocks.tile]


def gather(x: Tensor, patch: Tensor, geometry: Geometry) -> Tensor:
    """The patches of these numbers as rows.

    Args:
        x: images (B, C, H, W).
        patch: numbers b n_p + i, int64 of any shape; B n_p and more stand for some patch.
        geometry: of the convolution.

    Returns:
        (*patch.shape, k), k ordered (kh, kw, C).
    """
    batch, channels = x.shape[:2]
    (kh, kw), (dh, dw) = geometry.kernel, geometry.dilation
    top, bottom, left, right = geometry.padding
    pixels = F.pad(x, (left, right, top, bottom)).permute(0, 2, 3, 1).contiguous()
    height, width = geometry.padded_height, geometry.padded_width
    # Overlapping runs of kw pixels, one starting at each pixel: a patch is kh of them.
    starts = max(batch * height * width - (kw - 1) * dw, 0)
    runs = pixels.as_strided((starts, kw, channels), (channels, dw * channels, 1))
    numbers = patch.reshape(-1).clamp(max=batch * geometry.patches - 1)
    image, pixel = numbers // geometry.patches, numbers % geometry.patches
    y, column = pixel // geometry.out_width * geometry.stride[0], pixel % geometry.out_width * geometry.stride[1]
    lines = (image * height + y)[:, None] + torch.arange(kh, device=x.device) * dh
    gathered = runs.index_select(0, (lines * width + column[:, None]).reshape(-1))
    return gathered.reshape(*patch.shape, kh * kw * channels)


def scatter(rows: Tensor, patch: Tensor, total: int, *, complete: bool) -> Tensor:
    """Brings rows (..., n) into the order of their patches, (total, n), zero where there is none."""
    shape = (total + 1, rows.shape[-1])
    ordered = rows.new_empty(shape) if complete else rows.new_zeros(shape)
    return ordered.index_copy_(0, patch.reshape(-1), rows.reshape(-1, rows.shape[-1]))[:total]


def fold(rows: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Adds the gradients of patches (B n_p, k) up to the gradient of the images they overlap in, (B, C, H, W)."""
    batch, channels, in_height, in_width = shape
    (kh, kw), (dh, dw), (sh, sw) = geometry.kernel, geometry.dilation, geometry.stride
    parts = rows.view(batch, geometry.out_height, geometry.out_width, kh, kw, channels)
    total = rows.new_zeros(batch, geometry.padded_height, geometry.padded_width, channels)
    reach_y, reach_x = (geometry.out_height - 1) * sh + 1, (geometry.out_width - 1) * sw + 1
    for i in range(kh):
        for j in range(kw):
            y, x = i * dh, j * dw
            total[:, y : y + reach_y : sh, x : x + reach_x : sw] += parts[:, :, :, i, j]
    top, _, left, _ = geometry.padding
    return total[:, top : top + in_height, left : left + in_width].permute(0, 3, 1, 2)
