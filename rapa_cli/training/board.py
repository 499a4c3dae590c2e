"""A training's metrics for TensorBoard, with the extra `tensorboard`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapa_cli.checkpoint import Progress
from rapa_cli.errors import ConfigError
from rapa_cli.files import inside
from rapa_cli.runs import SIMILARITY
from rapa_cli.training.loop import Sums

FOLDER = "tensorboard"
_TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_error": "error/train",
    "test_error": "error/test",
    "vote_error": "error/vote",
    "rate": "rate",
}


def check_installed() -> None:
    """Raises ConfigError where the extra is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard: TensorBoard is not installed", hint="pip install 'rapa-cli[tensorboard]'")


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """What TensorBoard shows of a row of metrics; errors in percent."""
    known = {tag: row[key] for key, tag in _TAGS.items() if key in row}
    known |= {f"similarity/{key.removeprefix(SIMILARITY)}": row[key] for key in row if key.startswith(SIMILARITY)}
    return {tag: float(value) for tag, value in known.items() if value is not None}


class Board:
    """Writes the scalars of each epoch into a folder in the run folder.

    Args:
        run: the run folder.
        epochs: that are done; what an earlier process has written of later ones is dropped.
    """

    def __init__(self, run: Path, epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(inside(run, FOLDER)), purge_step=epochs + 1)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
        """Nothing."""

    def testing(self, epoch: int) -> None:
        """Nothing."""

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        """Writes the epoch's scalars."""
        for tag, value in scalars(row).items():
            self._writer.add_scalar(tag, value, row["epoch"])
        self._writer.flush()
