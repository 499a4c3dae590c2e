"""The networks of the zoo are those of their cards, and as good as these say.

Figures are measured again where the data set is in its folder (`rapa data get cifar10`).
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest

import rapa_cli
from rapa_cli import checkpoint, resources, zoo
from rapa_cli.config import load_network
from rapa_cli.data.images import DataSet
from tests.cards import measured

NAMES = resources.zoo_names()
SUBSET = 500


@pytest.fixture
def cifar10(cifar10_dir: Path) -> DataSet:
    return rapa_cli.open_data("cifar10", cifar10_dir)


def test_the_three_networks_are_there() -> None:
    assert NAMES == ["full-large-cifar10", "full-none-cifar10", "full-random-cifar10"]
    assert [zoo.card(name).tiles for name in NAMES] == [(128, 32, 8), (1, 1, 1), (16, 4, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_that_of_its_checkpoint(name: str) -> None:
    card, path = zoo.card(name), resources.in_zoo(name)
    assert path is not None
    kept = checkpoint.read(path)
    said, progress = kept.description, kept.description.progress
    assert progress is not None
    assert (said.network.name, said.network.scheme, said.network.tiles) == (card.network, card.scheme, card.tiles)
    assert said.network.layers == load_network(card.network).layers
    assert (said.data, progress.epoch, round(progress.seconds)) == (card.data, card.epochs, card.seconds)
    assert kept.optimizer == {}
    assert rapa_cli.load(name).definition == said.network
    assert f"--epochs {card.epochs} " in card.command
    with resources.definition("recipes", "short").open("rb") as file:
        assert card.epochs >= tomllib.load(file)["epochs"]


@pytest.mark.cifar10
@pytest.mark.parametrize("name", NAMES)
def test_the_figures_of_some_images_are_near(name: str, cifar10: DataSet) -> None:
    card, path = zoo.card(name), resources.in_zoo(name)
    assert path is not None
    for key, value in measured(path, cifar10, SUBSET).items():
        said = getattr(card, key)
        # Of a part of the images; those of the attack are fewer still.
        images = SUBSET * (1 - card.test_error / 100) if key == "accuracy_33db" else SUBSET
        assert abs(value - said) < 4 * math.sqrt(said * (100 - said) / images), key


@pytest.mark.cifar10
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_figures_of_all_images_are_the_card_s(name: str, cifar10: DataSet) -> None:
    card, path = zoo.card(name), resources.in_zoo(name)
    assert path is not None
    found = measured(path, cifar10)
    # Another processor rounds otherwise, which a few of 10,000 images notice.
    assert found == pytest.approx({key: getattr(card, key) for key in found}, abs=0.1)
