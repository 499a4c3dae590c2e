"""Figure 4: accuracy under FGSM without tiles, with (16, 4, 1) and with (128, 32, 8), and how sure networks are."""

from __future__ import annotations

import math
from typing import Any

from rapa_cli.experiments.claims import Estimate, Verdict, Z, pooled
from rapa_cli.experiments.jobs import Found, Job
from rapa_cli.experiments.measures import Measure, known
from rapa_cli.experiments.settings import HUMAN_SNR, LARGE, TILES, Settings

_CLEAN = "clean"


def networks(settings: Settings) -> dict[str, list[Job]]:
    """The trainings, by the names of their networks; the untiled one first."""
    return {
        "none": [settings.train("none", seed=seed) for seed in range(settings.seeds)],
        **{
            _name(tiles): [settings.train("random", tiles=tiles, seed=seed) for seed in range(settings.seeds)]
            for tiles in (TILES, LARGE)
        },
    }


def jobs(settings: Settings) -> list[Job]:
    """A sweep over SNR and a look at the highest probabilities for each network."""
    return [job for pair in _jobs(settings).values() for each in pair for job in each]


def jobs_of(settings: Settings, name: str) -> list[tuple[Job, Job]]:
    """The attack and the look at the highest probabilities of a network, for each seed."""
    return list(zip(*_jobs(settings)[name], strict=True))


def measures(settings: Settings, found: Found) -> list[Measure]:
    """Accuracies, the part of the gap that is closed, and how sure the networks are."""
    measured = []
    for name, (attacks, _) in _jobs(settings).items():
        sweeps = [found[job] for job in attacks if job in found]
        points = [[point["accuracy"] for point in sweep["points"]] for sweep in sweeps]
        levels = [f"{point['asked']['snr_db']:g} dB" for point in (sweeps[0]["points"] if sweeps else [])]
        for number, level in enumerate(levels):
            theirs = settings.paper("figure4", f"accuracy, {name}") if level == f"{HUMAN_SNR} dB" else None
            values = known([each[number] for each in points if number < len(each)])
            measured.append(
                Measure("figure4", name, level, "accuracy of images right without noise (%)", values, theirs)
            )
        if name != "none":
            closed = tuple(100 * part for part in known([_human(sweep).get("gap_closed") for sweep in sweeps]))
            theirs = settings.paper("figure4", f"gap closed, {name}")
            measured.append(Measure("figure4", name, f"{HUMAN_SNR} dB", "gap closed (%)", closed, theirs))
    for name, (_, confidences) in _jobs(settings).items():
        documents = [found[job]["confidence"] for job in confidences if job in found]
        for number, level in enumerate((_CLEAN, f"{HUMAN_SNR} dB")):
            for key, what in (
                ("mean", "mean highest probability (%)"),
                ("over_90", "images with a probability above 90 % (%)"),
                ("mean_wrong", "mean highest probability of wrong images (%)"),
            ):
                values = known([document[number][key] for document in documents])
                measured.append(Measure("figure4", name, level, what, values))
    return measured


def verdicts(settings: Settings, found: Found) -> list[Verdict]:
    """Whether the gap is reduced and confidence stabilised."""
    checked = []
    pairs = _jobs(settings)
    ordinary = [found[job]["confidence"] for job in pairs["none"][1] if job in found]
    for name, (attacks, confidences) in pairs.items():
        if name == "none":
            continue
        # There is no gap to close where the untiled network makes no mistake.
        points = [
            point
            for point in (_human(found[job]) for job in attacks if job in found)
            if point.get("gap_closed") is not None and None not in point["gap_closed_ci95"]
        ]
        margins = [50 * (point["gap_closed_ci95"][1] - point["gap_closed_ci95"][0]) for point in points]
        checked.append(
            Verdict(
                "figure4",
                f"{name} is more robust against FGSM than none",
                "Fig. 4, section 4.1",
                f"part of the gap to perfect robustness closed at {HUMAN_SNR} dB (%)",
                0.0,
                True,
                (pooled([100 * point["gap_closed"] for point in points], margins),),
            )
        )
        tiled = [found[job]["confidence"] for job in confidences if job in found]
        for number, when in ((0, "without noise"), (1, f"under FGSM at {HUMAN_SNR} dB")):
            checked.append(
                Verdict(
                    "figure4",
                    f"{name} is less sure of the images it gets wrong than none, {when}",
                    "section 4.1",
                    "mean highest probability of wrong images, none minus tiled (points)",
                    0.0,
                    True,
                    (_surer([each[number] for each in ordinary], [each[number] for each in tiled]),),
                )
            )
    return checked


def _surer(ordinary: list[dict[str, Any]], tiled: list[dict[str, Any]]) -> Estimate | None:
    """By how much the untiled networks' highest probabilities of wrong images are higher, seed by seed."""
    pairs = list(zip(ordinary, tiled, strict=False))
    # One wrong image has no standard error.
    known_pairs = [
        (one, other)
        for one, other in pairs
        if not any(each[key] is None for each in (one, other) for key in ("mean_wrong", "se_wrong"))
    ]
    return pooled(
        [one["mean_wrong"] - other["mean_wrong"] for one, other in known_pairs],
        [Z * math.hypot(one["se_wrong"], other["se_wrong"]) for one, other in known_pairs],
    )


def _jobs(settings: Settings) -> dict[str, tuple[list[Job], list[Job]]]:
    """Attacks and looks at confidences of each network, one for each seed."""
    trained = networks(settings)
    return {
        name: (
            [
                settings.attack(run, baseline=None if name == "none" else trained["none"][seed])
                for seed, run in enumerate(runs)
            ],
            [settings.confidence(run) for run in runs],
        )
        for name, runs in trained.items()
    }


def _human(sweep: dict[str, Any]) -> dict[str, Any]:
    """The point of a sweep at the human threshold; empty where there is none."""
    return next((point for point in sweep["points"] if point["asked"]["snr_db"] == float(HUMAN_SNR)), {})


def _name(tiles: tuple[int, ...]) -> str:
    return f"random ({', '.join(map(str, tiles))})"
