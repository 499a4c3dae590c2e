"""`rapa report`: one page on one run or several, measured once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rapa_cli.files import digest
from rapa_cli.report import measured
from tests.commands.conftest import TRAIN, Run, refused
from tests.report import browser
from tests.report.pages import Read

DONE = "runs/done"
SECTIONS = [
    "Summary",
    "Training",
    "Vote and reduction",
    "Attacks",
    "Assignment",
    "Filters and similarity",
    "Analog time",
    "Recipe",
    "How to repeat it",
]


@pytest.fixture
def finished(here: Path, workshop: Path) -> Path:
    """The run with its metrics, which other commands do not read."""
    for name in ("metrics.jsonl", "timing.csv"):
        shutil.copy(workshop / DONE / name, here / DONE / name)
    return here / DONE


def page(path: Path) -> Read:
    return Read(path.read_text(encoding="utf-8"))


def test_a_report_says_what_the_other_commands_say(rapa: Run, finished: Path) -> None:
    found = rapa("report", DONE, "--json").document
    assert found["report"] == f"{DONE}/report.html"
    (run,) = found["runs"]
    evaluated, voted = rapa("evaluate", DONE, "--json").document, rapa("vote", DONE, "-n", "5", "--json").document
    reduced, attacked = rapa("reduce", DONE, "--json").document, rapa("attack", DONE, "--json").document
    assert run["images"] == 30
    assert run["test_error"] == evaluated["test_error"]
    assert run["vote_error"] == voted["vote_error"]
    assert run["reduced_error"] == reduced["test_error_after"]
    for ours, theirs in zip(run["attacks"][0]["points"], attacked["points"], strict=True):
        for key in ("accuracy", "ci95", "accuracy_all", "eps", "snr_db"):
            assert ours[key] == theirs[key]
    read = page(finished / "report.html")
    assert [text for tag, text in read.texts if tag == "h2"] == SECTIONS
    for part in (
        f"{evaluated['test_error']:.2f} ({evaluated['ci95'][0]:.1f} to {evaluated['ci95'][1]:.1f})",
        f"{voted['vote_error']:.2f} ({voted['ci95'][0]:.1f} to {voted['ci95'][1]:.1f})",
        f"{100 * attacked['points'][0]['counted'] / 3000:.10g}".join(["", ""]),
        "random (4)",
        "mini",
    ):
        assert part in read.text()
    assert (finished / "report.html").stat().st_size < 400_000


def test_it_says_how_to_repeat_it(rapa: Run, finished: Path) -> None:
    assert rapa("report").code == 0
    (lines,) = [text for tag, text in page(finished / "report.html").texts if tag == "code"]
    assert "rapa train --network tiny.toml --data mini" in lines
    assert f"rapa report {DONE}" in lines, "with the run that was left out"
    manifest = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    text = page(finished / "report.html").text("td", "th")
    for value in (manifest["provenance"]["torch"], manifest["provenance"]["started"], "0.02"):
        assert value in text
    measurements = [line for line in lines.splitlines() if line.startswith("rapa ") and "train" not in line]
    assert [line.split()[1] for line in measurements] == ["evaluate", "vote", "reduce", "attack", "report"]
    for line in measurements:
        outcome = rapa(*line.split()[1:])
        assert outcome.code == 0, outcome.err


def test_nothing_is_measured_twice(rapa: Run, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rapa("report", DONE, "--images", "10", "--json").document
    kept = (finished / measured.FILE).read_bytes()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(measured, "measure", never)
        assert rapa("report", DONE, "--images", "10", "--json").document == first
        assert rapa("report", DONE, "--images", "10", "--no-measure", "--json").document == first
        patch.setenv("RAPA_DATA_DIR", "nowhere")
        without_data = rapa("report", DONE, "--images", "10", "--json")
        assert "as measured before" in without_data.err
        assert without_data.document == first
    assert (finished / measured.FILE).read_bytes() == kept


def test_other_settings_and_other_weights_are_measured_anew(rapa: Run, finished: Path) -> None:
    assert rapa("report", DONE, "--images", "10", "--json").document["runs"][0]["images"] == 10
    assert rapa("report", DONE, "--images", "0", "--json").document["runs"][0]["images"] == 30
    best = rapa("report", DONE, "--best", "--images", "10", "--json").document["runs"][0]
    assert best["checkpoint"].endswith("best.safetensors")
    kept = json.loads((finished / measured.FILE).read_text(encoding="utf-8"))["measured"]
    assert [(entry["settings"]["images"], entry["single"]["images"]) for entry in kept] == [(10, 10), (0, 30), (10, 10)]
    assert len({entry["settings"]["checkpoint"] for entry in kept}) == 2
    assert "chosen on the test set" in page(finished / "report.html").text("dd")


def test_what_is_not_measured_is_said_to_be_missing(rapa: Run, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAPA_DATA_DIR", "nowhere")
    outcome = rapa("report", DONE, "--no-measure")
    assert (outcome.code, outcome.err) == (0, "")
    assert "not measured" in outcome.out
    text = page(finished / "report.html").text()
    assert text.count("Not measured") >= 3
    assert "Similarity S" in text, "what the checkpoint alone tells is there"
    refused(rapa("report", DONE), 3, "there is no data set 'mini' in nowhere", "--no-measure")


def test_measurements_that_cannot_be_read_are_made_again(rapa: Run, finished: Path) -> None:
    expected = rapa("report", DONE, "--json").document
    (finished / measured.FILE).write_text('{"format": 2}', encoding="ascii")
    assert rapa("report", DONE, "--json").document == expected
    assert json.loads((finished / measured.FILE).read_text(encoding="utf-8"))["format"] == 1


def test_several_runs_stand_side_by_side(rapa: Run, finished: Path) -> None:
    assert rapa(*TRAIN, "--scheme", "none", "--epochs", "1", "--out", "runs/$no & <b>").code == 0
    assert rapa(*TRAIN, "--scheme", "perforated", "--tiles", "4", "--epochs", "1", "--out", "runs/p").code == 0
    assert rapa(*TRAIN, "--scheme", "none", "--epochs", "0", "--out", "runs/untrained").code == 0
    names = [DONE, "runs/$no & <b>", "runs/p", "runs/untrained"]
    found = rapa("report", *names, DONE, "--json").document
    assert found["report"] == "report.html"
    assert [run["run"] for run in found["runs"]] == names, "each once"
    assert [run["vote_error"] is None for run in found["runs"]] == [False, True, True, True]
    assert [run["reduced_error"] is None for run in found["runs"]] == [False, True, True, True]
    read = page(Path("report.html"))
    text = read.text()
    for part in (
        "4 runs of tiny on mini",
        "random (4), done",
        "none, $no & <b>",
        "perforated (4), p",
        "none, untrained was not trained for an epoch",
        "in training a random part of the pixels is computed",
        "Without a vote, as all draws of it are the same: none, $no & <b>, perforated (4), p, none, untrained.",
    ):
        assert part in text, part
    assert not read.all("b")
    assert read.text("text").count("none, $no & <b>") >= 3, "figures name them too"


def test_recorded_attacks_take_the_place_of_the_measured_one(rapa: Run, finished: Path) -> None:
    assert (
        rapa("attack", DONE, "--methods", "fgsm,pgd", "--eps", "8/255", "--images", "9", "--out", "recorded").code == 0
    )
    run = rapa("report", DONE, "--attacks", "recorded", "--json").document["runs"][0]
    assert [(curve["method"], curve["images"]) for curve in run["attacks"]] == [("fgsm", 9), ("pgd", 9)]
    text = page(finished / "report.html").text()
    assert "pgd, fresh-draw" in text
    assert "eps 8/255" in text
    assert "mini, 9 images" in text
    kept = measured.find(
        finished, measured.Settings(checkpoint=digest(finished / "last.safetensors"), data="mini", images=1000)
    )
    assert kept is not None
    assert kept.attack is None, "nothing was measured in vain"
    assert [curve["method"] for curve in rapa("report", DONE, "--json").document["runs"][0]["attacks"]] == ["fgsm"]
    hint = "an attack on the last checkpoint does not go with --best"
    refused(rapa("report", DONE, "--best", "--attacks", "recorded"), 2, "are of other checkpoints", hint)
    refused(rapa("report", DONE, "--attacks", "nowhere"), 3, "there is no nowhere", "rapa attack --out DIR")


def test_arrays_that_are_not_ideal(rapa: Run, here: Path) -> None:
    own = here / "own.toml"
    own.write_text('preset = "ReRamES"\n[forward]\nout_noise = 0.05\n', encoding="ascii")
    options = ["--scheme", "random", "--tiles", "4", "--arrays", "own.toml", "--epochs", "0", "--out", "runs/analog"]
    assert rapa(*TRAIN, *options).code == 0
    run = rapa("report", "runs/analog", "--images", "6", "--json").document["runs"][0]
    assert run["vote_error"] is not None
    assert run["reduced_error"] is not None
    text = page(here / "runs" / "analog" / "report.html").text()
    assert "ReRamES, changed" in text
    assert "Arrays that are not ideal were read with their noise." in text
    assert "forward.out_noise = 0.05" in text


@pytest.mark.parametrize(
    ("code", "line", "message", "hint"),
    [
        (3, "report nowhere", "there is no run folder nowhere", "newest run: runs/done"),
        (3, "report runs", "there is no run in runs (run.json is missing)", "newest run: runs/done"),
        (3, "report runs/done/last.safetensors", "there is no run folder", "did you mean the folder 'runs/done'?"),
        (
            3,
            "report runs/begun",
            "there is no checkpoint runs/begun/last.safetensors",
            "has the run finished an epoch?",
        ),
        (3, "report runs/done --out runs", "a folder stands where a file should be", "choose another name"),
        (2, "report runs/done --images -1", "-1", "rapa report -h"),
    ],
)
def test_mistakes(rapa: Run, finished: Path, code: int, line: str, message: str, hint: str) -> None:
    begun = finished.parent / "begun"
    begun.mkdir()
    shutil.copy(finished / "run.json", begun)
    refused(rapa(*line.split()), code, message, hint)


def test_a_folder_that_takes_nothing(rapa: Run, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finished / measured.FILE).mkdir()
    outcome = rapa("report", DONE, "--out", "elsewhere/page.html")
    assert outcome.code == 0
    assert "what was measured is not kept" in outcome.err
    assert page(Path("elsewhere/page.html")).all("svg")


@pytest.mark.browser
@pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.REASON)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it(rapa: Run, finished: Path, tmp_path: Path, dark: bool) -> None:
    assert rapa("report", DONE).code == 0
    seen = browser.look((finished / "report.html").read_text(encoding="utf-8"), tmp_path, dark=dark)
    assert seen.asked == {f"GET {browser.HOST}/page.html"}
    assert seen.logged == []
    for found, width in zip(seen.pages, (390, 1280), strict=True):
        assert (found["width"], found["content"], found["stuck"]) == (width, width, [])
        assert len(found["drawings"]) == len(page(finished / "report.html").all("svg")) >= 7
