"""Figures of layers: which array computes which patch, filters array by array, and how alike they are."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from rapa_cli.report import drawing
from rapa_cli.report.drawing import COLOURS

# Of tiles: pink in place of black.
_TILES = (*COLOURS[:-1], "#ee99aa")
# Pixels between filters, and between tiles.
_GAP = 1


@dataclass(frozen=True)
class Assigned:
    """Which tile computes each output pixel of one layer, for one image.

    Attributes:
        title: above the panel.
        tile: int64 (h, w), -1 where nothing is computed.
        tiles: how many there are.
    """

    title: str
    tile: Tensor
    tiles: int


def assignments(panels: Sequence[Assigned], *, columns: int = 4) -> Figure:
    """The paper's figure 2: output pixels in the colours of the tiles that compute them, white where nothing is.

    Args:
        panels: side by side.
        columns: at most so many.
    """
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    figure = drawing.new_figure(1.3 * across, 1.5 * down)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, number)
        shown = np.ma.masked_less(panel.tile.cpu().numpy(), 0)
        axes.imshow(shown, cmap=tile_colours(panel.tiles), vmin=-0.5, vmax=panel.tiles - 0.5, interpolation="none")
        axes.set_title(panel.title, fontsize=9, parse_math=False)
        drawing.bare(axes)
    return figure


def tile_colours(tiles: int) -> ListedColormap:
    """A colour for each tile, neighbours in number far apart in hue."""
    if tiles <= len(_TILES):
        return ListedColormap(_TILES[:tiles])
    # Steps of the golden ratio go around the circle without coming close soon; three lightnesses tell near hues apart.
    hues = [(0.6 + number * (math.sqrt(5) - 1) / 2) % 1 for number in range(tiles)]
    return ListedColormap(
        [colorsys.hls_to_rgb(hue, (0.42, 0.58, 0.72)[number % 3], 0.6) for number, hue in enumerate(hues)]
    )


def filters(weight: Tensor, channels: Sequence[int] | None = None, *, tiles: Sequence[int] | None = None) -> Figure:
    """Filters of a convolution as in the paper's figure 3 B: a row for each tile, a column for each output channel.

    Each filter is stretched by itself from its smallest weight to its largest. Filters that read three channels are
    shown in colour, others as the mean over the channels they read.

    Args:
        weight: kernels (tiles, out, in, kh, kw).
        channels: which output channels; all when left out.
        tiles: which tiles; all when left out.
    """
    columns = list(range(weight.shape[1]) if channels is None else channels)
    rows = list(range(len(weight)) if tiles is None else tiles)
    mosaic = filter_mosaic(weight[rows][:, columns])
    height, width = mosaic.shape[:2]
    inches = 5.0 if len(columns) <= 12 else 9.0
    scale = min((inches - 0.6) / width, 0.6 / weight.shape[-1])
    figure = drawing.new_figure(scale * width + 0.6, scale * height + 0.5)
    axes = figure.add_subplot()
    axes.imshow(mosaic, interpolation="none")
    step_down, step_right = weight.shape[-2] + _GAP, weight.shape[-1] + _GAP
    every = -(-len(columns) // 32)
    axes.set_xticks(
        [(place + 0.5) * step_right - 1 for place in range(0, len(columns), every)],
        [str(channel + 1) for channel in columns[::every]],
        fontsize=7,
    )
    axes.set_yticks(
        [(place + 0.5) * step_down - 1 for place in range(len(rows))], [str(tile + 1) for tile in rows], fontsize=7
    )
    axes.tick_params(length=0)
    axes.set_xlabel("output channel", fontsize=9)
    axes.set_ylabel("tile", fontsize=9)
    axes.spines[:].set_visible(False)
    return figure


def filter_mosaic(weight: Tensor) -> np.ndarray[Any, Any]:
    """Filters as one picture, with a transparent line between them.

    Args:
        weight: kernels (tiles, out, in, kh, kw).

    Returns:
        uint8 (rows, columns, 4): red, green, blue and opacity.
    """
    shown = weight.detach().to("cpu", torch.float64)
    if shown.shape[2] != 3:
        shown = shown.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    low = shown.amin((2, 3, 4), keepdim=True)
    span = shown.amax((2, 3, 4), keepdim=True) - low
    # A filter without contrast is grey.
    shown = torch.where(span > 0, (shown - low) / torch.where(span > 0, span, 1), 0.5)
    tiles, out, _, high, wide = shown.shape
    mosaic = torch.zeros(tiles, out, high + _GAP, wide + _GAP, 4, dtype=torch.uint8)
    mosaic[:, :, :high, :wide, :3] = (255 * shown).round().to(torch.uint8).permute(0, 1, 3, 4, 2)
    mosaic[:, :, :high, :wide, 3] = 255
    flat = mosaic.permute(0, 2, 1, 3, 4).reshape(tiles * (high + _GAP), out * (wide + _GAP), 4)
    return np.asarray(flat[:-_GAP, :-_GAP])


def similarities(found: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """The paper's figure 3 A: S of each layer, a bar for each network.

    Args:
        found: S by layer, by network; None and layers left out have no bar.
    """
    layers = list(dict.fromkeys(layer for by_layer in found.values() for layer in by_layer))
    figure = drawing.new_figure(5.0, 3.2)
    axes = figure.add_subplot()
    handles: dict[str, Any] = {}
    width = 0.8 / max(len(found), 1)
    for number, (network, by_layer) in enumerate(found.items()):
        for place, layer in enumerate(layers):
            value = by_layer.get(layer)
            if value is None:
                continue
            middle = place + (number - (len(found) - 1) / 2) * width
            colour = COLOURS[number % len(COLOURS)]
            handles[drawing.label(network)] = axes.bar(middle, value, 0.9 * width, color=colour)
            offset = (0, 2 if value >= 0 else -2)
            axes.annotate(
                f"{value:.2f}",
                (middle, value),
                offset,
                textcoords="offset points",
                ha="center",
                va="bottom" if value >= 0 else "top",
                fontsize=8,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    low, high = axes.get_ylim()
    axes.set_ylim(1.1 * min(low, 0), max(1.1 * high, 0.2))
    axes.set_ylabel("similarity S of tiles")
    axes.set_axisbelow(True)
    drawing.grid(axes, axis="y")
    if len(found) > 1:
        drawing.legend_below(figure, handles=list(handles.values()), labels=list(handles))
    return figure
