"""A data set, a network and a recipe so small that a training takes a fraction of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapa_cli import config
from rapa_cli.data import store
from rapa_cli.data.images import DataSet, Split
from rapa_cli.layers.network import Network, Statistics, build
from rapa_cli.runs import Manifest
from rapa_cli.training import loop

CLASSES = ("top", "bottom", "middle")
SHAPE = (3, 8, 8)
CPU = torch.device("cpu")

LAYERS: list[dict[str, Any]] = [
    {"kind": "conv", "channels": 4, "kernel": 3, "padding": 1},
    {"kind": "relu"},
    {"kind": "pool"},
    {"kind": "lrn"},
    {"kind": "conv", "channels": 6, "kernel": 3, "padding": 1},
    {"kind": "relu"},
    {"kind": "pool", "method": "average"},
    {"kind": "linear"},
]
TOML = """
[[layers]]
kind = "conv"
channels = 4
kernel = 3
padding = 1
[[layers]]
kind = "relu"
[[layers]]
kind = "pool"
[[layers]]
kind = "linear"
"""


def split(count: int, seed: int) -> Split:
    """Noise with a bright part that tells the class, also in a mirror."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 160, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % len(CLASSES)
    images[labels == 0, :, :3] += 90
    images[labels == 1, :, 5:] += 90
    images[labels == 2, :, :, 3:5] += 90
    return Split(images, labels)


def data_set(train: int = 30, test: int = 12) -> DataSet:
    first = split(train, seed=1)
    return DataSet("tiny", CLASSES, first, split(test, seed=2), *store.constants(first.images))


def definition(**changes: Any) -> config.Network:
    return config.validate(config.Network, {"name": "tiny", "layers": LAYERS, **changes}, "tiny")


def network(*, seed: int = 0, **changes: Any) -> Network:
    """The network in evaluation mode, with the constants of the data set."""
    data = data_set()
    statistics = Statistics(data.mean, data.std, data.mean_image)
    return build(definition(**changes), SHAPE, len(CLASSES), seed=seed, statistics=statistics).eval()


def recipe(**changes: Any) -> config.Recipe:
    return config.validate(config.Recipe, {"epochs": 2, "batch_size": 7, "lr": 0.05, **changes}, "tiny")


def begin(
    folder: Path,
    *,
    data: DataSet | None = None,
    seed: int = 3,
    network: dict[str, Any] | None = None,
    **changes: Any,
) -> loop.Training:
    """A training in a run folder; `changes` are the recipe's."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(network=definition(**(network or {})), recipe=recipe(**changes), data="tiny", seed=seed)
    data = data or data_set()
    return loop.begin(folder, manifest, data, loop.untrained(manifest, data, CPU))


def write_arrays(folder: Path, *, train: int = 30, test: int = 12, grey: bool = False, classes: int = 3) -> Path:
    """The data set as train.npz and test.npz, for `rapa data get NAME --from FOLDER`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = data_set(train, test)
    for name, part in (("train", data.train), ("test", data.test)):
        images, labels = part.images.permute(0, 2, 3, 1).numpy(), part.labels.clone()
        labels[-1] = classes - 1
        np.savez(folder / f"{name}.npz", images=images[..., 0] if grey else images, labels=labels.numpy())
    return folder


def pixels(part: Split) -> Tensor:
    return part.images.to(torch.float32) / 255
