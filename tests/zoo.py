"""A zoo for tests: a checkpoint with a card in a models folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rapa_cli import resources

CARD = """\
description = "A tiny network on the images mini"
network = "tiny"
scheme = "random"
tiles = [4]
data = "mini"
data_licence = "none needed: the images are drawn"
recipe = "short, 3 epochs"
seed = 0
epochs = 3
test_error = 50.0
test_error_ci95 = [31.3, 68.7]
vote5_error = 46.67
reduced_error = 53.33
accuracy_33db = 80.0
seconds = 83.4
machine = "2 CPU cores"
rapa_version = "0.1.0"
torch_version = "2.6.0"
date = 2026-07-01
command = "rapa train --network tiny.toml --data mini --scheme random --tiles 4 --epochs 3"
"""


def fill(root: Path, name: str, checkpoint: Path | None = None, card: str | None = CARD) -> Path:
    """Puts a network into the zoo below `root`; without a checkpoint an empty file stands for it."""
    folder = root / "zoo" / name
    folder.mkdir(parents=True)
    place = folder / f"{name}.safetensors"
    place.write_bytes(b"" if checkpoint is None else checkpoint.read_bytes())
    if card is not None:
        (folder / "card.toml").write_text(card, encoding="utf-8")
    return place


def models(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `root` the folder of models, with the package's definitions and an empty zoo."""
    for kind in ("networks", "recipes"):
        shutil.copytree(resources.models_root() / kind, root / kind)
    monkeypatch.setattr(resources, "models_root", lambda: root)
    return root
