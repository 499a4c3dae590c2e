"""`rapa export`: its forms, where it writes, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import rapa_cli
from tests.commands.conftest import Run, refused

DONE = "runs/done"


def test_a_tiled_network_as_onnx(rapa: Run) -> None:
    found = rapa("export", DONE, "--json").document
    assert (found["to"], found["reduced"], found["output"]) == ("onnx", False, f"{DONE}/last.onnx")
    assert found["bytes"] == Path(found["output"]).stat().st_size
    assert found["inputs"] == [
        {"name": "images", "type": "float32", "shape": ["B", 3, 8, 8]},
        {"name": "assignment_conv1", "type": "int64", "shape": ["B", 64], "tiles": 4},
    ]
    assert found["logits"] == ["B", 3]
    assert found["difference"] <= found["tolerance"] == 1e-4


def test_what_people_see(rapa: Run) -> None:
    outcome = rapa("export", DONE, "--best", "--reduced", "--to", "torch-export", "--out", "new/net.pt2")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("written  new/net.pt2 (torch-export, reduced, 0.0")
    assert "chosen on the test set" in lines[1]
    assert lines[2] == "takes    images: float32 (B, 3, 8, 8), 0 to 1"
    assert lines[3] == "gives    logits: float32 (B, 3)"
    assert lines[4].startswith("checked  against the network on random images: they differ by ")
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(("to", "name"), [("state-dict", "last-state"), ("aihwkit", "last-aihwkit")])
def test_weights_alone(rapa: Run, to: str, name: str) -> None:
    found = rapa("export", DONE, "--to", to, "--json").document
    assert found["output"] == f"{DONE}/{name}.safetensors"
    assert (found["inputs"], found["logits"], found["difference"]) == (None, None, None)


def test_weights_of_aihwkit_become_a_checkpoint(rapa: Run) -> None:
    assert rapa("export", DONE, "--to", "aihwkit", "--out", "matrices.safetensors").code == 0
    found = rapa("export", DONE, "--best", "--from-aihwkit", "matrices.safetensors", "--json").document
    assert found["output"] == f"{DONE}/best-from-aihwkit.safetensors"
    back, last = rapa_cli.load(found["output"]).state_dict(), rapa_cli.load(DONE).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in last.items())
    assert "made_by" in rapa("inspect", found["output"], "--json").document["provenance"]
    assert "checkpoint with these weights" in rapa("export", DONE, "--from-aihwkit", "matrices.safetensors").out


def test_what_is_refused(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(rapa("export", DONE, "--to", "tflite"), 2, "--to: there is no form 'tflite'", "known: aihwkit, onnx")
    refused(
        rapa("export", DONE, "--to", "aihwkit", "--out", f"{DONE}/last.safetensors"),
        2,
        "--out runs/done/last.safetensors is the file that is read",
        "choose another file",
    )
    refused(rapa("export", DONE, "--from-aihwkit", "x", "--to", "onnx"), 2, "so --to cannot go with it", "afterwards")
    refused(rapa("export", DONE, "--from-aihwkit", "x", "--reduced"), 2, "so --reduced cannot go", "afterwards")
    refused(rapa("export", DONE, "--from-aihwkit", "absent"), 3, "there is no file absent", "rapa export --to aihwkit")
    refused(rapa("export", "runs/absent"), 3, "there is no checkpoint runs/absent", "runs/done")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(rapa("export", DONE), 2, "ONNX needs packages that are missing", "pip install 'rapa-cli[onnx]'")
    assert not Path(DONE, "last.onnx").exists()
