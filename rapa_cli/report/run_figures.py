"""Figures that compare runs: how they learned, how often they are wrong, and how long their arrays take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from rapa_cli.report import drawing
from rapa_cli.report.drawing import COLOURS, FEW

# Not quite grey, which would let the grid through: a page draws greys as a shade of its text.
_BEFORE = "#98a0aa"
_SIZE = (5.0, 3.6)


def learning(runs: Mapping[str, Sequence[Mapping[str, Any]]], what: str, label: str) -> Figure:
    """Curves on test images, whole, and on training images, dashed, against the epoch; the lowest test value is ringed.

    Args:
        runs: rows of metrics, by the name of the run.
        what: `error` or `loss`.
        label: of the axis.
    """
    figure, axes = _figure()
    for number, (name, rows) in enumerate(runs.items()):
        colour, epochs = COLOURS[number % len(COLOURS)], [row["epoch"] for row in rows]
        marker = "o" if len(rows) < 30 else None
        test = [row[f"test_{what}"] for row in rows]
        legend = f"{drawing.label(name)}, test" if len(runs) > 1 else "test"
        axes.plot(epochs, test, color=colour, marker=marker, markersize=3, label=legend)
        axes.plot(
            epochs,
            [row[f"train_{what}"] for row in rows],
            color=colour,
            linestyle="--",
            linewidth=1,
            label="train" if len(runs) == 1 else None,
        )
        lowest = min(range(len(rows)), key=test.__getitem__)
        axes.plot(epochs[lowest], test[lowest], color=colour, marker="o", markersize=9, markerfacecolor="none")
    if len(runs) > 1:
        axes.plot([], [], color="black", linestyle="--", linewidth=1, label="train")
    axes.set(xlabel="epoch", ylabel=label)
    axes.set_ylim(0, 1.1 * max(axes.get_ylim()[1], 1e-9))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(figure, axes, len(runs) + 1)
    return figure


def intervals(found: Mapping[str, Mapping[str, tuple[float, tuple[float, float]]]]) -> Figure:
    """Errors in percent with their 95 % intervals, a group for each kind of error and a colour for each network.

    Args:
        found: error and interval by kind, by network.
    """
    kinds = list(dict.fromkeys(kind for by_kind in found.values() for kind in by_kind))
    figure, axes = _figure(height=1.1 + 0.22 * len(found) * len(kinds) + 0.18 * len(found) * (len(found) > 1))
    for number, (name, by_kind) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        for place, kind in enumerate(kinds):
            if kind not in by_kind:
                continue
            error, (low, high) = by_kind[kind]
            height = place + (number - (len(found) - 1) / 2) * 0.7 / len(found)
            spread = [[max(error - low, 0)], [max(high - error, 0)]]
            axes.errorbar(
                error,
                height,
                xerr=spread,
                color=colour,
                marker="o",
                markersize=5,
                capsize=3,
                label=drawing.label(name) if kind == next(iter(by_kind)) else None,
            )
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_xlabel("error (%), with 95 % intervals")
    low, high = axes.get_xlim()
    axes.set_xlim(max(0, low), min(100, high))
    if len(found) > 1:
        drawing.legend_below(figure)
    return figure


def array_operations(found: Mapping[str, Mapping[str, int]]) -> Figure:
    """Operations that arrays do one after the other in each layer, on a logarithmic axis.

    Args:
        found: operations by layer, by network; the first is what the others are compared with, in grey.
    """
    layers = list(dict.fromkeys(layer for by_layer in found.values() for layer in by_layer))
    figure, axes = _figure()
    width = 0.8 / len(found)
    for number, (name, by_layer) in enumerate(found.items()):
        places = [layers.index(layer) + (number - (len(found) - 1) / 2) * width for layer in by_layer]
        colour = COLOURS[(number - 1) % len(COLOURS)] if number else _BEFORE
        axes.bar(places, list(by_layer.values()), 0.9 * width, color=colour, label=drawing.label(name))
        for place, value in zip(places, by_layer.values(), strict=True):
            axes.annotate(f"{value:,}", (place, value), (0, 1.5), textcoords="offset points", ha="center", fontsize=7)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0.7, 2 * max(value for by_layer in found.values() for value in by_layer.values()))
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(layers)), layers)
    axes.set_ylabel("array operations, one after another")
    drawing.legend_below(figure)
    return figure


def _legend(figure: Figure, axes: Any, curves: int) -> None:
    if curves <= FEW:
        axes.legend(frameon=False, fontsize=8)
    else:
        drawing.legend_below(figure)


def _figure(height: float = _SIZE[1]) -> tuple[Figure, Any]:
    figure = drawing.new_figure(_SIZE[0], height)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    drawing.grid(axes)
    return figure, axes
