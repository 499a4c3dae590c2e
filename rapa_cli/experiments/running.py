"""Running a plan: each job once what it needs is done, several at a time, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from rapa_cli.errors import ConfigError, FileError
from rapa_cli.experiments.jobs import Ended, Folder, Job, dependents, with_needs
from rapa_cli.experiments.schedule import ready
from rapa_cli.experiments.settings import recipe_asked
from rapa_cli.resources import is_path
from rapa_cli.runs import read_manifest
from rapa_cli.training.stopping import StopRequest

# How often progress is looked at while jobs run.
_REFRESH_SECONDS = 0.5


class Engine(Protocol):
    """Where jobs run.

    Attributes:
        slots: jobs at a time.
    """

    slots: int

    def execute(self, job: Job) -> Ended:
        """Does a job and waits for it; called in a thread of its own."""

    def stop(self) -> None:
        """Asks all jobs that run to save and end; no other begins."""

    def close(self) -> None:
        """Called when no more is to be run."""


class Watcher(Protocol):
    """Who is told how a plan goes."""

    def begun(self, job: Job) -> None:
        """When a job starts."""

    def ended(self, job: Job, ended: Ended) -> None:
        """When a job has ended, well or not."""

    def skipped(self, jobs: Sequence[Job]) -> None:
        """When jobs will not be run, since one that they need has failed."""

    def tick(self, running: Sequence[Job]) -> None:
        """Now and then while jobs run."""


@dataclass
class Outcome:
    """What became of a plan.

    Attributes:
        done: jobs that were done by this call.
        failed: jobs that failed, with how they ended.
        skipped: jobs that were not begun, since one that they need has failed.
    """

    done: list[Job] = field(default_factory=list)
    failed: dict[Job, Ended] = field(default_factory=dict)
    skipped: list[Job] = field(default_factory=list)


def left(folder: Folder, jobs: Sequence[Job]) -> list[Job]:
    """The jobs with all that they need that are not done yet, what is needed first."""
    return [job for job in with_needs(jobs) if folder.result(job) is None]


def check_recipes(folder: Folder, jobs: Sequence[Job]) -> None:
    """Refuses a recipe file that is another than it was: a job's name says which file, and not what was in it.

    Args:
        folder: with trainings that have begun.
        jobs: the plan; those that it needs are checked as well.

    Raises:
        ConfigError: a training began with other keys.
    """
    for job in with_needs(jobs):
        name = job.option("--recipe") or ""
        if not job.trains or not is_path(name):
            continue
        try:
            begun = read_manifest(folder.path / job.run).recipe.model_dump(exclude={"description"})
        except FileError:
            # Not begun, or damaged: the training itself will say so.
            continue
        wanted = recipe_asked(job).model_dump(exclude={"description"})
        changed = [f"{key} was {begun[key]}, is {wanted[key]}" for key in wanted if wanted[key] != begun[key]]
        if changed:
            raise ConfigError(
                f"{name} has changed since {folder.path / job.run} was trained with it: {', '.join(changed)}",
                hint="choose another folder with --out, or give the changed recipe a name of its own",
            )


def run(folder: Folder, jobs: Sequence[Job], engine: Engine, watcher: Watcher, stop: StopRequest) -> Outcome:
    """Does what is left of a plan.

    Args:
        folder: of the experiments.
        jobs: the plan; what they need is done as well.
        engine: where.
        watcher: who is told.
        stop: asked now and then.

    Raises:
        Interrupted: a signal came; trainings have saved where they are.
        FileError: a result cannot be written.
    """
    folder.make()
    waiting, outcome = left(folder, jobs), Outcome()
    unfinished = {job.name for job in waiting}
    running: dict[Future[Ended], Job] = {}
    with ThreadPoolExecutor(max_workers=engine.slots) as threads:
        try:
            while waiting or running:
                stop.check()
                for job in ready(waiting, unfinished, engine.slots - len(running)):
                    waiting.remove(job)
                    watcher.begun(job)
                    running[threads.submit(engine.execute, job)] = job
                finished, _ = wait(running, _REFRESH_SECONDS, FIRST_COMPLETED)
                for future in finished:
                    job, ended = running.pop(future), future.result()
                    folder.keep(job, ended)
                    hopeless: list[Job] = []
                    if ended.code == 0:
                        unfinished.discard(job.name)
                        outcome.done.append(job)
                    else:
                        outcome.failed[job] = ended
                        hopeless = dependents([job], waiting)
                        outcome.skipped += hopeless
                        waiting = [other for other in waiting if other not in hopeless]
                    watcher.ended(job, ended)
                    watcher.skipped(hopeless)
                watcher.tick(list(running.values()))
        except BaseException:
            # Trainings save where they are; the end of the pool waits for them.
            engine.stop()
            raise
    return outcome
