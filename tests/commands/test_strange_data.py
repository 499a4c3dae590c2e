"""Data sets that hardly anybody has: each trains and is evaluated, or is refused in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.conftest import Run, refused

_TRAIN = ["train", "--data", "odd", "--batch-size", "4", "--epochs", "1", "--data-dir", "odd-data", "--json"]
_ONE_LAYER = '[[layers]]\nkind = "conv"\nchannels = 4\nkernel = 3\npadding = 1\n[[layers]]\nkind = "linear"\n'


def get(rapa: Run, images: tuple[int, ...], labels: list[int]) -> Any:
    """Puts a data set with these images and labels, the same for testing, into a store."""
    Path("odd").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), *images), dtype=np.uint8)
    for name in ("train", "test"):
        np.savez(f"odd/{name}.npz", images=pixels, labels=np.array(labels, dtype=np.int64))
    return rapa("data", "get", "odd", "--from", "odd", "--data-dir", "odd-data")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ((8, 8, 3), [0] * 9),
        ((8, 8, 3), [0]),
        ((8, 8, 3), [1]),
        ((8, 8), [0, 1, 2] * 3),
        ((1, 1, 3), [0, 1] * 3),
        ((1, 7, 1), [0, 1] * 3),
        ((8, 8, 3), list(range(300))),
        ((8, 8, 3), [0, 299]),
    ],
    ids=["one class", "one image", "one image of two classes", "grey", "one pixel", "a line", "300", "298 are empty"],
)
@pytest.mark.parametrize("scheme", ["none", "random", "perforated"])
def test_it_trains_votes_and_is_reduced(rapa: Run, images: tuple[int, ...], labels: list[int], scheme: str) -> None:
    assert get(rapa, images, labels).code == 0
    Path("one.toml").write_text(_ONE_LAYER, encoding="utf-8")
    patches = math.prod(images[:2])
    tiles = [] if scheme == "none" else ["--tiles", str(min(4, patches))]
    trained = rapa(*_TRAIN, "--network", "one.toml", "--scheme", scheme, *tiles, "--out", "run").document
    assert 0 <= trained["test_error"] <= 100
    assert trained["epochs"] == 1
    where = ["--data-dir", "odd-data", "--json"]
    assert rapa("evaluate", "run", *where).document["images"] == len(labels)
    if scheme == "random":
        assert 0 <= rapa("vote", "run", "-n", "3", *where).document["vote_error"] <= 100
        assert 0 <= rapa("reduce", "run", *where).document["test_error_after"] <= 100


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1], "labels go from -1 to 0, allowed are 0 to 65535"),
        ([0, 2**40], "labels go from 0 to 1099511627776, allowed are 0 to 65535"),
        ([0, 70_000], "labels go from 0 to 70000, allowed are 0 to 65535"),
        ([], "images have the shape (0, 8, 8, 3)"),
    ],
)
def test_labels_out_of_range_are_refused(rapa: Run, labels: list[int], message: str) -> None:
    outcome = get(rapa, (8, 8, 3), labels)
    refused(outcome, 3, f"odd/train.npz: {message}", "")
    assert not list(Path("odd-data").glob("odd*"))


def test_images_too_small_for_a_network_say_so(rapa: Run) -> None:
    assert get(rapa, (1, 1, 3), [0, 1, 0]).code == 0
    refused(rapa(*_TRAIN, "--network", "full", "--scheme", "random", "--tiles", "16,4,1"), 2, "", "")
