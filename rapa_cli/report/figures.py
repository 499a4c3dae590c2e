"""Figures, drawn without a screen and written as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rapa_cli.files import atomic, make_folder

if TYPE_CHECKING:
    from rapa_cli.analysis.benchmark import Row

_TRAIN, _TEST = "#4477aa", "#cc3311"


def learning_curve(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Train and test error in percent against the epoch; `rows` are the rows of a run's metrics."""
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in rows]
    best = min(rows, key=lambda row: row["test_error"])
    lowest = f"test (lowest {best['test_error']:.2f} % in epoch {best['epoch']})"
    for key, label, colour in (("train_error", "train", _TRAIN), ("test_error", lowest, _TEST)):
        errors = [row[key] for row in rows]
        axes.plot(epochs, errors, color=colour, marker="o" if len(rows) < 30 else None, markersize=3, label=label)
    axes.plot(best["epoch"], best["test_error"], color=_TEST, marker="o", markersize=9, markerfacecolor="none")
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set(xlabel="epoch", ylabel="error (%)", ylim=(0, 1.1 * max(*axes.get_ylim(), 1)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def cost_against_tiles(rows: Sequence[Row]) -> Figure:
    """Time of forward and backward, relative to ordinary convolutions, against the tiles of the first layer."""
    batches = sorted({row.batch for row in rows if row.what == "layers"})
    figure = _figure(4.2 * len(batches), 3.6)
    for number, batch in enumerate(batches, 1):
        axes = figure.add_subplot(1, len(batches), number)
        chosen = [row for row in rows if row.what == "layers" and row.batch == batch]
        for contender in dict.fromkeys(row.contender for row in chosen):
            points = sorted((row.tiles[0], row.ratio) for row in chosen if row.contender == contender)
            ours = contender == "ours"
            axes.plot(
                [tiles for tiles, _ in points],
                [ratio for _, ratio in points],
                marker="o",
                markersize=3,
                linewidth=2 if ours else 1,
                zorder=3 if ours else 2,
                label=contender,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(title=f"batch {batch}", xlabel="tiles of the first layer")
        axes.grid(alpha=0.3, which="both")
        if number == 1:
            axes.set_ylabel("time relative to nn.Conv2d")
            axes.legend(frameon=False, fontsize=8)
    return figure


def write(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes a figure as NAME.png and NAME.svg and returns the two paths.

    Raises:
        FileError: a file cannot be written.
    """
    make_folder(folder)
    paths = []
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            with atomic(path) as temporary:
                # Without a date the same run draws the same file.
                figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            paths.append(path)
    return paths


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
