"""What the tests hold assignments and tiled convolutions to: the rules read anew, in plain Python where possible."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import torch
from torch import Tensor
from torch.nn import functional as F

ASSIGNMENT = 4
STREAMS = {"train": 0, "test": 1, "vote": 2, "attack": 3, "calls": 4, "fixed": 5}

_WORD = 2**32


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in Python's own integers, after section 3.3 of Salmon et al. (2011)."""
    left_1, right_1, left_2, right_2 = counter[1], counter[0], counter[3], counter[2]
    for number in range(10):
        k1 = (key[0] + number * 0x9E3779B9) % _WORD
        k2 = (key[1] + number * 0xBB67AE85) % _WORD
        high_1, low_1 = divmod(right_1 * 0xD2511F53, _WORD)
        high_2, low_2 = divmod(right_2 * 0xCD9E8D57, _WORD)
        right_1, left_1, right_2, left_2 = high_2 ^ left_1 ^ k1, low_2, high_1 ^ left_2 ^ k2, low_1
    return right_1, left_1, right_2, left_2


def word(purpose: int, stream: int, seed: int, draw: int, image: int, layer: int, index: int) -> int:
    """Word `index` of an image."""
    return philox((index // 4, layer, image, draw), (seed, purpose + 256 * stream))[index % 4]


def partition(seed: int, stream: str, draw: int, image: int, layer: int, patches: int, tiles: int) -> list[int]:
    """The tile of each patch: ranks of hashes, cut into equal parts, labels turned by the keyed offset."""
    place = (ASSIGNMENT, STREAMS[stream], seed, draw, image, layer)
    hashes = [word(*place, index) for index in range(patches)]
    offset = word(*place, 4 * (_WORD - 1)) * tiles // _WORD
    order = sorted(range(patches), key=lambda patch: (hashes[patch], patch))
    tile_of = dict.fromkeys(order, 0)
    for rank, patch in enumerate(order):
        tile_of[patch] = (rank * tiles // patches + offset) % tiles
    return [tile_of[patch] for patch in range(patches)]


def region(q: int, y: int, x: int, height: int, width: int) -> int:
    """The tile of a pixel in image tiling, by exact fractions."""
    return floor(Fraction(q * x, width)) + q * floor(Fraction(q * y, height))


def regions(q: int, height: int, width: int) -> list[int]:
    """The tile of all pixels of an image, row by row."""
    return [region(q, y, x, height, width) for y in range(height) for x in range(width)]


def alternating(q: int, height: int, width: int) -> list[int]:
    """The tile of all pixels in alternate tiling."""
    return [x % q + q * (y % q) for y in range(height) for x in range(width)]


def padded(x: Tensor, kernel: tuple[int, int], padding: tuple[int, int] | str, dilation: tuple[int, int]) -> Tensor:
    """Images with the zeros around them that a padding means; torch puts the odd one below and to the right."""
    if padding == "valid":
        return x
    if padding == "same":
        high, wide = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
    assert not isinstance(padding, str)
    return F.pad(x, (padding[1], padding[1], padding[0], padding[0]))


def tiled(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
) -> Tensor:
    """A tiled convolution by its definition: each pixel from the convolution with its own tile's kernel, -1 gives 0."""
    tiles = len(weight)
    x = padded(x, (weight.shape[-2], weight.shape[-1]), padding, dilation)
    every = torch.stack(
        [F.conv2d(x, weight[s], None if bias is None else bias[s], stride, 0, dilation) for s in range(tiles)], 1
    )
    height, width = every.shape[-2:]
    chosen = assignment.view(len(x), 1, height, width) == torch.arange(tiles).view(1, -1, 1, 1)
    return (every * chosen[:, :, None]).sum(1)


def image_pad(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
) -> Tensor:
    """Image tiling with padding by its definition: each tile convolves its region of the image, zeros around it."""
    tiles, (height, width) = len(weight), x.shape[-2:]
    q = round(tiles**0.5)
    total: Tensor | None = None
    for tile in range(tiles):
        own = torch.tensor([number == tile for number in regions(q, height, width)]).view(height, width)
        alone = padded(x * own, (weight.shape[-2], weight.shape[-1]), padding, dilation)
        part = F.conv2d(alone, weight[tile], None if bias is None else bias[tile], stride, 0, dilation)
        out = part.shape[-2:]
        mine = torch.tensor([number == tile for number in regions(q, *out)]).view(out)
        total = part * mine if total is None else total + part * mine
    assert total is not None
    return total
