"""The commands on networks whose layers are on analog arrays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import rapa_cli
from rapa_cli import checkpoint, runs
from rapa_cli.analog.presets import preset
from rapa_cli.analysis.evaluation import evaluate
from rapa_cli.commands import inspect
from rapa_cli.tiling.arrays import ArrayLayer
from tests.commands.conftest import TRAIN, Run, refused
from tests.training import tiny

TOML = """
preset = "ReRamES"
merge = 0
[device]
dw_min_std = 1.0
write_noise_std = 1.0
"""
TILED = ["--scheme", "random", "--tiles", "4", "--epochs", "1"]


@pytest.fixture
def trained(rapa: Run) -> str:
    """A run of one epoch on arrays from a file."""
    Path("own.toml").write_text(TOML, encoding="utf-8")
    outcome = rapa(*TRAIN, *TILED, "--arrays", "own.toml", "--out", "runs/arrays", "--json")
    assert outcome.document["epochs"] == 1
    return "runs/arrays"


def test_train_and_what_follows(rapa: Run, trained: str) -> None:
    """From training to a digital network, without a word of the user's that is not looked at."""
    made = checkpoint.read(Path(trained) / runs.LAST)
    arrays = made.description.network.arrays
    assert arrays == {"preset": "ReRamES", "merge": 0, "device": {"dw_min_std": 1.0, "write_noise_std": 1.0}}
    assert not torch.equal(made.state["conv1.matrices.0.hidden"], made.state["conv1.matrices.0.weight"])
    first = rapa("evaluate", trained, "--json").document
    assert (first["arrays"], first["noise"]) == ("ReRamES, changed", True)
    assert rapa("evaluate", trained, "--json").document == first
    test = tiny.data_set(60, 30).test
    found = evaluate(rapa_cli.load(trained), test.images, test.labels)
    assert (found.error, found.loss) == (first["test_error"], first["loss"])
    quiet = rapa("evaluate", trained, "--no-noise", "--json").document
    assert (quiet["noise"], quiet["loss"] == first["loss"]) == (False, False)
    assert quiet == rapa("evaluate", trained, "--no-noise", "--json").document
    vote = rapa("vote", trained, "-n", "3", "--json").document
    assert (vote["arrays"], vote["noise"], len(vote["single_errors"])) == ("ReRamES, changed", True, 3)
    attack = rapa("attack", trained, "--eps", "0,0.1", "--no-noise", "--json").document
    assert (attack["arrays"], attack["noise"], len(attack["points"])) == ("ReRamES, changed", False, 2)
    reduced = rapa("reduce", trained, "--json").document
    assert (reduced["arrays"], reduced["noise"]) == ("ReRamES, changed", True)
    assert reduced["test_error_before"] == first["test_error"]
    ordinary = rapa_cli.load(reduced["output"])
    assert [type(layer) for layer in ordinary if isinstance(layer, (nn.Conv2d, nn.Linear))] == [nn.Conv2d, nn.Linear]
    assert not any(isinstance(layer, ArrayLayer) for layer in ordinary.modules())
    digital = rapa("evaluate", reduced["output"], "--json").document
    assert (digital["arrays"], digital["noise"]) == ("ideal", None)
    assert digital["test_error"] == reduced["test_error_after"]


def test_the_text_names_arrays_and_noise(rapa: Run, trained: str) -> None:
    for command in (["evaluate"], ["vote", "-n", "2"], ["attack", "--eps", "0.1"]):
        assert "arrays ReRamES, changed, read with noise" in rapa(*command, trained).out
        assert "arrays ReRamES, changed, read without noise" in rapa(*command, trained, "--no-noise").out
        assert "noise\n" not in rapa(*command, "runs/done").out
    assert "arrays ReRamES, changed, read with noise" in rapa("reduce", trained).out
    assert rapa("inspect", trained).code == 0


def test_resumed(rapa: Run, trained: str) -> None:
    whole = rapa(*TRAIN, *TILED[:-1], "2", "--arrays", "own.toml", "--out", "whole", "--json").document
    again = rapa("train", "--resume", trained, "--epochs", "2", "--json").document
    assert again["test_error"] == whole["test_error"]
    one, other = (checkpoint.read(Path(name) / runs.LAST).state for name in ("whole", trained))
    assert all(torch.equal(values, other[name]) for name, values in one.items())
    refused(rapa("train", "--resume", trained, "--arrays", "ideal"), 2, "so --arrays cannot be given with it", "epochs")


def test_what_arrays_do_not_have_is_said_once(rapa: Run) -> None:
    def said(*words: str) -> list[str]:
        outcome = rapa(*TRAIN, "--epochs", "0", *words)
        assert outcome.code == 0, outcome.err
        assert all(len(line) <= 80 for line in outcome.err.splitlines())
        return [line for line in outcome.err.splitlines() if "learn by pulses" in line]

    rule = "0 on the arrays, which learn by pulses"
    momentum, none = ["--set", "momentum=0.9"], ["--set", "weight_decay=0"]
    assert said("--arrays", "EcRam", *momentum, *none) == [f"momentum 0.9: {rule}"]
    assert said("--arrays", "EcRam", *momentum, "--set", "weight_decay=0.01") == [
        f"momentum 0.9 and weight decay 0.01: {rule}"
    ]
    assert said("--arrays", "EcRam", "--set", "momentum=0", *none) == []
    assert said("--arrays", "StandardHWATraining", *momentum) == []
    assert said(*momentum) == []


