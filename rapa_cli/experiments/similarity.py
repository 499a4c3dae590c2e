"""Figure 3: how alike the filters of different tiles have become, for each way to pool and each scheme."""

from __future__ import annotations

from collections.abc import Sequence

from rapa_cli.experiments.claims import Estimate, Verdict, pooled
from rapa_cli.experiments.jobs import Found, Job
from rapa_cli.experiments.measures import Measure, known
from rapa_cli.experiments.settings import Settings

# What the paper's "S about 1", "S > 0.1" and "S < 0.01" become as checks.
_ALIKE, _SIMILAR, _UNLIKE = 0.9, 0.1, 0.01


def jobs(settings: Settings) -> list[Job]:
    """Inspections of the networks of table 2 with random tiling, and of those of table 1 with other schemes."""
    return [settings.inspect(run) for runs in _networks(settings).values() for run in runs]


def measures(settings: Settings, found: Found) -> list[Measure]:
    """S of the first convolution and of the second."""
    return [
        Measure("figure3", scheme, f"{pool} pooling", f"S of convolution {layer + 1}", _s(settings, runs, found, layer))
        for (scheme, pool), runs in _networks(settings).items()
        for layer in range(2)
    ]


def verdicts(settings: Settings, found: Found) -> list[Verdict]:
    """Whether S is where the paper says."""
    checked = []
    for (scheme, pool), runs in _networks(settings).items():
        values = _s(settings, runs, found, 0)
        # One seed's S has no margin of its own: the tiles' filters are all there is, and no sample.
        estimate: Estimate | None = pooled(values, [0.0] * len(values))
        if scheme != "random":
            claim, threshold, above = f"tiles stay unlike with {scheme}", _UNLIKE, False
        elif pool == "average":
            claim, threshold, above = "tiles become alike with average pooling", _ALIKE, True
        else:
            claim, threshold, above = f"tiles become similar with random tiling and {pool} pooling", _SIMILAR, True
        checked.append(
            Verdict("figure3", claim, "section 4, Fig. 3", "S of the first convolution", threshold, above, (estimate,))
        )
    return checked


def random_runs(settings: Settings) -> dict[str, list[Job]]:
    """The trainings with random tiling, by their way to pool."""
    return {
        pool: [settings.train("random", pool=pool, seed=seed) for seed in range(settings.seeds)]
        for pool in settings.pools
    }


def _networks(settings: Settings) -> dict[tuple[str, str], list[Job]]:
    """Trainings by scheme and pooling."""
    others = [scheme for scheme in settings.schemes if scheme not in ("none", "enlarged", "perforated", "random")]
    return {("random", pool): runs for pool, runs in random_runs(settings).items()} | {
        (scheme, "max"): [settings.train(scheme, seed=seed) for seed in range(settings.seeds)] for scheme in others
    }


def _s(settings: Settings, runs: Sequence[Job], found: Found, layer: int) -> tuple[float, ...]:
    documents = [found.get(settings.inspect(run)) for run in runs]
    return known([None if document is None else document["layers"][layer]["similarity"] for document in documents])
