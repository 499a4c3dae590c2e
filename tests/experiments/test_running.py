"""Plans: what is run, in which order, and what becomes of failures and of what was done before."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapa_cli.config import load_network
from rapa_cli.errors import ConfigError, Interrupted
from rapa_cli.experiments.documents import check
from rapa_cli.experiments.jobs import RESULTS, Ended, Folder, Job, Results, failures, with_needs
from rapa_cli.experiments.running import check_recipes, left, run
from rapa_cli.experiments.settings import Settings, recipe_asked
from rapa_cli.files import make_folder
from rapa_cli.runs import Manifest, write_manifest
from rapa_cli.training.stopping import StopRequest


class Quiet:
    """Hears everything and keeps the order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begun(self, job: Job) -> None:
        self.said.append(f"begun {job.label}")

    def ended(self, job: Job, ended: Ended) -> None:
        self.said.append(f"ended {job.label}")

    def skipped(self, jobs: Sequence[Job]) -> None:
        self.said += [f"skipped {job.label}" for job in jobs]

    def tick(self, running: Sequence[Job]) -> None:
        pass


class Fake:
    """An engine that does nothing, and notes what it was asked to."""

    def __init__(self, folder: Folder, *, slots: int = 2, failing: Sequence[str] = ()) -> None:
        self.slots, self._folder, self._failing = slots, folder, failing
        self.executed: list[str] = []
        self.at_once = self.most = 0
        self.stopped = False
        self._lock = threading.Lock()

    def execute(self, job: Job) -> Ended:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        assert all(self._folder.result(need) is not None for need in job.needs), "what it needs is done"
        with self._lock:
            self.executed.append(job.label)
            self.at_once -= 1
        if job.label in self._failing:
            return Ended(3, 0.1, message="the disk is full")
        return Ended(0, 0.1, {"label": job.label})

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        pass


def job(label: str, *needs: Job) -> Job:
    return Job(("nothing", label), label, needs)


def test_what_is_needed_comes_first_and_each_once(tmp_path: Path) -> None:
    a = job("a")
    b, c = job("b", a), job("c", a)
    d = job("d", b, c)
    folder, watcher = Folder(tmp_path), Quiet()
    engine = Fake(folder)
    outcome = run(folder, [d, c], engine, watcher, StopRequest())
    assert engine.executed[0] == "a"
    assert engine.executed[-1] == "d"
    assert sorted(engine.executed) == ["a", "b", "c", "d"]
    assert [each.label for each in outcome.done][-1] == "d"
    assert Results(folder, [d])[a] == {"label": "a"}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    a = job("a")
    folder = Folder(tmp_path)
    run(folder, [a], Fake(folder), Quiet(), StopRequest())
    engine = Fake(folder)
    run(folder, [job("b", a)], engine, Quiet(), StopRequest())
    assert engine.executed == ["b"]
    assert left(folder, [job("b", a)]) == []


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    a, x = job("a"), job("x")
    b = job("b", a)
    c, y = job("c", b), job("y", x)
    folder = Folder(tmp_path)
    engine = Fake(folder, failing=["a"])
    watcher = Quiet()
    outcome = run(folder, [c, y], engine, watcher, StopRequest())
    assert sorted(engine.executed) == ["a", "x", "y"]
    assert [line for line in watcher.said if line.startswith("skipped")] == ["skipped b", "skipped c"]
    assert failures(folder, [c, y]) == ({a: "the disk is full"}, [b, c])
    assert [each.label for each in outcome.failed] == ["a"]
    assert [each.label for each in outcome.skipped] == ["b", "c"]
    again = Fake(folder)
    assert not run(folder, [c, y], again, Quiet(), StopRequest()).failed
    assert again.executed == ["a", "b", "c"]
    assert failures(folder, [c, y]) == ({}, [])


def test_no_more_at_a_time_than_there_are_slots(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    engine = Fake(folder, slots=3)
    run(folder, [job(str(number)) for number in range(20)], engine, Quiet(), StopRequest())
    assert engine.most <= 3


def test_a_signal_stops_the_plan_and_keeps_what_is_done(tmp_path: Path) -> None:
    folder, stop = Folder(tmp_path), StopRequest()

    class Stopping(Quiet):
        def ended(self, job: Job, ended: Ended) -> None:
            stop.exit_code = 143

    engine = Fake(folder, slots=1)
    jobs = [job(str(number)) for number in range(5)]
    with pytest.raises(Interrupted):
        run(folder, jobs, engine, Stopping(), stop)
    assert engine.stopped
    assert 1 <= len(Results(folder, jobs)) < 5


def test_a_damaged_result_is_named_and_its_job_done_again(tmp_path: Path) -> None:
    folder, a = Folder(tmp_path), job("a")
    run(folder, [a], Fake(folder), Quiet(), StopRequest())
    path = tmp_path / RESULTS / f"{a.name}.json"
    for text in (path.read_text()[:-30], json.dumps({"document": None}), "[]"):
        path.write_text(text)
        assert folder.result(a) is None
        (line,) = folder.damaged([job("b", a)])
        assert f"{path} cannot be read" in line
        assert len(Results(folder, [a])) == 0
    engine = Fake(folder)
    run(folder, [a], engine, Quiet(), StopRequest())
    assert engine.executed == ["a"]
    assert folder.damaged([a]) == []


@pytest.mark.parametrize(
    ("command", "document", "key"),
    [
        ("train", {}, "test_error"),
        ("vote", {"single_error": "low", "vote_error": 1.0, "gain_se": 0.1}, "single_error"),
        ("attack", {"points": []}, "points"),
        ("attack", {"points": [{"accuracy": 1.0}]}, "points.0.asked"),
        ("inspect", {"layers": [{"similarity": None}, {}]}, "layers.1.similarity"),
        ("evaluate", {"confidence": None}, "confidence"),
    ],
)
def test_a_document_without_what_experiments_read_is_none(command: str, document: object, key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        check(command, document)


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=15))
def test_the_order_of_any_plan(edges: list[list[int]]) -> None:
    """A job may need only earlier ones, as its needs are part of it."""
    jobs: list[Job] = []
    for number, needs in enumerate(edges):
        jobs.append(job(str(number), *(jobs[need] for need in {need for need in needs if need < number})))
    ordered = with_needs(reversed(jobs))
    places = {each.name: place for place, each in enumerate(ordered)}
    assert len(places) == len(jobs)
    assert all(places[need.name] < places[each.name] for each in ordered for need in each.needs)


def test_a_recipe_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    path, folder = tmp_path / "my.toml", Folder(tmp_path)
    path.write_text("epochs = 3\nbatch_size = 5\nlr = 0.004\n")
    training = Settings(recipe=str(path), changes=("momentum=0.5",)).train("none", seed=0)
    check_recipes(folder, [training])
    make_folder(tmp_path / training.run)
    manifest = Manifest(network=load_network("full"), recipe=recipe_asked(training), data="shapes", seed=0)
    write_manifest(tmp_path / training.run, manifest)
    check_recipes(folder, [job("a", training)])
    path.write_text(path.read_text().replace("0.004", "0.0001"))
    with pytest.raises(ConfigError, match=r"lr was 0\.004, is 0\.0001"):
        check_recipes(folder, [job("a", training)])


def test_names_follow_the_words() -> None:
    first, second = Job(("train", "--seed", "0"), "a"), Job(("train", "--seed", "1"), "a")
    assert first.name != second.name
    assert first.name == Job(("train", "--seed", "0"), "a").name
    assert first.name.startswith("train-a-")
    assert set(first.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
