"""`rapa reproduce`: plans, refusals, and real processes that are stopped and go on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapa_cli import app
from rapa_cli.files import held, make_folder
from tests.commands.conftest import Run, refused
from tests.training import tiny

SMALL = ["--data", "mini", "--seeds", "1", "--recipe", "short", "--set", "mirror=false"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set `mini`, with images as large as those that the experiments' tilings are for."""
    place = tmp_path_factory.mktemp("data")
    (place / "arrays").mkdir()
    for name, count in (("train", 200), ("test", 30)):
        part = tiny.split(count, seed=count)
        images = part.images.repeat_interleave(4, 2).repeat_interleave(4, 3).permute(0, 2, 3, 1)
        np.savez(place / "arrays" / f"{name}.npz", images=images.numpy(), labels=part.labels.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPA_DATA_DIR", str(place / "data"))
        assert app.run(["data", "get", "mini", "--from", str(place / "arrays")]) == 0
    return place / "data"


def started(data: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    """A process of `rapa reproduce`, whose messages can be read as they come."""
    return subprocess.Popen(
        [sys.executable, "-m", "rapa_cli", "reproduce", *words, *SMALL, "--out", str(out)],
        env={**os.environ, "RAPA_DATA_DIR": str(data), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    # `yield from` would close the pipe where a caller stops reading.
    for line in process.stderr:  # noqa: UP028
        yield line


def measured(out: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "tables" / f"{name}.json").read_text())["measures"]
    return found


def test_a_plan_names_every_job_with_time_and_disk(rapa: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPA_DATA_DIR", str(data))
    words = ["reproduce", "table2", *SMALL, "--epochs", "2", "--pools", "max", "--plan"]
    document = rapa(*words, "--json").document
    assert [job["command"].split()[1] for job in document["jobs"]] == ["train", "train", "train", "vote", "reduce"]
    assert not any(job["done"] for job in document["jobs"])
    assert all(job["seconds"] > 0 for job in document["jobs"])
    assert document["bytes"] > 4 * 3 * 79_328
    tiled = next(job for job in document["jobs"] if "random" in job["command"])
    assert document["jobs"][3]["needs"] == [tiled["job"]]
    assert not Path("reproduce").exists(), "a plan leaves nothing behind"
    longest = tiled["seconds"] + max(job["seconds"] for job in document["jobs"][3:])
    assert document["whole_seconds"] >= max(longest, document["seconds"] / document["at_a_time"]) - 1e-6
    # Of one network only, since speeds are measured again.
    said = rapa("reproduce", "table1", *SMALL, "--epochs", "2", "--schemes", "none", "--plan").out
    assert "1 job, 1 of them to do" in said


def test_a_recipe_file_is_named_as_jobs_see_it(rapa: Run) -> None:
    Path("my.toml").write_text("epochs = 3\nbatch_size = 5\nlr = 0.004\n")
    words = ["reproduce", "table1", "--data", "shapes", "--seeds", "1", "--schemes", "none", "--plan", "--json"]
    (job,) = rapa(*words, "--recipe", "./my.toml").document["jobs"]
    command = shlex.split(job["command"])
    assert command[command.index("--recipe") + 1] == str(Path("my.toml").absolute())


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["tabel1"], "there is no experiment 'tabel1'", "table1"),
        (["table2", "--pools", "max,men"], "--pools: got 'men'", "max"),
        (["table1", "--schemes", " "], "--schemes: got an empty name", "commas"),
        (["table1", "--engine", "rya"], "--engine: there is no 'rya'", "ray"),
        (["table1", "--plan", "--report-only"], "--plan and --report-only exclude each other", "leave one"),
        (["table1", "--address", "auto"], "--address cannot go without --engine ray", "--engine ray"),
        (["table1", "--recipe", "paper", "--set", "lrr=1"], "unknown key 'lrr'", "lr"),
    ],
)
def test_what_cannot_be_is_refused(rapa: Run, words: list[str], message: str, hint: str) -> None:
    refused(rapa("reproduce", *words), 2, message, hint)


def test_results_that_are_not_there_are_not_reported(rapa: Run) -> None:
    outcome = rapa("reproduce", "table1", "--data", "mini", "--report-only", "--out", "mistyped")
    refused(outcome, 3, "there are no results in mistyped", "--out")
    assert not Path("mistyped").exists()


def test_a_folder_in_use_is_refused_before_speeds_are_measured(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from rapa_cli.experiments import probe

    def measured(*_: object, **__: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(probe, "estimates", measured)
    with held(make_folder(Path("used"))):
        outcome = rapa("reproduce", "table1", "--data", "shapes", "--seeds", "1", "--out", "used")
    refused(outcome, 2, "used is in use by", "wait")


def test_nothing_to_run_makes_tables_and_a_page(rapa: Run) -> None:
    Path("all/results").mkdir(parents=True)
    outcome = rapa("reproduce", "table1", "figure2", "--data", "mini", "--report-only", "--out", "all", "--json")
    document = outcome.document
    assert document["done"] == 0
    assert {claim["verdict"] for claim in document["experiments"][0]["claims"]} == {"not tested"}
    assert Path("all/report.html").is_file()
    assert Path("all/figures/figure2.png").is_file()


@pytest.mark.slow  # starts some ten processes
def test_what_is_stopped_goes_on_and_ends_the_same(data: Path, tmp_path: Path) -> None:
    words = ["table1", "--schemes", "none,random", "--epochs", "12", "--jobs", "1"]
    whole = started(data, tmp_path / "whole", *words)
    whole.communicate()
    assert whole.returncode in (0, 4)

    stopped = started(data, tmp_path / "stopped", *words)
    for line in lines(stopped):
        if line.startswith("done "):
            stopped.send_signal(signal.SIGTERM)
            break
    _, messages = stopped.communicate()
    assert stopped.returncode == 143, messages
    assert "go on with the same command" in messages
    assert len(list((tmp_path / "stopped" / "results").iterdir())) == 1

    again = started(data, tmp_path / "stopped", *words)
    _, messages = again.communicate()
    assert again.returncode == whole.returncode, messages
    assert messages.count("done ") == 1
    assert measured(tmp_path / "stopped", "table1") == measured(tmp_path / "whole", "table1")


@pytest.mark.slow
def test_after_a_kill_no_job_lives_on_and_all_is_done_in_the_end(data: Path, tmp_path: Path) -> None:
    words = ["table1", "--schemes", "random", "--epochs", "400", "--jobs", "1"]
    killed = started(data, tmp_path / "killed", *words)
    for line in lines(killed):
        if line.startswith("begun"):
            break
    folder = tmp_path / "killed" / "runs"
    while not list(folder.glob("*/metrics.jsonl")):
        assert killed.poll() is None
    killed.kill()
    # The job holds the other end of this pipe no longer when it has saved and ended.
    killed.communicate()
    (run,) = folder.iterdir()
    log = next((tmp_path / "killed" / "logs").iterdir())
    while "go on with" not in log.read_text():
        pass
    epochs = len((run / "metrics.jsonl").read_text().splitlines())
    assert epochs < 400
    again = started(data, tmp_path / "killed", *words)
    _, messages = again.communicate()
    assert again.returncode == 0, messages
    assert f"going on after epoch {epochs}" in log.read_text()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 400


@pytest.mark.slow
def test_a_job_that_fails_is_named_and_the_others_are_done(data: Path, tmp_path: Path) -> None:
    words = ["table2", "--pools", "max", "--epochs", "1"]
    out = tmp_path / "failing"
    # The folder of the enlarged network cannot be made where a file stands.
    from rapa_cli.experiments.settings import Settings

    settings = Settings(epochs=1, seeds=1, data=("mini",), recipe="short", changes=("mirror=false",))
    blocked = out / settings.train("random", seed=0).run
    blocked.parent.mkdir(parents=True)
    blocked.write_text("")
    process = started(data, out, *words)
    _, messages = process.communicate()
    assert process.returncode == 1
    assert "1 of 5 jobs failed, and 2 that need them were not run" in messages
    assert sorted(path.name.split("-")[0] for path in (out / "results").iterdir()) == ["train", "train"]
    assert "Jobs that failed" in (out / "report.html").read_text()
    blocked.unlink()
    again = started(data, out, *words)
    _, messages = again.communicate()
    assert again.returncode in (0, 4), messages
    assert len(list((out / "results").iterdir())) == 5
