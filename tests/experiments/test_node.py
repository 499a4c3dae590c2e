"""What a node does for a job, without a cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import rapa_cli
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.experiments import node
from rapa_cli.experiments.jobs import Job
from rapa_cli.experiments.node import Report, Workplace
from rapa_cli.runs import read_metrics
from tests.experiments import tiny

RUN = Job(("train", "--seed", "1"), "one")
VOTE = Job(("vote", RUN.run), "one", (RUN,))
OTHER = Job(("train", "--seed", "2"), "two")


@pytest.fixture(scope="module", autouse=True)
def few_shapes(data_dir: Path) -> None:
    tiny.write_data(data_dir)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def begun(job: Job, files: dict[str, bytes] | None = None) -> Workplace:
    workplace = Workplace()
    workplace.begin(job, files or {}, version=rapa_cli.__version__, threads=1, device="cpu")
    return workplace


def reports(workplace: Workplace) -> list[Report]:
    found = [workplace.report()]
    while found[-1].ended is None:
        found.append(workplace.report())
    return found


def test_a_job_has_its_run_folder_and_those_of_what_it_needs() -> None:
    attack = Job(("attack", VOTE.run, "--baseline", OTHER.run), "both", (VOTE, OTHER))
    assert set(node.runs_of(attack)) == {RUN.run, OTHER.run}
    assert node.runs_of(RUN) == (RUN.run,)


def test_files_travel_with_checkpoints_read_first_and_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    contents = {
        "last.safetensors": b"weights",
        "metrics.csv": b"rows",
        "figures/curve.svg": b"",
        "best.safetensors": b"x",
    }
    files = {f"{RUN.run}/{name}": content for name, content in contents.items()}
    for name, content in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    read = node.read(here, node.stamps(here, [RUN.run]))
    assert read == files
    assert next(iter(read)) == f"{RUN.run}/last.safetensors"
    written: list[str] = []
    replace = Path.replace

    def noted(path: Path, target: Path) -> Path:
        written.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    node.write(there, read, [RUN.run])
    assert written[-1] == "last.safetensors"
    assert {name: (there / name).read_bytes() for name in files} == files


def test_links_temporary_files_and_other_runs_stay(tmp_path: Path) -> None:
    for name in (f"{RUN.run}/run.json", f"{RUN.run}/.last.safetensors.x.tmp", f"{OTHER.run}/run.json", "secret"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / RUN.run / "link").symlink_to(tmp_path / "secret")
    (tmp_path / RUN.run / "folder").symlink_to(tmp_path / OTHER.run)
    assert set(node.stamps(tmp_path, [RUN.run])) == {f"{RUN.run}/run.json"}


def test_a_file_that_was_replaced_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / RUN.run / "run.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"old")
    before = node.stamps(tmp_path, [RUN.run])
    status = path.stat()
    node.write(tmp_path, {f"{RUN.run}/run.json": b"new"}, [RUN.run])
    # Also where the clock is too coarse to tell.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert node.stamps(tmp_path, [RUN.run]) != before


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../outside",
        "run.json",
        "runs/run.json",
        RUN.run,
        f"{OTHER.run}/run.json",
        f"{RUN.run}x/run.json",
        f"{RUN.run}/../other/run.json",
        f"{RUN.run}/../../../outside",
        f"./{RUN.run}/run.json",
        f"{RUN.run}//run.json",
        f"{RUN.run}/run.json/",
        f"{RUN.run}/a\0b",
        "",
    ],
)
def test_no_file_is_written_elsewhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(FileError, match="is no file of the job's run folders"):
        node.write(folder, {f"{RUN.run}/run.json": b"", name: b""}, [RUN.run])
    assert not list(tmp_path.iterdir())


def test_versions_must_agree(temporary: Path) -> None:
    with pytest.raises(ConfigError, match=r"has rapa 0\.1.*, the machine that sends jobs has rapa 9\.9"):
        Workplace().begin(RUN, {}, version="9.9", threads=1, device="cpu")
    with pytest.raises(ConfigError, match=r"node 10\.0\.0\.1 has no rapa"):
        node.check_version(None, "9.9", "10.0.0.1")
    assert not list(temporary.iterdir())


def test_what_does_not_begin_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(FileError):
        begun(VOTE, {"../outside": b""})
    assert not list(temporary.iterdir())


def test_a_job_that_fails(temporary: Path) -> None:
    found = reports(begun(Job(("train", "--sead", "1"), "misspelt")))
    assert b"hint: did you mean '--seed'?" in b"".join(report.log for report in found)
    ended = found[-1].ended
    assert ended is not None
    assert (ended.code, ended.message) == (2, "no such option: --sead")
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_a_training_streams_stops_and_goes_on_elsewhere(temporary: Path, tmp_path: Path) -> None:
    epochs = 60
    job, here = tiny.training(0, epochs), tmp_path / "here"
    first, sent = begun(job), 0
    found: list[Report] = []
    while not found or found[-1].ended is None:
        # Asked to stop when the first epoch has come.
        found.append(first.report(stop=bool(sent)))
        node.write(here, found[-1].files, node.runs_of(job))
        sent = len(read_metrics(here / job.run))
    ended = found[-1].ended
    assert ended is not None
    assert ended.code == 143
    assert 1 <= len(read_metrics(here / job.run)) < epochs
    # Only what is new travels.
    assert sum(f"{job.run}/run.json" in report.files for report in found) == 1

    found = reports(begun(job, node.read(here, node.stamps(here, [job.run]))))
    assert f"going on after epoch {sent}" in b"".join(report.log for report in found).decode()
    done = found[-1].ended
    assert done is not None
    assert done.document is not None
    assert (done.code, done.document["epochs"]) == (0, epochs)
    for report in found:
        node.write(here, report.files, node.runs_of(job))
    assert [row["epoch"] for row in read_metrics(here / job.run)] == list(range(1, epochs + 1))
    assert not list(temporary.iterdir())
