"""Figures of layers: colours are tiles, pictures are filters, bars are similarities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rapa_cli.report import figures
from rapa_cli.report.layer_figures import Assigned, assignments, filter_mosaic, filters, similarities, tile_colours
from rapa_cli.tiling.conv import TiledConv2d
from tests.report.test_figures import texts


@pytest.mark.parametrize("scheme", ["random", "image-overlap", "alternate"])
def test_a_panel_shows_the_layers_own_assignment(scheme: str) -> None:
    layer = TiledConv2d(1, 1, 3, padding=1, tiles=4, scheme=scheme)
    tile = layer.assign(1, (6, 5))[0].view(6, 5)
    figure = assignments([Assigned(f"{scheme} $x$", tile, 4)])
    (axes,) = figure.axes
    image: Any = axes.images[0]
    assert np.array_equal(np.asarray(image.get_array()), tile.numpy())
    assert axes.get_title() == f"{scheme} $x$"
    drawn = image.cmap(image.norm(image.get_array()))
    colours = {tuple(drawn[y, x]) for y in range(6) for x in range(5)}
    assert len(colours) == 4, "a colour for each tile"


def test_what_is_not_computed_is_white() -> None:
    figure = assignments([Assigned("perforated", torch.tensor([[0, -1], [-1, 0]]), 1)])
    image: Any = figure.axes[0].images[0]
    assert np.array_equal(np.ma.getmaskarray(image.get_array()), [[False, True], [True, False]])


def test_panels_stand_in_rows(tmp_path: Path) -> None:
    figure = assignments([Assigned(f"panel {n}", torch.zeros(4, 4, dtype=torch.int64), 1) for n in range(5)], columns=3)
    assert len(figure.axes) == 5
    text = texts(figures.write(figure, tmp_path, "panels")[1])
    assert all(f"panel {n}" in text for n in range(5))


@pytest.mark.parametrize("tiles", [1, 4, 8, 9, 16, 128, 1024])
def test_tiles_have_colours_of_their_own(tiles: int) -> None:
    colours = np.array([tile_colours(tiles)(number) for number in range(tiles)])
    assert len(np.unique(colours.round(4), axis=0)) == tiles
    if 1 < tiles <= 16:
        gaps = np.linalg.norm(colours[:, None, :3] - colours[None, :, :3], axis=2) + 2 * np.eye(tiles)
        assert gaps.min() > 0.1, "and tell each other apart"


def test_the_mosaic_holds_each_filter_stretched() -> None:
    weight = torch.randn(3, 2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    mosaic = filter_mosaic(weight)
    assert mosaic.shape == (3 * 6 - 1, 2 * 5 - 1, 4)
    for tile in range(3):
        for channel in range(2):
            piece = mosaic[6 * tile : 6 * tile + 5, 5 * channel : 5 * channel + 4]
            assert (piece[..., 3] == 255).all()
            own = weight[tile, channel].permute(1, 2, 0).numpy()
            expected = 255 * (own - own.min()) / (own.max() - own.min())
            assert np.abs(piece[..., :3] - expected).max() <= 0.51
    assert (mosaic[5::6, :, 3] == 0).all()
    assert (mosaic[:, 4::5, 3] == 0).all(), "lines between them let the page through"


def test_filters_of_other_channels_are_grey_and_flat_ones_are_even() -> None:
    mosaic = filter_mosaic(torch.randn(1, 1, 7, 3, 3))
    assert (mosaic[..., 0] == mosaic[..., 1]).all()
    assert (mosaic[..., 0] == mosaic[..., 2]).all()
    assert (filter_mosaic(torch.ones(1, 1, 3, 2, 2))[..., :3] == 128).all()


def test_filters_that_are_chosen(tmp_path: Path) -> None:
    weight = torch.randn(4, 6, 3, 5, 5)
    figure = filters(weight, [5, 0], tiles=[3])
    (axes,) = figure.axes
    assert np.array_equal(np.asarray(axes.images[0].get_array()), filter_mosaic(weight[[3]][:, [5, 0]]))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["6", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4"]
    paths = figures.write(filters(weight), tmp_path, "filters")
    with Image.open(paths[0]) as picture:
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"
    assert "output channel" in texts(paths[1])


def test_bars_are_similarities(tmp_path: Path) -> None:
    found: dict[str, dict[str, float | None]] = {"random": {"conv1": 0.25, "conv2": 0.5, "conv3": None}}
    found["_$fixed$"] = {"conv1": -0.125, "conv2": 0.0}
    figure = similarities(found)
    (axes,) = figure.axes
    bars: list[Any] = list(axes.patches)
    assert sorted(bar.get_height() for bar in bars) == [-0.125, 0.0, 0.25, 0.5]
    text = texts(figures.write(figure, tmp_path, "similarity")[1])
    for part in ("conv1", "conv3", "0.25", "-0.12", "random", "$fixed$", "similarity S"):
        assert part in text
