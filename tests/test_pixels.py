"""Pixels and labels from Python: bytes and floats in [0, 1] are both right everywhere, and nothing else is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import rapa_cli
from rapa_cli.analysis.winners import count_wins
from rapa_cli.errors import ConfigError
from tests.training import tiny

NETWORK = tiny.network(scheme="random", tiles=(16, 4), seed=3)
TEST = tiny.data_set(test=12).test

TAKES_IMAGES: dict[str, Callable[[Any], Any]] = {
    "evaluate": lambda images: rapa_cli.evaluate(NETWORK, images, TEST.labels),
    "vote": lambda images: rapa_cli.vote(NETWORK, images, n=3).tolist(),
    "vote_error": lambda images: str(rapa_cli.vote_error(NETWORK, images, TEST.labels, n=3)),
    "attack": lambda images: rapa_cli.attack(NETWORK, images, TEST.labels, [0.05]),
    "winner": lambda images: {name: wins.tolist() for name, wins in count_wins(NETWORK, images).items()},
    "reduce": lambda images: [
        weight.tolist() for weight in rapa_cli.reduce(NETWORK, "winner", images=images).state_dict().values()
    ],
}
TAKES_LABELS: dict[str, Callable[[Any], Any]] = {
    "evaluate": lambda labels: rapa_cli.evaluate(NETWORK, TEST.images, labels),
    "vote_error": lambda labels: str(rapa_cli.vote_error(NETWORK, TEST.images, labels, n=2)),
    "attack": lambda labels: rapa_cli.attack(NETWORK, TEST.images, labels, [0.05]),
}


@pytest.mark.parametrize("function", TAKES_IMAGES.values(), ids=TAKES_IMAGES)
def test_bytes_and_floats_are_the_same_images(function: Callable[[Any], Any]) -> None:
    floats = TEST.images / 255
    kept = floats.clone()
    assert function(floats) == function(TEST.images)
    assert torch.equal(floats, kept), "what was handed over stays as it is"
    assert function(floats.contiguous(memory_format=torch.channels_last)) == function(TEST.images)


@pytest.mark.parametrize("function", TAKES_IMAGES.values(), ids=TAKES_IMAGES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.float(), r"^images: got floats from 0 to 2[0-9]+$"),
        (lambda x: x / 255 - 0.5, r"^images: got floats from -0\.5 to 0\.[0-9]+$"),
        (lambda x: x / 255 * torch.nan, r"^images: got floats from nan to nan$"),
        (lambda x: x.long(), r"^images: got torch\.int64 of shape \(12, 3, "),
        (lambda x: x[0], r"^images: got torch\.uint8 of shape \(3, "),
        (lambda x: x.numpy(), r"^images: got ndarray, not a tensor$"),
    ],
)
def test_other_images_are_refused(
    function: Callable[[Any], Any], change: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        function(change(TEST.images))
    assert caught.value.hint == "images are a tensor of shape (N, C, H, W), uint8 or floats from 0 to 1"


@pytest.mark.parametrize("function", TAKES_LABELS.values(), ids=TAKES_LABELS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:5], r"^labels: got torch\.int64 of shape \(5,\)$"),
        (lambda y: y[:, None], r"^labels: got torch\.int64 of shape \(12, 1\)$"),
        (lambda y: y.float(), r"^labels: got torch\.float32 of shape \(12,\)$"),
        (lambda y: y > 0, r"^labels: got torch\.bool of shape \(12,\)$"),
        (lambda y: y - 100, r"^labels: got -100$"),
        (lambda y: y + 100, r"^labels: got 10[0-9]$"),
        (lambda y: y.tolist(), r"^labels: got list, not a tensor$"),
    ],
)
def test_other_labels_are_refused(
    function: Callable[[Any], Any], change: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        function(change(TEST.labels))


@pytest.mark.parametrize("function", TAKES_LABELS.values(), ids=TAKES_LABELS)
def test_labels_of_any_whole_numbers(function: Callable[[Any], Any]) -> None:
    assert function(TEST.labels.to(torch.uint8)) == function(TEST.labels)


def test_votes_in_double_precision() -> None:
    x = TEST.images.double() / 255
    found = rapa_cli.vote(tiny.network(scheme="random", tiles=(16, 4), seed=3).double(), x, n=3)
    assert found.tolist() == rapa_cli.vote(NETWORK, TEST.images, n=3).tolist()
