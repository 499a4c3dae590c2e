"""`rapa regularizer`."""

from __future__ import annotations

from pathlib import Path

from tests.commands.conftest import Run, refused

SMALL = ["regularizer", "--data", "mini", "--images", "20", "--epochs", "3", "--seeds", "2", "--tiles", "1,4"]


def test_rows_and_files(rapa: Run) -> None:
    document = rapa(*SMALL, "--out", "found", "--json").document
    assert {row["tiles"] for row in document["rows"]} == {1, 4}
    tiled = [row for row in document["rows"] if row["tiles"] == 4 and row["training"] == "same rate"]
    assert all(value > 0 for value in tiled[0]["regularizer"])
    assert all(value > 0 for value in tiled[0]["variance"])
    assert all(Path(path).is_file() for path in document["files"])
    assert len(Path("found/regularizer.csv").read_text().splitlines()) == 1 + 2 * len(document["rows"])


def test_a_table_for_people(rapa: Run) -> None:
    outcome = rapa(*SMALL, "--classes", "1, 2")
    assert outcome.code == 0, outcome.err
    assert "2nd order" in outcome.out


def test_what_cannot_be(rapa: Run) -> None:
    refused(rapa(*SMALL, "--classes", "1"), 2, "--classes: got '1'", "name two")
    refused(rapa(*SMALL, "--classes", "1,cat"), 2, "no class 'cat'", "known: 0, 1, 2")
