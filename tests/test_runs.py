"""Run folders: their names, what is read back from them, and which checkpoint a command means."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from rapa_cli import runs
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.runs import Manifest
from tests import zoo
from tests.training import tiny

ROWS: list[dict[str, Any]] = [
    dict(zip(runs.METRICS, (number, 0.1, 1 / number, 50.0, 1.25, 100 / 3), strict=True)) for number in (1, 2)
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest() -> Manifest:
    return Manifest(network=tiny.definition(), recipe=tiny.recipe(), data="tiny", seed=3, provenance={"rapa": "1"})


def run_with(name: str, *files: str, age: int = 0) -> Path:
    """A run folder with these files, all `age` seconds older than the newest."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    runs.write_manifest(folder, manifest())
    for file in files:
        (folder / file).write_bytes(b"")
        os.utime(folder / file, (1e9 - age, 1e9 - age))
    return folder


def test_a_new_folder_says_what_it_holds() -> None:
    folder = runs.new_folder("full", "random", "cifar10", None)
    assert folder.is_dir()
    assert re.fullmatch(r"runs/\d{8}-\d{6}-full-random-cifar10", str(folder))


def test_no_two_runs_get_the_same_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    # As when several are begun in the same second, and each finds that the name is free.
    monkeypatch.setattr(Path, "exists", lambda *_, **__: False)
    folders = [runs.new_folder("full", "none", "tiny", None) for _ in range(4)]
    assert len(set(folders)) == 4


def test_a_name_is_no_path() -> None:
    folder = runs.new_folder("../my net/1", "none", "tiny", None)
    assert folder.parent == Path("runs")
    assert folder.name.endswith("..-my-net-1-none-tiny")


def test_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    wanted = tmp_path / "deep" / "down"
    assert runs.new_folder("full", "none", "tiny", wanted) == wanted
    assert runs.new_folder("full", "none", "tiny", wanted) == wanted, "an empty folder will do"
    (wanted / "notes.txt").write_text("mine", encoding="ascii")
    assert runs.new_folder("full", "none", "tiny", wanted) == wanted
    runs.write_manifest(wanted, manifest())
    with pytest.raises(ConfigError) as caught:
        runs.new_folder("full", "none", "tiny", wanted)
    assert caught.value.message == f"--out {wanted}: there is a run in this folder already"
    assert f"--resume {wanted}" in str(caught.value.hint)


@pytest.mark.parametrize("out", [None, Path("runs"), Path("runs/below")])
def test_a_file_where_the_folder_should_be(out: Path | None) -> None:
    Path("runs").write_text("", encoding="ascii")
    with pytest.raises(FileError, match="a file stands where a folder should be"):
        runs.new_folder("full", "none", "tiny", out)


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for out in (None, Path("there")):
        with pytest.raises(FileError) as caught:
            runs.new_folder("full", "none", "tiny", out)
        assert "no permission to write" in caught.value.message
        assert caught.value.hint


