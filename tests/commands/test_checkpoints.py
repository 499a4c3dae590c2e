"""The commands that take a checkpoint: evaluate, vote, attack, reduce and inspect."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import rapa_cli
from rapa_cli import checkpoint, runs
from rapa_cli.analysis.evaluation import evaluate, wilson
from rapa_cli.analysis.voting import vote_error
from rapa_cli.checkpoint import Description
from rapa_cli.errors import FileError
from tests.commands.conftest import Run, refused
from tests.training import tiny

DONE = "runs/done"
LAST = "runs/done/last.safetensors"
KEYS = {
    "evaluate": {"checkpoint", "data", "images", "test_error", "ci95"},
    "vote": {"checkpoint", "n", "single_error", "vote_error"},
    "attack": {"checkpoint", "method", "points"},
    "reduce": {"checkpoint", "by", "test_error_before", "test_error_after", "output"},
    "inspect": {"checkpoint", "network", "scheme", "tiles", "layers", "parameters", "provenance"},
}
COMMANDS = list(KEYS)


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document(rapa: Run, command: str) -> None:
    outcome = rapa(command, DONE, "--json")
    assert outcome.document.keys() >= KEYS[command]
    assert outcome.document["checkpoint"] == LAST
    assert outcome.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_left_out_is_the_newest_run(rapa: Run, command: str) -> None:
    outcome = rapa(command, "--json")
    assert outcome.document["checkpoint"] == LAST
    assert outcome.err == f"using {LAST}\n"
    outcome = rapa(command, "--best", "--json")
    assert outcome.document["checkpoint"] == "runs/done/best.safetensors"


@pytest.mark.parametrize("command", COMMANDS)
def test_text_fits_a_terminal(rapa: Run, command: str) -> None:
    outcome = rapa(command, DONE)
    assert (outcome.code, outcome.err) == (0, "")
    assert LAST in outcome.out or command == "reduce"
    assert all(len(line) <= 80 for line in outcome.out.splitlines() if not line.startswith("command: "))
    assert "nan" not in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_best_is_labelled_as_chosen_on_the_test_set(rapa: Run, command: str) -> None:
    label = "lowest test error of the run, chosen on the test set"
    assert rapa(command, DONE, "--best", "--json").document["chosen"] == label
    assert f"({label})" in rapa(command, "runs/done/best.safetensors").out
    assert rapa(command, DONE, "--json").document["chosen"] is None
    assert label not in rapa(command, DONE).out


def test_a_narrow_terminal_shows_whole_numbers(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "50")
    text = re.sub(r"\x1b\[[0-9;]*m", "", rapa("inspect", DONE).out)
    lines = text.splitlines()
    (row,) = [line for line in lines if "conv1" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")][:4] == ["conv1", "4", "64", "448"]
    assert len(row) <= 50
    assert "…" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_paths_stay_whole_and_are_no_markup(
    rapa: Run, here: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    folder = here / ("[bold]" + "x" * 90)
    folder.mkdir()
    shutil.copy(LAST, folder / "a[red].safetensors")
    outcome = rapa(command, str(folder / "a[red].safetensors"))
    assert outcome.code == 0, outcome.err
    assert f"{folder}/a[red]" in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("runs/dnoe", "there is no checkpoint runs/dnoe", "did you mean 'runs/done'?"),
        ("empty", "there is no checkpoint empty/last.safetensors", "has the run finished an epoch?"),
        ("short.safetensors", "checkpoint short.safetensors cannot be used: ", "take another one"),
        ("tiny.toml", "checkpoint tiny.toml cannot be used: ", "take another one"),
        ("data.safetensors", "data.safetensors is a data set, not a checkpoint", "name a checkpoint or a run folder"),
    ],
)
def test_missing_and_damaged_checkpoints(rapa: Run, command: str, name: str, message: str, hint: str) -> None:
    Path("empty").mkdir()
    Path("short.safetensors").write_bytes(Path(LAST).read_bytes()[:-100])
    shutil.copy(Path(os.environ["RAPA_DATA_DIR"]) / "mini" / "test.safetensors", "data.safetensors")
    outcome = rapa(command, name, "--json")
    refused(outcome, 3, message, hint)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_run_at_all(rapa: Run, command: str) -> None:
    shutil.rmtree("runs")
    refused(rapa(command, "--json"), 3, "there is no run with a checkpoint below ./runs", "train one: rapa train")


@pytest.mark.parametrize("command", COMMANDS[:-1])
@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--data", "minni"], 3, "there is no data set 'minni'", "did you mean 'mini'?"),
        (["--data", "../mini"], 2, "cannot be the name of a data set", "names have letters, digits"),
        (["--data", "other"], 2, "--data other: images of 1 x 8 x 8 in 3 classes do not fit the network, which takes "
         "3 x 8 x 8 in 3 classes", "it was trained on 'mini'"),
        (["--images", "0"], 2, "invalid value for '--images': input should be greater than or equal to 1, got '0'",
         "-h' shows what is allowed"),
        (["--device", "cuda:99"], 2, "--device cuda:99: this machine has", "leave --device out"),
    ],
)  # fmt: skip
def test_wrong_data_and_devices(
    rapa: Run, here: Path, command: str, words: list[str], code: int, message: str, hint: str
) -> None:
    if "other" in words:
        grey = tiny.write_arrays(here / "grey", grey=True)
        assert rapa("data", "get", "other", "--from", str(grey), "--data-dir", "data").code == 0
        words = [*words, "--data-dir", "data"]
    refused(rapa(command, DONE, "--json", *words), code, message, hint)


def test_a_run_folder_is_loaded_as_its_last_checkpoint(here: Path) -> None:
    one, other = rapa_cli.load(DONE).state_dict(), rapa_cli.load(here / LAST).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    (here / "empty").mkdir()
    with pytest.raises(FileError, match=r"there is no checkpoint empty/last\.safetensors"):
        rapa_cli.load("empty")


def test_evaluate(rapa: Run) -> None:
    test = tiny.data_set(60, 30).test
    network = rapa_cli.load(LAST)
    found = rapa("evaluate", DONE, "--json", "--seed", "4").document
    expected = evaluate(network, test.images, test.labels, seed=4)
    assert (found["test_error"], found["images"], found["data"]) == (expected.error, 30, "mini")
    assert found["ci95"] == list(expected.ci95)
    assert f"test error {expected.error:.2f} %" in rapa("evaluate", DONE, "--seed", "4").out


def test_evaluate_fewer_images_and_the_training_images(rapa: Run) -> None:
    assert rapa("evaluate", DONE, "--json", "--images", "7").document["images"] == 7
    assert rapa("evaluate", DONE, "--json", "--images", "7000").document["images"] == 30
    train = rapa("evaluate", DONE, "--json", "--split", "train").document
    assert (train["images"], train["split"]) == (60, "train")
    assert train["train_error"] == train["error"]
    assert "test_error" not in train, "the error on training images is no test error"
    test = rapa("evaluate", DONE, "--json").document
    assert test["test_error"] == test["error"]
    outcome = rapa("evaluate", DONE, "--split", "tset")
    refused(outcome, 2, "--split: got 'tset', allowed are train and test", "did you mean 'test'?")


def test_vote(rapa: Run) -> None:
    test = tiny.data_set(60, 30).test
    found = rapa("vote", DONE, "-n", "3", "--json", "--seed", "4").document
    expected = vote_error(rapa_cli.load(LAST), test.images, test.labels, 3, seed=4)
    assert (found["n"], found["vote_error"]) == (3, expected.vote_error)
    assert found["single_error"] == expected.single_error
    assert len(found["single_errors"]) == 3
    assert found["ci95"] == list(wilson(expected.vote_wrong, 30))
    assert rapa("vote", DONE, "-n", "0").code == 2


def test_voting_where_nothing_is_random(rapa: Run) -> None:
    rapa("reduce", DONE, "--out", "plain.safetensors")
    outcome = rapa("vote", "plain.safetensors", "-n", "2")
    assert outcome.code == 0
    assert outcome.err == "this network makes no random choices in test, so that all draws are the same\n"


def test_attack(rapa: Run) -> None:
    found = rapa("attack", DONE, "--eps", "0,4/255,0.5", "--json").document
    assert found["method"] == "fgsm"
    points: list[dict[str, Any]] = found["points"]
    assert all(point.keys() >= {"eps", "snr_db", "accuracy", "ci95"} for point in points)
    assert [point["eps"] for point in points] == [0, 4 / 255, 0.5]
    assert (points[0]["accuracy"], points[0]["snr_db"]) == (100, None), "JSON has no infinity"
    assert points[1]["snr_db"] > points[2]["snr_db"] > 0
    assert points[2]["accuracy"] < 100
    assert found["counted"] <= found["images"] == 30
    snr = rapa("attack", DONE, "--snr", "60:20:3", "--json").document["points"]
    assert [point["asked"]["snr_db"] for point in snr] == [60, 40, 20]
    assert len(rapa("attack", DONE, "--json").document["points"]) == 9


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--eps", "8"], "--eps: got 8, allowed are numbers from 0 to 1", "did you mean 8/255?"),
        (["--eps", "0,4,8"], "--eps: got 4, allowed are numbers from 0 to 1", "did you mean 4/255?"),
        (["--eps", "-1/255"], "--eps: got -0.00392157, allowed are numbers from 0 to 1", "pixels go from 0 to 1"),
        (["--eps", "nan"], "--eps: got 'nan', which is not a finite number or fraction", "4/255"),
        (["--eps", ""], "--eps: got an empty level", "4/255"),
        (["--snr", ""], "--snr: got an empty level", "0:30:7"),
        (["--snr", "1000"], "--snr: got 1000, allowed are -100 to 200 dB", "33 dB"),
        (["--eps", "0.1", "--snr", "33"], "--eps and --snr are two ways to say the same", "give one of them"),
        (["--epss", "1"], "no such option: --epss", "did you mean '--eps'?"),
    ],
)
def test_wrong_levels(rapa: Run, words: list[str], message: str, hint: str) -> None:
    refused(rapa("attack", DONE, "--json", *words), 2, message, hint)


def test_the_whole_range_of_a_pixel_is_noted(rapa: Run) -> None:
    outcome = rapa("attack", DONE, "--eps", "1", "--json")
    assert outcome.document["points"][0]["eps"] == 1
    assert outcome.err == "--eps 1 is the whole range of a pixel; one step of 255 is written 1/255\n"


def all_wrong(path: Path) -> None:
    """A checkpoint like the run's, of a network that sees a fourth class in every image."""
    saved = checkpoint.read(Path(LAST))
    definition = saved.description.model_copy(update={"classes": ("a", "b", "c", "d")})
    weight, bias = saved.state["linear1.weight"], saved.state["linear1.bias"]
    state = dict(saved.state)
    state["linear1.weight"] = torch.cat([weight, torch.zeros_like(weight[:1])])
    state["linear1.bias"] = torch.cat([bias, torch.full((1,), 1e6)])
    checkpoint.save(path, definition, state, {})


