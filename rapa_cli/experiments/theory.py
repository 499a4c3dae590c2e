"""Section 4: the implicit regularizer, in logistic regressions with ever more tiles."""

from __future__ import annotations

from rapa_cli.experiments.jobs import Found, Job
from rapa_cli.experiments.measures import Measure
from rapa_cli.experiments.settings import Settings

_MEASURES = {
    "regularizer": "R, Monte Carlo",
    "approximation": "R, second order",
    "variance": "variance of weights across tiles",
    "train_loss": "train loss, mean over draws",
    "test_error": "test error, mean over draws (%)",
    "gap": "test loss minus train loss",
}


def jobs(settings: Settings) -> list[Job]:
    """One job does the whole study, on fewer images where the settings ask for them."""
    words = ["regularizer", "--data", settings.data[0], "--seeds", str(settings.seeds)]
    if settings.images is not None:
        # Half of them of each class; as many as the command takes by itself are enough.
        words += ["--images", str(max(4, min(200, settings.images // 2 * 2)))]
    return [Job(tuple(words), settings.data[0])]


def measures(settings: Settings, found: Found) -> list[Measure]:
    """R, its approximation, the variance across tiles and over-fitting, against the number of tiles."""
    document = found.get(jobs(settings)[0])
    rows = [] if document is None else document["rows"]
    return [
        Measure("regularizer", f"{row['tiles']}", row["training"], name, tuple(row[key]))
        for row in rows
        for key, name in _MEASURES.items()
    ]
