"""`rapa bench`: what it prints, and on which devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rapa_cli import errors
from tests.commands.conftest import Run, refused
from tests.kernels.without_device import device_wanted, triton_wanted

_LAYERS = ["conv NCHW", "conv NHWC", "ours", "gather and product", "masked copies"]
_QUICK = ["bench", "--tiles", "2,1,1", "--rounds", "1"]


def test_on_a_cpu(rapa: Run) -> None:
    outcome = rapa(*_QUICK, "--device", "cpu", "--batch-size", "2,1", "--out", "figures", "--json")
    found = outcome.document
    assert (found["device"], found["precision"], found["rounds"]) == ("cpu", None, 1)
    assert found["threads"] == torch.get_num_threads()
    assert list(found["weight_traffic_ms"]) == [errors.commas((2, 1, 1))]
    step = ["none", "random", "plain torch"]
    expected = [(batch, name) for batch in (2, 1) for name in _LAYERS + step]
    assert [(row["batch"], row["contender"]) for row in found["rows"]] == expected
    assert {row["what"] for row in found["rows"]} == {"layers", "training step"}
    assert [Path(path).name for path in found["figures"]] == ["bench.png", "bench.svg"]
    assert all(Path(path).exists() for path in found["figures"])
    assert "full on cpu" in Path("figures/bench.svg").read_text(encoding="utf-8")


def test_a_table(rapa: Run) -> None:
    outcome = rapa(*_QUICK, "--device", "cpu", "--batch-size", "1", "--arrays")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].strip() == "arrays"
    assert sum("StandardHWATraining" in line for line in lines) == 1
    assert lines[-1].startswith("kernel: ")


def test_devices_that_are_not_there(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused(rapa("bench", "--device", "cuda"), 2, "--device cuda: this machine has 0 CUDA devices", "`rapa doctor`")
    refused(rapa("bench", "--device", "gpu"), 2, "--device: got 'gpu', allowed are", "")


def test_a_device_that_is_not_timed(rapa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    refused(rapa("bench", "--device", "mps"), 2, "--device mps: bench measures on cpu and cuda", "--device cpu")


@device_wanted
@triton_wanted
@pytest.mark.gpu
def test_on_a_gpu(rapa: Run) -> None:
    line = ["bench", "--device", "cuda", "--tiles", "16,4,1", "--batch-size", "10", "--rounds", "2", "--json"]
    outcome = rapa(*line)
    found = outcome.document
    assert found["device"] == torch.cuda.get_device_name(0)
    assert found["precision"] in ("tf32", "ieee")
    contenders = [row["contender"] for row in found["rows"]]
    layers = [*_LAYERS, "conv NCHW, captured", "conv NHWC, captured", "ours, captured"]
    step = ["none", "random", "plain torch NCHW", "plain torch NHWC", "none, captured", "random, captured"]
    assert contenders == layers + step
    for row in found["rows"]:
        assert row["milliseconds"] > 0, row
        assert (row["megabytes"] is None) == row["contender"].endswith("captured"), row
    assert "left out" not in outcome.err
    assert not torch.backends.cudnn.benchmark


@device_wanted
@pytest.mark.gpu
def test_arrays_on_a_gpu(rapa: Run) -> None:
    found = rapa(*_QUICK, "--device", "cuda", "--batch-size", "2", "--arrays", "--json").document
    assert len(found["rows"]) == 9
    assert all(row["milliseconds"] > 0 and row["megabytes"] is not None for row in found["rows"])
