"""Figures, drawn without a screen and written as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from rapa_cli.files import atomic, make_folder
from rapa_cli.report import drawing
from rapa_cli.report.drawing import BLUE, RED

if TYPE_CHECKING:
    from rapa_cli.analysis.benchmark import Row
    from rapa_cli.analysis.drift import Drift
    from rapa_cli.analysis.response import Response

_SINGLE = "#999999"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def learning_curve(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Train and test error in percent against the epoch; `rows` are the rows of a run's metrics."""
    figure = drawing.new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in rows]
    best = min(rows, key=lambda row: row["test_error"])
    lowest = f"test (lowest {best['test_error']:.2f} % in epoch {best['epoch']})"
    for key, label, colour in (("train_error", "train", BLUE), ("test_error", lowest, RED)):
        errors = [row[key] for row in rows]
        axes.plot(epochs, errors, color=colour, marker="o" if len(rows) < 30 else None, markersize=3, label=label)
    axes.plot(best["epoch"], best["test_error"], color=RED, marker="o", markersize=9, markerfacecolor="none")
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set(xlabel="epoch", ylabel="error (%)", ylim=(0, 1.1 * max(*axes.get_ylim(), 1)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    drawing.grid(axes)
    axes.legend(frameon=False)
    return figure


def cost_against_tiles(rows: Sequence[Row], device: str) -> Figure:
    """Time of layers on a device, relative to ordinary convolutions, against the tiles of the first layer."""
    rows = [row for row in rows if row.what in ("layers", "arrays")]
    batches = sorted({row.batch for row in rows})
    # A contender may have a place in some of the axes only.
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(row.contender for row in rows))}
    figure = drawing.new_figure(4.2 * len(batches), 4.4)
    drawing.title(figure, f"convolutions of full on {device}")
    for number, batch in enumerate(batches, 1):
        axes = figure.add_subplot(1, len(batches), number)
        chosen = [row for row in rows if row.batch == batch]
        for contender in dict.fromkeys(row.contender for row in chosen):
            points = sorted((row.tiles[0], row.ratio) for row in chosen if row.contender == contender)
            ours = contender in ("ours", "ideal")
            axes.plot(
                [tiles for tiles, _ in points],
                [ratio for _, ratio in points],
                color=colours[contender],
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
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    drawing.legend_below(figure, handles=list(lines.values()))
    return figure


def device_response(found: Response, title: str) -> Figure:
    """Weights against pulses up and then down, and beside that the size of a device's step against its weight."""
    figure = drawing.new_figure(8.6, 4.2)
    trains, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
    heading = f"{title}\n{found.note}" if found.note else title
    drawing.title(figure, heading)

    for number, single in enumerate(found.singles):
        trains.plot(
            found.pulses, single, color=_SINGLE, linewidth=0.7, alpha=0.8, label=None if number else "single ones"
        )
    trains.fill_between(found.pulses, *found.band, color=BLUE, alpha=0.25, linewidth=0, label="10 to 90 % of all")
    trains.plot(found.pulses, found.mean, color=BLUE, linewidth=2, label="mean of all")
    trains.plot(found.pulses, found.noise_free, color="black", linestyle="--", label="without spread and noise")
    trains.axvline(found.train, color="black", linewidth=0.8, linestyle=":")
    ends = ((found.after_up, "up"), (found.after_down, "down"))
    shares = [f"{100 * end.fraction:.0f} % after {word}" for end, word in ends if end is not None]
    trains.set_title(f"at their bounds: {', '.join(shares)}" if shares else "all are stuck", fontsize=9, loc="left")
    trains.set(xlabel=f"pulses ({found.train:,} up, then as many down)", ylabel="weight")
    trains.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    trains.xaxis.set_major_formatter("{x:,.0f}")

    steps = found.steps
    curves = [("up", steps.up, steps.up_band, BLUE, "-"), ("down", steps.down, steps.down_band, RED, "--")]
    exponent = math.floor(math.log10(max(float(size.max()) for _, size, _, _, _ in curves if size is not None)))
    unit = 10.0**exponent
    for label, size, band, colour, style in curves:
        if size is not None and band is not None:
            sizes.plot(steps.weights, size / unit, color=colour, linewidth=2, linestyle=style, label=label)
            sizes.fill_between(steps.weights, *(band / unit), color=colour, alpha=0.2, linewidth=0)
    if found.symmetry_point is not None:
        label = f"symmetry point at {round(found.symmetry_point, 2) + 0.0:.2f}"
        sizes.axvline(found.symmetry_point, color="black", linewidth=0.8, linestyle=":", label=label)
    sizes.set_title("step without noise, 10 to 90 % of devices", fontsize=9, loc="left")
    sizes.set(xlabel="weight", ylabel=f"size of a step (10{str(exponent).translate(_RAISED)} weight)")
    sizes.set_ylim(bottom=0)
    for axes in (trains, sizes):
        drawing.grid(axes)
        axes.legend(frameon=False, fontsize=8)
    return figure


def error_against_time(found: Drift, title: str) -> Figure:
    """Errors against the time after programming, single draws and votes, with standard errors over programmings.

    Time runs on a logarithmic axis from when the noise model reads for the first time, where 0 seconds stands.
    """
    from rapa_cli.analysis.drift import duration

    figure = drawing.new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    ages = sorted(found.ages, key=lambda age: age.seconds)
    places = [age.seconds + age.t_0 for age in ages]
    singles = [(age.single_error, age.single_se) for age in ages]
    votes = [(age.vote_error, age.vote_se) for age in ages]
    low, high = (places[0], places[-1]) if len(places) > 1 else (places[0] / 2, 2 * places[0])
    lines: list[Any] = []
    # The bars of both would else lie on each other.
    for label, colour, marker, points, digital, aside in (
        ("single draw", BLUE, "o", singles, found.digital_single, -0.004),
        (f"vote of {found.votes}", RED, "s", votes, found.digital_vote, 0.004),
    ):
        beside = [place * (high / low) ** aside for place in places]
        means, errors = zip(*points, strict=True)
        bars = None if found.repeats == 1 else errors
        lines += [
            axes.errorbar(beside, means, bars, color=colour, marker=marker, markersize=4, capsize=3, label=label),
            axes.axhline(digital, color=colour, linewidth=1, linestyle="--", label=f"{label}, digital"),
        ]
    axes.set_xscale("log")
    room = (high / low) ** 0.04
    axes.set_xlim(low / room, high * room)
    # Times that would stand too near to the one before have no label.
    shown: list[tuple[float, str]] = []
    for place, age in zip(places, ages, strict=True):
        if not shown or math.log(place / shown[-1][0]) > 0.09 * math.log(high / low):
            shown.append((place, duration(age.seconds)))
    axes.set_xticks([place for place, _ in shown], [label for _, label in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set(xlabel=f"time after programming (logarithmic, from {ages[0].t_0:g} s)", ylabel="error (%)")
    over = "" if found.repeats == 1 else f"; bars: standard error over {found.repeats} programmings"
    axes.set_title(f"{title}\n{found.images:,} images{over}", loc="left", fontsize=10, parse_math=False)
    drawing.grid(axes)
    axes.legend(handles=lines, frameon=False, fontsize=8)
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
