"""The figure of a plan shows its numbers."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from rapa_cli.analysis.analog_time import Layer
from rapa_cli.analysis.planning import Plan, plan
from rapa_cli.report import figures
from rapa_cli.report.plan_figure import time_and_compute

SVG = "{http://www.w3.org/2000/svg}"


def network(count: int) -> Plan:
    layers = [Layer(f"conv{number}", 32 >> min(number, 4), 32, (3, 3), 4, 8 * number) for number in range(1, count + 1)]
    return plan(layers)


def bars(figure: Figure) -> list[list[float]]:
    """Heights of the bars, for each group of them."""
    return [
        [round(float(bar.get_height()), 6) for bar in group]
        for axes in figure.findobj(lambda artist: hasattr(artist, "containers"))
        for group in axes.containers  # type: ignore[attr-defined]
    ]


@pytest.mark.parametrize("count", [1, 3, 6, 7, 40])
def test_the_bars_are_the_plan(count: int, tmp_path: Path) -> None:
    found = network(count)
    figure = time_and_compute(found, "a name with $ and _")
    macs, untiled, tiled = bars(figure)
    assert untiled == [layer.n_p for layer in found.layers]
    assert tiled == [layer.array_cycles for layer in found.layers]
    unit = 1e6 if max(layer.macs for layer in found.layers) >= 1e6 else 1e3
    assert macs == pytest.approx([layer.macs / unit for layer in found.layers], rel=1e-4)
    paths = figures.write(figure, tmp_path, "plan")
    text = " ".join("".join(element.itertext()) for element in ElementTree.parse(paths[1]).iter(f"{SVG}text"))
    assert "a name with $ and _" in text
    assert f"{found.acceleration:.1f} times as fast pipelined" in text


def test_each_tile_is_a_slice() -> None:
    found = network(3)
    polygons = time_and_compute(found, "x").findobj(Polygon)
    # Two faces of each slice are seen, and the kernel matrix above them.
    assert len(polygons) == sum(2 * layer.tiles + 1 for layer in found.layers)
