"""The same seed gives the same bits, wherever and however a training runs."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rapa_cli.data.augmentation import augment
from rapa_cli.keyed import draws
from rapa_cli.philox import permutation
from rapa_cli.tiling.conv import TiledConv2d
from tests.commands.conftest import TRAIN, Run
from tests.soak.kills import same
from tests.training import tiny

WORDS = [*TRAIN, "--scheme", "random", "--tiles", "4", "--pool", "stochastic", "--epochs", "2", "--seed", "5"]


def test_with_and_without_a_terminal(rapa: Run) -> None:
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    words = [sys.executable, "-m", "rapa_cli", *WORDS, "--threads", "1", "--out"]
    piped = subprocess.run([*words, "piped"], env=environment, capture_output=True, check=True)
    assert b"\x1b[" not in piped.stderr
    terminal, inside = pty.openpty()
    with subprocess.Popen([*words, "shown"], env=environment, stdin=inside, stdout=inside, stderr=inside) as process:
        os.close(inside)
        shown = b"".join(read(terminal))
    assert process.returncode == 0
    assert b"\x1b[" in shown, "a bar was drawn"
    same(Path("piped"), Path("shown"))


def read(terminal: int) -> Iterator[bytes]:
    """What is shown on a terminal, until it is closed on the other side."""
    try:
        while block := os.read(terminal, 4096):
            yield block
    except OSError:
        os.close(terminal)


def test_in_a_folder_that_was_moved(rapa: Run) -> None:
    assert rapa(*WORDS, "--out", "whole").code == 0
    assert rapa(*WORDS, "--epochs", "1", "--out", "here").code == 0
    Path("elsewhere").mkdir()
    shutil.move("here", "elsewhere/there")
    assert rapa("train", "--resume", "elsewhere/there", "--epochs", "2").code == 0
    same(Path("whole"), Path("elsewhere/there"))


@pytest.mark.parametrize("command", [["vote", "-n", "3"], ["attack", "--snr", "20"]], ids=["vote", "attack"])
def test_the_seed_of_an_evaluation_is_its_own(rapa: Run, command: list[str]) -> None:
    assert rapa(*WORDS, "--epochs", "1", "--out", "run").code == 0
    word, *options = command
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for seed in ("1", "2"):
        assert rapa(word, "run", *options, "--seed", seed, "--json").code == 0
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path in before} == before
    assert rapa("train", "--resume", "run", "--epochs", "2").code == 0
    assert rapa(*WORDS, "--out", "whole").code == 0
    same(Path("whole"), Path("run"))


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 5, 30])
def test_whole_numbers_depend_on_neither_threads_nor_batches(threads: int, batch: int) -> None:
    images = tiny.pixels(tiny.split(30, seed=1))

    def whole_numbers(size: int) -> list[torch.Tensor]:
        ids = permutation(5, 1, 30)
        layer = TiledConv2d(3, 4, 3, padding=1, tiles=4, scheme="random")
        found = []
        for part in torch.split(ids, size):
            with draws(layer, images=part, seed=5, draw=1, stream="train"):
                assigned = layer.assign(part, (8, 8))
            # Which are mirrored and which are brighter shows in the pixels.
            changed = augment(images[part], part, seed=5, epoch=1, mirror=True, brightness=0.2)
            found.append(torch.cat([assigned.flatten(1), (changed * 255).round().long().flatten(1)], 1))
        return [ids, torch.cat(found)]

    found = whole_numbers(batch)
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(found, whole_numbers(30), strict=True))
