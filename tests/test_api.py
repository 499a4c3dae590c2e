"""The public names: that they do what the commands do."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import rapa_cli
from rapa_cli import app, runs
from rapa_cli.errors import ConfigError
from tests.commands.conftest import Run, here, rapa, workshop  # noqa: F401 - fixtures
from tests.exporting.networks import SHAPE, branches
from tests.training import tiny

SMALL = {"batch_size": 10, "lr": 0.02, "scheme": "random", "tiles": 4, "epochs": 2}


def test_names_load_on_first_use() -> None:
    script = (
        "import sys, rapa_cli; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules);"
        "assert sorted(rapa_cli.__all__) == sorted(set(rapa_cli.__all__)) == sorted(dir(rapa_cli));"
        "assert all(callable(getattr(rapa_cli, name)) for name in rapa_cli.__all__ if name != '__version__')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_train_is_the_command(rapa: Run) -> None:  # noqa: F811
    rows: list[object] = []
    trained = rapa_cli.train("tiny.toml", "mini", out="runs/api", on_epoch=rows.append, **SMALL)  # type: ignore[arg-type]
    words = ["train", "--network", "tiny.toml", "--data", "mini", "--batch-size", "10", "--lr", "0.02"]
    words += ["--scheme", "random", "--tiles", "4", "--epochs", "2", "--out", "runs/command", "--json"]
    found = rapa(*words).document
    assert trained.folder == Path("runs/api")
    assert (trained.epochs, trained.test_error) == (2, found["test_error"])
    assert (trained.train_error, trained.best_test_error) == (found["train_error"], found["best_test_error"])
    assert rows == trained.metrics == runs.read_metrics(trained.folder)
    other = rapa_cli.load("runs/command").state_dict()
    assert all(torch.equal(other[name], tensor) for name, tensor in trained.model.state_dict().items())
    assert not trained.model.training
    # The command that a report shows does the same.
    provenance = runs.read_manifest(trained.folder).provenance
    program, *again = shlex.split(provenance["command"])
    assert program == "rapa"
    assert app.run([*again, "--out", "runs/again"]) == 0
    assert runs.read_metrics(Path("runs/again")) == rows


def test_a_run_goes_on(rapa: Run) -> None:  # noqa: F811
    data = rapa_cli.open_data("mini")
    changed = {"momentum": 0.5, "mirror": False, "network.pool": "average", "network.tiles": [4]}
    whole = rapa_cli.train("tiny.toml", data, out="runs/whole", settings=changed, **SMALL)  # type: ignore[arg-type]
    definition, recipe = whole.model.definition, runs.read_manifest(whole.folder).recipe
    assert (definition.pool, definition.tiles, recipe.momentum, recipe.mirror) == ("average", (4,), 0.5, False)
    part = {**SMALL, "epochs": 1}
    rapa_cli.train("tiny.toml", data, out="runs/parts", settings=changed, **part)  # type: ignore[arg-type]
    gone_on = rapa_cli.resume("runs/parts", epochs=2)
    assert gone_on.metrics == whole.metrics
    assert "resumed" in runs.read_manifest(Path("runs/parts")).provenance
    with pytest.raises(ConfigError, match="there is a run in this folder already"):
        rapa_cli.train("tiny.toml", data, out="runs/parts", epochs=0)
    with pytest.raises(ConfigError, match="device: got 'abacus'"):
        rapa_cli.train("tiny.toml", data, device="abacus")


def test_train_in_another_thread(rapa: Run) -> None:  # noqa: F811
    """As some notebooks run their cells; Python hands signals to the main thread alone."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(rapa_cli.train("tiny.toml", "mini", epochs=1)))
    thread.start()
    thread.join()
    assert len(found) == 1


def test_plan_is_the_command(rapa: Run) -> None:  # noqa: F811
    for arguments, words in (
        ({}, []),
        ({"tiles": [4, 4, 1]}, ["--tiles", "4,4,1"]),
        ({"acceleration": 4}, ["--acceleration", "4"]),
        ({"arrays": 9, "scheme": "alternate"}, ["--arrays-budget", "9", "--scheme", "alternate"]),
    ):
        plan = rapa_cli.plan("full", **arguments)
        found = rapa("plan", "full", *words, "--json").document
        assert [layer.tiles for layer in plan.layers] == found["tiles"]
        assert (plan.acceleration, plan.arrays) == (found["acceleration"], found["arrays"])
    with pytest.raises(ConfigError, match="tiles, acceleration and arrays cannot go together"):
        rapa_cli.plan("full", tiles=4, arrays=9)
    with pytest.raises(ConfigError, match="scheme: there is no 'rnd'"):
        rapa_cli.plan("full", scheme="rnd")


def test_plan_of_a_network_at_hand() -> None:
    model = branches()
    plan = rapa_cli.plan(model, shape=SHAPE)
    assert [(layer.name, layer.n_p, layer.tiles) for layer in plan.layers] == [
        ("stem.0", 72, 5),
        ("even.a", 72, 3),
        ("down", 15, 2),
    ]
    untiled = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 2))
    assert [layer.tiles for layer in rapa_cli.plan(untiled, shape=SHAPE).layers] == [2, 1]
    assert [layer.tiles for layer in rapa_cli.plan(tiny.network(scheme="random", tiles=(3, 2))).layers] == [3, 2]
    with pytest.raises(ValueError, match="shape: it cannot be told from the network"):
        rapa_cli.plan(untiled)


def test_similarity_is_that_of_inspect(rapa: Run) -> None:  # noqa: F811
    rows = rapa("inspect", "runs/done", "--json").document["layers"]
    found = rapa_cli.similarity(rapa_cli.load("runs/done"))
    assert found == {row["name"]: row["similarity"] for row in rows if row["tiles"] > 1}
    assert json.dumps(found)


def test_attack_takes_numbers_for_eps() -> None:
    model, images, labels = tiny.network(), tiny.split(6, 0).images, tiny.split(6, 0).labels
    numbers = rapa_cli.attack(model, images, labels, [0.01, rapa_cli.Level(snr_db=20)])
    assert [point.level for point in numbers] == [rapa_cli.Level(eps=0.01), rapa_cli.Level(snr_db=20)]
    assert numbers == rapa_cli.attack(model, images, labels, [rapa_cli.Level(eps=0.01), rapa_cli.Level(snr_db=20)])
