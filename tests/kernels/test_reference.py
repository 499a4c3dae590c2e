"""Grouping patches by tile: every patch once, in a block of its own tile."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapa_cli.kernels.reference import blocks_of

steady = settings(deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@steady
@given(st.integers(1, 12), st.integers(0, 3), st.integers(1, 12), st.data())
def test_every_patch_is_in_a_block_of_its_tile_once(tiles: int, batch: int, patches: int, data: st.DataObject) -> None:
    used = data.draw(st.lists(st.integers(-1, tiles - 1), min_size=1, max_size=tiles + 1))
    chosen = data.draw(st.lists(st.sampled_from(used), min_size=batch * patches, max_size=batch * patches))
    assignment = torch.tensor(chosen, dtype=torch.int64).view(batch, patches)
    blocks = blocks_of(assignment, tiles)
    wanted = [number for number, tile in enumerate(chosen) if tile >= 0]
    rows = max(-(-len(wanted) // tiles), 1)
    assert blocks.patch.shape == (len(blocks.tile), rows)
    found: list[int] = []
    for tile, row in zip(blocks.tile.tolist(), blocks.patch.tolist(), strict=True):
        real = [number for number in row if number != batch * patches]
        assert real, "a block without patches"
        assert all(chosen[number] == tile for number in real)
        assert row == real + [batch * patches] * (rows - len(real))
        found += real
    assert sorted(found) == wanted
    assert blocks.complete is (len(wanted) == len(chosen))
    # Each tile wastes less than a block.
    assert len(blocks.tile) * rows < len(wanted) + tiles * rows or not wanted
    if blocks.one_each:
        assert blocks.tile.tolist() == list(range(tiles))
        assert len(wanted) == tiles * rows


def test_equal_tiles_need_no_filling() -> None:
    assignment = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1], [1, 2, 0, 0]])
    blocks = blocks_of(assignment, 3)
    assert blocks.one_each
    assert blocks.complete
    assert blocks.patch.tolist() == [[0, 3, 10, 11], [1, 6, 7, 8], [2, 4, 5, 9]]
    unequal = blocks_of(assignment[:1], 3)
    assert not unequal.one_each
    assert unequal.patch.tolist() == [[0, 3], [1, 4], [2, 4]]
