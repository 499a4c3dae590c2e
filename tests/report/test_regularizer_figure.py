"""The figure of the implicit regularizer says what it shows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rapa_cli.analysis.regularizer import MEASURES, TILES, Training
from rapa_cli.report import figures
from rapa_cli.report.regularizer_figure import regularizer_against_tiles
from tests.report.test_figures import texts


def rows(tiles: tuple[int, ...] = TILES, seeds: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "training": str(training),
            "tiles": count,
            "seed": list(range(seeds)),
            **{name: [0.01 * (count - 1) * (place + 1) + 0.001 * seed for seed in range(seeds)]
               for place, name in enumerate(MEASURES)},
        }
        for training in Training
        for count in tiles
    ]  # fmt: skip


def test_what_is_shown(tmp_path: Path) -> None:
    table = rows()
    paths = figures.write(regularizer_against_tiles(table, "My $ data"), tmp_path, "regularizer")
    with Image.open(paths[0]) as picture:
        assert min(picture.size) >= 900
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"
    text = texts(paths[1])
    for part in (
        "My $ data",
        "means over 3 seeds, bands of one standard error",
        "regularizer R",
        "second order, rate x tiles",
        "variance of a weight across tiles",
        "test, averaged probability",
        "one tile, rate / tiles",
        "tiles",
    ):
        assert part in text
    again = figures.write(regularizer_against_tiles(table, "My $ data"), tmp_path / "again", "regularizer")
    assert again[1].read_bytes() == paths[1].read_bytes()


def test_lines_are_means_over_seeds() -> None:
    table = rows()
    size, spread, scaled, same = regularizer_against_tiles(table, "t").axes
    for axes, label, training, name in (
        (size, "R, rate x tiles", Training.SCALED, "regularizer"),
        (size, "second order, same rate", Training.SAME, "approximation"),
        (spread, "same rate", Training.SAME, "variance"),
        (scaled, "test, one draw", Training.SCALED, "test_loss"),
        (scaled, "train, mean weights", Training.SCALED, "mean_train_loss"),
        (scaled, "test, averaged probability", Training.SCALED, "averaged_test_loss"),
        (same, "train, one draw", Training.SAME, "train_loss"),
        (same, "one tile, rate / tiles", Training.CONTROL, "train_loss"),
    ):
        (line,) = [line for line in axes.lines if line.get_label() == label]
        points = dict(np.asarray(line.get_xydata()).tolist())
        wanted = {row["tiles"]: statistics.fmean(row[name]) for row in table if row["training"] == training}
        # One tile has R and variance 0, which a logarithmic axis has no place for.
        wanted = {count: value for count, value in wanted.items() if axes in (scaled, same) or count > 1}
        assert points == pytest.approx(wanted)
    assert size.get_yscale() == spread.get_yscale() == "log"
    assert {axes.get_xscale() for axes in (size, spread, scaled, same)} == {"log"}


@pytest.mark.parametrize("tiles", [(1,), (8,), (1, 2)])
def test_few_rows(tmp_path: Path, tiles: tuple[int, ...]) -> None:
    paths = figures.write(regularizer_against_tiles(rows(tiles, seeds=1), "t"), tmp_path, "x")
    assert "standard error" not in texts(paths[1])


def test_no_rows(tmp_path: Path) -> None:
    figures.write(regularizer_against_tiles([], "t"), tmp_path, "x")