def test_arrays_reach_the_network_by_any_way(rapa: Run) -> None:
    Path("own.toml").write_text(TOML, encoding="utf-8")
    text = Path("tiny.toml").read_text(encoding="utf-8")
    Path("named.toml").write_text('arrays = "EcRamPreset"\n' + text, encoding="utf-8")
    ways = {
        ("--arrays", "EcRam"): "EcRam",
        ("--network", "named.toml"): "EcRamPreset",
        ("--network", "named.toml", "--arrays", "ideal"): "ideal",
        ("--set", "network.arrays=EcRam"): "EcRam",
        ("--set", 'arrays={preset="EcRam", merge=0}'): {"preset": "EcRam", "merge": 0},
    }
    for words, arrays in ways.items():
        outcome = rapa("train", *TRAIN[1:], "--epochs", "0", "--out", "here", *words)
        assert outcome.code == 0, outcome.err
        assert checkpoint.read(Path("here") / runs.LAST).description.network.arrays == arrays
        assert ("arrays EcRam" in outcome.err) == (arrays != "ideal")
        assert preset("EcRam") == preset("EcRamPreset")
        for path in Path("here").rglob("*.*"):
            path.unlink()


@pytest.mark.parametrize(
    ("text", "code", "message", "hint"),
    [
        ("merge = ", 2, "wrong.toml is not TOML: ", "key = value"),
        ("merge = 0", 2, "arrays: 'device' is missing", "rapa inspect NAME"),
        ('preset = "EcRm"', 2, "arrays: there is no preset 'EcRm'", "did you mean 'EcRam'?"),
        ('preset = "EcRam"\nmerge = 1.5', 2, "arrays: merge: input should be a valid integer", "rapa inspect NAME"),
        ('preset = "EcRam"\nmapping = {input_range = 0.5}', 2, "got mapping.input_range 0.5, which cuts", "change"),
        ('preset = "EcRam"\nlr = 3', 2, "arrays: unknown key 'lr'", "known: "),
        (None, 3, "cannot read wrong.toml: No such file", "name a TOML file"),
    ],
)
def test_wrong_files(rapa: Run, text: str | None, code: int, message: str, hint: str) -> None:
    if text is not None:
        Path("wrong.toml").write_text(text, encoding="utf-8")
    refused(rapa(*TRAIN, "--json", "--arrays", "wrong.toml"), code, message, hint)
    assert [path.name for path in Path("runs").iterdir()] == ["done"], "no folder is left behind"


def test_hardware_aware_training(rapa: Run) -> None:
    document = rapa(*TRAIN, *TILED, "--arrays", "StandardHWATraining", "--out", "runs/hwa", "--json").document
    state = checkpoint.read(Path(document["checkpoint"])).state
    assert int(state["conv1.matrices.batches"]) == 6
    assert float(state["conv1.matrices.input_range"]) not in (0, 3)
    found = rapa("evaluate", "runs/hwa", "--json").document
    assert (found["arrays"], found["noise"]) == ("StandardHWATraining", True)


def test_voting_over_noise_alone(rapa: Run) -> None:
    rapa(*TRAIN, "--epochs", "0", "--arrays", "EcRam", "--out", "runs/noise")
    note = "this network makes no random choices in test, so that all draws are the same\n"
    assert rapa("vote", "runs/noise", "-n", "2").err == ""
    assert rapa("vote", "runs/noise", "-n", "2", "--no-noise").err == note


def test_a_damaged_state(rapa: Run, trained: str) -> None:
    path = Path(trained) / runs.LAST
    saved = checkpoint.read(path)
    for change, message in (
        ({"conv1.matrices.0.hidden": None}, "tensor 'conv1.matrices.0.hidden' is missing"),
        ({"conv1.matrices.0.other": torch.zeros(2)}, "tensor 'conv1.matrices.0.other' does not belong"),
        ({"conv1.matrices.0.hidden": torch.zeros(2)}, "tensor 'conv1.matrices.0.hidden' is torch.float32 (2,), not"),
    ):
        state = {name: values for name, values in {**saved.state, **change}.items() if values is not None}
        checkpoint.save(path, saved.description, state, {})
        refused(rapa("evaluate", trained), 3, message, "take another one")
    network = {**saved.description.network.model_dump(mode="json"), "arrays": "ReRamE"}
    wrong = saved.description.model_copy(update={"network": type(saved.description.network)(**network)})
    checkpoint.save(path, wrong, saved.state, {})
    refused(rapa("evaluate", trained), 3, "its network cannot be built: arrays: there is no preset", "take another")


def test_metrics_and_manifest_name_the_arrays(rapa: Run, trained: str) -> None:
    manifest = json.loads((Path(trained) / "run.json").read_text(encoding="utf-8"))
    assert manifest["network"]["arrays"]["preset"] == "ReRamES"
    assert re.search(r"--arrays own\.toml", manifest["provenance"]["command"])


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [64, 80, 120])
def test_inspect_cuts_no_heading(
    rapa: Run, trained: str, monkeypatch: pytest.MonkeyPatch, width: int, *, terminal: bool
) -> None:
    """On arrays there is a column more, and layers of real networks have many parameters."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    rows = inspect.convolution_rows
    large = {"n_p": 50_176, "patches_per_tile": 50_176, "k": 11_520, "c_out": 512, "parameters": 1_234_567_890}
    monkeypatch.setattr(inspect, "convolution_rows", lambda network: [{**row, **large} for row in rows(network)])
    text = re.sub(r"\x1b\[[0-9;]*m", "", rapa("inspect", trained).out)
    table = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
    headings = [cell.strip() for cell in table[1].strip("┃").split("┃")]
    dispensable = {120: ["per tile", "k", "c_out"], 80: ["k", "c_out"], 64: []}[width]
    assert headings == ["layer", "tiles", "n_p", *dispensable, "parameters", "S", "at bounds"]
    assert "…" not in text
    assert all(len(line) <= width for line in table)
