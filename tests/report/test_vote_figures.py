"""Figures of votes say what they show, for few and many draws, and for classes of any name and number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from rapa_cli.analysis.calibration import outcomes
from rapa_cli.analysis.voting import VoteResult
from rapa_cli.report import figures, vote_figures
from tests.report.test_figures import texts


def result(n: int, classes: int = 3) -> VoteResult:
    """Some numbers, which the figures need not understand."""
    generator = torch.Generator().manual_seed(n)
    labels, chosen = torch.randint(0, classes, (2, 300), generator=generator)
    found = outcomes(labels, chosen, torch.rand(300, generator=generator), classes)
    wrong = tuple(int(count) for count in torch.randint(30, 60, (n,), generator=generator))
    return VoteResult(300, wrong, tuple(sorted(wrong)[::-1]), wrong, 100, 0, found, found, found)


def written(figure: Figure, folder: Path) -> str:
    paths = figures.write(figure, folder, "figure")
    with Image.open(paths[0]) as picture:
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"
    return texts(paths[1])


@pytest.mark.parametrize("n", [1, 2, 25, 400])
def test_error_against_draws(tmp_path: Path, n: int) -> None:
    found = result(n)
    figure = vote_figures.error_against_draws(found, "tiny_$x$")
    text = written(figure, tmp_path)
    assert "tiny_$x$" in text
    assert f"majority of {n}: {found.vote_error:.2f} %" in text
    assert f"soft vote of {n}: {found.soft_error:.2f} %" in text
    assert f"single draw, mean {found.single_error:.2f} %" in text
    assert ("each draw alone" in text) == (n <= 40)
    lines = {str(line.get_label()).split(" ")[0]: line for line in figure.axes[0].lines}
    assert np.asarray(lines["majority"].get_ydata()).tolist() == [point.vote_error for point in found.curve]
    assert figure.axes[0].get_xscale() == ("linear" if n <= 40 else "log")


def test_reliability(tmp_path: Path) -> None:
    found = result(3).vote.calibration
    figure = vote_figures.reliability({"single draw": found, "vote": found}, "title")
    text = written(figure, tmp_path)
    assert text.count(f"ECE {found.ece:.2f}, {found.accuracy:.2f} % right") == 2
    heights = [bar.get_height() for bar in figure.axes[0].containers[0]]
    assert heights == pytest.approx([row["accuracy"] for row in found.rows()])


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confusion(tmp_path: Path, classes: int) -> None:
    found = result(3, classes)
    names = [f"c{number}_$" for number in range(classes)]
    text = written(vote_figures.confusion(found.single, found.vote, names, "title"), tmp_path)
    assert "c0_$" in text
    assert (f"{float(found.vote.rates[0, 0]):.0f}" in text) or classes > 12
    # Neither thousands of numbers nor names on each other.
    assert len(text.split()) < 500
