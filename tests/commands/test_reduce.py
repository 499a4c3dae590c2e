"""`rapa reduce`: its ways, side by side, and training afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rapa_cli
from rapa_cli import checkpoint, runs
from rapa_cli.analysis.evaluation import evaluate
from rapa_cli.files import held
from rapa_cli.training.schedule import rate
from tests.commands.conftest import TRAIN, Run, refused
from tests.training import tiny

DONE = "runs/done"
WAYS = ["norm", "winner", "mean", "first"]


@pytest.mark.parametrize("by", WAYS)
def test_the_command_is_the_function(rapa: Run, by: str) -> None:
    found = rapa("reduce", DONE, "--by", by, "--json").document
    assert found["output"] == f"{DONE}/last-reduced-{by}.safetensors"
    data = tiny.data_set(60, 30)
    tiled = rapa_cli.load(DONE)
    expected = rapa_cli.reduce(tiled, by, images=data.train.images)
    made = rapa_cli.load(found["output"])
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in made.state_dict().items())
    assert found["test_error_before"] == evaluate(tiled, data.test.images, data.test.labels).error
    assert found["test_error_after"] == evaluate(expected, data.test.images, data.test.labels).error
    assert found.get("train_images") == (60 if by == "winner" else None)


def test_all_ways_side_by_side(rapa: Run) -> None:
    found = rapa("reduce", DONE, "--by", "winner", "--compare", "--train-images", "50", "--json").document
    assert [row["by"] for row in found["compared"]] == WAYS
    assert found["train_images"] == 50
    for row in found["compared"]:
        alone = rapa("reduce", DONE, "--by", row["by"], "--train-images", "50", "--json").document
        assert (row["test_error"], row["ci95"]) == (alone["test_error_after"], alone["ci95_after"])
    assert found["compared"][0]["filters_as_by_norm"] == 1
    outcome = rapa("reduce", DONE, "--compare")
    assert (outcome.code, outcome.err) == (0, "")
    assert all(len(line) <= 80 for line in outcome.out.splitlines())
    table = outcome.out[outcome.out.index("way ") :].splitlines()
    assert [line.split()[0] for line in table] == ["way", "tiled", *WAYS]


def test_a_way_that_is_not_possible(rapa: Run) -> None:
    Path("two.toml").write_text(
        tiny.TOML.replace('[[layers]]\nkind = "pool"\n', '[[layers]]\nkind = "lrn"\n'), encoding="utf-8"
    )
    words = [
        *TRAIN,
        "--network",
        "two.toml",
        "--scheme",
        "random",
        "--tiles",
        "4",
        "--epochs",
        "0",
        "--out",
        "runs/two",
    ]
    assert rapa(*words).code == 0
    refused(rapa("reduce", "runs/two", "--by", "winner", "--json"), 2, "no pooling follows 'conv1'", "take 'norm'")
    outcome = rapa("reduce", "runs/two", "--compare", "--json")
    rows = {row["by"]: row["test_error"] for row in outcome.document["compared"]}
    assert rows.pop("winner") is None
    assert None not in rows.values()
    assert "no pooling follows 'conv1'" in outcome.err
    assert "winner                  -" in rapa("reduce", "runs/two", "--compare").out


def test_training_afterwards(rapa: Run) -> None:
    words = ["reduce", DONE, "--finetune", "2", "--lr", "0.01", "--run", "runs/tuned", "--seed", "5"]
    found = rapa(*words, "--json").document
    tuned = found["finetuned"]
    assert (tuned["run"], tuned["epochs"], tuned["lr"]) == ("runs/tuned", 2, 0.01)
    assert tuned["checkpoint"] == "runs/tuned/last.safetensors"
    data = tiny.data_set(60, 30)
    network = rapa_cli.load("runs/tuned")
    error = evaluate(network, data.test.images, data.test.labels, seed=5).error
    assert found["test_error_finetuned"] == error
    # The reduced network on file is the one before training.
    reduced = rapa_cli.load(found["output"])
    assert evaluate(reduced, data.test.images, data.test.labels, seed=5).error == found["test_error_after"]
    manifest, own = runs.read_manifest(Path("runs/tuned")), runs.read_manifest(Path(DONE))
    assert manifest.recipe == own.recipe.model_copy(
        update={"epochs": 2, "lr": 0.01, "warmup_epochs": 0, "step_factor": 1.0}
    )
    assert (manifest.network.scheme, manifest.seed) == ("none", 5)
    assert [row["rate"] for row in runs.read_metrics(Path("runs/tuned"))] == [0.01, 0.01]
    assert manifest.provenance["made_from"] == "../done/last.safetensors"
    assert rapa("evaluate", "--json").document["checkpoint"] == "runs/tuned/last.safetensors", "it is the newest run"
    refused(rapa(*words, "--json"), 2, "--run runs/tuned: there is a run in this folder already", "another folder")


def test_training_starts_from_the_reduced_weights(rapa: Run) -> None:
    """At a rate that changes nothing the weights are those of the reduction; so they are when a run goes on."""
    found = rapa("reduce", DONE, "--finetune", "1", "--lr", "1e-30", "--run", "runs/still", "--json").document
    before, after = rapa_cli.load(found["output"]), rapa_cli.load("runs/still")
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert found["test_error_finetuned"] == found["test_error_after"]
    assert rapa("train", "--resume", "runs/still", "--epochs", "2", "--json").document["epochs"] == 2


def test_the_rate_is_that_of_the_last_epoch(rapa: Run) -> None:
    found = rapa("reduce", DONE, "--finetune", "1", "--json").document["finetuned"]
    recipe = runs.read_manifest(Path(DONE)).recipe
    assert found["lr"] == rate(recipe, recipe.epochs - 1)
    assert Path(found["run"]).parent == Path("runs")
    assert "test error tuned" in rapa("reduce", DONE, "--finetune", "1").out


def test_what_cannot_go_together(rapa: Run) -> None:
    refused(rapa("reduce", DONE, "--lr", "0.1"), 2, "--lr cannot go without --finetune", "--finetune 1")
    refused(rapa("reduce", DONE, "--run", "a"), 2, "--run cannot go without --finetune", "--finetune 1")
    refused(
        rapa("reduce", DONE, "--finetune", "1", "--lr", "0"),
        2,
        "lr: input should be greater than 0, got 0.0",
        "--lr out",
    )
    network = tiny.network()
    description = checkpoint.Description(
        network=network.definition, shape=tiny.SHAPE, classes=tiny.CLASSES, data="mini"
    )
    checkpoint.save(Path("plain.safetensors"), description, network.state_dict(), {})
    outcome = rapa("reduce", "plain.safetensors", "--finetune", "1")
    refused(outcome, 2, "plain.safetensors does not say how it was trained", "that `rapa train` has written")
    assert not Path("plain-reduced-norm.safetensors").exists()


def test_nobody_else_writes_into_the_run_that_is_tuned(rapa: Run) -> None:
    Path("runs/tuned").mkdir()
    with held(Path("runs/tuned")):
        outcome = rapa("reduce", DONE, "--finetune", "1", "--run", "runs/tuned")
    refused(outcome, 2, "runs/tuned is in use by process", "choose another folder")
    assert not Path("runs/tuned/run.json").exists()
