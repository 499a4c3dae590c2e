"""`rapa inspect` of array presets."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapa_cli.analog.presets import INFERENCE_PRESETS, PRESETS
from tests.commands.conftest import Run, refused

DONE = "runs/done"
# One of each kind of cell, those that are computed fast.
SOME = [
    "ReRamES",
    "PCM",
    "Capacitor2",
    "TikiTakaCapacitor",
    "TTv2Capacitor",
    "MixedPrecisionPCM",
    "StandardHWATraining",
]


@pytest.mark.parametrize("preset", SOME)
def test_text_fits_a_terminal(rapa: Run, preset: str) -> None:
    outcome = rapa("inspect", preset)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == f"preset      {preset}"
    assert all(len(line) <= 80 for line in lines)
    for label in ("DAC", "ADC", "read noise", "management", "backward"):
        assert sum(line.startswith(label) for line in lines) == 1
    assert "nan" not in outcome.out


def test_the_text_of_a_preset(rapa: Run) -> None:
    text = rapa("inspect", "ReRamESPreset").out
    for part in (
        "device      ExpStep",
        "bounds      -1 +- 30 % to 1 +- 30 % between devices",
        "dw_min      0.00135 +- 20 % between devices",
        "steps down weaker by 25.9 % +- 5 % between devices",
        "cycle noise 500 % of the step",
        "write noise 0.101, 75 dw_min",
        "lifetime    for ever",
        "gamma_up 5, gamma_down 5",
        "7 bits (127 levels), within +-1",
        "9 bits (511 levels), within +-20",
        "0 on inputs, 0.1 on outputs, none on weights",
        "of noise AbsMax, of bounds Iterative",
        "StochasticCompressed, at most 31 pulses; update management",
        "of one size at -0.22 +- ",
        "of the devices after the pulses up",
        "a figure of this: rapa inspect ReRamES --out DIR",
    ):
        assert part in text
    weights = [line for line in text.splitlines() if re.match(r" +[\d,]+ (up|down) ", line)]
    assert len(weights) == 9
    assert all(line.count("o") == 1 + ("down" in line) for line in weights)


def test_a_narrow_terminal_shows_whole_numbers(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "50")
    lines = rapa("inspect", "Capacitor").out.splitlines()
    assert all(len(line) <= 50 for line in lines)
    assert ["501", "up", "1.00", "1.00", "0.91", "1.08"] in [line.split() for line in lines]


@pytest.mark.parametrize("preset", SOME)
def test_json_is_one_document(rapa: Run, preset: str) -> None:
    outcome = rapa("inspect", preset, "--json")
    document = outcome.document
    assert outcome.err == ""
    assert document.keys() == {"preset", "seed", "arrays", "response"}
    assert (document["preset"], document["seed"]) == (preset, 0)
    assert document["arrays"]["forward"]["noise_management"] in ("AbsMax", "Constant")
    found = document["response"]
    if preset in INFERENCE_PRESETS:
        assert found is None
        return
    points = len(found["pulses"])
    assert all(len(found[key]) == points for key in ("noise_free", "mean", "p10", "p90"))
    assert found["pulses"][points // 2] == found["train"]
    assert 0 <= found["at_bounds_after_up"]["fraction"] <= 1
    assert (found["steps"]["down"] is None) == preset.endswith("PCM")


def test_the_seed_chooses_the_devices(rapa: Run) -> None:
    seeds: tuple[list[str], ...] = ([], ["--seed", "0"], ["--seed", "5"])
    mean = [rapa("inspect", "Capacitor", "--json", *seed).document["response"]["mean"] for seed in seeds]
    assert mean[0] == mean[1] != mean[2]


@pytest.mark.parametrize("preset", ["ReRamES", "Capacitor2"])
def test_the_figure(rapa: Run, here: Path, preset: str) -> None:
    outcome = rapa("inspect", preset, "--out", "figures")
    names = [f"{preset}-response.{kind}" for kind in ("png", "svg")]
    assert sorted(path.name for path in (here / "figures").iterdir()) == names
    assert outcome.out.splitlines()[-2:] == [f"wrote figures/{name}" for name in names]
    with Image.open(here / "figures" / names[0]) as picture:
        assert min(picture.size) >= 500
        assert np.asarray(picture.convert("L")).std() > 5, "something is drawn"
    found = rapa("inspect", preset, "--out", "figures", "--json").document
    assert found["figures"] == [f"figures/{name}" for name in names]


def test_all_presets_are_listed(rapa: Run) -> None:
    outcome = rapa("inspect", "--presets")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert sorted(line.split()[0] for line in lines[1:]) == sorted([*PRESETS, *INFERENCE_PRESETS])
    assert all(len(line) <= 80 for line in lines)
    rows = rapa("inspect", "--presets", "--json").document["presets"]
    by_name = {row.pop("name"): row for row in rows}
    assert len(by_name) == len(lines) - 1
    assert by_name["PCM"] == {"device": "ExpStep", "states": 13, "cell": "pair"}
    assert by_name["Capacitor"] == {"device": "LinearStep", "states": 400, "cell": ""}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rerames", "did you mean the preset 'ReRamES'?"),
        ("ReRamEZPreset", "did you mean the preset 'ReRamES'?"),
        ("dome", "did you mean 'runs/done'?; presets: rapa inspect --presets"),
        ("zzz", "newest run: runs/done; presets: rapa inspect --presets"),
    ],
)
def test_a_name_of_nothing(rapa: Run, name: str, hint: str) -> None:
    refused(rapa("inspect", name, "--json"), 3, f"there is no checkpoint {name}, and no preset of that name", hint)


def test_a_name_near_a_run_and_a_preset(rapa: Run) -> None:
    shutil.copytree(DONE, "runs/IdealisedRun")
    hint = "did you mean 'runs/IdealisedRun', or the preset 'Idealized'?"
    refused(rapa("inspect", "IdealizedRn"), 3, "there is no checkpoint IdealizedRn, and no preset", hint)


def test_a_folder_of_that_name_is_meant_first(rapa: Run) -> None:
    shutil.copytree(DONE, "PCM")
    assert rapa("inspect", "PCM", "--json").document["checkpoint"] == "PCM/last.safetensors"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--presets", "PCM"], "--presets cannot go with a name", "rapa inspect ReRamES"),
        (["--presets", "--best", "--seed", "1"], "--presets cannot go with --best and --seed", "rapa inspect ReRamES"),
        (["PCM", "--best"], "the preset PCM cannot go with --best", "checkpoints of a run"),
        ([DONE, "--out", "x"], "a checkpoint cannot go with --out", "these are for array presets"),
        (["--seed", "0"], "a checkpoint cannot go with --seed", "these are for array presets"),
        (["StandardHWATraining", "--out", "x"], "there is no response to pulses to draw", "leave --out out"),
        (["PCM", "--seed", "-1"], "'--seed'", "'rapa inspect -h' shows what is allowed"),
    ],
)
def test_what_does_not_go_together(rapa: Run, here: Path, words: list[str], message: str, hint: str) -> None:
    refused(rapa("inspect", *words), 2, message, hint)
    assert not (here / "x").exists()
