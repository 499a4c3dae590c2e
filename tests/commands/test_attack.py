"""`rapa attack`: several networks, methods and threats, its folder, its checks, and going on after a kill."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import rapa_cli
from rapa_cli.attacks import records as store
from rapa_cli.attacks import sanity
from rapa_cli.attacks.evaluation import Evaluation, Level
from rapa_cli.attacks.evaluation import attack as evaluate
from rapa_cli.attacks.records import FILE
from rapa_cli.attacks.results import Point
from rapa_cli.attacks.sanity import Line, State
from rapa_cli.commands import attack as command
from rapa_cli.files import LOCK
from tests.commands.conftest import Run, refused
from tests.training import tiny

DONE, BEST = "runs/done", "runs/done/best.safetensors"
LAST = "runs/done/last.safetensors"


def test_one_result_is_what_it_was(rapa: Run) -> None:
    found = rapa("attack", DONE, "--snr", "20,10", "--seed", "4", "--json").document
    test = tiny.data_set(60, 30).test
    levels = [Level(snr_db=20), Level(snr_db=10)]
    points = evaluate(rapa_cli.load(DONE), test.images, test.labels, levels, seed=4)
    assert [point["accuracy"] for point in found["points"]] == [point.accuracy for point in points]
    assert (found["method"], found["threat"], found["draws"], found["judge_draws"]) == ("fgsm", "fresh-draw", 1, 0)
    assert found["trustworthy"] is None
    assert {"results", "sanity", "files"}.isdisjoint(found)
    assert [point["correct"] for point in found["points"]] == [point.correct for point in points]
    assert found["snr_space"] == "raw"


def test_several_results(rapa: Run, here: Path) -> None:
    words = ["--methods", "fgsm,pgd", "--threat", "fresh-draw", "--threat", "eot:2", "--snr", "20,10", "--draws", "2"]
    words += ["--judge-draws", "4", "-n", "3", "--baseline", BEST, "--images", "20", "--out", "out", "--seed", "1"]
    found = rapa("attack", DONE, *words, "--json").document
    several: list[dict[str, Any]] = found["results"]
    assert [(one["checkpoint"], one["method"], one["threat"], one["baseline"]) for one in several] == [
        (path, method, threat, path == BEST)
        for path in (LAST, BEST)
        for method in ("fgsm", "pgd")
        for threat in ("fresh-draw", "eot 2")
    ]
    assert several[0].items() <= found.items(), "the first one's keys are those of the document"
    assert (found["votes"], found["judge_draws"], found["draws"]) == (3, 4, 2)
    for one in several:
        for point in one["points"]:
            assert point.keys() >= {
                "eps",
                "snr_db",
                "accuracy",
                "ci95",
                "accuracy_all",
                "ci95_all",
                "judged",
                "believed",
            }
            assert ("gap_closed" in point) is not one["baseline"]
    blocks = found["sanity"]
    assert [block["checkpoint"] for block in blocks] == [LAST, BEST]
    assert all(len(block["checks"]) == 11 for block in blocks)
    names = {f"{name}.{kind}" for name in ("accuracy", "images-0", "images-1") for kind in ("png", "svg")}
    assert {path.name for path in Path("out").iterdir()} - names <= {FILE, LOCK, "summary.csv"}
    assert {Path(path).name for path in found["files"]} >= {FILE, "summary.csv", "accuracy.png"}
    rows = list(csv.DictReader(Path("out/summary.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 16
    expected = [(one, point) for one in several for point in one["points"]]
    for row, (result, point) in zip(rows, expected, strict=True):
        assert all(row[key] == result[key] for key in ("checkpoint", "method", "threat"))
        assert float(row["accuracy"]) == point["accuracy"]
        assert float(row["judged"]) == point["judged"]["accuracy"]


def test_text_of_several_results_fits_a_terminal(rapa: Run) -> None:
    words = ["--methods", "eotpgd,noise,fgsm", "--threat", "vote-aware:3", "--snr", "20,0", "--images", "12"]
    outcome = rapa("attack", DONE, *words, "--baseline", BEST, "--draws", "2", "--judge-draws", "128")
    assert outcome.code == 0, outcome.err
    assert all(len(line) <= 80 for line in outcome.out.splitlines()), max(outcome.out.splitlines(), key=len)
    assert re.search(r"eotpgd,\s+vote-aware 3", outcome.out)
    assert "vote-aware 3: gradient of the vote's own 3 draws" in outcome.out
    assert "nan" not in outcome.out
    controlled = rapa("attack", DONE, "--eps", "0.1", "--threat", "fresh-draw", "--threat", "noise", "--images", "3")
    assert re.search(r"fgsm,\s+noise", controlled.out), "random signs are not shown as the attack"


def test_going_on_from_another_folder(rapa: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--threat", "transfer", "--source", BEST, "--snr", "20", "--images", "12", "--judge-draws", "0"]
    first = rapa("attack", DONE, *words, "--out", "out", "--json").document
    refused(rapa("attack", "--resume", "out", "--images", "13"), 2, "--images: 12 there, 13 here", "leave out")
    before = Path("out", FILE).read_bytes()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    again = rapa("attack", "--resume", "../out", "--json").document
    assert again["points"] == first["points"]
    assert again["checkpoint"] == f"../{LAST}"
    assert Path("../out", FILE).read_bytes() == before


def test_the_picture_is_of_what_the_strongest_attack_changed(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    pictures = Evaluation.pictures

    def noted(self: Evaluation, network: int, place: int, image: int) -> Any:
        asked.append(image)
        return pictures(self, network, place, image)

    monkeypatch.setattr(Evaluation, "pictures", noted)
    assert rapa("attack", DONE, "--snr", "10,60", "--out", "out").code == 0
    held = load_file(Path("out", FILE))
    right = held["networks/0/clean"][:, 0] == held["label"]
    lost = right & (held["results/0/0/predicted"][:, 0] != held["label"])
    assert asked == [int(lost.nonzero()[0])]
    assert asked != [int(right.nonzero()[0])], "another image than the first one that counts"


def test_vote_aware_is_judged_by_draws_it_does_not_know(rapa: Run) -> None:
    words = ["--methods", "fgsm", "--threat", "vote-aware:12", "--threat", "fresh-draw", "--snr", "20", "--images", "6"]
    outcome = rapa("attack", DONE, *words)
    assert "vote-aware 12: the vote is of draws that it knows, fresh are the 12 it does not" in outcome.out
    found = rapa("attack", DONE, *words, "--out", "out", "--json").document
    assert (found["judge_draws"], found["votes"]) == (24, 12)
    judged = [one["points"][0]["judged"] for one in found["results"]]
    assert [(one["draws"], one["known"]) for one in judged] == [(12, 12), (24, 0)]
    rows = list(csv.DictReader(Path("out/summary.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["judge_draws"], row["vote_known"]) for row in rows] == [("12", "12"), ("24", "0")]
    assert float(rows[0]["always_low"]) <= float(rows[0]["always"]) <= float(rows[0]["always_high"])


def test_everything_is_read_from_the_records(rapa: Run) -> None:
    words = ["--methods", "fgsm", "--threat", "transfer", "--source", BEST, "--snr", "20", "--exact-snr", "--seed", "9"]
    words += ["--snr-space", "standardized", "--images", "10", "--batch-size", "4", "--out", "out", "--save-images"]
    first = rapa("attack", DONE, *words, "--judge-draws", "2", "--json").document
    again = rapa("attack", "--resume", "out", "--json").document
    assert again == first
    assert again["source"] == BEST
    assert again["points"][0]["snr_not_met"] == {"black": 0, "saturated": 0, "unmoved": 0}
    assert len(load_file("out/images/result-0/level-0/000008.safetensors")["adversarial"]) == 2
    refused(rapa("attack", DONE, "--snr", "20", "--out", "out"), 2, "there are records of an attack", "--resume out")
    refused(rapa("attack", "--resume", "out", "--seed", "8"), 2, "--seed: 9 there, 8 here", "leave out")
    refused(rapa("attack", BEST, "--resume", "out"), 2, "of another evaluation: checkpoints: ", "leave out")
    Path(LAST).write_bytes(Path(BEST).read_bytes())
    refused(rapa("attack", "--resume", "out"), 2, f"{LAST} is another file now", "begin anew")
    refused(rapa("attack", "--resume", "nowhere"), 3, "there is no nowhere", "--out DIR")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--out", "a", "--resume", "b"], "--out and --resume", "give one"),
        (["--save-images"], "--save-images cannot go without --out", "folder"),
        (["--exact-snr", "--eps", "0.1"], "--exact-snr cannot go with --eps", "--snr 33"),
        (["--snr-space", "rwa"], "--snr-space: got 'rwa', allowed are raw and standardized", "paper"),
        (["--methods", "fgsm,,pgd"], "--methods: got an empty name", "with commas"),
        (["--methods", "fgms"], "there is no 'fgms'", "fgsm"),
        (["--threat", "fresh"], "there is no 'fresh'", "fresh-draw"),
        (["--source", BEST], "--source cannot go without --threat transfer", "transfer"),
        (["--out", ""], "--out: got an empty name", "--out attacked"),
        (["--resume", ""], "--resume: got an empty name", "--resume attacked"),
        (["--methods", "fgsm,square", "--threat", "noise"], "square asks the network", "gradients alone"),
        (["--methods", "fgsm,autoattack"], "autoattack needs 4 classes, the network has 3", "apgd-ce"),
        (["--judge-draws", "4", "--threat", "vote-aware:32"], "vote-aware 32 knows the first 32", "--judge-draws 64"),
        (["--judge-draws", "2", "-n", "3"], "-n 3: only 2 draws judge", "--judge-draws 3"),
        (["--draws", "0"], "--draws", None),
        (["--data", "nothing"], "nothing", "data"),
    ],
)
def test_wrong_usage(rapa: Run, words: list[str], message: str, hint: str | None) -> None:
    outcome = rapa("attack", DONE, *words)
    assert outcome.code in (2, 3)
    assert outcome.out == ""
    assert message in outcome.err
    assert "attacking" not in outcome.err, "before anything is computed"
    assert hint is None or hint in outcome.err


def test_strict(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["attack", DONE, "--eps", "0,0.5", "--images", "10", "--methods", "fgsm,pgd", "--strict"]

    def check(state: State) -> Callable[..., list[Line]]:
        return lambda *_, **__: [Line("the sky is blue", state, "it is grey"), Line("b", State.NOT_APPLICABLE, "so")]

    monkeypatch.setattr(sanity, "check", check(State.PASSED))
    outcome = rapa(*words)
    assert (outcome.code, "no check failed, 1 of 2 do not apply to what was run" in outcome.out) == (0, True)
    monkeypatch.setattr(sanity, "check", check(State.FAILED))
    outcome = rapa(*words)
    assert outcome.code == 4
    lines = outcome.out.splitlines()
    place = lines.index("not trustworthy: 1 of 2 checks failed, 1 of 2 do not apply to what was run")
    assert lines[place + 1] == "        failed  the sky is blue: it is grey"
    assert "error: not trustworthy: failed: the sky is blue" in outcome.err
    assert rapa(*words[:-1]).code == 0
    document = rapa(*words[:-1], "--json").document
    assert document["trustworthy"] is False
    assert document["sanity"][0]["checks"][0]["state"] == "failed"
    assert "sanity" not in rapa(*words[:-1], "--no-sanity", "--json").document
    assert "sanity" in rapa("attack", DONE, "--eps", "0", "--images", "5", "--sanity", "--json").document


def test_progress_tells_the_level(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[str] = []
    costs: list[int] = []
    totals: list[int] = []

    @contextmanager
    def watched() -> Iterator[Any]:
        yield parts.append, costs.append, totals.append

    monkeypatch.setattr(command, "_progress", watched)
    assert rapa("attack", DONE, "--snr", "20,10", "--methods", "fgsm,pgd", "--images", "10").code == 0
    assert "pgd, fresh-draw, level 2 of 2" in parts
    assert any(part.startswith("checking: ") for part in parts)
    assert sum(costs) == totals[0]


def test_points_are_counted_over_draws(rapa: Run) -> None:
    point: dict[str, Any] = rapa("attack", DONE, "--eps", "0", "--draws", "3", "--json").document["points"][0]
    assert point["correct"] == point["counted"]
    assert point["accuracies"] == [100, 100, 100]
    assert Point.__dataclass_fields__.keys() >= {"accuracy", "accuracy_all"}


def test_who_interrupts_it_is_told_how_it_goes_on(rapa: Run) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as meanwhile:
        meanwhile.setattr(Evaluation, "_attack", interrupted)
        outcome = rapa("attack", DONE, "--images", "5", "--out", "to go on")
    assert (outcome.code, outcome.out) == (130, "")
    assert "go on with: rapa attack --resume 'to go on'" in outcome.err
    assert rapa("attack", "--resume", "to go on").code == 0


SLOW = ["--methods", "pgd,fgsm", "--threat", "eot:4", "--snr", "15,5", "--batch-size", "3", "--draws", "2"]


def test_a_killed_process(rapa: Run, here: Path) -> None:
    words, folder = ["attack", DONE, "--no-sanity", "--threads", "1"], here / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "rapa_cli", *words, *SLOW, "--out", folder], stdout=subprocess.PIPE
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            if (folder / FILE).exists() and store.read(folder).done("results/0/0") > 0:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = store.read(folder)
    assert before.done("networks/0") == 30
    assert before.done("results/1/1") == 0, "it was killed on its way"
    assert rapa(*words, "--resume", str(folder)).code == 0
    assert rapa(*words, *SLOW, "--out", "whole").code == 0
    names = [path.name for path in sorted((here / "whole").iterdir()) if path.name != LOCK]
    assert {FILE, "summary.csv", "accuracy.png", "accuracy.svg"} < set(names)
    assert [path.name for path in sorted(folder.iterdir()) if path.suffix != ".tmp" and path.name != LOCK] == names
    for name in names:
        assert (folder / name).read_bytes() == (here / "whole" / name).read_bytes(), name
