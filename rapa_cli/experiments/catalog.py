"""The paper's tables and figures: which jobs they take, and what these have measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rapa_cli.errors import ConfigError, suggestion
from rapa_cli.experiments import similarity, speed, tables, theory, under_attack
from rapa_cli.experiments.claims import Verdict
from rapa_cli.experiments.jobs import Found, Job
from rapa_cli.experiments.measures import Measure
from rapa_cli.experiments.settings import Settings


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    Attributes:
        title: one line.
        source: where in the paper.
        jobs: what has to be run.
        measures: what the jobs that are done have measured.
        verdicts: what that says of the paper's claims.
    """

    title: str
    source: str
    jobs: Callable[[Settings], list[Job]] = lambda _settings: []
    measures: Callable[[Settings, Found], list[Measure]] = lambda _settings, _found: []
    verdicts: Callable[[Settings, Found], list[Verdict]] = lambda _settings, _found: []


EXPERIMENTS: dict[str, Experiment] = {
    "table1": Experiment(
        "Error of the tiling schemes", "Tab. 1", tables.table1_jobs, tables.table1_measures, tables.table1_verdicts
    ),
    "table2": Experiment(
        "Error of the ways to pool, of votes and of reduced networks",
        "Tab. 2",
        tables.table2_jobs,
        tables.table2_measures,
        tables.table2_verdicts,
    ),
    # A picture that takes no training.
    "figure2": Experiment("The tiling schemes", "Fig. 2"),
    "figure3": Experiment(
        "Similarity of the filters of different tiles",
        "Fig. 3",
        similarity.jobs,
        similarity.measures,
        similarity.verdicts,
    ),
    "figure4": Experiment(
        "Accuracy under FGSM", "Fig. 4", under_attack.jobs, under_attack.measures, under_attack.verdicts
    ),
    "large": Experiment("Many tiles", "section 4.1", speed.large_jobs, speed.large_measures),
    "tiles": Experiment("From few tiles to many", "section 4.1", speed.tiles_jobs, speed.tiles_measures),
    "learning-speed": Experiment(
        "Epochs to 19 % test error", "section 5", speed.learning_jobs, speed.learning_measures
    ),
    "regularizer": Experiment("The implicit regularizer", "section 4", theory.jobs, theory.measures),
}
ALL = "all"


def named(names: tuple[str, ...]) -> dict[str, Experiment]:
    """Experiments by their names, each once; `all` are all.

    Raises:
        ConfigError: there is none of a name.
    """
    for name in names:
        if name not in (*EXPERIMENTS, ALL):
            raise ConfigError(f"there is no experiment '{name}'", hint=suggestion(name, (*EXPERIMENTS, ALL)))
    return {name: EXPERIMENTS[name] for name in (EXPERIMENTS if ALL in names else dict.fromkeys(names))}
