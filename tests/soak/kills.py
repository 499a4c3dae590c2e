"""Trainings that are killed again and again, and gone on with until they are done."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rapa_cli import checkpoint, runs
from tests.soak.launcher import Ended, Launcher
from tests.training import tiny

SIGKILL = -9
_MOST_SECONDS = 300.0
"""Which a run may take until the renaming that is wanted."""
SETTINGS: dict[str, tuple[str, ...]] = {
    "random": ("--scheme", "random", "--tiles", "4,2"),
    "random-fixed": ("--scheme", "random-fixed", "--tiles", "4,2"),
    "perforated": ("--scheme", "perforated", "--tiles", "2,2"),
    "random on arrays": ("--scheme", "random", "--tiles", "4,2", "--arrays", "Idealized"),
    "random-fixed on arrays": ("--scheme", "random-fixed", "--tiles", "4,2", "--arrays", "Idealized"),
    "perforated on arrays": ("--scheme", "perforated", "--tiles", "2,2", "--arrays", "Idealized"),
}
EXPERIMENT = (
    *("reproduce", "table1", "--data", "large", "--schemes", "none,random", "--seeds", "1", "--recipe", "short"),
    *("--set", "mirror=false", "--epochs", "60", "--jobs", "2"),
)
"""Two trainings at the same time, whose results become a table."""
_TOML = "".join(
    "[[layers]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in layer.items()) for layer in tiny.LAYERS
)
# With momentum, a falling rate, mirrored images of another brightness and stochastic pooling, so that all is at stake
# that a run has to remember.
_CHANGES = {"momentum": 0.9, "step_epochs": 2, "step_factor": 0.99, "brightness": 0.2}


@dataclass(frozen=True)
class Kill:
    """When a process is killed: after some seconds, or in place of a renaming."""

    seconds: float | None = None
    rename: int | None = None


@dataclass
class Tally:
    """What a run went through.

    Attributes:
        kills: how often it was killed.
        renaming: of these in place of a renaming.
        early: of these before there was a checkpoint.
        resumed: how often it was gone on with.
    """

    kills: int = 0
    renaming: int = 0
    early: int = 0
    resumed: int = 0

    def add(self, other: Tally) -> None:
        """Adds what another run went through."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def prepare(folder: Path, launcher: Launcher, *, train: int = 60, test: int = 30) -> None:
    """Puts a data set and a network into a folder."""
    tiny.write_arrays(folder / "arrays", train=train, test=test)
    (folder / "tiny.toml").write_text(_TOML, encoding="utf-8")
    done(launcher.run(["data", "get", "mini", "--from", "arrays"]))


def prepare_experiment(folder: Path, launcher: Launcher) -> None:
    """Makes the data set of `EXPERIMENT`, with images as large as those that its tilings are for."""
    prepare_large(folder, launcher, "large", train=50, test=20)


def prepare_large(folder: Path, launcher: Launcher, name: str, *, train: int, test: int) -> None:
    """Makes a data set of images of 32 x 32 pixels."""
    (folder / name).mkdir()
    for split, count in (("train", train), ("test", test)):
        part = tiny.split(count, seed=count)
        images = part.images.repeat_interleave(4, 2).repeat_interleave(4, 3).permute(0, 2, 3, 1)
        np.savez(folder / name / f"{split}.npz", images=images.numpy(), labels=part.labels.numpy())
    done(launcher.run(["data", "get", name, "--from", name]))


def done(ended: Ended) -> Ended:
    """Raises AssertionError unless a process has ended well."""
    assert ended.code == 0, (ended.code, ended.messages[-2000:])
    return ended


def words(name: str, epochs: int, *, seed: int = 3, data: str = "mini", batch: int = 7) -> list[str]:
    """The command line of a training."""
    settings = {**_CHANGES, "network.pool": "stochastic"}
    changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    asked = ["train", "--network", "tiny.toml", "--data", data, "--batch-size", str(batch), "--lr", "0.05"]
    return [*asked, *SETTINGS[name], *changes, "--epochs", str(epochs), "--seed", str(seed)]


def killed_often(launcher: Launcher, folder: Path, run: str, begin: list[str], kills: Iterable[Kill]) -> Tally:
    """Begins a run and goes on with it, killed whenever `kills` says; whatever is there after a kill must be whole."""
    tally = Tally()
    for kill in kills:
        command, resumed = _next(folder, run, begin)
        seconds = _MOST_SECONDS if kill.seconds is None else kill.seconds
        ended = launcher.run(command, seconds=seconds, rename=kill.rename)
        assert kill.seconds is not None or ended.lingered is None, f"no renaming of {command} was killed"
        if ended.code != SIGKILL:
            done(ended)
            break
        tally.kills += 1
        tally.resumed += resumed
        tally.renaming += kill.rename is not None
        tally.early += not (folder / run / runs.LAST).exists()
        for name in (runs.LAST, runs.BEST):
            if (folder / run / name).exists():
                checkpoint.load(folder / run / name)
    return tally


def finish(launcher: Launcher, folder: Path, run: str, begin: list[str], *more: str) -> None:
    """Goes on with a run in peace; nothing half-written may be left in its folder then."""
    done(launcher.run([*_next(folder, run, begin)[0], *more]))
    left = list((folder / run).rglob("*.tmp"))
    assert not left, f"left behind: {left}"


def _next(folder: Path, run: str, begin: list[str]) -> tuple[list[str], bool]:
    """The command that begins a run or goes on with it, and whether it is the latter."""
    began = (folder / run / runs.MANIFEST).exists()
    return (["train", "--resume", run] if began else [*begin, "--out", run]), began


def same(one: Path, other: Path) -> None:
    """Raises AssertionError unless weights, optimizer, progress and metrics of two runs agree to the last bit."""
    for name in (runs.LAST, runs.BEST):
        first, second = checkpoint.read(one / name), checkpoint.read(other / name)
        for tensors, others in ((first.state, second.state), (first.optimizer, second.optimizer)):
            assert list(tensors) == list(others), name
            assert all(same_bits(tensor, others[key]) for key, tensor in tensors.items()), name
        # Except for the time that it took.
        assert _progress(first) == _progress(second), name
    for name in ("metrics.csv", "metrics.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, byte by byte: 0 is not -0, and NaN is NaN."""
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*bits)


def same_experiments(one: Path, other: Path) -> None:
    """Raises AssertionError unless two folders of `EXPERIMENT` hold the same table and the same trainings."""
    tables = [json.loads((place / "tables" / "table1.json").read_text(encoding="utf-8")) for place in (one, other)]
    assert tables[0]["measures"] == tables[1]["measures"]
    names = [sorted(path.name for path in (place / "runs").iterdir()) for place in (one, other)]
    assert names[0] == names[1]
    assert len(names[0]) == 2
    for name in names[0]:
        same(one / "runs" / name, other / "runs" / name)


def _progress(found: checkpoint.Checkpoint) -> object:
    assert found.description.progress is not None
    return found.description.progress.model_copy(update={"seconds": 0.0})
