"""The tiled convolution in Triton; float32 on CUDA devices.

Patches are sorted by tile on the device and cut into blocks of one tile each. How many blocks there are depends on the
assignment, so a launch has as many as there can be at most, and a table made on the device says what each does: shapes
depend on nothing but shapes, the host never waits, and a step can be captured in a CUDA graph. No sum is made by
atomics, and blocks depend on nothing but shapes, so results repeat bit for bit.

- Forward: each block runs through the kernel matrix of its tile; the patches' pixels are loaded through their indices
  out of channels-last images, so that no im2col matrix is written. Patches that are not computed are a group of their
  own, whose blocks write zeros.
- Kernel and bias gradients: the patches of a tile are cut into segments. A tile of one segment writes its gradient,
  of the others each segment writes a partial sum to a buffer (some 16 MB at most), and a second kernel adds them up.
- Image gradient: neighbouring pixels are read by patches of different tiles, so that of the two plain ways, scattered
  sums would collide and a gather over the patches that read a pixel would load a kernel for every one of them. Instead
  each block's product with its tile's transposed kernels goes to a buffer of patch gradients, for as many kernel
  positions at once as fit 32 MB (in the second-level cache of a large GPU), at least one, which is as large as the
  images; then each pixel gathers what was computed for it.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton has no types, and the arguments of its kernels are pointers and constants rather than what Python would see.

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rapa_cli.kernels.cuda import convolution_precision
from rapa_cli.kernels.geometry import Geometry

# The first version whose kernels take named tuples of constants.
_TRITON = (3, 4)
# Programs that keep a large GPU busy; constant, so that sums are the same on any.
_PROGRAMS = 512
_LARGEST_BLOCK = 64
# Numbers in the buffer of patch gradients, unless one kernel position needs more.
_BUFFER = 1 << 23
# Said of every kernel, since the default differs between versions.
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


class _Sizes(NamedTuple):
    """What kernels are compiled for."""

    channels: int
    height: int
    width: int
    out: int
    out_height: int
    out_width: int
    patches: int
    kernel_width: int
    k: int
    stride_y: int
    stride_x: int
    top: int
    left: int
    dilation_y: int
    dilation_x: int


@functools.cache
def available(device: torch.device) -> bool:
    """Whether the kernels run on a device: one of Nvidia's from Volta on, or any under Triton's interpreter."""
    if os.environ.get("RAPA_KERNEL", "").lower() == "torch":
        return False
    if not isinstance(_forward_kernel, triton.JITFunction):
        return True
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _TRITON or device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def fits(x: Tensor, geometry: Geometry) -> bool:
    """Whether images (B, C, H, W) can be counted with the kernels' 32-bit offsets."""
    batch, channels, height, width = x.shape
    return max(batch * geometry.patches, batch * height * width, channels * height * width) < 2**31


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, assignment: Tensor, geometry: Geometry) -> Tensor:
    """The convolution, (B, out, h, w), channels last in memory; arguments as `kernels.reference.forward`."""
    work = _Work.of(assignment, weight, geometry)
    sizes, columns = work.sizes, _columns(work.sizes.out)
    column_blocks = triton.cdiv(sizes.out, columns)
    rows = work.block_rows(column_blocks)
    with torch.cuda.device_of(x):
        table = work.table(rows, skipped=True)
        y = x.new_empty(len(x), geometry.out_height, geometry.out_width, sizes.out)
        _forward_kernel[(table.blocks, column_blocks)](
            x.permute(0, 2, 3, 1).contiguous(),
            _kernel_matrices(weight),
            None if bias is None else bias.contiguous(),
            work.order,
            work.starts,
            table.group,
            table.row,
            y,
            work.tiles,
            sizes=sizes,
            block_m=rows,
            block_n=columns,
            block_k=_depth(sizes.channels),
            precision=convolution_precision(),
            num_warps=_warps(rows * columns),
            num_stages=3,
            **_OPTIONS,
        )
    return y.permute(0, 3, 1, 2)


def backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    assignment: Tensor,
    geometry: Geometry,
    *,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those that are wanted; arguments as `kernels.reference.backward`."""
    work = _Work.of(assignment, weight, geometry)
    x_grad = weight_grad = bias_grad = None
    with torch.cuda.device_of(x):
        error = gradient.permute(0, 2, 3, 1).contiguous()
        if wanted[1] or wanted[2]:
            matrices, sums = _kernel_gradient(work, x, error, weight, with_sums=wanted[2])
            weight_grad = matrices.permute(0, 4, 3, 1, 2) if wanted[1] else None
            bias_grad = sums
        if wanted[0]:
            x_grad = _image_gradient(work, x, error, weight).permute(0, 3, 1, 2)
    return x_grad, weight_grad, bias_grad


@dataclass(frozen=True)
class _Table:
    """What each block of patches is.

    Attributes:
        group: int32 (blocks,), 0 for patches that are not computed, then the tile + 1; tiles + 1 for unused blocks.
        row: int32 (blocks,), where the block begins in the order.
        slot: int32 (tiles + 1,), blocks before a group's first one, counting groups of several blocks.
        blocks: their number.
    """

    group: Tensor
    row: Tensor
    slot: Tensor
    blocks: int


@dataclass(frozen=True)
class _Work:
    """The patches of a batch in the order of their tiles.

    Attributes:
        order: int64 (B n_p,), numbers of the patches: those not computed, then those of tile 0, and so on.
        starts: int32 (tiles + 1,), where tiles begin in the order, and its length.
        tiles: their number.
        total: B n_p.
        geometry: of the convolution.
        sizes: what kernels are compiled for.
    """

    order: Tensor
    starts: Tensor
    tiles: int
    total: int
    geometry: Geometry
    sizes: _Sizes

    @classmethod
    def of(cls, assignment: Tensor, weight: Tensor, geometry: Geometry) -> _Work:
        tiles, out, channels = weight.shape[:3]
        total = assignment.numel()
        # The sort takes a pass for each byte of the labels.
        label = torch.int8 if tiles < 2**7 else torch.int16 if tiles < 2**15 else torch.int32
        labels, order = torch.sort(assignment.reshape(-1).to(label), stable=True)
        first = torch.arange(tiles + 1, dtype=label, device=labels.device)
        starts = torch.searchsorted(labels, first, out_int32=True)
        sizes = _Sizes(
            channels=channels,
            height=geometry.in_height,
            width=geometry.in_width,
            out=out,
            out_height=geometry.out_height,
            out_width=geometry.out_width,
            patches=geometry.patches,
            kernel_width=geometry.kernel[1],
            k=geometry.kernel[0] * geometry.kernel[1] * channels,
            stride_y=geometry.stride[0],
            stride_x=geometry.stride[1],
            top=geometry.padding[0],
            left=geometry.padding[2],
            dilation_y=geometry.dilation[0],
            dilation_x=geometry.dilation[1],
        )
        return cls(order, starts, tiles, total, geometry, sizes)

    def block_rows(self, column_blocks: int) -> int:
        """Rows of a block: few enough to fill the blocks of a tile, and to keep the GPU busy with a small batch."""
        rows = _LARGEST_BLOCK
        while rows > 16 and (2 * rows * self.tiles > self.total or 2 * self.total * column_blocks < _PROGRAMS * rows):
            rows //= 2
        return rows

    def table(self, rows: int, *, skipped: bool) -> _Table:
        """Cuts each group of patches into blocks of `rows`; the patches that are not computed only if `skipped`."""
        groups = self.tiles + 1
        blocks = min((self.total + groups * (rows - 1)) // rows, self.total)
        group, row = self.starts.new_empty(2, blocks)
        slot = torch.empty_like(self.starts)
        lanes, chunk = 64, min(triton.next_power_of_2(groups), 128)
        _table_kernel[(triton.cdiv(blocks, lanes),)](
            self.starts,
            group,
            row,
            slot,
            groups,
            blocks,
            rows=rows,
            skipped=skipped,
            lanes=lanes,
            chunk=chunk,
            **_OPTIONS,
        )
        return _Table(group, row, slot, blocks)


def _kernel_gradient(
    work: _Work, x: Tensor, error: Tensor, weight: Tensor, *, with_sums: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the kernels (tiles, kh, kw, C, out) and biases (tiles, out); `error` is (B, h, w, out)."""
    sizes, tiles = work.sizes, work.tiles
    matrices = weight.new_empty(tiles, *work.geometry.kernel, sizes.channels, sizes.out)
    sums = weight.new_empty(tiles, sizes.out) if with_sums else None
    columns, precision = _columns(sizes.out), convolution_precision()
    # Blocks of 64 unless much of the last one would lie beyond the matrix.
    depth = 64 if triton.cdiv(sizes.k, 64) * 64 * 8 <= 9 * sizes.k else 32
    products = triton.cdiv(sizes.k, depth) * triton.cdiv(sizes.out, columns)
    rows = max(triton.next_power_of_2(triton.cdiv(work.total * products, _PROGRAMS)), 32)
    table = work.table(rows, skipped=False)
    # Tiles of several segments have more than `rows` patches: so many segments can those have together.
    slots = 2 * work.total // (rows + 1)
    numbers = (sizes.k + 1) * sizes.out
    partial = torch.empty(slots, numbers, dtype=torch.float32, device=x.device)
    _kernel_gradient_kernel[(table.blocks, triton.cdiv(sizes.k, depth), triton.cdiv(sizes.out, columns))](
        x.permute(0, 2, 3, 1).contiguous(),
        error,
        work.order,
        work.starts,
        table.group,
        table.row,
        table.slot,
        matrices,
        sums,
        partial,
        tiles,
        sizes=sizes,
        rows=rows,
        block_m=32,
        block_n=columns,
        block_k=depth,
        precision=precision,
        num_warps=_warps(depth * columns),
        num_stages=3,
        **_OPTIONS,
    )
    block = 256 if tiles * numbers < 1 << 20 else 1024
    _add_kernel[(tiles, triton.cdiv(numbers, block))](
        partial, work.starts, table.slot, matrices, sums, sizes=sizes, rows=rows, block=block, **_OPTIONS
    )
    return matrices, sums


