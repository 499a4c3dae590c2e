"""The figure of `rapa plan`, after the paper's figure 1: what layers take on a computer, on arrays, and on tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator

from rapa_cli.report import drawing
from rapa_cli.report.drawing import BLUE, RED

if TYPE_CHECKING:
    from rapa_cli.analysis.analog_time import LayerCost
    from rapa_cli.analysis.planning import Plan

_COMPUTE, _KERNEL, _UNTILED, _TILED = RED, BLUE, "#bbbbbb", BLUE
# So many cuboids, and numbers on bars, have room beside each other.
_FEW = 6
# More cuts than this would fill a cuboid with lines.
_MOST_CUTS = 64
# How far a cuboid's depth goes to the right and up.
_RIGHT, _UP = 0.35, 0.25

_UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))

Point = tuple[float, float]


def time_and_compute(plan: Plan, title: str) -> Figure:
    """Multiply-adds of each layer, the time of a computer, beside array operations, the time of arrays.

    Of a few layers also the paper's cuboids: n_p high on the kernel matrix, k by c_out, so that the volume is the
    compute; the slices are what the tiles share out.

    Args:
        plan: of a network.
        title: of the figure.
    """
    layers = plan.layers
    few = len(layers) <= _FEW
    figure = drawing.new_figure(8.6, 6.4 if few else 5.4)
    faster = f"{plan.acceleration:.1f} times as fast pipelined, {plan.acceleration_sequential:.1f} one after the other"
    drawing.title(figure, f"{title}\n{faster}")
    if few:
        rows: Any = figure.subfigures(2, 1)
        above, below = rows
        _cuboids(above, layers)
        compute, time = below.subplots(1, 2)
    else:
        compute, time = figure.subplots(2, 1, sharex=True)
    places = list(range(1, len(layers) + 1))
    most = max(layer.macs for layer in layers)
    unit, size = next((unit, size) for unit, size in _UNITS if most >= size)
    macs = [layer.macs / size for layer in layers]
    bars = compute.bar(places, macs, 0.7, color=_COMPUTE)
    compute.set_title("computer: multiply-adds", loc="left", fontsize=9)
    compute.set_ylabel(f"multiply-adds ({unit})" if unit else "multiply-adds")
    untiled = [layer.n_p for layer in layers]
    tiled = [layer.array_cycles for layer in layers]
    beside = 0.38
    one = time.bar([place - beside / 2 for place in places], untiled, beside, color=_UNTILED, label="one array each")
    many = time.bar([place + beside / 2 for place in places], tiled, beside, color=_TILED, label="on tiles")
    time.set_title("arrays: operations one after the other", loc="left", fontsize=9)
    time.set_ylabel("array operations")
    time.legend(frameon=False, fontsize=8)
    if few:
        compute.bar_label(bars, [f"{number:.3g}" for number in macs], fontsize=7)
        time.bar_label(one, [f"{number}" for number in untiled], fontsize=7)
        time.bar_label(many, [f"{number}" for number in tiled], fontsize=7)
        for axes in (compute, time):
            axes.set_xticks(places, [layer.name for layer in layers], fontsize=8, parse_math=False)
    else:
        # From the first layer to the last lie two orders of magnitude or more.
        time.set_yscale("log")
        time.set_ylim(bottom=1)
        time.yaxis.set_major_formatter("{x:g}")
        time.xaxis.set_major_locator(MaxNLocator(integer=True))
        time.set_xlabel("convolution, in order")
    for axes in (compute, time):
        drawing.grid(axes, axis="y")
        axes.set_axisbelow(True)
    return figure


def _cuboids(figure: Any, layers: Sequence[LayerCost]) -> None:
    """A cuboid for each layer, all on one scale."""
    longest, deepest, highest = (max(getattr(layer, side) for layer in layers) for side in ("k", "c_out", "n_p"))
    for number, layer in enumerate(layers, 1):
        axes = figure.add_subplot(1, len(layers), number)
        width, depth, height = layer.k / longest, layer.c_out / deepest, layer.n_p / highest
        back = (_RIGHT * depth, _UP * depth)
        _cuboid(axes, width, back, height, min(layer.tiles, _MOST_CUTS))
        middle, reach = (width + back[0]) / 2, (1.1 + _RIGHT) / 2
        axes.set(xlim=(middle - reach, middle + reach), ylim=(-0.05, 1.05 + _UP))
        axes.set_axis_off()
        tiles = f"{layer.tiles} {'tile' if layer.tiles == 1 else 'tiles'}"
        axes.set_title(f"{layer.name}: {tiles}", fontsize=9, parse_math=False)
        axes.text(
            0.5,
            -0.02,
            f"$n_p$ = {layer.n_p}, k = {layer.k}, $c_{{out}}$ = {layer.c_out}",
            fontsize=7,
            horizontalalignment="center",
            verticalalignment="top",
            transform=axes.transAxes,
        )


def _cuboid(axes: Any, width: float, back: Point, height: float, slices: int) -> None:
    def face(corners: Sequence[Point], colour: str, alpha: float) -> None:
        axes.add_patch(Polygon(corners, closed=True, facecolor=colour, edgecolor="black", linewidth=0.5, alpha=alpha))

    dx, dy = back
    for number in range(slices):
        low, high = height * number / slices, height * (number + 1) / slices
        # The lowest slice is that of one tile.
        alpha = 0.9 if number == 0 else 0.35
        face([(0, low), (width, low), (width, high), (0, high)], _COMPUTE, alpha)
        face([(width, low), (width + dx, low + dy), (width + dx, high + dy), (width, high)], _COMPUTE, alpha)
    face([(0, height), (width, height), (width + dx, height + dy), (dx, height + dy)], _KERNEL, 0.9)
