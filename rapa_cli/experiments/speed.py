"""Many tiles (section 4.1), from few tiles to many, and how many epochs a given error takes (section 5)."""

from __future__ import annotations

from collections.abc import Sequence

from rapa_cli.experiments.jobs import LOWEST_TRAIN, Found, Job
from rapa_cli.experiments.measures import Measure, known
from rapa_cli.experiments.settings import HUMAN_SNR, LARGE, LARGE_VOTES, VOTES, Settings
from rapa_cli.experiments.tables import LAST, LOWEST, TRAIN

# Test error in percent that the paper counts epochs to, with mixed pooling.
_GOAL = 19.0


def large_jobs(settings: Settings) -> list[Job]:
    """Trainings with (128, 32, 8) tiles and votes of 9."""
    return [settings.vote(run, LARGE_VOTES) for run in _large(settings)]


def large_measures(settings: Settings, found: Found) -> list[Measure]:
    """Errors of one draw and of the vote."""
    documents = [found.get(settings.vote(run, LARGE_VOTES), {}) for run in _large(settings)]
    runs = [found.get(run, {}) for run in _large(settings)]
    row = f"random ({', '.join(map(str, LARGE))})"
    return [
        Measure("large", row, column, name, known([each.get(key) for each in of]), theirs)
        for column, name, of, key, theirs in (
            ("one draw", LOWEST, runs, "best_test_error", None),
            ("one draw", LAST, runs, "test_error", None),
            ("one draw", TRAIN, runs, LOWEST_TRAIN, settings.paper("large", "train")),
            (f"vote {LARGE_VOTES}", "error (%)", documents, "vote_error", settings.paper("large", "vote")),
        )
    ]


def tiles_jobs(settings: Settings) -> list[Job]:
    """Trainings with ever more tiles, with votes, similarities and attacks at the human threshold."""
    jobs = []
    for runs in _tiles(settings).values():
        for run in runs:
            jobs += [settings.vote(run), settings.inspect(run), settings.attack(run, HUMAN_SNR)]
    return jobs


def tiles_measures(settings: Settings, found: Found) -> list[Measure]:
    """Error, vote, similarity, robustness and analog time against the number of tiles."""
    measures = []
    for counts, runs in _tiles(settings).items():
        row = f"({', '.join(map(str, counts))})"
        votes = [found.get(settings.vote(run), {}) for run in runs]
        looks = [found.get(settings.inspect(run)) for run in runs]
        attacks = [found.get(settings.attack(run, HUMAN_SNR)) for run in runs]
        measures += [
            Measure("tiles", row, "one draw", LAST, known([found.get(run, {}).get("test_error") for run in runs])),
            Measure("tiles", row, f"vote {VOTES}", "error (%)", known([vote.get("vote_error") for vote in votes])),
            Measure(
                "tiles",
                row,
                "similarity",
                "S of convolution 1",
                known([None if look is None else look["layers"][0]["similarity"] for look in looks]),
            ),
            Measure(
                "tiles",
                row,
                f"FGSM at {HUMAN_SNR} dB",
                "accuracy of images right without noise (%)",
                known([None if attack is None else attack["points"][0]["accuracy"] for attack in attacks]),
            ),
            Measure("tiles", row, "analog time", "array operations one after the other", (_analog_time(counts),)),
        ]
    return measures


def learning_jobs(settings: Settings) -> list[Job]:
    """Trainings with mixed pooling, without tiles and with random tiling; the vote is taken after each epoch."""
    return [run for runs in _learning(settings).values() for run in runs]


def learning_measures(settings: Settings, found: Found) -> list[Measure]:
    """The first epoch at which the test error was at most 19 %."""
    measures = []
    for scheme, runs in _learning(settings).items():
        key = "vote_errors" if scheme == "random" else "test_errors"
        epochs = [_epochs_to(_GOAL, found[run][key]) for run in runs if run in found]
        column = f"vote {VOTES}" if scheme == "random" else "error"
        name = f"epochs to {_GOAL:g} % test error"
        reached = known(epochs)
        # A mean of those that got there alone would say that the others did not matter.
        all_did = len(reached) == len(epochs)
        note = "" if all_did else f"reached by {len(reached)} of {len(epochs)}"
        theirs = settings.paper("learning-speed", scheme)
        measures.append(Measure("learning-speed", scheme, column, name, reached if all_did else (), theirs, note))
    return measures


def _epochs_to(goal: float, errors: Sequence[float]) -> float | None:
    """The first epoch, counted from 1, at which the error is at most the goal; None if it never is."""
    return next((float(epoch) for epoch, error in enumerate(errors, 1) if error <= goal), None)


def _large(settings: Settings) -> list[Job]:
    return [settings.train("random", tiles=LARGE, seed=seed) for seed in range(settings.seeds)]


def _tiles(settings: Settings) -> dict[tuple[int, ...], list[Job]]:
    """Trainings by tiles: balanced ones, as each layer has a quarter of the patches of the one before."""
    return {
        counts: [settings.train("random", tiles=counts, seed=seed) for seed in range(settings.seeds)]
        for counts in ((first, max(first // 4, 1), max(first // 16, 1)) for first in settings.tiles)
    }


def _learning(settings: Settings) -> dict[str, list[Job]]:
    return {
        scheme: [settings.train(scheme, pool="mixed", seed=seed, votes=votes) for seed in range(settings.seeds)]
        for scheme, votes in (("none", 1), ("random", VOTES))
    }


def _analog_time(tiles: tuple[int, ...]) -> float:
    """Array operations of the slowest layer of `full` for an image of 32 x 32 pixels."""
    from rapa_cli.analysis.analog_time import layer_costs
    from rapa_cli.config import load_network
    from rapa_cli.layers.network import resolve

    shape = (3, 32, 32)
    definition = resolve(load_network("full"), shape, scheme="random", tiles=tiles)
    return float(max(cost.array_cycles for cost in layer_costs(definition, shape)))
