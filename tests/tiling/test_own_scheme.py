"""Schemes that somebody makes outside of the package."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rapa_cli import TiledConv2d, convert, draws, vote
from rapa_cli.analog.presets import preset
from rapa_cli.keyed import KeyedLayer
from rapa_cli.philox import Purpose
from rapa_cli.tiling.schemes import SCHEMES, Scheme, scheme_named
from tests.tolerances import assert_near


class Shifted(Scheme):
    """Columns that begin elsewhere in each image and draw."""

    name = "shifted"

    def assign(self, layer: KeyedLayer, tiles: int, images: int | Tensor, size: tuple[int, int]) -> Tensor:
        shift = layer.draw_for(images, layer.seed.device).words(Purpose.ASSIGNMENT, count=1)
        return (torch.arange(size[0] * size[1]) + shift) % tiles


def test_a_layer_computes_by_it() -> None:
    layer = TiledConv2d(2, 3, 3, padding=1, tiles=4, scheme=Shifted())
    x, ids = torch.rand(5, 2, 8, 8), torch.arange(5)
    with torch.no_grad(), draws(layer, images=ids, draw=2):
        assignment = layer.assign(ids, (8, 8))
        out = layer(x)
        again = copy.deepcopy(layer)(x)
    assert len({tuple(row) for row in assignment.tolist()}) > 1
    assert all(torch.equal(row, (torch.arange(64) + row[0]) % 4) for row in assignment)
    assert torch.equal(out, again)
    each = torch.stack([nn.functional.conv2d(x, layer.weight[j], layer.bias[j], padding=1) for j in range(4)])  # type: ignore[index]
    assert_near(out, each.flatten(3).gather(0, assignment[None, :, None].expand(1, -1, 3, -1))[0].view_as(out))
    assert (layer.scheme, "shifted" in repr(layer), "shifted" in SCHEMES) == ("shifted", True, False)


def test_a_network_takes_it_over() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Flatten())
    shifted = Shifted()
    tiled = convert(network, scheme=shifted, shape=(1, 9, 9))
    layers = [layer for layer in tiled.modules() if isinstance(layer, TiledConv2d)]
    assert [(layer.tiles, layer.scheme) for layer in layers] == [(5, "shifted"), (1, "shifted")]
    x = torch.rand(3, 1, 9, 9)
    with torch.no_grad():
        assert_near(tiled(x), network(x))
    assert vote(tiled, x, n=3).shape == (3,)
    first = next(convert(tiled, arrays=preset("Idealized")).children())
    assert isinstance(first, TiledConv2d)
    assert first.scheme == "shifted"


def test_names_still_have_to_be_known() -> None:
    shifted = Shifted()
    assert scheme_named(shifted) is shifted
    with pytest.raises(ValueError, match="scheme: there is no 'shifted'"):
        TiledConv2d(1, 1, 3, scheme="shifted")
