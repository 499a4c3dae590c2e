"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), written in torch integer arithmetic.

Every random number in `rapa` is a pure function of a key (what it is for, the stream, the seed) and of where it is
used (draw, image, layer, index). Nothing depends on the order of calls, the batch, the device or the thread count.
"""

from __future__ import annotations

from enum import IntEnum
from types import ModuleType

import torch
from torch import Tensor

from rapa_cli.kernels.cuda import triton_serves

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

MAX_SEED = _MASK


class Purpose(IntEnum):
    """What a random number is for; two purposes never share numbers."""

    INITIALISATION = 1
    SHUFFLE = 2
    AUGMENTATION = 3
    ASSIGNMENT = 4
    POOLING = 5
    ANALOG = 6
    DATA = 7
    ANALOG_SEED = 8
    ATTACK = 9
    MODULE = 10
    CROP = 11


class Stream(IntEnum):
    """The use a network is put to; each has draws of its own for the same image."""

    TRAIN = 0
    TEST = 1
    VOTE = 2
    ATTACK = 3
    CALLS = 4
    FIXED = 5


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of broadcastable shapes, values in [0, 2^32).
        key: two integers in [0, 2^32), or 0-dim int64 tensors.

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64, which leaves both halves right once they are masked.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    # Every round mixes two of the four, so that by now all have the broadcast shape.
    return c0, c1, c2, c3


def key_of(purpose: Purpose, seed: int | Tensor, stream: Stream) -> tuple[int, int]:
    """The Philox key in numbers; a seed that lies on a GPU is waited for."""
    return int(seed), use_of(purpose, stream)


def use_of(purpose: Purpose, stream: Stream) -> int:
    """The second number of the Philox key."""
    return int(purpose) + 256 * int(stream)


def words(
    purpose: Purpose,
    seed: int | Tensor,
    *,
    images: Tensor,
    count: int,
    draw: int | Tensor = 0,
    layer: int = 0,
    stream: Stream = Stream.TRAIN,
    first_block: int = 0,
) -> Tensor:
    """Random 32-bit words for each image.

    The Philox key is (seed, purpose + 256 stream), the counter (block, layer, image, draw); word i of an image is
    word i mod 4 of block i // 4. A GPU is not waited for, unless the draws are a tensor elsewhere.

    Args:
        purpose: what the numbers are for.
        seed: in [0, 2^32), a number or a 0-dim int64 tensor on the device of `images`.
        images: image ids, int64, shape (B,), values in [0, 2^32).
        count: how many words for each image.
        draw: the epoch or draw, one number or one for each image, in [0, 2^32).
        layer: the layer's index in its network.
        stream: what the network is used for.
        first_block: the first block of four words to use.

    Returns:
        int64 tensor of shape (B, count), values in [0, 2^32), on the device of `images`.
    """
    if not isinstance(seed, Tensor):
        check_seed(seed)
    key = seed, use_of(purpose, stream)
    draws = draw.to(images.device) if isinstance(draw, Tensor) else draw
    make = words_in_torch if (gpu := in_triton(images.device)) is None else gpu.words
    drawn: Tensor = make(key, layer, images, draws, count=count, first_block=first_block)
    return drawn


def words_in_torch(
    key: tuple[int | Tensor, int],
    layer: int,
    images: Tensor,
    draws: int | Tensor,
    *,
    count: int,
    first_block: int,
) -> Tensor:
    """`words` on any device: the definition, to the last integer; all tensors lie on the device of `images`."""
    device = images.device
    blocks = torch.arange(first_block, first_block + (count + 3) // 4, device=device)
    # torch.full, unlike torch.tensor, makes a number on a GPU without waiting for it.
    number, each = (
        part if isinstance(part, Tensor) else torch.full((), part, dtype=torch.int64, device=device)
        for part in (layer, draws)
    )
    output = philox4x32((blocks, number, images[:, None], each[:, None] if each.ndim else each), key)
    return torch.stack(output, -1).flatten(1)[:, :count]


def in_triton(device: torch.device) -> ModuleType | None:
    """The Triton kernels that draw on a device, where they can serve and no graph is traced, else None."""
    if torch.compiler.is_compiling() or not triton_serves(device):
        return None
    from rapa_cli.kernels import gpu_draws

    return gpu_draws


def uniform(random_words: Tensor) -> Tensor:
    """Maps 32-bit words to float32 in [0, 1), 24 bits each."""
    return (random_words >> 8).to(torch.float32) * 2.0**-24


def generator(purpose: Purpose, seed: int, *, layer: int = 0, draw: int = 0) -> torch.Generator:
    """A CPU generator seeded from the key, for where torch wants one."""
    low, high = words(purpose, seed, images=torch.zeros(1, dtype=torch.int64), count=2, draw=draw, layer=layer)[0]
    return torch.Generator().manual_seed(int(low) + (int(high) << 31))


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """The order in which an epoch visits `size` images: int64, shape (size,), every order equally likely."""
    return random_order(Purpose.SHUFFLE, seed, torch.arange(size), draw=epoch)


def random_order(purpose: Purpose, seed: int, images: Tensor, *, draw: int = 0) -> Tensor:
    """Places of images in a random order, int64 (B,); of two images with their ids (B,) the same always comes first."""
    high, low = words(purpose, seed, images=images, count=2, draw=draw).unbind(1)
    # Two words make ties between images practically impossible; those left are broken by the place.
    return torch.argsort((high << 31) | (low >> 1), stable=True)


def check_seed(seed: int) -> None:
    """Raises ValueError unless the seed is a 32-bit number."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed: got {seed}, allowed are whole numbers from 0 to {MAX_SEED}")
