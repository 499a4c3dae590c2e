"""What experiments measure: one figure at a time, over seeds, with the paper's beside it."""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rapa_cli.resources import models_root


@dataclass(frozen=True)
class Measure:
    """A figure of an experiment.

    Attributes:
        experiment: its name.
        row: of the table.
        column: of the table.
        name: what is measured, with its unit.
        values: one for each seed that is done, in their order.
        paper: the paper's figure.
        note: what else there is to say, or why there are no values.
    """

    experiment: str
    row: str
    column: str
    name: str
    values: tuple[float, ...]
    paper: float | None = None
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None where nothing was measured."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def se(self) -> float | None:
        """Standard error of the mean; None for less than two seeds."""
        return statistics.stdev(self.values) / math.sqrt(len(self.values)) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Mean minus the paper's figure."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper

    def row_of_table(self) -> dict[str, Any]:
        """As CSV and JSON have it."""
        return {
            "experiment": self.experiment,
            "row": self.row,
            "column": self.column,
            "measure": self.name,
            "mean": self.mean,
            "se": self.se,
            "seeds": len(self.values),
            "paper": self.paper,
            "difference": self.difference,
            "note": self.note,
        }


def known(values: Sequence[float | None]) -> tuple[float, ...]:
    """The values that were measured."""
    return tuple(value for value in values if value is not None)


def paper(*keys: str) -> Any:
    """A figure of the paper by its place in models/paper.toml; None where the paper has none."""
    found: Any = _paper()
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


@cache
def _paper() -> dict[str, Any]:
    return tomllib.loads((models_root() / "paper.toml").read_text(encoding="utf-8"))
