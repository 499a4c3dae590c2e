"""`rapa train`: what it takes, what it prints, and how it stops."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from ctypes import CDLL
from pathlib import Path
from typing import Any

import pytest
import torch

from rapa_cli import checkpoint, runs
from rapa_cli.files import held
from rapa_cli.kernels.compiled import Kernels, kernels
from rapa_cli.training.loop import Training
from tests.commands.conftest import TRAIN, Run, refused
from tests.training import tiny

KEYS = {
    "run",
    "checkpoint",
    "epochs",
    "test_error",
    "train_error",
    "best_test_error",
    "seconds",
    "images_per_second",
    "seed",
}


def description(folder: str) -> checkpoint.Description:
    return checkpoint.read(Path(folder) / runs.LAST).description


def test_json_is_one_document_on_standard_output(rapa: Run) -> None:
    outcome = rapa(*TRAIN, "--epochs", "2", "--seed", "7", "--out", "here", "--json")
    document = outcome.document
    assert document.keys() >= KEYS
    assert (document["run"], document["checkpoint"]) == ("here", "here/last.safetensors")
    assert (document["epochs"], document["seed"]) == (2, 7)
    assert 0 <= document["best_test_error"] <= document["test_error"] <= 100
    assert document["seconds"] > 0
    assert document["images_per_second"] > 0
    lines = outcome.err.splitlines()
    assert lines[:3] == [
        "tiny on mini (60 images): none, max pooling",
        "2 epochs, batch 10, rate 0.003, seed 7",
        "run folder here",
    ]
    assert [line.split("  ")[0] for line in lines[3:]] == ["epoch 1/2", "epoch 2/2"]
    assert all(len(line) <= 80 for line in lines)


def test_what_it_prints(rapa: Run) -> None:
    outcome = rapa(*TRAIN, "--epochs", "1", "--out", "here")
    lines = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    assert outcome.code == 0
    assert list(lines) == ["test error", "lowest", "time", "checkpoint", "learning curve"]
    assert lines["checkpoint"].strip() == "here/last.safetensors"
    assert Path(lines["learning curve"].strip()).is_file()
    assert all(len(line) <= 80 for line in outcome.out.splitlines())
    assert Path("here/figures/learning-curve.svg").is_file()


def test_a_folder_below_runs(rapa: Run) -> None:
    document = rapa(*TRAIN, "--epochs", "0", "--json").document
    assert document["run"].startswith("runs/")
    assert document["run"].endswith("-tiny-none-mini")
    assert (document["epochs"], document["test_error"], document["images_per_second"]) == (0, None, None)
    assert rapa(*TRAIN, "--epochs", "0").out.startswith("no epoch was trained")


def test_the_options_reach_the_run(rapa: Run) -> None:
    rapa(*TRAIN, "--scheme", "random-fixed", "--tiles", "8", "--pool", "mixed", "--lr", "0.5", "--epochs", "0",
         "--set", "momentum=0.25", "--set", "network.normalization=none", "--out", "here")  # fmt: skip
    made = description("here")
    assert made.recipe is not None
    assert (made.network.scheme, made.network.tiles, made.network.pool) == ("random-fixed", (8,), "mixed")
    assert (made.recipe.lr, made.recipe.momentum, made.recipe.batch_size) == (0.5, 0.25, 10)
    assert (made.network.normalization, made.data, made.seed) == ("none", "mini", 0)
    assert made.provenance["recipe"] == "short"
    words = made.provenance["command"].split()
    assert words[:2] == ["rapa", "train"]
    assert words[-2:] == ["--out", "here"]


@pytest.mark.parametrize(
    ("words", "scheme", "tiles"),
    [
        ([], "none", (1, 1, 1)),
        (["--scheme", "random"], "random", (16, 4, 1)),
        (["--tiles", "8,2,1"], "random", (8, 2, 1)),
        (["--tiles", "4"], "random", (4, 4, 4)),
        (["--scheme", "alternate"], "alternate", (16, 4, 1)),
        (["--set", "network.scheme=random"], "random", (16, 4, 1)),
        (["--set", "scheme=random", "--set", "tiles=[4, 2, 1]"], "random", (4, 2, 1)),
        (["--scheme", "random", "--set", "tiles=[4, 2, 1]"], "random", (4, 2, 1)),
    ],
)
def test_tiles_and_schemes(rapa: Run, words: list[str], scheme: str, tiles: tuple[int, ...]) -> None:
    full = Path(checkpoint.__file__).parent.parent / "models" / "networks" / "full.toml"
    Path("net.toml").write_text(full.read_text(encoding="utf-8"), encoding="utf-8")
    # 8 x 8 images are too small for 16, 4 and 1 tiles to be what balances; a padding of 12 makes them 32 x 32.
    text = Path("net.toml").read_text(encoding="utf-8").replace("padding = 2", "padding = 14", 1)
    Path("net.toml").write_text(text, encoding="utf-8")
    recipe = 'batch_size = 10\nepochs = 1\nlr = 0.1\n[scheme.random]\nlr_scaling = "linear"\n'
    Path("own.toml").write_text(recipe, encoding="utf-8")
    given = ["--network", "net.toml", "--data", "mini", "--recipe", "own.toml", "--epochs", "0", "--out", "here"]
    outcome = rapa("train", *given, *words)
    assert outcome.code == 0, outcome.err
    made = description("here")
    assert (made.network.scheme, made.network.tiles) == (scheme, tiles)
    assert made.recipe is not None
    assert made.recipe.lr_scaling == ("linear" if scheme == "random" else "none"), "the recipe is that of the scheme"


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--network", "ful"], 3, "there is no network 'ful'", "did you mean 'full'?"),
        (["--network", "a/b.toml"], 3, "there is no file a/b.toml", "networks of the package"),
        (["--recipe", "shrt"], 3, "there is no recipe 'shrt'", "did you mean 'short'?"),
        (["--scheme", "randm"], 2, "scheme: input should be 'none'", "did you mean 'random'?"),
        (["--pool", "avrage"], 2, "pool: input should be 'max'", "did you mean 'average'?"),
        (["--data", "minni"], 3, "there is no data set 'minni'", "did you mean 'mini'?"),
        (["--arrays", "pcm"], 2, "arrays: there is no preset 'pcm'", "did you mean 'PCM'?"),
        (["--set", "momentun=0.5"], 2, "--set momentun=0.5: unknown key 'momentun'", "did you mean 'momentum'?"),
        (["--set", "lr"], 2, "--set lr: there is no '='", "write --set key=value"),
        (["--lr", "0"], 2, "settings: recipe.lr: input should be greater than 0, got 0.0", "values are TOML"),
        (["--lr", "nan"], 2, "settings: recipe.lr: input should be a finite number", "values are TOML"),
        (["--lr", "fast"], 2, "invalid value for '--lr': input should be a valid number, got 'fast'", "train -h' "),
        (["--epochs", "1.5"], 2, "'--epochs': input should be a valid integer, got '1.5'", "train -h' shows what is"),
        (["--rate", "3"], 2, "no such option: --rate", "did you mean '--lr'?"),
        (["--whatever", "3"], 2, "no such option: --whatever", "'rapa train -h' shows what is allowed"),
        (["--set", "a=1", "--set", "b", "--lr", "-1"], 2, "--set a=1: unknown key 'a'; --set b: there is no '='; "
         "settings: recipe.lr: input should be greater than 0, got -1.0", "known: "),
        (["--set", "tiles=7"], 2, "settings: network.tiles: input should be a valid array, got 7", "--tiles 16,4,1"),
        (["--recipe", "bad.toml"], 2, "bad.toml is not TOML: ", "lines are key = value"),
        (["--network", "folder.toml"], 3, "there is no file folder.toml", "networks of the package"),
        (["--out", "/proc/x/y"], 3, "cannot make the folder /proc/x/y: ", "choose another folder"),
        (["--tiles", "65"], 2, "convolution 1 got 65 tiles, but its output has only 64 patches", "may be 1 to 64"),
        (["--tiles", "4,4"], 2, "got 2 numbers (4,4), but network 'tiny' has 1 convolutions", "--tiles 1"),
        (["--tiles", "4;4"], 2, "--tiles: got '4;4', allowed are whole numbers from 1 up", "with commas"),
        (["--tiles", ""], 2, "--tiles: got '', allowed are whole numbers from 1 up", "with commas"),
        (["--tiles", "0"], 2, "--tiles: got '0', allowed are whole numbers from 1 up", "with commas"),
        (["--scheme", "none", "--tiles", "4"], 2, "tiles: got 4, but scheme 'none' has one tile", "leave --tiles out"),
        (["--scheme", "image-pad", "--tiles", "3"], 2, "tiles: got 3, but scheme 'image-pad' needs a", "that fit"),
        (["--device", "cuda:99"], 2, "--device cuda:99: this machine has", "leave --device out, or see `rapa doctor`"),
        (["--device", "gpu"], 2, "--device: got 'gpu', allowed are auto, cpu, cuda", "leave --device out"),
        (["--seed", "-1"], 2, "invalid value for '--seed'", "'rapa train -h' shows what is allowed"),
        (["--out", "runs/done"], 2, "--out runs/done: there is a run in this folder already", "--resume runs/done"),
        (["--out", "tiny.toml"], 3, "a file stands where a folder should be", "choose another folder"),
        (["--resume", "runs/dnoe"], 2, "--resume goes on with the run as it was begun, so --network", "--epochs"),
    ],
)  # fmt: skip
def test_wrong_inputs(rapa: Run, words: list[str], code: int, message: str, hint: str) -> None:
    Path("bad.toml").write_text("epochs 3", encoding="utf-8")
    Path("folder.toml").mkdir()
    refused(rapa(*TRAIN, "--json", *words), code, message, hint)
    assert [path.name for path in Path("runs").iterdir()] == ["done"], "no folder is left behind"


def test_cuda_on_a_machine_without(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    outcome = rapa(*TRAIN, "--device", "cuda")
    refused(outcome, 2, "--device cuda: this machine has 0 CUDA devices", "leave --device out, or see `rapa doctor`")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/dnoe", "did you mean 'runs/done'?"),
        ("doen", "did you mean 'runs/done'?"),
        ("runs/done/best.safetensors", "did you mean the folder 'runs/done'?"),
        ("elsewhere", "newest run: runs/done"),
        ("tiny.toml", "newest run: runs/done"),
    ],
)
def test_resuming_a_run_that_is_missing(rapa: Run, name: str, hint: str) -> None:
    refused(rapa("train", "--resume", name), 3, f"there is no run folder {name}", hint)


def test_resuming_a_folder_without_a_run(rapa: Run) -> None:
    Path("empty").mkdir()
    refused(rapa("train", "--resume", "empty"), 3, "there is no run in empty (run.json is missing)", "newest run")


def test_resuming_with_a_damaged_checkpoint(rapa: Run) -> None:
    Path("runs/done/last.safetensors").write_bytes(b"nothing good")
    outcome = rapa("train", "--resume", "runs/done", "--epochs", "4")
    refused(outcome, 3, "checkpoint runs/done/last.safetensors cannot be used: ", "take another one")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EACCES, errno.EROFS], ids=["full disk", "no permission", "read-only"]
)
def test_a_disk_that_cannot_be_written(rapa: Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(path: Path, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_text", fail)
    outcome = rapa(*TRAIN, "--epochs", "1", "--out", "here")
    reason = {errno.ENOSPC: "the disk is full", errno.EACCES: "no permission to write"}
    refused(outcome, 3, f"cannot write here/run.json: {reason.get(number, 'the file system is read-only')}", "")


def test_a_disk_that_fills_while_it_trains(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    outcome = rapa(*TRAIN, "--epochs", "1", "--out", "here")
    assert "saved" not in outcome.err
    assert outcome.code == 3
    assert re.search(
        r"error: cannot write here/best\.safetensors: the disk is full \(\d+ bytes are free\)\nhint: free some",
        outcome.err,
    )


def test_a_training_that_diverges(rapa: Run) -> None:
    outcome = rapa(*TRAIN, "--epochs", "2", "--lr", "1e30", "--out", "here")
    assert outcome.code == 4
    assert (
        "error: the training diverged in epoch 1, by step 2: the output of layer 'linear1' is not finite at rate 1e+30"
        in outcome.err
    )
    assert "hint: lower the rate, as in --lr 0.01" in outcome.err
    assert "saved" not in outcome.err
    assert outcome.out == ""


def interrupted(monkeypatch: pytest.MonkeyPatch, number: int, step: int, times: int = 1) -> None:
    """Lets a signal come after a step of the next training."""
    original, done = Training._step, list[int]()

    def step_and_signal(self: Training, *arguments: Any) -> None:
        original(self, *arguments)
        done.append(1)
        if len(done) == step:
            for _ in range(times):
                signal.raise_signal(number)

    monkeypatch.setattr(Training, "_step", step_and_signal)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.slow)],
)
def test_stopped_and_resumed(rapa: Run, monkeypatch: pytest.MonkeyPatch, number: int, code: int, word: str) -> None:
    scheme = ["--scheme", "random", "--tiles", "4", "--epochs", "2"]
    whole = rapa(*TRAIN, *scheme, "--out", "whole", "--json").document
    with monkeypatch.context() as patch:
        interrupted(patch, number, step=8)
        outcome = rapa(*TRAIN, *scheme, "--out", "my parts")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.splitlines()[-2:] == ["saved; go on with: rapa train --resume 'my parts'", word]
    assert Path("my parts/figures/learning-curve.png").is_file()
    again = rapa("train", "--resume", "my parts", "--json")
    assert "going on after epoch 1, step 2" in again.err
    assert {**again.document, **dict.fromkeys(("run", "checkpoint", "seconds", "images_per_second"))} == {
        **whole, **dict.fromkeys(("run", "checkpoint", "seconds", "images_per_second"))
    }  # fmt: skip
    one, other = (checkpoint.read(Path(name) / runs.LAST).state for name in ("whole", "my parts"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert Path("whole/metrics.csv").read_bytes() == Path("my parts/metrics.csv").read_bytes()


def test_interrupted_twice(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, signal.SIGINT, step=8, times=2)
    outcome = rapa(*TRAIN, "--epochs", "2", "--out", "here", "--data-dir", os.environ["RAPA_DATA_DIR"])
    assert outcome.code == 130
    *_, note, word = outcome.err.splitlines()
    assert note.startswith("not saved after epoch 1; go on from there with: rapa train --resume here --data-dir ")
    assert word == "interrupted"


def test_resuming_a_run_that_is_done_and_more_epochs(rapa: Run) -> None:
    before = Path("runs/done/last.safetensors").read_bytes()
    assert rapa("train", "--resume", "runs/done", "--json").document["epochs"] == 3
    assert Path("runs/done/last.safetensors").read_bytes() == before
    assert rapa("train", "--resume", "runs/done", "--epochs", "4", "--json").document["epochs"] == 4
    written = json.loads(Path("runs/done/run.json").read_text(encoding="utf-8"))
    assert written["recipe"]["epochs"] == 4
    made = description("runs/done").provenance
    assert made == written["provenance"]
    assert "--out runs/done" in made["command"], "the command that began the run"
    first, second = made["resumed"].split("; ")
    assert first.endswith(" rapa train --resume runs/done --json")
    assert second.endswith(" rapa train --resume runs/done --epochs 4 --json")


def test_metrics_that_are_lost_are_told(rapa: Run) -> None:
    assert rapa(*TRAIN, "--epochs", "1", "--out", "here").code == 0
    assert "says nothing" not in rapa("train", "--resume", "here", "--epochs", "2").err
    Path("here/metrics.jsonl").unlink()
    outcome = rapa("train", "--resume", "here", "--epochs", "3")
    assert outcome.code == 0
    assert "metrics.jsonl says nothing of the first 2 epochs" in outcome.err.splitlines()


def test_what_computed_is_kept_and_another_told(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of this machine, and none: each run is begun with the other."""
    own = kernels()
    assert rapa(*TRAIN, "--epochs", "1", "--out", "here").code == 0
    assert description("here").provenance["kernels"] == own.name
    assert "to the last bit" not in rapa("train", "--resume", "here", "--epochs", "2").err
    another = Kernels(None, "for a test") if own.library is not None else Kernels(CDLL(None), "for a test")
    monkeypatch.setattr("rapa_cli.kernels.compiled.kernels", lambda: another)
    outcome = rapa("train", "--resume", "here", "--epochs", "2")
    assert outcome.code == 0
    (line,) = (line for line in outcome.err.splitlines() if "to the last bit" in line)
    assert line == (
        f"the run was begun with {own.name} kernels and goes on with {another.name} ones (for a test): "
        "it will not be the same to the last bit"
    )
    assert json.loads(Path("here/run.json").read_text(encoding="utf-8"))["provenance"]["resumed"].endswith(
        f" with {another.name} kernels"
    )


