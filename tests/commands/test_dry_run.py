"""`rapa train --dry-run`: what a run would be, without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.conftest import TRAIN, Run, refused

SCHEME = ["--scheme", "random", "--tiles", "4"]


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_nothing_is_written(rapa: Run, here: Path) -> None:
    before = files(here)
    outcome = rapa(*TRAIN, *SCHEME, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith("nothing was written\n")
    assert rapa(*TRAIN, *SCHEME, "--dry-run", "--out", "new", "--epochs", "0").code == 0
    assert files(here) == before


def test_it_says_what_the_run_will_be(rapa: Run) -> None:
    asked = [*TRAIN, *SCHEME, "--epochs", "3", "--set", "momentum=0.5", "--seed", "7"]
    found = rapa(*asked, "--dry-run", "--json").document
    assert (found["train_images"], found["test_images"], found["steps"], found["classes"]) == (60, 30, 6, 3)
    assert (found["recipe"]["epochs"], found["recipe"]["momentum"], found["seed"]) == (3, 0.5, 7)
    # Of six steps the first three are not measured.
    assert found["measured_steps"] == 3
    assert found["seconds_per_step"] > 0
    assert found["seconds"] == 3 * found["seconds_per_epoch"] > 3 * 6 * found["seconds_per_step"]
    assert found["images_per_second"] == 10 / found["seconds_per_step"]
    run = rapa(*asked, "--out", "real", "--json").document
    seen = rapa("inspect", run["run"], "--json").document
    assert {key: found[key] for key in ("network", "scheme", "tiles", "pool", "data", "seed", "parameters")} == {
        key: seen[key] for key in ("network", "scheme", "tiles", "pool", "data", "seed", "parameters")
    }
    assert found["recipe"] == seen["recipe"]
    saved = Path(run["checkpoint"]).stat().st_size
    # The weights, but for names and momentum.
    assert 0 < found["checkpoint_bytes"] < saved
    plan = rapa("plan", run["run"], "--json").document
    assert (found["acceleration"], found["arrays"]) == (plan["acceleration"], plan["arrays"])
    convolutions = [row for row in found["layers"] if row["tiles"] is not None]
    for key in ("name", "n_p", "k", "c_out", "tiles", "array_cycles"):
        assert [row[key] for row in convolutions] == [row[key] for row in plan["layers"]]


def test_shapes_fit_each_other(rapa: Run) -> None:
    found = rapa(*TRAIN, "--dry-run", "--json").document
    layers = found["layers"]
    assert layers[0]["shape"] == found["shape"]
    assert layers[-1]["shape"] == [found["classes"]]
    assert sum(layer["parameters"] for layer in layers) == found["parameters"]
    for layer in layers:
        if layer["n_p"] is not None:
            channels, height, width = layer["shape"]
            assert (channels, height * width) == (layer["c_out"], layer["n_p"])


@pytest.mark.parametrize(("columns", "explained"), [("80", {"n_p", "k", "cycles"}), ("40", {"cycles"})])
def test_what_is_shown_is_explained(
    rapa: Run, monkeypatch: pytest.MonkeyPatch, columns: str, explained: set[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    heading, note = (
        line
        for line in rapa(*TRAIN, *SCHEME, "--dry-run").out.splitlines()
        if line.startswith("layer ") or "operations in sequence" in line
    )
    assert {entry.partition(":")[0] for entry in note.split("; ")} == explained
    assert explained == {"n_p", "k", "cycles"} & set(heading.split())
    assert len(note) <= int(columns)


def test_an_epoch_of_one_step_is_measured_by_it(rapa: Run) -> None:
    found = rapa(*TRAIN[:-1], "60", "--dry-run", "--json").document
    assert (found["steps"], found["measured_steps"]) == (1, 1)
    assert found["seconds_per_step"] > 0


def test_not_of_a_run_that_is_there(rapa: Run) -> None:
    refused(rapa("train", "--resume", "runs/done", "--dry-run"), 2, "--dry-run is of a new run", "leave out")
