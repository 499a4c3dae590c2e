"""Trainings whose disk fills up, turns read-only, or is taken away while they run."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rapa_cli import checkpoint, runs
from rapa_cli.training.loop import Training
from tests.commands.conftest import TRAIN, Run
from tests.soak.kills import same

STEPS = 6
"""Of an epoch: 60 images, 10 in a batch."""
WORDS = [*TRAIN, "--scheme", "random", "--tiles", "4", "--epochs", "3", "--set", "momentum=0.9"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=512k", "rapa-test", str(place)]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"no disk of its own can be mounted for this test: {reason.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Lets something happen after a step of the trainings to come."""

    def at(step: int, happen: Callable[[], object]) -> None:
        original, done = Training._step, list[int]()

        def wrapped(self: Training, *arguments: Any) -> None:
            original(self, *arguments)
            done.append(1)
            if len(done) == step:
                happen()

        monkeypatch.setattr(Training, "_step", wrapped)

    return at


def fill(disk: Path, leave: int) -> None:
    """Writes so much that only `leave` bytes are left."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(free - leave))


def ends_as_if_nothing_had_happened(rapa: Run, run: Path) -> None:
    assert rapa("train", "--resume", str(run), "--json").document["epochs"] == 3
    assert rapa(*WORDS, "--out", "whole", "--json").document["epochs"] == 3
    same(Path("whole"), run)


@pytest.mark.parametrize("leave", [0, 4096])
def test_a_disk_that_fills_up(rapa: Run, disk: Path, after_step: Any, leave: int) -> None:
    run = disk / "run"
    after_step(STEPS + 2, lambda: fill(disk, leave))
    outcome = rapa(*WORDS, "--out", str(run))
    assert outcome.code == 3
    error, hint = outcome.err.splitlines()[-2:]
    said = re.fullmatch(
        rf"error: cannot write {run}/(\S+): the disk is full \((\d+) of its (\d+) bytes are missing\)", error
    )
    assert said, error
    assert int(said[3]) - int(said[2]) <= leave
    assert hint.startswith("hint: free some space")
    saved = checkpoint.read(run / runs.LAST).description.progress
    assert saved is not None
    assert saved.epoch == 1
    checkpoint.load(run / runs.LAST)
    assert not list(run.rglob("*.tmp"))

    (disk / "filler").unlink()
    ends_as_if_nothing_had_happened(rapa, run)


def test_room_for_everything_but_the_figure(rapa: Run, disk: Path, after_step: Any) -> None:
    run = disk / "run"
    after_step(STEPS + 2, lambda: fill(disk, 8192))
    outcome = rapa(*WORDS, "--out", str(run))
    assert outcome.code == 3
    assert (
        f"error: cannot write {run}/figures/learning-curve.png: the disk is full (8192 bytes are free)" in outcome.err
    )
    (disk / "filler").unlink()
    ends_as_if_nothing_had_happened(rapa, run)


def test_a_disk_that_is_full_from_the_beginning(rapa: Run, disk: Path) -> None:
    fill(disk, 0)
    run = disk / "run"
    outcome = rapa(*WORDS, "--out", str(run))
    assert outcome.code == 3
    assert re.search(
        rf"^error: cannot write {run}/.lock: the disk is full \((\d+) of its \1 bytes are missing\)$", outcome.err, re.M
    )
    again = rapa("train", "--resume", str(run))
    assert again.code == 3
    assert "--out" not in again.err
    (disk / "filler").unlink()
    assert rapa(*WORDS, "--out", str(disk / "run"), "--json").document["epochs"] == 3


def test_a_disk_that_turns_read_only(rapa: Run, disk: Path) -> None:
    run = disk / "run"

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    # While it runs the lock, which is open for writing, keeps the disk from being remounted.
    assert rapa(*WORDS, "--epochs", "1", "--out", str(run)).code == 0
    remount("ro")
    before = (run / runs.LAST).read_bytes()
    outcome = rapa("train", "--resume", str(run), "--epochs", "3")
    assert outcome.code == 3
    assert re.search(rf"error: cannot write {run}/\S+: the file system is read-only\nhint: ", outcome.err)
    assert (run / runs.LAST).read_bytes() == before
    remount("rw")
    assert rapa("train", "--resume", str(run), "--epochs", "3").code == 0
    ends_as_if_nothing_had_happened(rapa, run)


def test_a_folder_that_vanishes(rapa: Run, after_step: Any) -> None:
    after_step(STEPS + 2, lambda: shutil.rmtree("gone"))
    outcome = rapa(*WORDS, "--out", "gone")
    assert outcome.code == 3
    assert "error: cannot write gone/metrics.csv: the folder does not exist any more\nhint: was it moved" in outcome.err
    assert not Path("gone").exists()


def test_a_folder_that_is_moved_away(rapa: Run, after_step: Any) -> None:
    after_step(STEPS + 2, lambda: shutil.move("here", "there"))
    assert rapa(*WORDS, "--out", "here").code == 3
    ends_as_if_nothing_had_happened(rapa, Path("there"))


def test_a_file_in_the_place_of_the_folder(rapa: Run, after_step: Any) -> None:
    def replace() -> None:
        shutil.move("here", "there")
        Path("here").write_text("mine", encoding="utf-8")

    after_step(STEPS + 2, replace)
    outcome = rapa(*WORDS, "--out", "here")
    assert outcome.code == 3
    assert "error: cannot write here/metrics.csv: a file stands where a folder should be\nhint: move" in outcome.err
    assert Path("here").read_text(encoding="utf-8") == "mine"
    ends_as_if_nothing_had_happened(rapa, Path("there"))