def test_resuming_by_the_checkpoint_itself(rapa: Run) -> None:
    assert rapa("train", "--resume", "runs/done/last.safetensors", "--json").document["run"] == "runs/done"


@pytest.mark.parametrize(("epochs", "step", "begun"), [(2, 0, 3), (0, 0, 3), (3, 2, 4)])
def test_resuming_with_fewer_epochs_than_are_done(rapa: Run, epochs: int, step: int, begun: int) -> None:
    path = Path("runs/done/last.safetensors")
    saved = checkpoint.read(path)
    assert saved.description.progress is not None
    progress = saved.description.progress.model_copy(update={"step": step})
    checkpoint.save(path, saved.description.model_copy(update={"progress": progress}), saved.state, saved.optimizer)
    before = Path("runs/done/run.json").read_bytes()
    message = f"--epochs {epochs}: the run in runs/done is in epoch {begun} already"
    outcome = rapa("train", "--resume", "runs/done", "--epochs", str(epochs), "--json")
    refused(outcome, 2, message, f"allowed are {begun} and more")
    assert Path("runs/done/run.json").read_bytes() == before


def test_a_network_that_cannot_be_built_leaves_no_folder(rapa: Run) -> None:
    Path("tiny.toml").write_text(tiny.TOML.rpartition("[[layers]]")[0], encoding="utf-8")
    for words in ([], ["--out", "here"]):
        outcome = rapa(*TRAIN, *words)
        refused(outcome, 2, "network 'tiny' has no linear layer at its end", "let it end with a layer of kind 'linear'")
    assert not Path("here").exists()
    assert [path.name for path in Path("runs").iterdir()] == ["done"]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_real_process_and_a_real_signal(rapa: Run, number: int, code: int, word: str) -> None:
    # Far more epochs than fit into the time it takes to notice the first.
    words = [sys.executable, "-m", "rapa_cli", *TRAIN, "--epochs", "300", "--out", "here", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if line.startswith("epoch "):
                break
        process.send_signal(number)
        out, rest = process.communicate(timeout=300)
    assert process.returncode == code, seen + rest
    assert out == ""
    assert rest.splitlines()[-2:] == ["saved; go on with: rapa train --resume here", word]
    progress = description("here").progress
    assert progress is not None
    done = rapa("train", "--resume", "here", "--epochs", str(progress.epoch + 1), "--json").document
    assert done["epochs"] == progress.epoch + 1


def test_tensorboard_that_is_not_there(rapa: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    outcome = rapa(*TRAIN, "--tensorboard", "--out", "new")
    refused(outcome, 2, "TensorBoard is not installed", "pip install 'rapa-cli[tensorboard]'")
    assert not (here / "new").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra tensorboard is missing")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(rapa: Run, here: Path) -> None:
    assert rapa(*TRAIN, "--epochs", "1", "--tensorboard", "--out", "new").code == 0
    assert list((here / "new" / "tensorboard").glob("events.out.tfevents.*"))


def test_two_runs_in_one_folder(rapa: Run) -> None:
    with held(Path("runs/done")):
        refused(rapa("train", "--resume", "runs/done", "--epochs", "9"), 2, "runs/done is in use by process", "wait")
    Path("new").mkdir()
    with held(Path("new")):
        refused(rapa(*TRAIN, "--epochs", "1", "--out", "new"), 2, "new is in use by process", "another folder")
    assert not Path("new/run.json").exists()
    assert rapa("train", "--resume", "runs/done", "--epochs", "4", "--json").document["epochs"] == 4
