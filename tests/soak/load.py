"""Memory over long runs: the most that a process held, for a small amount of work and for a large one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tests.soak import kills
from tests.soak.launcher import Launcher
from tests.training import tiny


@dataclass(frozen=True)
class Load:
    """Memory of two amounts of the same work.

    Attributes:
        name: what was done.
        few: how much of it, the first time.
        many: and the second time.
        kept: KiB that the second would hold more than the first if nothing of one kind were let go.
        kib_few: the most memory held, KiB.
        kib_many: likewise.
    """

    name: str
    few: int
    many: int
    kept: int
    kib_few: int
    kib_many: int

    @property
    def growth(self) -> int:
        """KiB that the second held more."""
        return self.kib_many - self.kib_few

    @property
    def limit(self) -> int:
        """KiB that it may hold more."""
        return self.kept // 2


def epochs(
    launcher: Launcher, folder: Path, few: int = 20, many: int = 1000, *, images: int = 280, leak: str | None = None
) -> Load:
    """Trainings of so many epochs; they must not keep the bytes of their batches."""
    data = f"trained-{images}"
    tiny.write_arrays(folder / data, train=images, test=30)
    kills.done(launcher.run(["data", "get", data, "--from", data, "--force"]))
    kib = [
        kills.done(
            launcher.run(
                [*kills.words("random", count, data=data, batch=images // 4), "--out", f"{data} {count} {leak}"],
                leak=leak,
            )
        ).kib
        for count in (few, many)
    ]
    return Load("epochs of a training", few, many, (many - few) * images * math.prod(tiny.SHAPE) // 2**10, *kib)


def voted(
    launcher: Launcher, folder: Path, few: int = 100, many: int = 10_000, *, images: int = 500, leak: str | None = None
) -> Load:
    """Votes of so many draws; they must not keep a float for each draw, image and class."""
    data = f"voted-{images}"
    tiny.write_arrays(folder / data, train=30, test=images)
    kills.done(launcher.run(["data", "get", data, "--from", data, "--force"]))
    run = f"{data} {leak}"
    kills.done(launcher.run([*kills.words("random", 1, data=data), "--out", run]))
    kib = [kills.done(launcher.run(["vote", run, "-n", str(count)], leak=leak)).kib for count in (few, many)]
    return Load("draws of a vote", few, many, (many - few) * images * len(tiny.CLASSES) * 4 // 2**10, *kib)


def attacked(launcher: Launcher, folder: Path, few: int = 500, many: int = 10_000, *, leak: str | None = None) -> Load:
    """Attacks on so many images at several strengths; they must not keep the changed images of one strength.

    The images themselves are mapped, which counts as memory too: a quarter of that.
    """
    data = f"attacked-{many}"
    if not (folder / data).exists():
        kills.prepare_large(folder, launcher, data, train=30, test=many)
    run = f"{data} {leak}"
    kills.done(launcher.run([*kills.words("random", 1, data=data), "--out", run]))
    words = ["attack", run, "--snr", "10:30:5"]
    kib = [
        kills.done(launcher.run([*words, "--images", str(count), "--out", f"{run} {count}"], leak=leak)).kib
        for count in (few, many)
    ]
    return Load("images of an attack sweep", few, many, (many - few) * 3 * 32 * 32 * 4 // 2**10, *kib)
