"""The training loop: a step by hand, learning, and what a run leaves in its folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rapa_cli import checkpoint, runs
from rapa_cli.analysis.evaluation import evaluate
from rapa_cli.analysis.similarity import similarity
from rapa_cli.analysis.voting import vote_error
from rapa_cli.checkpoint import Progress
from rapa_cli.data.augmentation import augment
from rapa_cli.errors import CheckFailed, ConfigError
from rapa_cli.keyed import draws
from rapa_cli.philox import permutation
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.training import loop
from rapa_cli.training.loop import Sums
from rapa_cli.training.stopping import StopRequest
from tests.training import tiny


class Watcher:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self.tests: list[int] = []
        self.rows: list[Mapping[str, Any]] = []

    def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
        self.steps.append((epoch, step, steps))

    def testing(self, epoch: int) -> None:
        self.tests.append(epoch)

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        assert images_per_second > 0
        assert progress.epoch == row["epoch"]
        self.rows.append(row)


def run(training: loop.Training) -> Watcher:
    watcher = Watcher()
    training.run(watcher, StopRequest())
    return watcher


def by_hand(training: loop.Training, steps: int) -> dict[str, Tensor]:
    """The weights after some steps of v = m v + gradient + decay w, w = w - rate v."""
    recipe, seed, data = training.manifest.recipe, training.manifest.seed, training.data
    network = tiny.network(seed=seed, **training.manifest.network.model_dump(include={"scheme", "tiles", "pool"}))
    network.load_state_dict(training.network.state_dict())
    network.train()
    order = permutation(seed, 0, len(data.train))
    speed = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    for step in range(steps):
        ids = order[step * recipe.batch_size :][: recipe.batch_size]
        x = tiny.pixels(data.train)[ids]
        x = augment(x, ids, seed=seed, epoch=0, mirror=recipe.mirror, brightness=recipe.brightness)
        with draws(network, images=ids, seed=seed, draw=0, stream="train"):
            logits = network(x)
        loss = -F.log_softmax(logits, 1)[torch.arange(len(ids)), data.train.labels[ids]].mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
                tiles = 4 if name.startswith("conv1") and network.definition.scheme == "random" else 1
                scale = {"none": 1, "sqrt": tiles**0.5, "linear": tiles}[recipe.lr_scaling]
                decays = recipe.decay_mixture if name.endswith("beta") else recipe.decay_bias or "bias" not in name
                decay = recipe.weight_decay if decays else 0.0
                speed[name] = recipe.momentum * speed[name] + gradient + decay * parameter
                parameter.sub_(recipe.lr * scale * speed[name])
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.0},
        {"weight_decay": 0.2},
        {"weight_decay": 0.2, "lr_scaling": "linear", "decay_bias": False},
        {"weight_decay": 0.2, "lr_scaling": "sqrt"},
        {"accumulate": 5, "momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.2, "mirror": True, "brightness": 0.3, "decay_mixture": True},
    ],
)
@pytest.mark.parametrize("network", [{"scheme": "random", "pool": "mixed"}, {"pool": "stochastic"}])
def test_steps_by_hand(tmp_path: Path, network: dict[str, Any], changes: dict[str, Any]) -> None:
    changes = {"mirror": False, "epochs": 1, "batch_size": 12, **changes}
    training = tiny.begin(tmp_path, network=network, **changes)
    expected = by_hand(training, steps=3)
    before = {name: parameter.detach().clone() for name, parameter in training.network.named_parameters()}
    run(training)
    for name, parameter in training.network.named_parameters():
        assert torch.allclose(parameter, expected[name], rtol=1e-4, atol=1e-6), name
        assert not torch.equal(parameter, before[name]), name


def test_parts_of_a_batch_are_refused_where_arrays_need_all_of_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--accumulate 2: layer 'conv1': its arrays learn by pulses"):
        tiny.begin(tmp_path, network={"arrays": "ReRamES"}, accumulate=2)
    with pytest.raises(ConfigError, match=r"^--accumulate 8: that is less than one image for each part"):
        tiny.begin(tmp_path, accumulate=8)


def test_the_metrics_of_an_epoch_by_hand(tmp_path: Path) -> None:
    # At a rate of almost 0 the network stays as it is, so that its errors can be counted afterwards.
    training = tiny.begin(tmp_path, epochs=1, lr=1e-30, weight_decay=0.0, mirror=False, network={"scheme": "random"})
    data, network = training.data, training.network
    (row,) = run(training).rows
    for part, stream, key in ((data.train, "train", "train"), (data.test, "test", "test")):
        ids = torch.arange(len(part))
        with torch.no_grad(), draws(network, images=ids, seed=3, draw=0, stream=stream):
            logits = network(tiny.pixels(part))
        wrong = int((logits.argmax(1) != part.labels).sum())
        assert row[f"{key}_error"] == 100 * wrong / len(part)
        assert row[f"{key}_loss"] == pytest.approx(float(F.cross_entropy(logits, part.labels)), rel=1e-5)


@pytest.mark.parametrize(
    "network", [{}, {"scheme": "random", "tiles": (4, 1)}, {"scheme": "perforated", "tiles": (2, 1)}]
)
def test_it_learns_a_few_images_by_heart(tmp_path: Path, network: dict[str, Any]) -> None:
    training = tiny.begin(tmp_path, epochs=20, lr=0.02, momentum=0.9, network=network)
    rows = run(training).rows
    assert rows[0]["train_error"] > 20
    assert rows[-1]["train_error"] == 0
    assert rows[-1]["train_loss"] < 0.1
    assert rows[-1]["test_error"] < 20


def test_the_watcher_is_told(tmp_path: Path) -> None:
    watcher = run(tiny.begin(tmp_path, epochs=2, batch_size=7))
    assert watcher.steps == [(epoch, step, 5) for epoch in (0, 1) for step in (1, 2, 3, 4, 5)]
    assert watcher.tests == [0, 1]
    assert [row["epoch"] for row in watcher.rows] == [1, 2]


def test_what_a_run_leaves(tmp_path: Path) -> None:
    training = tiny.begin(
        tmp_path, epochs=3, momentum=0.5, step_epochs=1, step_factor=0.5, network={"scheme": "random"}
    )
    rows = run(training).rows
    names = {"run.json", "metrics.csv", "metrics.jsonl", "timing.csv", "last.safetensors", "best.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names
    text = (tmp_path / "metrics.csv").read_text(encoding="utf-8")
    assert [{key: float(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())] == rows
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert tuple(rows[0])[: len(runs.METRICS)] == runs.METRICS
    assert [row["rate"] for row in rows] == [0.05, 0.025, 0.0125]
    assert str(tmp_path) not in "".join(
        (tmp_path / name).read_text(encoding="utf-8") for name in names if "safe" not in name
    )

    last, best = (checkpoint.read(tmp_path / name) for name in (runs.LAST, runs.BEST))
    assert last.description.progress == training.progress
    assert (training.progress.epoch, training.progress.step, training.progress.images) == (3, 0, 90)
    assert training.progress.test_error == rows[-1]["test_error"]
    assert set(last.optimizer) == {name for name, _ in training.network.named_parameters()}
    assert last.description.network.tiles == (4, 1), "the tiles are written out"
    assert last.description.classes == tiny.CLASSES
    assert runs.read_manifest(tmp_path) == training.manifest

    lowest = min(row["test_error"] for row in rows)
    first = next(row["epoch"] for row in rows if row["test_error"] == lowest)
    assert best.description.progress is not None
    assert (best.description.progress.best_test_error, best.description.progress.best_epoch) == (lowest, first)
    assert best.description.progress.epoch == first
    assert best.optimizer == {}


def test_the_best_checkpoint_has_the_error_that_it_says(tmp_path: Path) -> None:
    training = tiny.begin(tmp_path, epochs=4, lr=0.2, momentum=0.9, network={"scheme": "random"})
    run(training)
    network, test = checkpoint.load(tmp_path / runs.BEST), training.data.test
    epoch = training.progress.best_epoch
    assert epoch is not None
    found = evaluate(network, test.images, test.labels, seed=3, draw=epoch - 1)
    assert found.error == training.progress.best_test_error


def test_the_same_seed_trains_the_same(tmp_path: Path) -> None:
    texts = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tiny.begin(tmp_path / name, seed=seed, network={"scheme": "random"}))
        texts[name] = (tmp_path / name / "metrics.csv").read_bytes()
    assert texts["a"] == texts["b"] != texts["c"]


def test_torchs_own_generator_is_not_asked(tmp_path: Path) -> None:
    training = tiny.begin(tmp_path, network={"scheme": "random", "pool": "stochastic"})
    state = torch.get_rng_state()
    run(training)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_epochs(tmp_path: Path) -> None:
    assert run(tiny.begin(tmp_path, epochs=0)).steps == []
    assert {path.name for path in tmp_path.iterdir()} == {"run.json"}


def test_a_batch_larger_than_the_data(tmp_path: Path) -> None:
    assert run(tiny.begin(tmp_path, epochs=1, batch_size=1000)).steps == [(0, 1, 1)]


def test_a_training_that_diverges(tmp_path: Path) -> None:
    training = tiny.begin(tmp_path, epochs=3, lr=1e-6, step_epochs=1)
    training.manifest = training.manifest.model_copy(update={"recipe": tiny.recipe(epochs=1, lr=1e-6)})
    run(training)
    good = (tmp_path / runs.LAST).read_bytes()
    wild = training.manifest.model_copy(update={"recipe": tiny.recipe(epochs=3, lr=1e30)})
    again = loop.resume(tmp_path, wild, training.data, tiny.CPU)
    with pytest.raises(CheckFailed) as caught:
        run(again)
    assert caught.value.exit_code == 4
    assert caught.value.message.startswith(
        "the training diverged in epoch 2, by step 2: the output of layer 'linear1' is not finite at rate 1e+30"
    )
    assert "--lr 0.01" in str(caught.value.hint)
    assert (tmp_path / runs.LAST).read_bytes() == good
    assert [row["epoch"] for row in runs.read_metrics(tmp_path)] == [1]
    assert again.progress.epoch == 1


def test_images_too_small_for_the_network(tmp_path: Path) -> None:
    layers = [{"kind": "conv", "channels": 4, "kernel": 9}, {"kind": "linear"}]
    with pytest.raises(ConfigError, match="8 x 8"):
        tiny.begin(tmp_path, network={"layers": layers})
    assert not (tmp_path / runs.MANIFEST).exists()


def test_votes_and_similarities_are_metrics_where_there_are_any(tmp_path: Path) -> None:
    plain = tiny.begin(tmp_path / "plain", epochs=1)
    tiled = tiny.begin(tmp_path / "tiled", epochs=2, test_votes=3, network={"scheme": "random"})
    run(plain)
    run(tiled)
    assert tuple(plain.rows[0]) == runs.METRICS
    assert tuple(tiled.rows[0]) == (*runs.METRICS, "vote_error", "similarity_conv1")
    test, network = tiled.data.test, tiled.network
    assert tiled.rows[-1]["vote_error"] == vote_error(network, test.images, test.labels, 3, seed=3).vote_error
    layer = dict(network.named_children())["conv1"]
    assert isinstance(layer, TiledConv2d)
    assert tiled.rows[-1]["similarity_conv1"] == similarity(layer.weight)
    assert runs.read_metrics(tmp_path / "tiled") == tiled.rows
