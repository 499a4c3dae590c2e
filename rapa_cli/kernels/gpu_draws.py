"""Random words, and partitions by their ranks, in Triton on CUDA devices: the same integers as in torch.

In torch words take a hundred launches and ranks a sort. Here each takes one launch; a hash is ranked by counting those
that are smaller, by as many programs as there are blocks of patches. The host never waits. No number is
specialised on, so that another seed, epoch, layer or size compiles nothing.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton has no types, and the arguments of its kernels are pointers and constants rather than what Python would see.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Counting is quadratic in the patches; beyond this torch sorts.
MAX_PATCHES = 2048
# Philox blocks of a program, patches of a program, and hashes that it compares these with at once.
_LANES = 128
_ROWS = 32
_COLUMNS = 128
# Without meaning for integers, but versions of Triton warn where it is left open.
_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


def words(
    key: tuple[int | Tensor, int],
    layer: int,
    images: Tensor,
    draws: int | Tensor,
    *,
    count: int,
    first_block: int,
) -> Tensor:
    """Random 32-bit words, int64 (B, count): the same integers as `philox.words_in_torch`.

    Args:
        key: the Philox key; its first number may be a 0-dim int64 tensor on the device.
        layer: the layer's index.
        images: image ids, int64 (B,).
        draws: number of the draw, one number, or an int64 tensor () or (B,) on the device.
        count: words for each image.
        first_block: the first block of four words to use.
    """
    output = images.new_empty(len(images), count, dtype=torch.int64)
    blocks = triton.cdiv(count, 4)
    each = draws.expand(len(images)) if isinstance(draws, Tensor) else draws
    with torch.cuda.device_of(images):
        _words_kernel[(triton.cdiv(len(images) * blocks, _LANES),)](
            _number(key[0]),
            key[1],
            _number(layer),
            images,
            images.stride(0),
            _number(each),
            each.stride(0) if isinstance(each, Tensor) else 0,
            _number(first_block),
            output,
            len(images),
            count,
            blocks,
            lanes=_LANES,
            **_OPTIONS,
        )
    return output


def ranked(hashes: Tensor, turns: Tensor, tiles: int) -> Tensor:
    """Balanced partitions by the ranks of hashes: the same integers as `schemes.partition_in_torch`.

    Args:
        hashes: int64 (B, n_p), contiguous, values in [0, 2^32), n_p at most `MAX_PATCHES`.
        turns: int64 (B, 1), contiguous, values in [0, 2^32): floor(turn tiles / 2^32) is added to an image's labels.
        tiles: parts.

    Returns:
        int64 (B, n_p), (floor(rank tiles / n_p) + offset) mod tiles; of equal hashes the first has the lower rank.
    """
    images, patches = hashes.shape
    assignment = torch.empty_like(hashes)
    with torch.cuda.device_of(hashes):
        _rank_kernel[(images, triton.cdiv(patches, _ROWS))](
            hashes, turns, assignment, patches, tiles, rows=_ROWS, columns=_COLUMNS, **_OPTIONS
        )
    return assignment


def _number(value: Any) -> Any:
    """An argument of one type whatever its value: 32 bits with a sign; a tensor stays where it lies."""
    return value if isinstance(value, Tensor) else (value + 2**31) % 2**32 - 2**31


@triton.jit
def _loaded(value, index):
    """A number as it was passed, or the one at an index of where it points to, in 32 bits."""
    if value.dtype.is_ptr():
        return tl.load(value + index).to(tl.uint32)
    else:
        return value.to(tl.uint32)


@triton.jit(
    do_not_specialize=(
        "seed", "use", "layer", "image_step", "draws", "draw_step", "first_block", "batch", "count", "blocks",
    ),
    do_not_specialize_on_alignment=("seed", "images", "draws"),
)  # fmt: skip
def _words_kernel(
    seed,
    use,
    layer,
    images,
    image_step,
    draws,
    draw_step,
    first_block,
    output,
    batch,
    count,
    blocks,
    lanes: tl.constexpr,
):
    """`lanes` Philox blocks, numbered row by row over images and their blocks: each makes four words of its image."""
    start = tl.program_id(0).to(tl.int64) * lanes
    # One long division for the program, short ones for its lanes.
    place = (start % blocks).to(tl.int32) + tl.arange(0, lanes)
    row = start // blocks + place // blocks
    block = place % blocks
    image = tl.minimum(row, batch - 1)
    zero = tl.zeros((lanes,), tl.uint32)
    a, b, c, d = tl.philox(
        _loaded(seed, 0).to(tl.uint64) | use.to(tl.uint64) << 32,
        block.to(tl.uint32) + first_block.to(tl.uint32),
        zero + layer.to(tl.uint32),
        tl.load(images + image * image_step).to(tl.uint32),
        zero + _loaded(draws, image * draw_step),
    )
    four = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (lanes, 4)).to(tl.int64)
    column = block[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(output + row[:, None] * count + column, four, mask=(row < batch)[:, None] & (column < count))


@triton.jit(do_not_specialize=("patches", "tiles"))
def _rank_kernel(hashes, turns, assignment, patches, tiles, rows: tl.constexpr, columns: tl.constexpr):
    """Tiles of `rows` patches of an image, each ranked by the hashes before it in order."""
    image = tl.program_id(0).to(tl.int64)
    row = hashes + image * patches
    first = tl.program_id(1) * rows
    i = first + tl.arange(0, rows)
    j = tl.arange(0, columns)
    mine = tl.load(row + i, mask=i < patches, other=0).to(tl.uint32)[:, None]
    # Of equal hashes the first comes first, which takes the numbers of patches only in the block of its own.
    own = first // columns * columns
    count = tl.zeros((rows, columns), tl.int32)
    for start in range(0, own, columns):
        other = tl.load(row + start + j).to(tl.uint32)[None, :]
        count += (other <= mine).to(tl.int32)
    other = _hashes(row, own + j, patches)
    count += ((other < mine) | (other == mine) & ((own + j)[None, :] < i[:, None])).to(tl.int32)
    for start in range(own + columns, patches, columns):
        count += (_hashes(row, start + j, patches) < mine).to(tl.int32)
    rank = tl.sum(count, 1).to(tl.int64)
    offset = tl.load(turns + image) * tiles >> 32
    tl.store(assignment + image * patches + i, (rank * tiles // patches + offset) % tiles, mask=i < patches)


@triton.jit
def _hashes(row, j, patches):
    """Hashes (1, block) of an image; beyond its patches the largest number, which is smaller than none."""
    return tl.load(row + j, mask=j < patches, other=0xFFFFFFFF).to(tl.uint32)[None, :]
