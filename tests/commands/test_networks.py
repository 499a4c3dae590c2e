"""Networks of torchvision and of the user's own: every command on them, and no code that is not named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from tests.commands.conftest import Run, refused

SOURCE = """
from pathlib import Path
import torch
from torch import nn

Path("ran").touch()


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.drop(self.pool(torch.relu(self.norm(self.first(x)))))
        return self.head(self.pool(torch.relu(self.second(x))).flatten(1))


class Odd(Net):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


class Wrong(Net):
    def forward(self, x):
        return self.missing(x) if self.training else super().forward(x)


class Uneven(Net):
    def forward(self, x):
        if self.training:
            raise RuntimeError("shapes are\\nuneven")
        return super().forward(x)


class Overwritten(Net):
    def forward(self, x):
        y = torch.sigmoid(super().forward(x))
        return (y * y, y.add_(1))[0] if self.training else y


class Never(Net):
    def forward(self, x):
        raise RuntimeError("not today")
"""
TRAIN = ("train", "--network", "mynet.py:Net", "--data", "mini", "--batch-size", "16", "--lr", "0.02")


@pytest.fixture
def file(here: Path) -> Path:
    path = here / "mynet.py"
    # A file is run once in a process: each test has one of its own.
    path.write_text(f"{SOURCE}# {here}\n", encoding="utf-8")
    return path


def forgotten(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process has it: the file was not run yet."""
    import sys

    for name in [name for name in sys.modules if name.startswith("rapa_network_")]:
        monkeypatch.delitem(sys.modules, name)
    (here / "ran").unlink(missing_ok=True)


