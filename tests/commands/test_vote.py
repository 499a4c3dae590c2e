"""`rapa vote`: what it shows, what it writes, how much of it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from rapa_cli.analysis import voting
from tests.commands.conftest import Run, refused

DONE = "runs/done"
FILES = {
    *(f"{name}.{kind}" for name in ("curve", "reliability", "confusion") for kind in ("png", "svg", "csv")),
    "per-class.csv",
}


def test_the_curve_is_one_pass_of_many_votes(rapa: Run) -> None:
    found = rapa("vote", DONE, "-n", "6", "--curve", "--json").document
    assert [point["n"] for point in found["curve"]] == [1, 2, 3, 4, 5, 6]
    for n in (1, 4, 6):
        alone = rapa("vote", DONE, "-n", str(n), "--json").document
        point = found["curve"][n - 1]
        for key in ("vote_error", "ci95", "soft_error", "soft_ci95"):
            assert point[key] == alone[key]
        assert alone["single_errors"] == found["single_errors"][:n]
    assert "curve" not in alone


def test_calibration_and_classes(rapa: Run) -> None:
    found = rapa("vote", DONE, "-n", "4", "--calibration", "--per-class", "--json").document
    for name, error in (("single", "single_error"), ("vote", "vote_error"), ("soft", "soft_error")):
        sure = found["calibration"][name]
        assert sure["ece"] == found["ece"][name]
        assert sure["accuracy"] == pytest.approx(100 - found[error])
        counts = [row["count"] for row in sure["bins"]]
        assert sum(counts) == (120 if name == "single" else 30)
        gaps = [abs(row["accuracy"] - row["confidence"]) * row["count"] for row in sure["bins"] if row["count"]]
        assert sum(gaps) / sum(counts) == pytest.approx(sure["ece"])
        table = found["confusion"][name]
        assert 100 * (1 - sum(table[each][each] for each in range(3)) / 30) == pytest.approx(found[error])
        errors = [row[error] for row in found["per_class"]]
        assert errors == pytest.approx([100 * (1 - table[each][each] / sum(table[each])) for each in range(3)])
    assert sum(row["images"] for row in found["per_class"]) == 30


def test_many_draws_have_no_list_of_their_own(rapa: Run) -> None:
    found = rapa("vote", DONE, "-n", "101", "--images", "2", "--json", "--out", "many").document
    assert found["single_errors"] is None
    with Path("many/curve.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 101
    mean = sum(float(row["single_error"]) for row in rows) / 101
    assert mean == pytest.approx(found["single_error"])


def test_the_folder(rapa: Run, here: Path) -> None:
    outcome = rapa("vote", DONE, "-n", "3", "--out", "new/figures")
    assert outcome.code == 0
    assert {path.name for path in (here / "new" / "figures").iterdir()} == FILES
    assert all(f"wrote new/figures/{name}" in outcome.out for name in FILES)
    found = rapa("vote", DONE, "-n", "3", "--out", "new/figures", "--json").document
    assert {Path(path).name for path in found["files"]} == FILES
    refused(rapa("vote", DONE, "--out", "tiny.toml", "--json"), 3, "tiny.toml", "choose")


def test_what_is_shown_fits_a_terminal(rapa: Run) -> None:
    outcome = rapa("vote", DONE, "-n", "12", "--curve", "--calibration", "--per-class")
    assert (outcome.code, outcome.err) == (0, "")
    assert all(len(line) <= 80 for line in outcome.out.splitlines())
    for word in ("vote of 12", "soft vote", "ECE", "most often taken for", "votes of the first draws of all"):
        assert word in outcome.out
    # Of many draws some are shown, the last always.
    curve = outcome.out.split("\ndraws ")[1].split("\nvotes of the first")[0]
    assert [line.split()[0] for line in curve.splitlines()[1:]] == ["1", "2", "3", "4", "5", "7", "9", "12"]
    assert "nan" not in rapa("vote", DONE, "-n", "1", "--images", "1", "--per-class", "--calibration").out
    assert rapa("vote", DONE, "-n", "1", "--json").document["single_sd"] is None


def test_too_many_draws(rapa: Run) -> None:
    refused(rapa("vote", DONE, "-n", "1000001", "--json"), 2, "-n", "-h")


def test_ties_are_told(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the screen where there are some; these images are too easy to have any."""
    assert "ties" not in rapa("vote", DONE, "-n", "2").out
    count = voting.vote_error
    monkeypatch.setattr(voting, "vote_error", lambda *given, **named: replace(count(*given, **named), ties=3))
    assert "ties         3, which go to the highest mean probability" in rapa("vote", DONE, "-n", "2").out
