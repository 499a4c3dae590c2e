"""Jobs: command lines of `rapa` whose results are files, so that each can be repeated by hand, anywhere, at any time.

The folder of experiments is shared by all of them, so that a network which two of them need is trained once:

runs/NAME       what a training leaves
results/NAME    what a job has found, with its command line: a job whose result is there is done
logs/NAME       what a job said while it ran, and why it failed
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rapa_cli.errors import FileError
from rapa_cli.experiments.documents import check
from rapa_cli.files import explained, inside, make_folder, no_link, read_text, write_text
from rapa_cli.runs import MANIFEST, read_metrics

RUNS, RESULTS, LOGS = "runs", "results", "logs"
# The lowest train error of a training, beside what it printed.
LOWEST_TRAIN = "lowest_train_error"


@dataclass(frozen=True)
class Job:
    """A command line of `rapa`, in the folder of experiments.

    Attributes:
        words: what stands after `rapa`, without what depends on the machine: threads, device, places of data.
        label: what it does, for people and in its name.
        needs: jobs whose results its words speak of.
    """

    words: tuple[str, ...]
    label: str
    needs: tuple[Job, ...] = field(default=(), repr=False)

    @cached_property
    def name(self) -> str:
        """A name that no other job has: the label, and a digest of the words."""
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.words[0]} {self.label}".lower()).strip("-")
        digest = hashlib.sha256(json.dumps(self.words).encode()).hexdigest()[:8]
        return f"{slug}-{digest}"

    @property
    def trains(self) -> bool:
        """Whether it leaves a run folder."""
        return self.words[0] == "train"

    @property
    def run(self) -> str:
        """The run folder of a training, as other jobs' words name it."""
        return f"{RUNS}/{self.name}"

    def option(self, name: str) -> str | None:
        """What stands after an option among the words."""
        places = [number for number, word in enumerate(self.words[:-1]) if word == name]
        return self.words[places[-1] + 1] if places else None


@dataclass(frozen=True)
class Ended:
    """How a job has ended.

    Attributes:
        code: the exit code.
        seconds: it took.
        document: what it printed, where it is done.
        message: the error where it is not.
    """

    code: int
    seconds: float
    document: dict[str, Any] | None = None
    message: str = ""


class Folder:
    """The folder of experiments."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Makes the folder and those in it.

        Raises:
            FileError: it cannot be made, or a link stands in it where a folder should be.
        """
        make_folder(self.path)
        for name in (RUNS, RESULTS, LOGS):
            inside(self.path, name)

    def log(self, job: Job) -> Path:
        """Where a job says what it does."""
        return self.path / LOGS / f"{job.name}.log"

    def command(self, job: Job) -> tuple[str, ...]:
        """The words that do a job from where it is, in this folder.

        Raises:
            FileError: its run folder is a link, which leads elsewhere.
        """
        if not job.trains:
            return job.words
        no_link(self.path / job.run)
        if (self.path / job.run / MANIFEST).exists():
            return ("train", "--resume", job.run)
        return (*job.words, "--out", job.run)

    def result(self, job: Job) -> dict[str, Any] | None:
        """What a job has found; None while it is not done, as it is not where that is damaged."""
        try:
            return self._read(job)
        except FileError:
            return None

    def damaged(self, jobs: Iterable[Job]) -> list[str]:
        """What is wrong with the results of jobs, and of all that they need: a line for each that is damaged."""
        lines = []
        for job in with_needs(jobs):
            try:
                self._read(job)
            except FileError as error:
                lines.append(error.message)
        return lines

    def failure(self, job: Job) -> str | None:
        """Why a job that is not done has failed; None where it has not."""
        try:
            return read_text(self._failed(job), "replace").strip()
        except (OSError, ValueError):
            return None

    def keep(self, job: Job, ended: Ended) -> None:
        """Writes what a job has found, or why it has failed.

        Raises:
            FileError: it cannot be written.
        """
        if ended.code:
            write_text(self._failed(job), ended.message + "\n")
            return
        with explained(self._failed(job), "delete"):
            self._failed(job).unlink(missing_ok=True)
        document = {
            "command": shlex.join(["rapa", *job.words]),
            "seconds": ended.seconds,
            "document": ended.document,
        }
        write_text(self.path / RESULTS / f"{job.name}.json", json.dumps(document, indent=2) + "\n")

    def _failed(self, job: Job) -> Path:
        return self.path / LOGS / f"{job.name}.failed"

    def _read(self, job: Job) -> dict[str, Any] | None:
        path = self.path / RESULTS / f"{job.name}.json"
        try:
            return check(job.words[0], json.loads(read_text(path))["document"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise FileError(f"{path} cannot be read: {error}") from None

    def share_done(self, job: Job) -> float:
        """The part of a training's epochs that are done, from 0 to 1; 0 for other jobs."""
        epochs = job.option("--epochs")
        if not job.trains or epochs is None:
            return 0.0
        try:
            return len(read_metrics(self.path / job.run)) / max(int(epochs), 1)
        except FileError:
            return 0.0

    def lowest_train_error(self, job: Job) -> float | None:
        """Of a training, in percent; None where its metrics are gone."""
        try:
            return min((row["train_error"] for row in read_metrics(self.path / job.run)), default=None)
        except FileError:
            return None


def with_needs(jobs: Iterable[Job]) -> list[Job]:
    """The jobs with all that they need, each once, what is needed first."""
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        for needed in job.needs:
            add(needed)
        found.setdefault(job.name, job)

    for job in jobs:
        add(job)
    return list(found.values())


def dependents(lost: Iterable[Job], jobs: Iterable[Job]) -> list[Job]:
    """Those of the jobs, what is needed first, that need a lost one, directly or not."""
    names = {job.name for job in lost}
    found = []
    # What is needed comes first, so that one pass finds all.
    for other in jobs:
        if any(need.name in names for need in other.needs):
            names.add(other.name)
            found.append(other)
    return found


def failures(folder: Folder, jobs: Iterable[Job]) -> tuple[dict[Job, str], list[Job]]:
    """The jobs that have failed, with why, and those that were not run since they need one of them."""
    undone = [job for job in with_needs(jobs) if folder.result(job) is None]
    failed = {job: why for job in undone if (why := folder.failure(job)) is not None}
    return failed, [job for job in dependents(failed, undone) if job not in failed]


Found = Mapping[Job, dict[str, Any]]
"""What jobs have found: the documents that they printed."""


class Results(Found):
    """What the jobs that are done have found, and of trainings the lowest train error."""

    def __init__(self, folder: Folder, jobs: Iterable[Job]) -> None:
        self._found: dict[Job, dict[str, Any]] = {}
        for job in with_needs(jobs):
            found = folder.result(job)
            if found is not None:
                self._found[job] = {**found, LOWEST_TRAIN: folder.lowest_train_error(job)} if job.trains else found

    def __getitem__(self, job: Job) -> dict[str, Any]:
        return self._found[job]

    def __iter__(self) -> Any:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
