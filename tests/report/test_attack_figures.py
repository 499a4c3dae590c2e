"""Figures of attacks say what they show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rapa_cli.report import figures
from rapa_cli.report.attack_figures import (
    CISSE_DB,
    HUMAN_DB,
    Curve,
    Example,
    accuracy_against_snr,
    clean_noise_adversarial,
)
from tests.report.test_figures import texts

SNR = [60.0, 50.0, 40.0, 33.0, 20.0]
SPACE, OVER = "[0, 1] pixels", "images right without noise"


def curve(network: str = "none", attack: str = "fgsm, fresh-draw", snr: list[float] | None = None) -> Curve:
    snr = SNR if snr is None else snr
    accuracy = [float(10 + n) for n in range(len(snr))]
    return Curve(network, attack, snr, accuracy, [(value - 5, value + 5) for value in accuracy])


def test_accuracy_against_snr(tmp_path: Path) -> None:
    curves = [curve(name, attack) for name in ("none", "random (16,4,1)") for attack in ("fgsm", "pgd, eot 16")]
    figure = accuracy_against_snr(curves, "cifar10", space=SPACE, over=OVER)
    (axes,) = figure.axes
    left, right = axes.get_xlim()
    assert left > SNR[0] > SNR[-1] > right, "noise grows to the right"
    lines = {line.get_label(): line for line in axes.lines}
    assert np.array_equal(lines["none: fgsm"].get_xdata(), sorted(SNR))
    assert lines["none: fgsm"].get_color() == lines["none: pgd, eot 16"].get_color()
    assert lines["none: fgsm"].get_linestyle() != lines["none: pgd, eot 16"].get_linestyle()
    assert np.array_equal(lines["human threshold, 33 dB (Cisse et al. 2017: 30)"].get_xdata(), [33, 33])
    assert len(axes.collections) == 4, "a band for each"
    paths = figures.write(figure, tmp_path, "accuracy")
    text = texts(paths[1])
    for part in (
        "cifar10",
        "human threshold, 33 dB",
        f"SNR (dB) of {SPACE}",
        f"accuracy (%) over {OVER}",
        "pgd, eot 16",
    ):
        assert part in text
    assert figures.write(figure, tmp_path / "again", "accuracy")[1].read_bytes() == paths[1].read_bytes()


def test_many_curves_have_their_legend_below() -> None:
    curves = [curve("none", f"attack {n}") for n in range(9)]
    figure = accuracy_against_snr(curves, "t", space=SPACE, over=OVER)
    assert figure.axes[0].get_legend() is None
    assert len(figure.legends[0].get_texts()) == 10
    colours = [line.get_color() for line in figure.axes[0].lines[:4]]
    assert len(set(colours)) == 4, "attacks on one network differ in colour"


def test_single_points_and_none(tmp_path: Path) -> None:
    figure = accuracy_against_snr([curve(snr=[33.0])], "t", space=SPACE, over=OVER)
    assert len(figure.axes[0].containers) == 1
    left, right = figure.axes[0].get_xlim()
    assert left > HUMAN_DB > CISSE_DB > right
    for nothing in ([curve(snr=[math.inf, math.nan])], [], [Curve("$a_b$", "_x", [33], [math.nan], [(0, 100)])]):
        figures.write(accuracy_against_snr(nothing, "$t_", space=SPACE, over=OVER), tmp_path, "x")


@pytest.mark.parametrize(("channels", "levels"), [(3, 5), (1, 1)])
def test_clean_noise_adversarial(tmp_path: Path, channels: int, levels: int) -> None:
    clean = torch.full((channels, 8, 8), 0.5)
    examples = []
    for level in range(levels):
        change = torch.full_like(clean, 0.1 / (level + 1))
        change[:, :4] *= -1
        examples.append(Example(f"{level} dB", 10.0 + level, clean + change, "cat" if level else "dog", bool(level)))
    examples[-1] = Example("9 dB", math.inf, clean, "cat", True)
    figure = clean_noise_adversarial(clean, "cat", examples, "none: fgsm")
    assert len(figure.axes) == 3 * levels
    paths = figures.write(figure, tmp_path, "images")
    text = texts(paths[1])
    for part in ("none: fgsm", "clean: cat", "stretched by the factor above it", "no noise: cat", "adversarial"):
        assert part in text
    if levels > 1:
        assert "10.0 dB: dog" in text
        assert "noise x 5" in text
        assert "noise x 10" in text
        shown = np.asarray(figure.axes[levels].images[0].get_array())
        assert shown.min() == pytest.approx(0, abs=1e-6)
        assert shown.max() == pytest.approx(1, abs=1e-6)
    with Image.open(paths[0]) as picture:
        assert min(picture.size) > 500
