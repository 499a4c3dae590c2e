"""Folders from strangers: what lies in them leads nowhere else, never ends, and says nothing to the terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rapa_cli import checkpoint, files, runs
from rapa_cli.errors import FileError
from rapa_cli.experiments import node
from rapa_cli.experiments.jobs import LOGS, RESULTS, RUNS, Folder, Job
from tests.commands.conftest import TRAIN, Run, refused


@contextmanager
def bounded() -> Iterator[None]:
    """What waits for a pipe or reads without end is ended, and fails."""

    def end(*_: object) -> None:
        pytest.fail("it does not end")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def outside(here: Path) -> Path:
    """A folder of the user's, beside the one that is chosen."""
    folder = here / "outside"
    folder.mkdir()
    for name in ("mine.txt", ".mine.abcdefgh.tmp", "learning-curve.png"):
        (folder / name).write_text("precious", encoding="utf-8")
    return folder


def untouched(outside: Path) -> bool:
    names = [".mine.abcdefgh.tmp", "learning-curve.png", "mine.txt"]
    kept = {path.name: path.read_text(encoding="utf-8") for path in outside.iterdir()}
    return kept == dict.fromkeys(names, "precious")


@pytest.mark.parametrize("target", ["../../outside/mine.txt", "../../outside/new.txt"])
def test_a_lock_that_is_a_link_is_refused(rapa: Run, here: Path, outside: Path, target: str) -> None:
    (here / "runs/done/.lock").symlink_to(target)
    refused(rapa("train", "--resume", "runs/done"), 3, ".lock: it is a link", "take it away")
    assert untouched(outside)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused(rapa: Run, here: Path, make: Callable[[Path], None]) -> None:
    make(here / "runs/done/.lock")
    refused(rapa("train", "--resume", "runs/done"), 3, "cannot write runs/done/.lock", "")


def test_figures_do_not_leave_the_run(rapa: Run, here: Path, outside: Path) -> None:
    (here / "runs/done/figures").symlink_to(outside)
    refused(rapa("train", "--resume", "runs/done", "--epochs", "4"), 3, "runs/done/figures: it is a link", "take it")
    assert untouched(outside)


def test_what_is_swept_lies_in_the_folder(here: Path, outside: Path) -> None:
    (here / "runs/done/other").symlink_to(outside)
    with files.held(here / "runs/done"):
        assert untouched(outside)


def test_a_run_folder_may_itself_be_a_link(rapa: Run, here: Path) -> None:
    (here / "linked").symlink_to("runs/done")
    assert rapa("train", "--resume", "linked", "--epochs", "4").code == 0
    assert (here / "runs/done/figures/learning-curve.png").is_file()


@pytest.mark.parametrize("name", [RUNS, RESULTS, LOGS])
def test_experiments_do_not_leave_their_folder(here: Path, outside: Path, name: str) -> None:
    (here / "results").mkdir()
    (here / "results" / name).symlink_to(outside)
    with pytest.raises(FileError, match=f"results/{name}: it is a link"):
        Folder(here / "results").make()


def test_jobs_do_not_leave_their_folder(here: Path, outside: Path) -> None:
    folder, job = Folder(here / "results"), Job(("train",), "tiny")
    folder.make()
    (folder.path / job.run).symlink_to(outside)
    with pytest.raises(FileError, match="it is a link"):
        folder.command(job)
    folder.log(job).symlink_to(outside / "mine.txt")
    with pytest.raises(FileError, match="it is a link"):
        files.append_to(folder.log(job))
    assert untouched(outside)


def test_files_from_another_machine_stay_in_their_folder(here: Path, outside: Path) -> None:
    (here / "runs/done/figures").symlink_to(outside)
    with pytest.raises(FileError, match="it is a link"):
        node.write(here, {"runs/done/figures/mine.txt": b"new"}, ["runs/done"])
    assert untouched(outside)


def endless(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "last.safetensors"])
def test_what_never_ends_is_not_read(rapa: Run, here: Path, name: str, kind: str) -> None:
    with bounded():
        endless(here / "runs/done" / name, kind)
        refused(rapa("train", "--resume", "runs/done", "--epochs", "4"), 3, f"runs/done/{name}", "")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_times_and_results_that_never_end_are_not_there(here: Path, kind: str) -> None:
    folder, job = Folder(here / "results"), Job(("vote",), "tiny")
    folder.make()
    endless(here / "runs/done/timing.csv", kind)
    endless(folder.path / RESULTS / f"{job.name}.json", kind)
    with bounded():
        assert runs.read_timing(here / "runs/done") == []
        assert folder.result(job) is None
        assert folder.damaged([job])[0].endswith("it is no ordinary file")


def test_a_text_that_is_too_long_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here / "long.txt"
    path.write_text("x" * 100, encoding="utf-8")
    monkeypatch.setattr(files, "MAX_TEXT", 100)
    assert files.read_text(path) == "x" * 100
    monkeypatch.setattr(files, "MAX_TEXT", 99)
    with pytest.raises(ValueError, match="it has more than 99 bytes"):
        files.read_text(path)


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_checkpoint_says_nothing_to_the_terminal(rapa: Run, here: Path, arguments: list[str]) -> None:
    path, said = here / "runs/done/last.safetensors", "\x1b]0;t\x07\x9b31m\u202e\nforged"
    found = checkpoint.read(path)
    network = found.description.network.model_copy(update={"name": said})
    changes = {"network": network, "data": said, "provenance": {"command": said}}
    state = {name: tensor.clone() for name, tensor in found.state.items()}
    checkpoint.save(path, found.description.model_copy(update=changes), state, {})
    done = rapa("inspect", "runs/done", *arguments)
    assert done.code == 0
    assert "\\x1b]0;t" in done.out or "\\u001b]0;t" in done.out
    assert all(line.isprintable() for line in done.out.split("\n"))
    assert not any(line.startswith("forged") for line in done.out.split("\n"))


def test_a_name_that_is_too_long_is_told(rapa: Run, here: Path) -> None:
    refused(rapa(*TRAIN, "--out", "x" * 300), 3, "file name too long", "choose another name")
