"""The figure of the implicit regularizer: R, the spread of the tiles and over-fitting against the number of tiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rapa_cli.analysis.regularizer import Training
from rapa_cli.report import drawing
from rapa_cli.report.drawing import BLUE, RED

_SINGLE, _MEAN, _AVERAGED = "-", "--", ":"


def regularizer_against_tiles(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Four panels against the number of tiles, with bands of one standard error over the seeds.

    Args:
        rows: of `run_regularizer`.
        title: of the figure.
    """
    figure = drawing.new_figure(9.2, 7.6)
    grid: Any = figure.subplots(2, 2, sharex=True)
    size, spread = grid[0]
    for training, colour in ((Training.SCALED, BLUE), (Training.SAME, RED)):
        # With one tile all of them are 0, which has no place on a logarithmic axis.
        chosen = [row for row in rows if row["training"] == training and row["tiles"] > 1]
        if not chosen:
            continue
        _line(size, chosen, "regularizer", f"R, {training}", colour, "-", marker="o")
        _line(size, chosen, "approximation", f"second order, {training}", colour, "--", marker="x")
        _line(spread, chosen, "variance", str(training), colour, "-", marker="o")
    for axes in (size, spread):
        axes.set_yscale("log")
    size.set_title("regularizer R, mean over training images (nats)", loc="left", fontsize=9)
    spread.set_title("variance of a weight across tiles, mean over weights", loc="left", fontsize=9)

    scaled = [row for row in rows if row["training"] == Training.SCALED]
    same = [row for row in rows if row["training"] == Training.SAME]
    control = [row for row in rows if row["training"] == Training.CONTROL]
    for split, colour in (("train", BLUE), ("test", RED)):
        _line(grid[1][0], scaled, f"{split}_loss", f"{split}, one draw", colour, _SINGLE)
        _line(grid[1][0], scaled, f"mean_{split}_loss", f"{split}, mean weights", colour, _MEAN)
        _line(grid[1][0], scaled, f"averaged_{split}_loss", f"{split}, averaged probability", colour, _AVERAGED)
        _line(grid[1][1], same, f"{split}_loss", f"{split}, one draw", colour, _SINGLE)
        # One entry of the legend does for both.
        label = str(Training.CONTROL) if split == "train" else "_"
        _line(grid[1][1], control, f"{split}_loss", label, "black", "none", marker="x")
    grid[1][0].set_title(f"loss (nats), {Training.SCALED}", loc="left", fontsize=9)
    grid[1][1].set_title(f"loss (nats), {Training.SAME}", loc="left", fontsize=9)
    for axes in grid[1]:
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tiles")
    tiles = sorted({row["tiles"] for row in rows})
    for axes in grid.flat:
        axes.set_xscale("log", base=2)
        axes.set_xticks(tiles, [str(count) for count in tiles])
        axes.minorticks_off()
        drawing.grid(axes)
        if axes.lines and axes in grid[0]:
            axes.legend(frameon=False, fontsize=8)
        elif axes.lines:
            # There is no place among so many curves.
            axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    seeds = len(rows[0]["seed"]) if rows else 0
    over = f"\nmeans over {seeds} seeds, bands of one standard error" if seeds > 1 else ""
    drawing.title(figure, f"{title}{over}")
    return figure


def _line(
    axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, label: str, colour: str, style: str, marker: str = "."
) -> None:
    """A measure's mean over the seeds, and a band around it."""
    points = sorted((row["tiles"], statistics.fmean(row[name]), _standard_error(row[name])) for row in rows)
    if not points:
        return
    tiles, means, errors = zip(*points, strict=True)
    axes.plot(tiles, means, color=colour, linestyle=style, marker=marker, markersize=4, label=label)
    low = [mean - error for mean, error in zip(means, errors, strict=True)]
    high = [mean + error for mean, error in zip(means, errors, strict=True)]
    axes.fill_between(tiles, low, high, color=colour, alpha=0.15, linewidth=0)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
