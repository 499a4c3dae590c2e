"""A data set and trainings that take seconds, and the processes that they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rapa_cli.data import shapes, store
from rapa_cli.experiments.jobs import Job

DATA = "few-shapes"
TRAIN, TEST = 200, 100


def write_data(folder: Path) -> None:
    """Puts the first of the embedded images into a data folder, under a name of their own."""
    train, test = shapes.draw_splits(train=TRAIN, test=TEST)
    store.write(folder / DATA, DATA, shapes.CLASSES, train, test, shapes.source())


def training(seed: int, epochs: int) -> Job:
    words = ("train", "--data", DATA, "--scheme", "random", "--tiles", "4,2,1", "--seed", str(seed))
    return Job((*words, "--epochs", str(epochs)), f"tiny {seed}")


def vote(run: Job) -> Job:
    return Job(("vote", run.run, "-n", "3"), run.label, (run,))


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have, parents first."""
    children = [child for child, parent in _parents() if parent == pid]
    return children + [each for child in children for each in descendants(child)]


def command_line(pid: int) -> str:
    """The words of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name, which may have brackets and blanks: state and parent.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(folder.name), int(fields[1])
