"""Figure 2: the tiling schemes; a picture that takes no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapa_cli.experiments.jobs import Job
from rapa_cli.experiments.measures import Measure
from rapa_cli.experiments.settings import Settings


def jobs(_settings: Settings) -> list[Job]:
    """None."""
    return []


def measures(_settings: Settings, _found: Mapping[Job, dict[str, Any]]) -> list[Measure]:
    """None."""
    return []
