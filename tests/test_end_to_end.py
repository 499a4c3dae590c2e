"""The chain of commands on the real network, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rapa_cli
from rapa_cli import app
from rapa_cli.layers.network import parameter_count

TRAIN, TEST = 60, 30


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """train.npz and test.npz: 32 x 32 images with a bright part that tells the class."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    for seed, (name, count) in enumerate((("train", TRAIN), ("test", TEST))):
        labels = np.arange(count) % 3
        pixels = np.random.default_rng(seed).integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
        pixels[labels == 0, :12] += 110
        pixels[labels == 1, 20:] += 110
        pixels[labels == 2, :, 12:20] += 110
        np.savez(folder / f"{name}.npz", images=pixels, labels=labels)
    return folder


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a data folder of its own."""
    monkeypatch.setenv("RAPA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rapa(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    code = app.run([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document: dict[str, Any] = json.loads(captured.out)
    return document


def chain(capsys: pytest.CaptureFixture[str], data: str, words: Sequence[str]) -> dict[str, Any]:
    """Trains, evaluates, votes, attacks, reduces, evaluates what was reduced, and inspects both."""
    run = rapa(capsys, "train", "--network", "full", "--data", data, "--out", "runs/one", *words)["run"]
    reduced = rapa(capsys, "reduce", run)
    return {
        "evaluate": rapa(capsys, "evaluate", run),
        "vote": rapa(capsys, "vote", run, "-n", "5"),
        "attack": rapa(capsys, "attack", run, "--eps", "0,1/255,8/255"),
        "reduce": reduced,
        "evaluate_reduced": rapa(capsys, "evaluate", reduced["output"]),
        "inspect": rapa(capsys, "inspect", run),
        "inspect_reduced": rapa(capsys, "inspect", reduced["output"]),
    }


def test_the_chain(workshop: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rapa(capsys, "data", "get", "mine", "--from", str(images))
    words = ["--scheme", "random", "--tiles", "16,4,1", "--epochs", "2", "--batch-size", "10", "--seed", "5"]
    found = chain(capsys, "mine", words)
    assert found["evaluate"]["images"] == TEST
    assert found["evaluate"]["test_error"] < 60, "better than guessing among three"
    assert found["vote"]["n"] == 5
    points = found["attack"]["points"]
    assert points[0]["accuracy"] == 100
    assert points[1]["snr_db"] - points[2]["snr_db"] == pytest.approx(20 * np.log10(8), abs=0.5)
    assert found["reduce"]["test_error_after"] == found["evaluate_reduced"]["test_error"]
    assert found["reduce"]["test_error_before"] == found["evaluate"]["test_error"]
    # The paper's counts of parameters.
    assert (found["inspect"]["parameters_conv"], found["inspect"]["tiles"]) == (192_704, [16, 4, 1])
    assert (found["inspect_reduced"]["parameters_conv"], found["inspect_reduced"]["tiles"]) == (79_328, [1, 1, 1])
    similarities = [layer["similarity"] for layer in found["inspect"]["layers"]]
    assert similarities[2] is None
    assert all(-1 <= value <= 1 for value in similarities[:2])

    network = rapa_cli.load("runs/one/last.safetensors")
    assert parameter_count(network, convolutions_only=True) == 192_704
    assert rapa_cli.vote(network, torch.rand(2, 3, 32, 32), n=3).shape == (2,)
    assert parameter_count(rapa_cli.reduce(network), convolutions_only=True) == 79_328


def test_the_program_in_a_pipe(workshop: Path, images: Path) -> None:
    """What a script sees: results on standard output, everything else on standard error."""
    script = "import sys; from rapa_cli import app; sys.exit(max(app.run(line.split()) for line in sys.stdin))"
    lines = [
        f"data get mine --from {images}",
        "train --data mine --epochs 1 --batch-size 20 --out runs/one",
        "evaluate runs/one",
    ]
    outcome = subprocess.run(
        [sys.executable, "-c", script], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "\x1b" not in outcome.stdout + outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("epoch 1/1  rate 0.003")
    words = [line.split("  ")[0] for line in outcome.stdout.splitlines()]
    assert words[3:8] == ["test error", "lowest", "time", "checkpoint", "learning curve"]
    assert words[-1] == "checkpoint runs/one/last.safetensors"


@pytest.mark.cifar10
def test_the_chain_on_cifar10(
    workshop: Path, cifar10_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rapa(capsys, "data", "get", "cifar10", "--from", str(cifar10_dir / "cifar-10-batches-py"))
    # An epoch over all images takes too long for a test; without training the chain runs all the same.
    run = rapa(capsys, "train", "--data", "cifar10", "--scheme", "random", "--epochs", "0", "--out", "runs/one")["run"]
    found = rapa(capsys, "evaluate", run, "--images", "300")
    assert found["images"] == 300
    assert 80 <= found["test_error"] <= 97, "as good as guessing among ten"
    points = rapa(capsys, "attack", run, "--images", "200", "--snr", "33")["points"]
    assert points[0]["snr_db"] == pytest.approx(33, abs=0.5)
    vote = rapa(capsys, "vote", run, "-n", "2", "--images", "200")
    assert 80 <= vote["vote_error"] <= 99