def test_nothing_to_attack(rapa: Run, here: Path) -> None:
    all_wrong(here / "wrong.safetensors")
    four = tiny.write_arrays(here / "four", classes=4)
    assert rapa("data", "get", "four", "--from", str(four), "--data-dir", "data").code == 0
    words = ["attack", "wrong.safetensors", "--data", "four", "--data-dir", "data", "--images", "3", "--eps", "0,0.1"]
    outcome = rapa(*words)
    assert outcome.code == 0
    assert "no image is classified correctly without noise, so that there is nothing to attack" in outcome.err
    assert "nan" not in outcome.out
    points = rapa(*words, "--json").document["points"]
    assert [(point["eps"], point["accuracy"], point["snr_db"]) for point in points] == [
        (0, None, None),
        (0.1, None, None),
    ]


def test_reduce(rapa: Run) -> None:
    found = rapa("reduce", DONE, "--json").document
    assert found["output"] == "runs/done/last-reduced-norm.safetensors"
    assert found["test_error_before"] == rapa("evaluate", DONE, "--json").document["test_error"]
    again = rapa("evaluate", found["output"], "--json").document
    assert again["test_error"] == found["test_error_after"]
    made = checkpoint.read(Path(found["output"])).description
    assert (made.network.scheme, made.network.tiles) == ("none", (1,))
    assert made.provenance["made_from"] == "last.safetensors", "a path from where the output lies"
    assert rapa("inspect", found["output"], "--json").document["layers"][0]["similarity"] is None
    assert rapa("evaluate", "--json").document["checkpoint"] == LAST, "what was reduced is no newer run"


