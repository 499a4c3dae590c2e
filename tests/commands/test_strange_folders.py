"""Folders from strangers: what lies in them leads nowhere else, never ends, and says nothing to the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rapa_cli import files
from rapa_cli.errors import FileError
from rapa_cli.experiments import node
from rapa_cli.experiments.jobs import LOGS, RESULTS, RUNS, Folder, Job
from tests.commands.conftest import Run, refused


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
