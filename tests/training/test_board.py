"""Metrics for TensorBoard."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from rapa_cli.checkpoint import Progress
from rapa_cli.errors import ConfigError
from rapa_cli.training import board

ROW: dict[str, Any] = {"epoch": 2, "rate": 0.01, "train_loss": 1.5, "train_error": 40.0, "test_loss": 1.4}
ROW |= {"test_error": 38.0, "vote_error": 36.0, "similarity_conv1": 0.25, "similarity_conv2": None}
here = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra tensorboard is missing")


def test_the_scalars_of_an_epoch() -> None:
    assert board.scalars(ROW) == {
        "rate": 0.01,
        "loss/train": 1.5,
        "loss/test": 1.4,
        "error/train": 40.0,
        "error/test": 38.0,
        "error/vote": 36.0,
        "similarity/conv1": 0.25,
    }


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="TensorBoard is not installed") as caught:
        board.check_installed()
    assert caught.value.hint == "pip install 'rapa-cli[tensorboard]'"


@here
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read() -> dict[str, list[tuple[int, float]]]:
        found: Any = EventAccumulator(str(tmp_path / board.FOLDER))
        found.Reload()
        return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}

    with board.Board(tmp_path, 0) as writer:
        for epoch in (1, 2, 3):
            writer.epoch({**ROW, "epoch": epoch, "test_error": 10.0 * epoch}, Progress(), 1.0)
    found = read()
    assert set(found) == set(board.scalars(ROW))
    assert found["error/test"] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    # A run that goes on after its second epoch repeats the third.
    with board.Board(tmp_path, 2) as writer:
        writer.epoch({**ROW, "epoch": 3, "test_error": 5.0}, Progress(), 1.0)
    assert read()["error/test"] == [(1, 10.0), (2, 20.0), (3, 5.0)]
