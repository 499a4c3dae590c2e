"""Figures of attacks: accuracy against the signal-to-noise ratio, and what the images look like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from rapa_cli.report import drawing
from rapa_cli.report.drawing import COLOURS, FEW, RED

if TYPE_CHECKING:
    from torch import Tensor

# By the paper; the caption of the figure in Cisse et al. (2017) that it takes it from says 30.
HUMAN_DB, CISSE_DB = 33.0, 30.0

# A colour for each network, a dash for each attack.
_STYLES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "x")
_THRESHOLD = "#555555"


@dataclass(frozen=True)
class Curve:
    """Accuracy of one network under one attack.

    Attributes:
        network: as the legend names it.
        attack: likewise.
        snr_db: signal-to-noise ratios that came about, dB; not finite where nothing was changed.
        accuracy: percent.
        ci95: intervals, percent.
    """

    network: str
    attack: str
    snr_db: Sequence[float]
    accuracy: Sequence[float]
    ci95: Sequence[tuple[float, float]]


def accuracy_against_snr(curves: Sequence[Curve], title: str, *, space: str, over: str) -> Figure:
    """The paper's figure 4: accuracy against the signal-to-noise ratio, weak noise on the left, with 95 % bands.

    Args:
        curves: of several networks and attacks.
        title: of the figure.
        space: the pixels that the ratio is of, in words.
        over: the images that count, in words.
    """
    # A legend of many curves stands below, two to a line.
    figure = drawing.new_figure(7.2, 4.6 + (0.1 * len(curves) + 0.2 if len(curves) > FEW else 0))
    axes = figure.add_subplot()
    networks = list(dict.fromkeys(curve.network for curve in curves))
    attacks = list(dict.fromkeys(curve.attack for curve in curves))
    one_network, one_attack = len(networks) == 1, len(attacks) == 1
    for curve in curves:
        network, attack = networks.index(curve.network), attacks.index(curve.attack)
        # With one network the attacks have the colours, which tell more than dashes.
        colour = COLOURS[(attack if one_network else network) % len(COLOURS)]
        points = sorted(
            (snr, accuracy, *interval)
            for snr, accuracy, interval in zip(curve.snr_db, curve.accuracy, curve.ci95, strict=True)
            if math.isfinite(snr) and math.isfinite(accuracy)
        )
        if not points:
            continue
        snr, accuracy, low, high = zip(*points, strict=True)
        label = curve.attack if one_network else curve.network if one_attack else f"{curve.network}: {curve.attack}"
        axes.plot(
            snr,
            accuracy,
            color=colour,
            linestyle=_STYLES[(attack // len(COLOURS) if one_network else attack) % len(_STYLES)],
            marker=_MARKERS[attack % len(_MARKERS)],
            markersize=4,
            label=drawing.label(label),
        )
        if len(points) > 1:
            axes.fill_between(snr, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.errorbar(snr, accuracy, [[accuracy[0] - low[0]], [high[0] - accuracy[0]]], color=colour, capsize=3)
    label = f"human threshold, {HUMAN_DB:g} dB (Cisse et al. 2017: {CISSE_DB:g})"
    axes.axvline(HUMAN_DB, color=_THRESHOLD, linewidth=1, linestyle=(0, (4, 2)), label=label)
    left, right = axes.get_xlim()
    # Room for the threshold where all noise is weaker or stronger.
    axes.set_xlim(max(right, HUMAN_DB + 2), min(left, CISSE_DB - 2))
    axes.set_ylim(0, 105)
    axes.set(xlabel=f"SNR (dB) of {space}, noise grows to the right", ylabel=f"accuracy (%) over {over}")
    # What all curves share stands in the title, and not in the legend.
    shared = [names[0] for names in (networks, attacks) if len(names) == 1]
    axes.set_title(
        "\n".join([title, *([", ".join(shared)] if shared else [])]), loc="left", fontsize=10, parse_math=False
    )
    drawing.grid(axes)
    if len(curves) <= FEW:
        axes.legend(frameon=False, fontsize=8, handlelength=3)
    else:
        drawing.legend_below(figure, handlelength=3)
    return figure


@dataclass(frozen=True)
class Example:
    """One image under attack at one level.

    Attributes:
        asked: the level, in words.
        snr_db: what came about, dB.
        adversarial: (C, H, W) in [0, 1].
        predicted: name of the class that the network sees.
        right: whether that is the image's class.
    """

    asked: str
    snr_db: float
    adversarial: Tensor
    predicted: str
    right: bool


def clean_noise_adversarial(clean: Tensor, label: str, examples: Sequence[Example], title: str) -> Figure:
    """The clean image, what was added to it, and both together, a column for each level.

    What was added is shown around grey, and stretched until its largest value is white or black: the factor stands
    above it.

    Args:
        clean: (C, H, W) in [0, 1].
        label: name of its class.
        examples: from weak noise to strong.
        title: of the figure.
    """
    figure = drawing.new_figure(1.5 * max(len(examples), 3) + 0.5, 5.4)
    grid: Any = figure.subplots(3, len(examples), squeeze=False)
    for column, example in enumerate(examples):
        change = example.adversarial - clean
        largest = float(change.abs().max())
        factor = 0.5 / largest if largest else 1.0
        snr = f"{example.snr_db:.1f} dB" if math.isfinite(example.snr_db) else "no noise"
        pictures = (
            (clean, f"{example.asked}\nclean: {label}", "black"),
            (0.5 + factor * change, f"noise x {factor:,.0f}" if largest else "no noise", "black"),
            (example.adversarial, f"{snr}: {example.predicted}", "black" if example.right else RED),
        )
        for row, (picture, heading, colour) in enumerate(pictures):
            axes = grid[row][column]
            pixels = np.asarray(picture.detach().clamp(0, 1).permute(1, 2, 0))
            axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set_title(heading, fontsize=7, color=colour, parse_math=False)
            drawing.bare(axes)
    for row, name in enumerate(("clean", "added, stretched", "adversarial")):
        grid[row][0].set_ylabel(name, fontsize=9)
    figure.suptitle(
        f"{title}\nnoise is stretched by the factor above it; red: the network is wrong",
        x=0.01,
        horizontalalignment="left",
        fontsize=9,
        parse_math=False,
    )
    return figure
