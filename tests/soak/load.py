"""Memory over long runs: the most that a process held, for a small amount of work and for a large one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.soak import kills
from tests.soak.launcher import Launcher
from tests.training import tiny

MAX_GROWTH = 48 * 2**10
"""KiB by which the larger may exceed the smaller; a run that kept every batch would exceed it many times."""


@dataclass(frozen=True)
class Load:
    """Memory of two amounts of the same work.

    Attributes:
        name: what was done.
        few: how much of it, the first time.
        many: and the second time.
        kib_few: the most memory held, KiB.
        kib_many: likewise.
    """

    name: str
    few: int
    many: int
    kib_few: int
    kib_many: int


def epochs(launcher: Launcher, few: int = 20, many: int = 1000) -> Load:
    """Trainings of so many epochs."""
    kib = [
        kills.done(launcher.run([*kills.words("random", count), "--out", f"load {count}"])).kib for count in (few, many)
    ]
    return Load("epochs of a training", few, many, *kib)


def attacked(launcher: Launcher, folder: Path, few: int = 500, many: int = 10_000) -> Load:
    """Attacks on so many images, at several strengths; the data set holds all of them each time."""
    tiny.write_arrays(folder / "many", train=30, test=many)
    kills.done(launcher.run(["data", "get", "many", "--from", "many"]))
    begin = [word if word != "mini" else "many" for word in kills.words("random", 1)]
    kills.done(launcher.run([*begin, "--out", "attacked"]))
    words = ["attack", "attacked", "--snr", "10:30:5"]
    kib = [
        kills.done(launcher.run([*words, "--images", str(count), "--out", f"sweep {count}"])).kib
        for count in (few, many)
    ]
    return Load("images of an attack sweep", few, many, *kib)


def voted(launcher: Launcher, few: int = 100, many: int = 10_000) -> Load:
    """Votes of so many draws."""
    kills.done(launcher.run([*kills.words("random", 1), "--out", "voted"]))
    kib = [kills.done(launcher.run(["vote", "voted", "-n", str(count)])).kib for count in (few, many)]
    return Load("draws of a vote", few, many, *kib)
