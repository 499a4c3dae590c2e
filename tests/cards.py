"""The figures of a card of the zoo, measured; `python -m tests.cards RUN NAME DESCRIPTION` puts a run into the zoo."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import rapa_cli
from rapa_cli import checkpoint, resources
from rapa_cli.analysis.evaluation import wilson
from rapa_cli.attacks.records import Level
from rapa_cli.data.images import DataSet
from rapa_cli.files import write_text
from rapa_cli.runs import LAST, read_manifest
from rapa_cli.zoo import CARD, Card

# Of the data sets that the networks of the zoo were trained on.
LICENCES = {"cifar10": "no licence is stated; its authors ask to cite Krizhevsky, 2009"}


def measured(path: Path, data: DataSet, images: int | None = None) -> dict[str, float]:
    """What a card says of a checkpoint in percent, over the first test images of its data set."""
    test = data.test
    pixels, labels = test.images[:images], test.labels[:images]
    network = rapa_cli.load(path)
    (point,) = rapa_cli.attack(network, pixels, labels, [Level(snr_db=33)])
    assert point.accuracy is not None
    found = {"test_error": rapa_cli.evaluate(network, pixels, labels).error, "accuracy_33db": point.accuracy}
    if network.definition.scheme != "none":
        found["vote5_error"] = rapa_cli.vote_error(network, pixels, labels, n=5).vote_error
        found["reduced_error"] = rapa_cli.evaluate(rapa_cli.reduce(network), pixels, labels).error
    return found


def put(run: Path, name: str, description: str) -> Path:
    """Puts the last checkpoint of a run into the zoo, without what a training needs to go on, and writes its card."""
    manifest, kept = read_manifest(run), checkpoint.read(run / LAST)
    recipe = manifest.recipe
    folder = resources.models_root() / resources.ZOO / name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / f"{name}.safetensors", kept.description, kept.state, {})
    data = rapa_cli.open_data(manifest.data)
    figures = {key: round(value, 2) for key, value in measured(folder / f"{name}.safetensors", data).items()}
    count = len(data.test.labels)
    low, high = wilson(round(figures["test_error"] * count / 100), count)
    by = manifest.provenance
    assert kept.description.progress is not None, "it was trained"
    card = Card(
        description=description,
        network=manifest.network.name,
        scheme=manifest.network.scheme,
        tiles=manifest.network.tiles,
        data=manifest.data,
        data_licence=LICENCES[manifest.data],
        recipe=f"{by['recipe']}, rate {recipe.lr:g}, times {recipe.step_factor:g} every {recipe.step_epochs} epochs",
        seed=manifest.seed,
        epochs=recipe.epochs,
        test_error_ci95=(round(low, 2), round(high, 2)),
        **figures,
        seconds=round(kept.description.progress.seconds),
        machine=f"{by['machine']}, {by['threads']} thread",
        rapa_version=by["rapa"],
        torch_version=by["torch"],
        date=by["started"][:10],
        command=by["command"].partition(" --out ")[0],
    )
    lines = [
        f"{key} = {json.dumps(value)}\n" for key, value in card.model_dump(mode="json").items() if value is not None
    ]
    # A date is no text in TOML.
    text = "".join(lines).replace(f'date = "{card.date}"', f"date = {card.date}")
    write_text(folder / CARD, text)
    return folder


if __name__ == "__main__":
    torch.manual_seed(0)
    print(put(Path(sys.argv[1]), *sys.argv[2:]))  # noqa: T201 - a tool's answer
