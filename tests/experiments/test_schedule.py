"""The time that plans take: never below what cannot be shared, and scaled by what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapa_cli.experiments.jobs import Job
from rapa_cli.experiments.schedule import TimeLeft, makespan


def job(label: str, *needs: Job) -> Job:
    return Job(("nothing", label), label, needs)


def test_what_needs_another_cannot_run_beside_it() -> None:
    a = job("a")
    assert makespan({a: 3.0}, 2) == 3.0
    assert makespan({a: 3.0, job("b", a): 4.0}, 2) == 7.0
    assert makespan({a: 3.0, job("b"): 4.0}, 2) == 4.0
    assert makespan({a: 3.0, job("b"): 4.0}, 1) == 7.0
    # What it needs is done.
    assert makespan({job("b", a): 4.0}, 2) == 4.0
    assert makespan({}, 2) == 0.0


@given(st.lists(st.floats(0, 100), max_size=12), st.integers(1, 4))
def test_independent_jobs_take_between_their_share_and_all_of_it(seconds: list[float], slots: int) -> None:
    jobs = {job(str(number)): each for number, each in enumerate(seconds)}
    least = max(sum(seconds) / slots, max(seconds, default=0.0))
    assert least - 1e-9 <= makespan(jobs, slots) <= sum(seconds) + 1e-9
    assert makespan(jobs, 1) == pytest.approx(sum(seconds))


def test_time_left_follows_what_was_seen_and_counts_down() -> None:
    a, b = job("a"), job("b")
    left = TimeLeft({a: 100.0, b: 100.0}, {a: 0.0, b: 0.5}, slots=1, now=0.0)
    assert (left.work, left.jobs, left.seconds(0.0)) == (150.0, 2, 150.0)
    left.begun(a, 0.0)
    # A tenth is done in twice the time that was meant.
    left.moved(a, 0.1, 20.0)
    assert left.seconds(20.0) == pytest.approx(2 * 140)
    left.moved(a, 0.1, 30.0)
    assert left.seconds(30.0) == pytest.approx(2 * 140 - 10)
    left.ended(a, 100.0, done=True)
    assert left.jobs == 1
    assert left.seconds(100.0) == pytest.approx(50)


def test_what_will_not_be_run_takes_no_time() -> None:
    a = job("a")
    b = job("b", a)
    left = TimeLeft({a: 10.0, b: 10.0}, {a: 0.0, b: 0.0}, slots=2, now=0.0)
    left.begun(a, 0.0)
    left.ended(a, 1.0, done=False)
    left.skipped([b], 1.0)
    assert (left.work, left.jobs, left.seconds(1.0)) == (0.0, 0, 0.0)
