"""Figures of votes: error against the number of draws, reliability diagrams, confusion between classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rapa_cli.report import drawing
from rapa_cli.report.drawing import COLOURS, RED

if TYPE_CHECKING:
    from rapa_cli.analysis.calibration import Calibration, Outcomes
    from rapa_cli.analysis.voting import VoteResult

_SINGLE, _VOTE, _SOFT = COLOURS[:3]
_GAP = RED
# More draws than these are shown on a logarithmic axis; single draws have no points of their own any more.
_MANY = 40
# So many classes leave room for a number in each field, and for the names.
_NUMBERED, _NAMED = 12, 30


def error_against_draws(found: VoteResult, title: str) -> Figure:
    """Error of the majority and of the soft vote against the number of draws, beside that of single draws.

    The band is the 95 % interval of the majority over images; that of the soft vote is about as wide.

    Args:
        found: of all draws.
        title: of the figure.
    """
    figure = drawing.new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    points = found.curve
    n = [point.n for point in points]
    few = len(n) <= _MANY
    single = f"single draw, mean {found.single_error:.2f} %"
    if few:
        each = [point.single_error for point in points]
        axes.plot(n, each, color=_SINGLE, marker="o", markersize=3, linestyle="none", label="each draw alone")
    axes.axhline(found.single_error, color=_SINGLE, linewidth=1, linestyle="--", label=single)
    for label, colour, style, marker, errors in (
        ("majority", _VOTE, "-", "s", [point.vote_error for point in points]),
        ("soft vote", _SOFT, ":", "^", [point.soft_error for point in points]),
    ):
        name = f"{label} of {n[-1]:,}: {errors[-1]:.2f} %"
        axes.plot(n, errors, color=colour, linestyle=style, marker=marker if few else None, markersize=4, label=name)
    low, high = zip(*(point.ci95 for point in points), strict=True)
    axes.fill_between(n, low, high, color=_VOTE, alpha=0.1, linewidth=0)
    if few:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="draws that vote (the first of all)", ylabel="error (%)")
    axes.set_title(
        f"{title}\n{found.images:,} images; band: 95 % interval of the majority over images",
        loc="left",
        fontsize=10,
        parse_math=False,
    )
    drawing.grid(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def reliability(panels: Mapping[str, Calibration], title: str) -> Figure:
    """Reliability diagrams side by side: accuracy against confidence in bins, and below how many predictions are where.

    A bar in full colour is the accuracy of a bin, a hatched one its distance to the mean confidence.

    Args:
        panels: what is calibrated, by name.
        title: of the figure.
    """
    figure = drawing.new_figure(3.0 * len(panels) + 0.4, 4.8)
    grid: Any = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1))
    for (name, found), upper, lower in zip(panels.items(), grid[0], grid[1], strict=True):
        rows = found.rows()
        width = 100 / len(rows)
        middle = [row["low"] + width / 2 for row in rows]
        accuracy = [math.nan if row["accuracy"] is None else row["accuracy"] for row in rows]
        confidence = [math.nan if row["confidence"] is None else row["confidence"] for row in rows]
        gap = [sure - right for sure, right in zip(confidence, accuracy, strict=True)]
        upper.bar(middle, accuracy, width, color=_SINGLE, edgecolor="white", linewidth=0.5, label="accuracy")
        upper.bar(
            middle, gap, width, accuracy, color="none", edgecolor=_GAP, hatch="////", linewidth=0.5,
            label="to the confidence",
        )  # fmt: skip
        upper.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle="--", label="calibrated")
        upper.set_title(
            f"{name}\nECE {found.ece:.2f}, {found.accuracy:.2f} % right\nmean confidence {found.mean_confidence:.2f} %",
            loc="left",
            fontsize=9,
            parse_math=False,
        )
        shares = (100 * found.count / found.count.sum()).tolist()
        lower.bar(middle, shares, width, color="#999999", edgecolor="white", linewidth=0.5)
        lower.axvline(found.mean_confidence, color=_GAP, linewidth=1, linestyle="--")
        lower.axvline(found.accuracy, color=_SINGLE, linewidth=1)
        upper.set(xlim=(0, 100), ylim=(0, 100))
        lower.set(xlabel="confidence (%)")
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("accuracy (%)")
    grid[1][0].set_ylabel("share (%)")
    grid[0][0].legend(frameon=False, fontsize=7, loc="upper left")
    drawing.title(figure, title)
    return figure


def confusion(single: Outcomes, vote: Outcomes, classes: Sequence[str], title: str) -> Figure:
    """Which classes are taken for which by a vote, and what it changes against single draws.

    Args:
        single: outcomes of single draws.
        vote: outcomes of the vote.
        classes: their names.
        title: of the figure.
    """
    size = min(max(0.36 * len(classes) + 2.0, 4.0), 10.0)
    figure = drawing.new_figure(2 * size + 0.6, size - 0.3)
    left, right = figure.subplots(1, 2)
    rates = vote.rates.cpu().numpy()
    _matrix(figure, left, rates, classes, "vote: share of a row (%)", "Blues", 0, 100, "{:.0f}")
    change = rates - single.rates.cpu().numpy()
    most = max(float(np.nan_to_num(np.abs(change)).max()), 1.0)
    _matrix(figure, right, change, classes, "vote less single draw (points)", "RdBu_r", -most, most, "{:+.1f}")
    drawing.title(figure, title)
    return figure


def _matrix(
    figure: Figure,
    axes: Axes,
    values: Any,
    classes: Sequence[str],
    title: str,
    colours: str,
    low: float,
    high: float,
    form: str,
) -> None:
    picture = axes.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="none")
    figure.colorbar(picture, ax=axes, shrink=0.8)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set(xlabel="taken for", ylabel="class")
    every = range(0, len(classes), max(1, math.ceil(len(classes) / _NAMED)))
    names = [classes[number].replace("$", r"\$") for number in every]
    axes.set_xticks(every, names, rotation=90, fontsize=7)
    axes.set_yticks(every, names, fontsize=7)
    if len(classes) > _NUMBERED:
        return
    for (row, column), value in np.ndenumerate(values):
        # Dark fields have light numbers.
        dark = abs(value - (low + high) / 2 if low < 0 else value - low) > 0.6 * (high if low < 0 else high - low)
        text = form.format(value)
        if math.isfinite(value) and float(text):
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