def _image_gradient(work: _Work, x: Tensor, error: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the images, (B, H, W, C); `error` is (B, h, w, out)."""
    sizes, kernels, precision = work.sizes, _kernel_matrices(weight), convolution_precision()
    batch, channels, height, width = x.shape
    total = torch.empty(batch, height, width, channels, dtype=torch.float32, device=x.device)
    positions = sizes.k // channels
    passes = min(triton.cdiv(work.total * sizes.k, _BUFFER), positions)
    at_once = triton.cdiv(positions, passes)
    buffer = torch.empty(work.total, at_once * channels, dtype=torch.float32, device=x.device)
    columns = _columns(at_once * channels)
    column_blocks = triton.cdiv(at_once * channels, columns)
    rows = work.block_rows(column_blocks)
    table = work.table(rows, skipped=True)
    block_c = min(triton.next_power_of_2(channels), 64)
    pixels = batch * height * width
    for first in range(0, positions, at_once):
        count = min(at_once, positions - first)
        _patch_gradient_kernel[(table.blocks, triton.cdiv(count * channels, columns))](
            error,
            kernels,
            work.order,
            work.starts,
            table.group,
            table.row,
            buffer,
            work.tiles,
            first * channels,
            count * channels,
            sizes=sizes,
            block_m=rows,
            block_k=columns,
            block_n=_depth(sizes.out),
            precision=precision,
            num_warps=_warps(rows * columns),
            num_stages=2,
            **_OPTIONS,
        )
        _fold_kernel[(triton.cdiv(pixels, 512 // block_c), triton.cdiv(channels, block_c))](
            buffer,
            total,
            pixels,
            first,
            count,
            sizes=sizes,
            block_p=512 // block_c,
            block_c=block_c,
            **_OPTIONS,
        )
    return total.to(x.dtype)


def _depth(count: int) -> int:
    """Numbers that a block's product sums up in one go, of `count` that lie side by side in memory."""
    return 32 if count % 32 == 0 else 16


def _columns(count: int) -> int:
    """Columns of a block's product."""
    return 16 if count <= 16 else 32 if count <= 32 else _LARGEST_BLOCK


def _warps(numbers: int) -> int:
    """Warps for a block's product: 16 numbers for each thread, but enough threads to load its factors."""
    return min(max(numbers // 512, 4), 8)


def _kernel_matrices(weight: Tensor) -> Tensor:
    """Kernel matrices (tiles, kh, kw, C, out) as they normally lie in memory."""
    return weight.permute(0, 3, 4, 2, 1).contiguous()


@triton.jit
def _table_kernel(
    starts,
    group_of,
    row_of,
    slot_of,
    groups,
    blocks,
    rows: tl.constexpr,
    skipped: tl.constexpr,
    lanes: tl.constexpr,
    chunk: tl.constexpr,
):
    """Finds the group and first row of `lanes` blocks: the groups are counted that end before a block."""
    block = tl.program_id(0) * lanes + tl.arange(0, lanes)
    group = tl.zeros((lanes,), tl.int32)
    before = tl.zeros((lanes,), tl.int32)
    blocks_so_far = 0
    slots_so_far = 0
    for first in range(0, groups, chunk):
        j = first + tl.arange(0, chunk)
        begin = tl.load(starts + j - 1, mask=(j > 0) & (j < groups), other=0)
        end = tl.load(starts + j, mask=j < groups, other=0)
        count = tl.where(j < groups, (end - begin + rows - 1) // rows, 0)
        if not skipped:
            count = tl.where(j > 0, count, 0)
        ends = blocks_so_far + tl.cumsum(count, 0)
        passed = (ends[None, :] <= block[:, None]) & (j < groups)[None, :]
        group += tl.sum(passed.to(tl.int32), 1)
        before = tl.maximum(before, tl.max(tl.where(passed, ends[None, :], 0), 1))
        several = tl.where(count > 1, count, 0)
        slot = slots_so_far + tl.cumsum(several, 0) - several
        if tl.program_id(0) == 0:
            tl.store(slot_of + j, slot, mask=j < groups)
        blocks_so_far += tl.sum(count, 0)
        slots_so_far += tl.sum(several, 0)
    begin = tl.load(starts + group - 1, mask=(group > 0) & (group < groups), other=0)
    tl.store(group_of + block, group, mask=block < blocks)
    tl.store(row_of + block, begin + (block - before) * rows, mask=block < blocks)


@triton.jit
def _pixels(x, patch, inside, k, first, sizes: tl.constexpr, block_k: tl.constexpr):
    """Loads columns k = first, ..., first + block_k - 1 of patches, (patches, block_k), from images (B, H, W, C)."""
    pixel = patch % sizes.patches
    image = x + (patch // sizes.patches).to(tl.int64) * (sizes.height * sizes.width * sizes.channels)
    top = pixel // sizes.out_width * sizes.stride_y - sizes.top
    left = pixel % sizes.out_width * sizes.stride_x - sizes.left
    if sizes.channels % block_k == 0:
        # All columns are channels of one pixel.
        position = first // sizes.channels
        y = top + position // sizes.kernel_width * sizes.dilation_y
        z = left + position % sizes.kernel_width * sizes.dilation_x
        read = inside & (y >= 0) & (y < sizes.height) & (z >= 0) & (z < sizes.width)
        offset = (y * sizes.width + z) * sizes.channels + first % sizes.channels
        return tl.load((image + offset)[:, None] + tl.arange(0, block_k)[None, :], mask=read[:, None], other=0.0)
    position = k // sizes.channels
    y = top[:, None] + (position // sizes.kernel_width * sizes.dilation_y)[None, :]
    z = left[:, None] + (position % sizes.kernel_width * sizes.dilation_x)[None, :]
    read = inside[:, None] & (k < sizes.k)[None, :]
    read = read & (y >= 0) & (y < sizes.height) & (z >= 0) & (z < sizes.width)
    offset = (y * sizes.width + z) * sizes.channels + (k % sizes.channels)[None, :]
    return tl.load(image[:, None] + offset, mask=read, other=0.0)


@triton.jit
def _forward_kernel(
    x,
    kernels,
    bias,
    order,
    starts,
    group_of,
    row_of,
    y,
    tiles,
    sizes: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    precision: tl.constexpr,
):
    """A block of patches of one tile times `block_n` columns of its kernel matrix."""
    group = tl.load(group_of + tl.program_id(0))
    if group > tiles:
        return
    row = tl.load(row_of + tl.program_id(0)) + tl.arange(0, block_m)
    inside = row < tl.load(starts + group)
    patch = tl.load(order + row, mask=inside, other=0).to(tl.int32)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    tile = tl.maximum(group - 1, 0)
    kernel = kernels + tile.to(tl.int64) * (sizes.k * sizes.out)
    total = tl.zeros((block_m, block_n), tl.float32)
    # Patches of group 0 are not computed.
    computed = tl.minimum(group, 1)
    for first in range(0, sizes.k * computed, block_k):
        k = first + tl.arange(0, block_k)
        a = _pixels(x, patch, inside, k, first, sizes, block_k)
        within = (k < sizes.k)[:, None] & (n < sizes.out)[None, :]
        b = tl.load(kernel + k[:, None] * sizes.out + n[None, :], mask=within, other=0.0)
        total = tl.dot(a, b, total, input_precision=precision)
    if bias is not None:
        total += tl.load(bias + tile * sizes.out + n, mask=n < sizes.out * computed, other=0.0)[None, :]
    target = y + patch.to(tl.int64)[:, None] * sizes.out + n[None, :]
    tl.store(target, total.to(y.dtype.element_ty), mask=inside[:, None] & (n < sizes.out)[None, :])


@triton.jit
def _kernel_gradient_kernel(
    x,
    error,
    order,
    starts,
    group_of,
    row_of,
    slot_of,
    matrices,
    sums,
    partial,
    tiles,
    sizes: tl.constexpr,
    rows: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    precision: tl.constexpr,
):
    """A (block_k, block_n) part of one segment's sum of patch times error, and of the errors alone."""
    group = tl.load(group_of + tl.program_id(0))
    if group > tiles:
        return
    start = tl.load(row_of + tl.program_id(0))
    begin = tl.load(starts + group - 1)
    end = tl.load(starts + group)
    stop = tl.minimum(start + rows, end)
    first = tl.program_id(1) * block_k
    k = first + tl.arange(0, block_k)
    n = tl.program_id(2) * block_n + tl.arange(0, block_n)
    total = tl.zeros((block_k, block_n), tl.float32)
    errors = tl.zeros((block_n,), tl.float32)
    for row in range(start, stop, block_m):
        i = row + tl.arange(0, block_m)
        patch = tl.load(order + i, mask=i < stop, other=0).to(tl.int32)
        a = _pixels(x, patch, i < stop, k, first, sizes, block_k)
        within = (i < stop)[:, None] & (n < sizes.out)[None, :]
        e = tl.load(error + patch.to(tl.int64)[:, None] * sizes.out + n[None, :], mask=within, other=0.0)
        total = tl.dot(tl.trans(a), e, total, input_precision=precision)
        if sums is not None:
            errors += tl.sum(e.to(tl.float32), 0)
    within = (k < sizes.k)[:, None] & (n < sizes.out)[None, :]
    place = k[:, None] * sizes.out + n[None, :]
    # All parts of a row of blocks have the sum of the errors; the first writes it.
    writes = n < tl.where(first == 0, sizes.out, 0)
    if end - begin <= rows:
        tile = (group - 1).to(tl.int64)
        kernel = matrices + tile * (sizes.k * sizes.out)
        tl.store(kernel + place, total.to(matrices.dtype.element_ty), mask=within)
        if sums is not None:
            tl.store(sums + tile * sizes.out + n, errors.to(sums.dtype.element_ty), mask=writes)
    else:
        slot = tl.load(slot_of + group) + (start - begin) // rows
        part = partial + slot.to(tl.int64) * ((sizes.k + 1) * sizes.out)
        tl.store(part + place, total, mask=within)
        if sums is not None:
            tl.store(part + sizes.k * sizes.out + n, errors, mask=writes)


@triton.jit
def _add_kernel(partial, starts, slot_of, matrices, sums, sizes: tl.constexpr, rows: tl.constexpr, block: tl.constexpr):
    """Adds the partial sums of a tile's segments in their order; zeros for a tile without patches."""
    tile = tl.program_id(0)
    segments = (tl.load(starts + tile + 1) - tl.load(starts + tile) + rows - 1) // rows
    if segments == 1:
        return
    slot = tl.load(slot_of + tile + 1).to(tl.int64)
    i = tl.program_id(1) * block + tl.arange(0, block)
    matrix: tl.constexpr = sizes.k * sizes.out
    size: tl.constexpr = matrix + sizes.out
    last = matrix
    if sums is not None:
        last = size
    total = tl.zeros((block,), tl.float32)
    for s in tl.range(0, segments, loop_unroll_factor=4):
        total += tl.load(partial + (slot + s) * size + i, mask=i < last, other=0.0)
    tl.store(matrices + tile.to(tl.int64) * matrix + i, total.to(matrices.dtype.element_ty), mask=i < matrix)
    if sums is not None:
        within = (i >= matrix) & (i < size)
        tl.store(sums + tile * sizes.out + i - matrix, total.to(sums.dtype.element_ty), mask=within)


@triton.jit
def _patch_gradient_kernel(
    error,
    kernels,
    order,
    starts,
    group_of,
    row_of,
    buffer,
    tiles,
    first,
    count,
    sizes: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
    block_n: tl.constexpr,
    precision: tl.constexpr,
):
    """Errors of a block of patches times the transposed rows [first, first + count) of their tile's kernel matrix."""
    group = tl.load(group_of + tl.program_id(0))
    if group > tiles:
        return
    row = tl.load(row_of + tl.program_id(0)) + tl.arange(0, block_m)
    inside = row < tl.load(starts + group)
    patch = tl.load(order + row, mask=inside, other=0).to(tl.int64)
    j = tl.program_id(1) * block_k + tl.arange(0, block_k)
    kernel = kernels + tl.maximum(group - 1, 0).to(tl.int64) * (sizes.k * sizes.out)
    total = tl.zeros((block_m, block_k), tl.float32)
    for start in range(0, sizes.out * tl.minimum(group, 1), block_n):
        n = start + tl.arange(0, block_n)
        within = inside[:, None] & (n < sizes.out)[None, :]
        e = tl.load(error + patch[:, None] * sizes.out + n[None, :], mask=within, other=0.0)
        within = (n < sizes.out)[:, None] & (j < count)[None, :]
        b = tl.load(kernel + (first + j)[None, :] * sizes.out + n[:, None], mask=within, other=0.0)
        total = tl.dot(e, b, total, input_precision=precision)
    tl.store(buffer + patch[:, None] * count + j[None, :], total, mask=inside[:, None] & (j < count)[None, :])


@triton.jit
def _fold_kernel(
    buffer, images, pixels, first, count, sizes: tl.constexpr, block_p: tl.constexpr, block_c: tl.constexpr
):
    """Adds to each pixel what the patches that read it at kernel positions [first, first + count) computed for it."""
    p = tl.program_id(0) * block_p + tl.arange(0, block_p)
    c = tl.program_id(1) * block_c + tl.arange(0, block_c)
    within = (p < pixels)[:, None] & (c < sizes.channels)[None, :]
    image = p // (sizes.height * sizes.width)
    bottom = p // sizes.width % sizes.height + sizes.top
    right = p % sizes.width + sizes.left
    target = images + p.to(tl.int64)[:, None] * sizes.channels + c[None, :]
    total = tl.zeros((block_p, block_c), tl.float32)
    if first > 0:
        total += tl.load(target, mask=within, other=0.0)
    for i in tl.range(0, count, loop_unroll_factor=4):
        position = first + i
        y = bottom - position // sizes.kernel_width * sizes.dilation_y
        z = right - position % sizes.kernel_width * sizes.dilation_x
        reads = (y >= 0) & (y % sizes.stride_y == 0) & (y // sizes.stride_y < sizes.out_height)
        reads = reads & (z >= 0) & (z % sizes.stride_x == 0) & (z // sizes.stride_x < sizes.out_width)
        patch = image * sizes.patches + y // sizes.stride_y * sizes.out_width + z // sizes.stride_x
        source = buffer + (patch.to(tl.int64) * count + i)[:, None] * sizes.channels + c[None, :]
        total += tl.load(source, mask=within & reads[:, None], other=0.0)
    tl.store(target, total, mask=within)
