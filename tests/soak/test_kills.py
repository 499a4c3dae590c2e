"""Kills at every renaming of a run, one after the other; the random ones are in `make soak`."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from rapa_cli import runs
from tests.soak import kills
from tests.soak.kills import Kill
from tests.soak.launcher import Launcher


@pytest.mark.parametrize("name", ["random", pytest.param("perforated on arrays", marks=pytest.mark.slow)])
def test_killed_before_each_renaming(launcher: Launcher, place: Path, name: str) -> None:
    begin, whole, parts = kills.words(name, epochs=2), f"{name} whole", f"{name} parts"
    kills.done(launcher.run([*begin, "--out", whole]))
    # The manifest, metrics twice, times, two checkpoints: the n-th process gets so far, and no farther.
    tally = kills.killed_often(launcher, place, parts, begin, (Kill(rename=n) for n in (1, 2, 3, 4, 5, 6, 7)))
    kills.finish(launcher, place, parts, begin)
    assert tally.kills == tally.renaming >= 6
    assert tally.early >= 4
    kills.same(place / whole, place / parts)
    # What is random afterwards is so in the same way.
    for run in (whole, parts):
        kills.done(launcher.run(["train", "--resume", run, "--epochs", "3"]))
    kills.same(place / whole, place / parts)


def test_bits_are_compared() -> None:
    zero, nan = torch.zeros(3), torch.full((3,), torch.nan)
    assert kills.same_bits(zero, torch.zeros(3))
    assert kills.same_bits(nan, nan.clone())
    assert not kills.same_bits(zero, -zero)
    assert not kills.same_bits(zero, torch.zeros(3, dtype=torch.int32))
    assert not kills.same_bits(zero, torch.zeros(3, 1))
    assert kills.same_bits(torch.tensor(7), torch.tensor(7))


def test_a_stopped_training_says_what_it_took(launcher: Launcher) -> None:
    ended = launcher.run([*kills.words("random", 10**6), "--out", "stopped"], seconds=1, number=signal.SIGTERM)
    assert ended.code == 143
    assert ended.spent is not None
    assert 0 <= ended.spent < 20


def test_a_kill_that_comes_too_late_changes_nothing(launcher: Launcher, place: Path) -> None:
    begin = kills.words("random-fixed", epochs=1)
    tally = kills.killed_often(launcher, place, "late", begin, [Kill(rename=10**6)])
    assert tally.kills == 0
    assert (place / "late" / runs.LAST).exists()
