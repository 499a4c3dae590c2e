"""Training on images that are streamed, and in mixed precision."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from rapa_cli import checkpoint, config, runs
from rapa_cli.data.catalog import open_data
from rapa_cli.data.images import DataSet
from rapa_cli.errors import FileError, Interrupted
from rapa_cli.runs import Manifest
from rapa_cli.training import loop
from tests.data.test_stream import write
from tests.training import tiny
from tests.training.test_resume import Stopper, run, same

CHANGES = {"epochs": 3, "batch_size": 5, "lr": 0.05, "momentum": 0.9}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write(tmp_path / "photos")


def opened(photos: Path, workers: int) -> DataSet:
    return open_data(f"folder:{photos}@8", workers=workers)


def begin(folder: Path, data: DataSet, **changes: object) -> loop.Training:
    folder.mkdir()
    recipe = config.validate(config.Recipe, {**CHANGES, **changes}, "tiny")
    manifest = Manifest(network=tiny.definition(scheme="random"), recipe=recipe, data=data.name, seed=3)
    return loop.begin(folder, manifest, data, loop.untrained(manifest, data, tiny.CPU))


def resumed(folder: Path, data: DataSet) -> loop.Training:
    return loop.resume(folder, runs.read_manifest(folder), data, tiny.CPU)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_same_bits_with_any_number_of_processes_and_after_stops(
    photos: Path, tmp_path: Path, accumulate: int
) -> None:
    run(begin(tmp_path / "whole", opened(photos, 0), accumulate=accumulate), Stopper())
    training = begin(tmp_path / "parts", opened(photos, 2), accumulate=accumulate)
    # Of an epoch there are three steps.
    stops = [Stopper(after=1), Stopper(after=5, number=signal.SIGTERM), Stopper(testing=2)]
    for stopper, workers in zip(stops, (1, 0, 2), strict=True):
        with pytest.raises(Interrupted):
            run(training, stopper)
        training = resumed(tmp_path / "parts", opened(photos, workers))
    run(training, Stopper())
    same(tmp_path / "whole", tmp_path / "parts")


def test_crops_are_random_in_training_alone(photos: Path, tmp_path: Path) -> None:
    data = opened(photos, 0)
    for name, crop in (("random", 0.08), ("middle", 1.0)):
        run(begin(tmp_path / name, data, crop=crop, epochs=1, brightness=0.0, mirror=False), Stopper())
    rows = [runs.read_metrics(tmp_path / name)[0] for name in ("random", "middle")]
    assert rows[0]["train_loss"] != rows[1]["train_loss"]
    # Of the middle there are the same images as those of a data set in memory.
    still = DataSet(**{**vars(data), "train": type(data.train)(data.train.images[torch.arange(12)], data.train.labels)})
    run(begin(tmp_path / "memory", still, epochs=1, brightness=0.0, mirror=False), Stopper())
    assert runs.read_metrics(tmp_path / "memory")[0]["train_loss"] == rows[1]["train_loss"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_costs_nothing_that_was_done(photos: Path, tmp_path: Path, workers: int) -> None:
    run(begin(tmp_path / "whole", opened(photos, 0)), Stopper())
    training = begin(tmp_path / "parts", opened(photos, workers))
    damaged = photos / "train" / "cow" / "1.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no image")
    with pytest.raises(FileError, match=r"cannot read .*1\.png: it is no image") as caught:
        run(training, Stopper())
    assert caught.value.hint == f"put a whole image there, and go on: --resume {tmp_path / 'parts'}"
    saved = checkpoint.read(tmp_path / "parts" / runs.LAST).description.progress
    assert saved is not None
    assert (saved.epoch, saved.step, saved.seen) == (0, training.progress.step, 5 * training.progress.step)
    damaged.write_bytes(whole)
    run(resumed(tmp_path / "parts", opened(photos, 0)), Stopper())
    same(tmp_path / "whole", tmp_path / "parts")


def test_mixed_precision_is_of_training_and_of_digital_layers(tmp_path: Path) -> None:
    types: dict[str, set[torch.dtype]] = {}

    def watch(training: loop.Training) -> None:
        for name, layer in training.network.named_modules():
            if not list(layer.children()):

                def look(of: nn.Module, _: object, output: torch.Tensor, name: str = name) -> None:
                    types.setdefault(f"{name} {of.training}", set()).add(output.dtype)

                layer.register_forward_hook(look)

    training = tiny.begin(tmp_path / "amp", amp=True, epochs=1, network={"scheme": "random", "tiles": (4, 1)})
    watch(training)
    run(training, Stopper())
    assert types["conv1 True"] == {torch.float32}
    assert types["conv2 True"] == types["linear1 True"] == {torch.bfloat16}
    assert {kind for name, found in types.items() if name.endswith("False") for kind in found} == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in training.network.parameters())
    plain = tiny.begin(tmp_path / "plain", epochs=1, network={"scheme": "random", "tiles": (4, 1)})
    run(plain, Stopper())
    losses = [runs.read_metrics(tmp_path / name)[0]["train_loss"] for name in ("amp", "plain")]
    # bfloat16 has 8 bits.
    assert 0 < abs(losses[0] - losses[1]) < 0.03 * losses[1]


@pytest.mark.parametrize("arrays", ["Idealized", "StandardHWATraining"])
@pytest.mark.parametrize("pool", ["mixed", "stochastic"])
def test_mixed_precision_works_with_arrays_and_pooling(tmp_path: Path, arrays: str, pool: str) -> None:
    network = {"scheme": "random", "arrays": arrays, "pool": pool}
    training = tiny.begin(tmp_path, amp=True, epochs=1, network=network)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    run(training, Stopper())
    assert any(not torch.equal(value, before[name]) for name, value in training.network.state_dict().items())


def test_mixed_precision_resumed_to_the_last_bit(tmp_path: Path) -> None:
    run(tiny.begin(tmp_path / "whole", amp=True), Stopper())
    with pytest.raises(Interrupted):
        run(tiny.begin(tmp_path / "parts", amp=True), Stopper(after=3))
    manifest = runs.read_manifest(tmp_path / "parts")
    assert manifest.recipe.amp
    run(loop.resume(tmp_path / "parts", manifest, tiny.data_set(), tiny.CPU), Stopper())
    same(tmp_path / "whole", tmp_path / "parts")