def test_the_life_of_a_network_of_ones_own(rapa: Run, here: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = rapa(*TRAIN, "--epochs", "2", "--out", "runs/own", "--json")
    trained = outcome.document
    assert outcome.err.startswith("running the code in mynet.py\n")
    assert (here / "runs/own/mynet.py").read_bytes() == file.read_bytes()
    manifest = json.loads((here / "runs/own/run.json").read_text())
    assert manifest["network"]["scheme"] == "random"
    assert manifest["network"]["tiles"] == [4, 1]
    assert manifest["network"]["module"].keys() == {"name", "file", "sha256"}
    code = ("--code", "mynet.py")
    found = rapa("evaluate", "runs/own", *code, "--json").document
    assert found["test_error"] < 60
    # An epoch is a draw of its own, the evaluation has another.
    assert abs(found["test_error"] - trained["test_error"]) < 35
    assert rapa("vote", "runs/own", "-n", "3", *code, "--json").document["n"] == 3
    attacked = rapa("attack", "runs/own", "--eps", "0,0.2", "--images", "12", *code, "--json").document
    assert attacked["points"][0]["accuracy"] > attacked["points"][1]["accuracy"]
    for way in ("norm", "winner"):
        reduced = rapa("reduce", "runs/own", "--by", way, *code, "--json").document
        again = rapa("evaluate", str(reduced["output"]), *code, "--json").document
        assert again["test_error"] == pytest.approx(reduced["test_error_after"])
    layers = rapa("inspect", "runs/own", *code, "--json").document["layers"]
    assert [(row["name"], row["tiles"], row["n_p"]) for row in layers] == [
        ("body.first", 4, 64),
        ("body.second", 1, 16),
    ]
    assert layers[0]["similarity"] is not None
    planned = rapa("plan", "runs/own", *code, "--json").document
    assert planned["tiles"] == [4, 1]
    assert planned["shape"] == [3, 8, 8]
    assert planned["acceleration"] == 4
    assert rapa("export", "runs/own", "--to", "state-dict", *code, "--json").document
    outcome = rapa("report", "runs/own", *code, "--images", "20")
    assert outcome.code == 0, outcome.err
    page = (here / "runs/own/report.html").read_text()
    assert "Net is written in Python, in mynet.py with the SHA-256" in page
    assert "body.first" in page


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "runs/own"),
        ("vote", "runs/own"),
        ("attack", "runs/own"),
        ("reduce", "runs/own"),
        ("inspect", "runs/own"),
        ("plan", "runs/own"),
        ("report", "runs/own"),
        ("export", "runs/own", "--to", "state-dict"),
        ("train", "--resume", "runs/own", "--epochs", "1"),
    ],
)
def test_code_is_run_only_where_it_is_named(
    rapa: Run, here: Path, file: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    assert rapa(*TRAIN, "--epochs", "0", "--out", "runs/own").code == 0
    forgotten(here, monkeypatch)
    unasked = "whose code is not run unasked"
    refused(rapa(*words), 2, f"network 'Net' is written in mynet.py, {unasked}", "--code mynet.py")
    file.write_text(SOURCE.replace("0.3", "0.4"), encoding="utf-8")
    changed = "mynet.py: not the mynet.py that network 'Net' was made with, whose SHA-256 is "
    refused(rapa(*words, "--code", "mynet.py"), 3, changed, "The run folder holds a copy")
    file.unlink()
    refused(rapa(*words, "--code", "mynet.py"), 3, "cannot read the Python file mynet.py: No such", "is the path right")
    assert not (here / "ran").exists()
    outcome = rapa(*words, "--code", "runs/own/mynet.py")
    assert outcome.code == 0, outcome.err
    assert (here / "ran").exists()


def test_a_run_with_dropout_goes_on_as_if_it_had_not_stopped(rapa: Run, here: Path, file: Path) -> None:
    assert rapa(*TRAIN, "--epochs", "3", "--out", "runs/whole").code == 0
    assert rapa(*TRAIN, "--epochs", "1", "--out", "runs/parts").code == 0
    torch.manual_seed(77)
    torch.rand(5)
    assert rapa("train", "--resume", "runs/parts", "--epochs", "3", "--code", "mynet.py").code == 0
    whole, parts = (load_file(here / f"runs/{name}/last.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_pooling_and_code_are_refused_where_they_mean_nothing(rapa: Run, file: Path) -> None:
    refused(rapa(*TRAIN, "--pool", "mixed"), 2, "network 'Net' has pooling layers of its own", "leave --pool out")
    refused(rapa(*TRAIN, "--set", "pool=mixed"), 2, "network 'Net' has pooling layers of its own", "values")
    refused(rapa("train", "--code", "mynet.py"), 2, "--code names the file of a run that goes on", "--network mynet.py")
    refused(rapa("train", "--network", "mynet.py"), 2, "no class is named in the file", "mynet.py:Net")
    refused(rapa("train", "--network", "mynet.py:Nett"), 2, "there is no 'Nett' in it", "did you mean 'Net'?")


def test_what_fails_in_training_alone_is_told(rapa: Run, file: Path) -> None:
    for name, message in (
        ("Odd", "TypeError: it gives tuple, not a tensor"),
        ("Wrong", "AttributeError: 'Wrong' object has no"),
        ("Uneven", "RuntimeError: shapes are uneven"),
        ("Overwritten", "RuntimeError: one of the variables needed for gradient computation has been modified"),
    ):
        outcome = rapa(
            "train", "--network", f"mynet.py:{name}", "--data", "mini", "--epochs", "1", "--batch-size", "16"
        )
        assert outcome.code == 2
        assert f"error: network '{name}' of mynet.py fails in training: {message}" in outcome.err
        assert "does its forward differ in training?" in outcome.err
    never = rapa("train", "--network", "mynet.py:Never", "--data", "mini", "--epochs", "1")
    refused(never, 2, "network 'Never' of mynet.py cannot take an image of 3 x 8 x 8: RuntimeError: not today", "size")


def test_a_last_batch_of_one_image_is_refused(rapa: Run, file: Path) -> None:
    message = "--batch-size 59: of 60 images some are computed alone, too few for layer 'body.norm'"
    refused(rapa(*TRAIN[:-3], "59"), 2, message, "take another batch size")


def test_a_network_of_torchvision(rapa: Run, here: Path) -> None:
    torch.manual_seed(0)
    source = models.resnet18(num_classes=10)
    save_file(source.state_dict(), here / "resnet18.safetensors")
    train = ("train", "--network", "torchvision:resnet18", "--data", "mini", "--batch-size", "15", "--tiles", "auto")
    refused(rapa(*train, "--weights", "no.safetensors"), 3, "there is no file of weights no.safetensors", "nothing is")
    outcome = rapa(*train, "--weights", "resnet18.safetensors", "--epochs", "0", "--out", "runs/r", "--json")
    assert outcome.document["epochs"] == 0
    assert "new weights for other classes: fc.weight, fc.bias" in outcome.err
    state = load_file(here / "runs/r/last.safetensors")
    assert state["body.conv1.weight"].shape == (4, 64, 3, 7, 7)
    assert torch.equal(state["body.conv1.weight"], source.conv1.weight.detach().expand(4, -1, -1, -1, -1))
    assert state["normalize.scale"].flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    provenance = json.loads((here / "runs/r/run.json").read_text())["provenance"]
    assert provenance["weights"].startswith("resnet18.safetensors, SHA-256 ")
    assert rapa("evaluate", "runs/r", "--json").document["images"] == 30
    assert rapa("plan", "runs/r", "--json").document["tiles"][0] == 4
    # What it began with is not drawn anew.
    (here / "runs/r/last.safetensors").unlink()
    outcome = rapa("train", "--resume", "runs/r")
    refused(outcome, 3, "the run in runs/r was stopped before it had kept the weights that it began with", "--weights")


def test_a_network_from_toml_may_not_name_code(rapa: Run, here: Path, file: Path) -> None:
    import hashlib

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    table = f'layers = []\n[module]\nname = "Net"\nfile = "mynet.py"\nsha256 = "{digest}"\n'
    (here / "net.toml").write_text(table, encoding="utf-8")
    for words in (("train", "--network", "net.toml", "--data", "mini"), ("plan", "net.toml")):
        refused(rapa(*words), 2, "whose code is not run unasked", "--code mynet.py")
    assert not (here / "ran").exists()


def test_a_file_is_planned(rapa: Run, file: Path) -> None:
    outcome = rapa("plan", "mynet.py:Net", "--image-size", "8", "--json")
    assert outcome.document["tiles"] == [4, 1]
    assert outcome.err == "running the code in mynet.py\n"
