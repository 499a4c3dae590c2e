"""Words and partitions in Triton, bit for bit those in torch: interpreted, compiled, and on a CUDA device."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor

from rapa_cli import philox
from rapa_cli.keyed import Draw, draws
from rapa_cli.philox import MAX_SEED, Purpose, Stream, use_of, words, words_in_torch
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import SCHEMES, balanced_partition, partition_in_torch
from tests.kernels.without_device import compile_only, device_wanted, main, no_waiting, run_checks, triton_wanted

_IMAGES = torch.tensor([0, 3, 2**32 - 1, 77, 3])
_SEEDS: tuple[int | Tensor, ...] = (0, 1, MAX_SEED, torch.tensor(MAX_SEED))
_DRAWS: tuple[int | Tensor, ...] = (0, 1, 2**32 - 1, torch.tensor(2**31), torch.tensor([0, 1, 2, 3, 2**32 - 1]))
# How many words, from which block.
_RANGES = ((0, 0), (1, 0), (7, 0), (10, 2**32 - 3), (1, 2**32 - 1), (530, 1))
_SIZES = [*((7, tiles) for tiles in range(1, 8)), (1, 1), (128, 1), (128, 5), (129, 129), (300, 16), (300, 299)]


def _few_hashes(patches: int, distinct: int) -> tuple[Tensor, Tensor]:
    """Hashes with many ties, the least and the largest number among them, and words that turn the labels."""
    g = torch.Generator().manual_seed(patches)
    hashes = torch.randint(distinct, (3, patches), generator=g) * (2**32 - 1) // max(distinct - 1, 1)
    return hashes, torch.randint(2**32, (3, 1), generator=g)


def _ranked(hashes: Tensor, turns: Tensor, tiles: int) -> Tensor:
    order = torch.argsort(hashes, dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(hashes.shape[1]).expand_as(order))
    return (rank * tiles // hashes.shape[1] + turns * tiles // 2**32) % tiles


def check_words() -> None:
    from rapa_cli.kernels import gpu_draws

    def check(
        key: tuple[int | Tensor, int], layer: int, images: Tensor, draw: int | Tensor, count: int, first: int
    ) -> None:
        found = gpu_draws.words(key, layer, images, draw, count=count, first_block=first)
        assert torch.equal(found, words_in_torch(key, layer, images, draw, count=count, first_block=first))

    for seed, draw in itertools.product(_SEEDS, _DRAWS):
        check((seed, use_of(Purpose.POOLING, Stream.VOTE)), 2**32 - 1, _IMAGES, draw, 7, 0)
    for count, first in _RANGES:
        check((MAX_SEED, 1), 1, _IMAGES, _DRAWS[-1], count, first)
    # Several images for a program, not side by side in memory.
    apart = torch.arange(400)[1::2]
    for images, draw in ((apart, 3), (apart, apart.flip(0)), (apart[:1], apart[:1]), (apart[:0], 3)):
        check((5, 1), 0, images, draw, 9, 0)


def check_ranks() -> None:
    from rapa_cli.kernels import gpu_draws

    for patches, distinct in itertools.product((1, 7, 127, 128, 129, 300), (1, 2, 5)):
        hashes, turns = _few_hashes(patches, distinct)
        assert torch.equal(gpu_draws.ranked(hashes, turns, patches), _ranked(hashes, turns, patches))


def check_wiring() -> None:
    """Words and partitions as the rest of the package asks for them, as on a device that has the kernels."""
    from rapa_cli.kernels import gpu_draws

    kernels = SimpleNamespace(
        MAX_PATCHES=200, words=mock.Mock(wraps=gpu_draws.words), ranked=mock.Mock(wraps=gpu_draws.ranked)
    )
    choices = zip(itertools.cycle(_SEEDS), itertools.cycle(_DRAWS), _SIZES)
    cases = [(Draw(seed, draw, _IMAGES, Stream.TRAIN, 2), size, tiles) for seed, draw, (size, tiles) in choices]
    expected = [partition_in_torch(place, patches=size, tiles=tiles) for place, size, tiles in cases]
    with (
        mock.patch("rapa_cli.kernels.cpu.available", return_value=False),
        mock.patch("rapa_cli.philox.in_triton", return_value=kernels),
        mock.patch("rapa_cli.tiling.schemes.in_triton", return_value=kernels),
    ):
        found = [balanced_partition(place, patches=size, tiles=tiles) for place, size, tiles in cases]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert kernels.words.call_count == 2 * len(cases)
    assert kernels.ranked.call_count == sum(size <= 200 for size, _ in _SIZES)


def check_compiles() -> None:
    """No number becomes a constant of what is compiled; it matters only whether seed and draw are tensors."""
    from rapa_cli.kernels import gpu_draws

    compiled = compile_only()
    images = torch.arange(20)
    for seed, draw, patches in itertools.product(_SEEDS, (*_DRAWS[:4], images), (1, 16, 1000)):
        for layer, ids in ((0, images), (1, images.flip(0)), (2**32 - 1, torch.arange(40)[1::2])):
            gpu_draws.words((seed, 1000 + layer % 2), layer, ids, draw, count=patches, first_block=MAX_SEED * layer)
        hashes = torch.zeros(20, patches, dtype=torch.int64)
        for tiles in {1, patches}:
            gpu_draws.ranked(hashes, hashes[:, :1].contiguous(), tiles)
    assert Counter(name for name, _ in compiled) == {"_words_kernel": 4, "_rank_kernel": 1}


@triton_wanted
def test_interpreted(tmp_path: Path) -> None:
    run_checks([check_words, check_ranks, check_wiring], interpret=True, cache=tmp_path)


@triton_wanted
def test_compiled(tmp_path: Path) -> None:
    run_checks([check_compiles], interpret=False, cache=tmp_path)


@device_wanted
@triton_wanted
@pytest.mark.gpu
@pytest.mark.parametrize(("patches", "tiles"), [*_SIZES, (1024, 16), (2048, 100), (2049, 7)])
def test_equals_the_cpu_on_a_device(patches: int, tiles: int) -> None:
    assert philox.in_triton(torch.device("cuda")) is not None
    for seed, draw in itertools.product((0, 1, MAX_SEED), _DRAWS):
        place = Draw(seed, draw, _IMAGES, Stream.TRAIN, 2)
        expected = balanced_partition(place, patches=patches, tiles=tiles)
        for own in (seed, torch.tensor(seed).cuda()):
            there = Draw(own, draw.cuda() if isinstance(draw, Tensor) else draw, _IMAGES.cuda(), Stream.TRAIN, 2)
            assert torch.equal(balanced_partition(there, patches=patches, tiles=tiles).cpu(), expected)


@device_wanted
@triton_wanted
@pytest.mark.gpu
def test_words_on_a_device() -> None:
    for seed, draw, (count, first) in itertools.product((0, 1, MAX_SEED), _DRAWS, _RANGES):
        found, expected = (
            words(Purpose.POOLING, seed, images=ids, count=count, draw=draw, layer=3, first_block=first)
            for ids in (_IMAGES.cuda(), _IMAGES)
        )
        assert torch.equal(found.cpu(), expected)


@device_wanted
@triton_wanted
@pytest.mark.gpu
@pytest.mark.parametrize("patches", [1, 7, 128, 129, 300, 1024])
def test_equal_hashes_on_a_device(patches: int) -> None:
    from rapa_cli.kernels import gpu_draws

    hashes, turns = _few_hashes(patches, 3)
    found = gpu_draws.ranked(hashes.cuda(), turns.cuda(), patches)
    assert torch.equal(found.cpu(), _ranked(hashes, turns, patches))


@device_wanted
@triton_wanted
@pytest.mark.gpu
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_the_host_never_waits(scheme: str) -> None:
    layer = TiledConv2d(3, 4, 3, padding=1, tiles=1 if scheme == "none" else 4, scheme=scheme).cuda()
    x, ids = torch.ones(5, 3, 8, 8).cuda(), _IMAGES.cuda()
    with no_waiting(), draws(layer, images=ids, seed=3, draw=2, stream="train"):
        assignment = layer.assign(5, (8, 8))
        layer(x).sum().backward()
    layer.cpu()
    with draws(layer, images=_IMAGES, seed=3, draw=2, stream="train"):
        assert torch.equal(assignment.cpu(), layer.assign(5, (8, 8)))


if __name__ == "__main__":
    main(globals())