def test_where_to_put_what_was_reduced(rapa: Run) -> None:
    assert rapa("reduce", DONE, "--out", "new/folder/a.safetensors", "--json").document["output"].startswith("new/")
    made = checkpoint.read(Path("new/folder/a.safetensors")).description
    assert made.provenance["made_from"] == f"../../{LAST}"
    before = Path(LAST).read_bytes()
    outcome = rapa("reduce", DONE, "--out", f"{DONE}/../done/last.safetensors")
    refused(outcome, 2, "is the checkpoint itself", "choose another file")
    assert Path(LAST).read_bytes() == before
    refused(rapa("reduce", DONE, "--out", "runs"), 3, "cannot write runs: a folder stands where a file", "another name")
    refused(rapa("reduce", DONE, "--by", "nrom"), 2, "--by: there is no way 'nrom' to reduce", "did you mean 'norm'?")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_reduce_without_room_or_permission(rapa: Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint, "save_file", fail)
    reason, hint = {
        errno.ENOSPC: ("the disk is full", "free some space, or choose another folder"),
        errno.EACCES: ("no permission to write", "choose a folder that you own"),
    }[number]
    outcome = rapa("reduce", DONE, "--json")
    refused(outcome, 3, f"cannot write runs/done/last-reduced-norm.safetensors: {reason}", hint)


