"""Tables 1 and 2: errors of the tiling schemes, and of the ways to pool."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rapa_cli.experiments.claims import Estimate, Verdict, Z, difference, pooled
from rapa_cli.experiments.jobs import LOWEST_TRAIN, Found, Job
from rapa_cli.experiments.measures import Measure, known, paper
from rapa_cli.experiments.settings import SCHEMES, VOTES, Settings

LOWEST, LAST, TRAIN, LAST_TRAIN = (
    "lowest test error (%)",
    "last test error (%)",
    "lowest train error (%)",
    "last train error (%)",
)
# The reduced network is less than so many points worse than the conventionally trained one (paper, section 4).
_REDUCED_WITHIN = 0.75
_SINGLE = ("none", "enlarged", "random")


def table1_jobs(settings: Settings) -> list[Job]:
    """A training of each scheme on each data set."""
    return [
        settings.train(scheme, data=data, seed=seed)
        for data in settings.data
        for scheme in settings.schemes
        for seed in range(settings.seeds)
    ]


def table1_measures(settings: Settings, found: Found) -> list[Measure]:
    """Errors of each scheme on each data set."""
    measures = []
    for data in settings.data:
        for scheme in settings.schemes:
            runs = [settings.train(scheme, data=data, seed=seed) for seed in range(settings.seeds)]
            measures += errors("table1", data, scheme, runs, found, paper("table1", data, scheme))
    return measures


def table1_verdicts(settings: Settings, found: Found) -> list[Verdict]:
    """What the errors say of random tiling and of perforation."""
    verdicts = []
    others = [scheme for scheme in SCHEMES if scheme not in _SINGLE]
    for data in settings.data:

        def compared(first: str, second: str, data: str = data) -> Estimate | None:
            """By how much the error of the first is above that of the second."""
            both = [
                [settings.train(scheme, data=data, seed=seed) for seed in range(settings.seeds)]
                for scheme in (first, second)
            ]
            return _difference(both[0], both[1], found)

        verdicts += [
            Verdict(
                "table1",
                f"random is the best tiling scheme on {data}",
                "Tab. 1",
                "last test error of the other tiling scheme that decides minus that of random (points)",
                0.0,
                True,
                tuple(compared(scheme, "random") for scheme in others),
            ),
            Verdict(
                "table1",
                f"random tiling is at least as good as no tiling on {data}",
                "Tab. 1",
                "last test error without tiling minus that of random (points)",
                0.0,
                True,
                (compared("none", "random"),),
            ),
            Verdict(
                "table1",
                f"perforation is poor on {data}",
                "Tab. 1",
                "last test error of perforation minus that of random (points)",
                0.0,
                True,
                (compared("perforated", "random"),),
            ),
        ]
    return verdicts


def table2_jobs(settings: Settings) -> list[Job]:
    """Trainings with each way to pool, and votes and reductions of the tiled ones."""
    jobs = []
    for pool in settings.pools:
        for seed in range(settings.seeds):
            runs = {scheme: settings.train(scheme, pool=pool, seed=seed) for scheme in _SINGLE}
            jobs += [*runs.values(), settings.vote(runs["random"]), settings.reduce(runs["random"])]
    return jobs


def table2_measures(settings: Settings, found: Found) -> list[Measure]:
    """Errors with each way to pool, of the vote and of the reduced network."""
    measures = []
    for pool in settings.pools:
        for scheme in _SINGLE:
            runs = [settings.train(scheme, pool=pool, seed=seed) for seed in range(settings.seeds)]
            measures += errors("table2", pool, scheme, runs, found, settings.paper("table2", pool, scheme))
        runs = [settings.train("random", pool=pool, seed=seed) for seed in range(settings.seeds)]
        voted = [found.get(settings.vote(run), {}) for run in runs]
        reduced = [found.get(settings.reduce(run), {}) for run in runs]
        for column, name, values, theirs in (
            (f"vote {VOTES}", "mean of single draws (%)", [document.get("single_error") for document in voted], None),
            (f"vote {VOTES}", "error (%)", [document.get("vote_error") for document in voted], "vote"),
            ("reduced", "error (%)", [document.get("test_error_after") for document in reduced], "reduced"),
        ):
            figure = None if theirs is None else settings.paper("table2", pool, theirs)
            measures.append(Measure("table2", pool, column, name, known(values), figure))
    return measures


def table2_verdicts(settings: Settings, found: Found) -> list[Verdict]:
    """What votes and reductions say."""
    verdicts = []
    for pool in settings.pools:
        runs = [settings.train("random", pool=pool, seed=seed) for seed in range(settings.seeds)]
        votes = [found[job] for run in runs if (job := settings.vote(run)) in found]
        gain = pooled(
            [document["single_error"] - document["vote_error"] for document in votes],
            [Z * document["gain_se"] for document in votes],
        )
        if pool == "average":
            verdicts.append(
                Verdict(
                    "table2",
                    "a vote gains nothing with average pooling, whose tiles are alike",
                    "Tab. 2, section 4",
                    "mean error of single draws minus that of the vote (points)",
                    0.5,
                    False,
                    (gain,),
                )
            )
        else:
            verdicts.append(
                Verdict(
                    "table2",
                    f"a vote is better than a single draw with {pool} pooling",
                    "Tab. 2, section 4",
                    "mean error of single draws minus that of the vote (points)",
                    0.0,
                    True,
                    (gain,),
                )
            )
        if pool in ("max", "mixed"):
            ordinary = [settings.train("none", pool=pool, seed=seed) for seed in range(settings.seeds)]
            verdicts.append(
                Verdict(
                    "table2",
                    f"the reduced network is less than {_REDUCED_WITHIN} points worse than the ordinary one "
                    f"with {pool} pooling",
                    "section 4",
                    "test error of the reduced network minus the last of the one trained without tiles (points)",
                    _REDUCED_WITHIN,
                    False,
                    (_reduced(settings, runs, ordinary, found),),
                )
            )
    return verdicts


def errors(
    experiment: str, row: str, column: str, runs: Sequence[Job], found: Found, theirs: Sequence[float] | None
) -> list[Measure]:
    """What trainings say of a cell; the paper reports the lowest errors."""
    documents = [found.get(run, {}) for run in runs]
    test, train = theirs or (None, None)
    return [
        Measure(experiment, row, column, name, known([document.get(key) for document in documents]), figure)
        for name, key, figure in (
            (LOWEST, "best_test_error", test),
            (LAST, "test_error", None),
            (TRAIN, LOWEST_TRAIN, train),
            (LAST_TRAIN, "train_error", None),
        )
    ]


def _difference(first: Sequence[Job], second: Sequence[Job], found: Found) -> Estimate | None:
    """By how much the last test errors of the first runs are above those of the second."""
    documents = [[found[run] for run in runs if run in found] for runs in (first, second)]
    if not all(documents):
        return None
    one, other = ([document["test_error"] for document in each] for each in documents)
    return difference(one, other, documents[0][0]["test_images"])


def _reduced(settings: Settings, runs: list[Job], ordinary: list[Job], found: Found) -> Estimate | None:
    reduced = [found[job] for run in runs if (job := settings.reduce(run)) in found]
    untiled = [found[run]["test_error"] for run in ordinary if run in found]
    if not reduced or not untiled:
        return None
    after = [document["test_error_after"] for document in reduced]
    estimate = difference(after, untiled, reduced[0]["images"])
    return estimate if estimate is None or math.isfinite(estimate.value) else None
