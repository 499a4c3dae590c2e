"""Every file in models/ is read and works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rapa_cli import config
from rapa_cli.keyed import draws
from rapa_cli.layers.network import build, resolve
from rapa_cli.resources import models_root, names

SHAPE, CLASSES = (3, 32, 32), 10
LARGER = {"alexnet": (3, 224, 224)}
SCHEMES: tuple[str, ...] = config.SchemeName.__args__  # type: ignore[attr-defined]


def _files(kind: str) -> list[Path]:
    return sorted((models_root() / kind).iterdir())


def test_the_folders_hold_definitions_only() -> None:
    for kind in ("networks", "recipes"):
        assert _files(kind)
        assert [path.name for path in _files(kind)] == [f"{name}.toml" for name in names(kind)]
    assert {"full", "enlarged", "alexnet"} <= set(names("networks"))
    assert {"paper-none", "paper-tiled", "short"} <= set(names("recipes"))


@pytest.mark.parametrize("path", _files("networks"), ids=lambda path: path.stem)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_networks_build_and_compute(path: Path, scheme: str) -> None:
    definition = config.load_network(path.stem)
    assert definition == config.load_network(str(path))
    assert definition.name == path.stem
    assert definition.description
    shape = LARGER.get(path.stem, SHAPE)
    network = build(resolve(definition, shape, scheme=scheme), shape, CLASSES)
    with torch.no_grad(), draws(network, images=torch.arange(2)):
        logits = network(torch.rand(2, *shape))
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


@pytest.mark.parametrize("path", _files("recipes"), ids=lambda path: path.stem)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_recipes_load_for_every_scheme(path: Path, scheme: str) -> None:
    recipe = config.load_recipe(path.stem, scheme)
    assert recipe == config.load_recipe(str(path), scheme)
    assert recipe.description
    assert recipe.epochs > 0


@pytest.mark.parametrize(("name", "rate", "factor"), [("paper-none", 0.005, 0.5), ("paper-tiled", 0.05, 0.75)])
def test_the_papers_recipes(name: str, rate: float, factor: float) -> None:
    recipe = config.load_recipe(name, "random")
    assert (recipe.lr, recipe.step_factor, recipe.step_epochs) == (rate, factor, 25)
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay, recipe.lr_scaling) == (10, 0.0, 1e-4, "none")
    assert (recipe.warmup_factor, recipe.mirror) == (1 / 50, True)
    assert recipe.warmup_epochs in (1, 5)
    assert recipe.epochs >= 400
    assert recipe.brightness > 0