def test_inspect(rapa: Run) -> None:
    found = rapa("inspect", DONE, "--json").document
    (layer,) = found["layers"]
    assert -1 < layer.pop("similarity") < 1
    assert layer == {
        "name": "conv1",
        "tiles": 4,
        "n_p": 64,
        "patches_per_tile": 16,
        "k": 27,
        "c_out": 4,
        "parameters": 4 * (27 + 1) * 4,
        "at_bounds": None,
    }
    assert found["arrays"] == "ideal"
    assert (found["scheme"], found["tiles"], found["data"]) == ("random", [4], "mini")
    assert found["parameters_conv"] == 448
    assert found["parameters"] == 448 + 3 * (4 * 16 + 1)
    assert found["progress"]["epoch"] == 3
    assert found["provenance"]["rapa"] == rapa_cli.__version__


def test_inspect_a_run_in_the_middle_of_an_epoch(rapa: Run) -> None:
    saved = checkpoint.read(Path(LAST))
    assert saved.description.progress is not None
    progress = saved.description.progress.model_copy(update={"step": 2, "test_error": None})
    checkpoint.save(Path(LAST), saved.description.model_copy(update={"progress": progress}), saved.state, {})
    text = rapa("inspect", DONE).out
    assert "3 epochs and 2 steps" in text
    assert "test error" not in text


def test_inspect_a_network_without_training(rapa: Run) -> None:
    network = tiny.network()
    description = Description(network=network.definition, shape=tiny.SHAPE, classes=tiny.CLASSES, data="mini")
    checkpoint.save(Path("plain.safetensors"), description, network.state_dict(), {})
    outcome = rapa("inspect", "plain.safetensors")
    assert outcome.code == 0
    assert "training" not in outcome.out
    assert rapa("inspect", "plain.safetensors", "--json").document["progress"] is None


def test_a_checkpoint_moved_elsewhere(rapa: Run, here: Path) -> None:
    before = rapa("evaluate", DONE, "--json").document["test_error"]
    shutil.move(LAST, here / "moved.safetensors")
    shutil.rmtree("runs")
    assert rapa("evaluate", "moved.safetensors", "--json").document["test_error"] == before
    with pytest.raises(FileError):
        runs.find_checkpoint(DONE)
