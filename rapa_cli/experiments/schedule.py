"""When jobs that share slots will have ended, from estimates and from how long they have taken so far."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence

from rapa_cli.experiments.jobs import Job


def ready(waiting: Sequence[Job], unfinished: Collection[str], room: int) -> list[Job]:
    """The first jobs that may begin.

    Args:
        waiting: jobs, in the order in which they begin.
        unfinished: names of the jobs that are not done.
        room: how many may begin.
    """
    return [job for job in waiting if not any(need.name in unfinished for need in job.needs)][: max(room, 0)]


def makespan(seconds: Mapping[Job, float], slots: int) -> float:
    """Seconds until all jobs have ended.

    Args:
        seconds: of each job, what is needed first; a job begins as soon as a slot is free and what it needs has ended.
        slots: jobs at a time.
    """
    waiting, unfinished = list(seconds), {job.name for job in seconds}
    ends: list[tuple[float, str]] = []
    now = 0.0
    while waiting or ends:
        for job in ready(waiting, unfinished, slots - len(ends)):
            waiting.remove(job)
            heapq.heappush(ends, (now + seconds[job], job.name))
        now, name = heapq.heappop(ends)
        unfinished.discard(name)
    return now


class TimeLeft:
    """The time that is left of a plan: estimated, and scaled by how long what is done has taken.

    Args:
        estimated: seconds of each job, what is needed first.
        done: the part of each that is done already, from 0 to 1.
        slots: jobs at a time.
        now: seconds of a clock.
    """

    def __init__(self, estimated: Mapping[Job, float], done: Mapping[Job, float], slots: int, now: float) -> None:
        self._estimated, self._slots = estimated, slots
        self._left = {job: seconds * (1 - done[job]) for job, seconds in estimated.items()}
        self._begun: dict[Job, float] = {}
        self._at_first = dict(self._left)
        # Of jobs that have got on: seconds that this took, and seconds that were estimated for it.
        self._took: dict[Job, float] = {}
        self._meant: dict[Job, float] = {}
        self._ends = now + makespan(self._left, slots)

    @property
    def work(self) -> float:
        """Estimated seconds that are left of all jobs, one after the other."""
        return sum(self._left.values())

    @property
    def jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._left)

    def begun(self, job: Job, now: float) -> None:
        """A job begins."""
        self._begun[job] = now

    def moved(self, job: Job, done: float, now: float) -> None:
        """A job that runs has got so far, from 0 to 1."""
        left = self._estimated[job] * (1 - done)
        if left < self._left[job]:
            self._left[job] = left
            self._measure(job, self._at_first[job] - left, now)

    def ended(self, job: Job, now: float, *, done: bool) -> None:
        """A job has ended, and has done all of its work or failed."""
        self._left.pop(job)
        if done:
            self._measure(job, self._at_first[job], now)
        else:
            self._expect(now)

    def skipped(self, jobs: Sequence[Job], now: float) -> None:
        """Jobs will not be run."""
        for job in jobs:
            self._left.pop(job)
        self._expect(now)

    def seconds(self, now: float) -> float:
        """Seconds that are left."""
        return max(self._ends - now, 0.0)

    def _measure(self, job: Job, meant: float, now: float) -> None:
        self._took[job], self._meant[job] = now - self._begun[job], meant
        self._expect(now)

    def _expect(self, now: float) -> None:
        meant = sum(self._meant.values())
        scale = sum(self._took.values()) / meant if meant else 1.0
        self._ends = now + scale * makespan(self._left, self._slots)