def test_the_manifest_comes_back() -> None:
    folder = run_with("one")
    assert runs.read_manifest(folder) == manifest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"3", "input should be"),
        (b"{}", "'network' is missing; 'recipe' is missing; 'data' is missing; 'seed' is missing"),
    ],
)
def test_a_damaged_manifest(content: bytes, message: str) -> None:
    folder = run_with("one")
    (folder / runs.MANIFEST).write_bytes(content)
    with pytest.raises(FileError) as caught:
        runs.read_manifest(folder)
    assert message in caught.value.message
    assert str(folder / runs.MANIFEST) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_changed_manifest() -> None:
    folder = run_with("one")
    document = json.loads((folder / runs.MANIFEST).read_text(encoding="utf-8"))
    document["recipe"]["lr"] = "fast"
    document["sead"] = document.pop("seed")
    (folder / runs.MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(FileError) as caught:
        runs.read_manifest(folder)
    for part in ("recipe.lr: input should be a valid number, got 'fast'", "unknown key 'sead'", "'seed' is missing"):
        assert part in caught.value.message
    assert caught.value.hint == "did you mean 'seed'?"


def test_no_manifest() -> None:
    with pytest.raises(FileError, match="there is no run folder runs/away") as caught:
        runs.read_manifest(Path("runs/away"))
    assert caught.value.hint == "there is no run with a checkpoint below ./runs; train one: rapa train"
    Path("empty").mkdir()
    run_with("two", runs.LAST, age=5)
    run_with("one", runs.LAST)
    run_with("zero")
    run_with("zzz", runs.LAST, age=9)
    with pytest.raises(FileError, match=r"there is no run in empty \(run.json is missing\)") as caught:
        runs.read_manifest(Path("empty"))
    assert caught.value.hint == "newest run: runs/one"


def test_metrics_are_written_twice() -> None:
    folder = run_with("one")
    runs.write_rows(folder, "metrics", ROWS, lines=True)
    text = (folder / "metrics.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "epoch,rate,train_loss,train_error,test_loss,test_error"
    assert [{key: float(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())] == ROWS
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS == runs.read_metrics(folder)


def test_rows_of_a_later_version_have_more_columns() -> None:
    folder = run_with("one")
    runs.write_rows(folder, "metrics", [*ROWS, {**ROWS[-1], "similarity_conv1": 0.5}])
    found = list(csv.DictReader((folder / "metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["similarity_conv1"] for row in found] == [*[""] * len(ROWS), "0.5"]


def test_timing_comes_back_or_does_not_matter() -> None:
    folder = run_with("one")
    assert runs.read_timing(folder) == []
    rows = [{"epoch": 1, "train_seconds": 0.1, "seconds": 0.3, "images": 30}]
    runs.write_rows(folder, "timing", rows)
    assert runs.read_timing(folder) == rows
    assert not (folder / "timing.jsonl").exists()
    for damage in ("epoch\n1,2,3\n", "epoch,seconds\none,2\n", "\x00", "epoch,seconds\n1\n"):
        (folder / "timing.csv").write_text(damage, encoding="utf-8")
        assert runs.read_timing(folder) == []


@pytest.mark.parametrize(
    "line",
    ["{", "3", "[]", "{}", '{"epoch": 1}', json.dumps({**ROWS[0], "epoch": "1"}), json.dumps({**ROWS[0], "a": 1})],
)
def test_damaged_metrics(line: str) -> None:
    folder = run_with("one")
    assert runs.read_metrics(folder) == []
    (folder / "metrics.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{line}\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"metrics\.jsonl cannot be read: ") as caught:
        runs.read_metrics(folder)
    assert caught.value.hint


def test_the_newest_run_is_meant() -> None:
    old = run_with("b", runs.LAST, runs.BEST, age=10)
    new = run_with("a", runs.LAST, age=5)
    run_with("c")
    assert runs.find_checkpoint(None) == new / runs.LAST
    # The best of an older run may be younger than the best of the newest one.
    (new / runs.BEST).write_bytes(b"")
    os.utime(new / runs.BEST, (1, 1))
    assert runs.find_checkpoint(None, best=True) == new / runs.BEST
    assert runs.find_checkpoint(str(old), best=True) == old / runs.BEST


def test_the_newest_run_without_a_best_one() -> None:
    run_with("a", runs.LAST, runs.BEST, age=10)
    run_with("b", runs.LAST)
    with pytest.raises(FileError, match=r"there is no checkpoint runs/b/best\.safetensors") as caught:
        runs.find_checkpoint(None, best=True)
    assert caught.value.hint == "has the run finished an epoch?"


def test_no_run_at_all() -> None:
    with pytest.raises(FileError, match=r"there is no run with a checkpoint below \./runs") as caught:
        runs.find_checkpoint(None)
    assert caught.value.hint == "train one: rapa train"


def test_a_folder_or_a_file() -> None:
    folder = run_with("one", runs.LAST, runs.BEST)
    for name in (str(folder), f"{folder}/", str(folder.absolute())):
        assert runs.find_checkpoint(name).samefile(folder / runs.LAST)
        assert runs.find_checkpoint(name, best=True).samefile(folder / runs.BEST)
    assert runs.find_checkpoint(str(folder / runs.LAST), best=True) == folder / runs.LAST


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("runs/oen", "there is no checkpoint runs/oen", "did you mean 'runs/one'?"),
        ("oen", "there is no checkpoint oen", "did you mean 'runs/one'?"),
        ("elsewhere", "there is no checkpoint elsewhere", "newest run: runs/two"),
        ("runs/one", "there is no checkpoint runs/one/last.safetensors", "has the run finished an epoch?"),
        ("", "there is no checkpoint ", ""),
    ],
)
def test_missing_checkpoints(name: str, message: str, hint: str) -> None:
    run_with("one")
    run_with("two", runs.LAST)
    with pytest.raises(FileError) as caught:
        runs.find_checkpoint(name)
    assert caught.value.message.startswith(message)
    assert hint in str(caught.value.hint)


def test_a_name_in_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = zoo.fill(zoo.models(tmp_path / "models", monkeypatch), "full-random")
    assert runs.find_checkpoint("full-random") == place
    with pytest.raises(FileError) as caught:
        runs.find_checkpoint("full-randm")
    assert caught.value.hint == "did you mean 'full-random'?"
    Path("full-random").mkdir()
    with pytest.raises(FileError, match=r"full-random/last\.safetensors"):
        runs.find_checkpoint("full-random")
