"""What all figures have in common: no screen, colours that most people can tell apart, plain axes and labels."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, RED = "#4477aa", "#cc3311"
"""Of two things that are compared, such as training and test, or a single draw and a vote."""
COLOURS = (BLUE, RED, "#228833", "#aa3377", "#ccbb44", "#66ccee", "#777777", "#000000")
"""Of more, such as networks: Paul Tol's bright and muted, which are colour-blind safe."""
FEW = 4
"""So many curves leave room for a legend among them."""


def new_figure(width: float, height: float) -> Figure:
    """A figure that needs no screen; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Axes) -> None:
    """Takes ticks and frame away, as around pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def grid(axes: Axes, **lines: Any) -> None:
    """Opens the frame at the top and on the right, and draws a weak grid; `lines` are matplotlib's."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, **lines)


def legend_below(figure: Figure, **entries: Any) -> None:
    """A legend below all axes, two curves to a line; `entries` are matplotlib's."""
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, **entries)


def title(figure: Figure, text: str) -> None:
    """A title over all axes of a figure, whose text is never a formula."""
    figure.suptitle(text, x=0.01, horizontalalignment="left", fontsize=10, parse_math=False)


def label(text: str) -> str:
    """A label that no formula is read in, and that a legend does not hide."""
    return text.replace("$", r"\$").removeprefix("_")
