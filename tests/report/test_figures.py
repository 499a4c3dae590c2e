"""Figures: both files are written, the same for the same run, and say what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.steps import ConstantStepDevice, LinearStepDevice
from rapa_cli.analysis.drift import Age, Drift
from rapa_cli.analysis.response import response
from rapa_cli.errors import FileError
from rapa_cli.report import figures

SVG = "{http://www.w3.org/2000/svg}"


def rows(count: int, *, low: float = 10.0) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "rate": 0.1,
            "train_loss": 1 / epoch,
            "train_error": 80 / epoch,
            "test_loss": 1 / epoch,
            "test_error": low + 60 / epoch,
        }
        for epoch in range(1, count + 1)
    ]


def texts(path: Path) -> str:
    """All text in an SVG file, which is text and no outlines."""
    return " ".join("".join(element.itertext()) for element in ElementTree.parse(path).iter(f"{SVG}text"))


@pytest.mark.parametrize("epochs", [1, 2, 12, 400])
def test_a_learning_curve(tmp_path: Path, epochs: int) -> None:
    paths = figures.write(figures.learning_curve(rows(epochs), "full on tiny"), tmp_path / "figures", "curve")
    assert [path.name for path in paths] == ["curve.png", "curve.svg"]
    assert sorted((tmp_path / "figures").iterdir()) == paths
    with Image.open(paths[0]) as picture:
        assert min(picture.size) >= 500
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"
    text = texts(paths[1])
    for part in (
        "full on tiny",
        "epoch",
        "error (%)",
        "train",
        "test",
        f"lowest {10 + 60 / epochs:.2f} % in epoch {epochs}",
    ):
        assert part in text


def test_the_same_run_draws_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        figures.write(figures.learning_curve(rows(5), "title"), tmp_path / name, "curve")
    for kind in ("png", "svg"):
        assert (tmp_path / "a" / f"curve.{kind}").read_bytes() == (tmp_path / "b" / f"curve.{kind}").read_bytes()


def test_the_lowest_error_is_marked_where_it_is(tmp_path: Path) -> None:
    table = rows(6)
    table[3]["test_error"] = 4.25
    table[5]["test_error"] = 4.25
    figures.write(figures.learning_curve(table, "title"), tmp_path, "curve")
    assert "lowest 4.25 % in epoch 4" in texts(tmp_path / "curve.svg"), "the first of two"


def test_titles_are_no_formulas(tmp_path: Path) -> None:
    title = "a_b$ & <my> net$ \\frac on 100 %: random (16,4,1), stochastic"
    figures.write(figures.learning_curve(rows(3), title), tmp_path, "curve")
    assert title in texts(tmp_path / "curve.svg")


def test_errors_of_nothing(tmp_path: Path) -> None:
    table = [{**row, "train_error": 0.0, "test_error": 0.0} for row in rows(3)]
    figures.write(figures.learning_curve(table, "perfect"), tmp_path, "curve")
    assert "0.00 %" in texts(tmp_path / "curve.svg")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("", encoding="ascii")
    with pytest.raises(FileError, match="a file stands where a folder should be"):
        figures.write(figures.learning_curve(rows(2), "title"), tmp_path / "figures", "curve")


def test_the_response_of_devices(tmp_path: Path) -> None:
    found = response(LinearStepDevice(dw_min=0.02, gamma_up=0.5, gamma_down=0.5), torch.Generator().manual_seed(0))
    paths = figures.write(figures.device_response(found, "My $ preset"), tmp_path, "response")
    with Image.open(paths[0]) as picture:
        assert min(picture.size) >= 500
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"
    text = texts(paths[1])
    assert found.after_up is not None
    for part in (
        "My $ preset",
        f"pulses ({found.train:,} up, then as many down)",
        "weight",
        "size of a step",
        "mean of all",
        "10 to 90 % of all",
        "without spread and noise",
        "symmetry point at",
        f"at their bounds: {100 * found.after_up.fraction:.0f} % after up",
    ):
        assert part in text


def test_responses_without_some_parts(tmp_path: Path) -> None:
    device, generator = ConstantStepDevice(dw_min=0.02), torch.Generator().manual_seed(0)
    pair = response(OneSidedUnitCell(unit_cell_devices=(device, device)), generator)
    stuck = response(device.model_copy(update={"corrupt_devices_prob": 1.0}), generator)
    for name, found in (("pair", pair), ("stuck", stuck)):
        figures.write(figures.device_response(found, name), tmp_path, name)
    assert "symmetry point" not in texts(tmp_path / "pair.svg")
    assert pair.note in texts(tmp_path / "pair.svg")
    assert "all are stuck" in texts(tmp_path / "stuck.svg")


def aged(*seconds: float, repeats: int = 2) -> Drift:
    errors = tuple(10.0 + repeat for repeat in range(repeats))
    ages = tuple(Age(time, 20.0, errors, errors, ()) for time in seconds)
    return Drift(1234, 5, repeats, InferenceArrays(), (), (), False, 9.0, 8.0, ages)


def test_errors_against_time(tmp_path: Path) -> None:
    found = aged(31536000.0, 0.0, 3600.0, 86400.0)
    paths = figures.write(figures.error_against_time(found, "My $ net"), tmp_path, "drift")
    with Image.open(paths[0]) as picture:
        assert min(picture.size) >= 500
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"
    text = texts(paths[1])
    for part in (
        "My $ net",
        "1,234 images; bars: standard error over 2 programmings",
        "time after programming (logarithmic, from 20 s)",
        "0 s 1 h 1 d 1 y",
        "error (%)",
        "single draw single draw, digital vote of 5 vote of 5, digital",
    ):
        assert part in text


def test_labels_of_times_do_not_lie_on_each_other(tmp_path: Path) -> None:
    figures.write(figures.error_against_time(aged(0.0, 1.0, 2.0, 3600.0, 3700.0), "title"), tmp_path, "drift")
    text = texts(tmp_path / "drift.svg")
    assert "0 s 1 h" in text
    assert "3700 s" not in text


@pytest.mark.parametrize("repeats", [1, 2])
def test_one_time(tmp_path: Path, repeats: int) -> None:
    found = aged(3600.0, repeats=repeats)
    figures.write(figures.error_against_time(found, "title"), tmp_path, "drift")
    text = texts(tmp_path / "drift.svg")
    assert "1 h" in text
    assert ("standard error" in text) == (repeats > 1)
