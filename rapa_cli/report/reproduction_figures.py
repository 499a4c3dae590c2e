"""Figures of experiments that no other part draws: confidence, and what changes with the number of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rapa_cli.report import drawing
from rapa_cli.report.drawing import BLUE, COLOURS


def confidences(panels: Mapping[str, Mapping[str, Sequence[int]]]) -> Figure:
    """How sure networks are: the share of images whose highest probability lies in each bin of [0, 1].

    Args:
        panels: images in each bin, by network, by what was done to the images; a panel for each of the latter.
    """
    figure = drawing.new_figure(4.4 * len(panels), 3.4)
    several = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (what, networks) in zip(several, panels.items(), strict=True):
        for colour, (network, counts) in zip(COLOURS, networks.items(), strict=False):
            total = max(sum(counts), 1)
            edges = [number / len(counts) for number in range(len(counts) + 1)]
            axes.stairs([100 * count / total for count in counts], edges, color=colour, linewidth=1.6, label=network)
        axes.set_title(what, loc="left", fontsize=10)
        axes.set(xlabel="highest probability", xlim=(0, 1))
        drawing.grid(axes)
    several[0].set_ylabel("images (%)")
    several[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def against_tiles(panels: Mapping[str, Mapping[int, tuple[float, float | None]]]) -> Figure:
    """What changes with the tiles of the first layer, each quantity in a panel of its own.

    Args:
        panels: mean and standard error (None where unknown) by tiles, by quantity.
    """
    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    figure = drawing.new_figure(4.2 * across, 2.8 * down)
    for number, (quantity, points) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(down, across, number)
        tiles = sorted(points)
        errors = [points[count][1] or 0.0 for count in tiles]
        axes.errorbar(
            tiles, [points[count][0] for count in tiles], errors, color=BLUE, marker="o", markersize=4, capsize=3
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(tiles, [str(count) for count in tiles], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(quantity, loc="left", fontsize=9)
        axes.set_xlabel("tiles of the first layer", fontsize=9)
        drawing.grid(axes)
    return figure
