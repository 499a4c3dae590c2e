"""Captured steps: a training whose steps are replayed is the training whose steps are made one by one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rapa_cli.errors import Interrupted
from rapa_cli.kernels import cpu
from rapa_cli.tiling.schemes import SCHEMES
from rapa_cli.training import captured, loop
from rapa_cli.training.captured import Captured
from rapa_cli.training.loop import Sums
from rapa_cli.training.schedule import optimizer
from rapa_cli.training.stopping import StopRequest
from tests.training import tiny
from tests.training.tape import Tape
from tests.training.test_loop import Watcher, run

# 30 images: 4 whole batches in each of 3 epochs, and a rest; the rate changes from one to the next.
_RECIPE: dict[str, Any] = {"epochs": 3, "batch_size": 7, "momentum": 0.9, "warmup_epochs": 1, "step_epochs": 2}


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """Records every training; the C kernels, which no operator calls, are left out."""
    monkeypatch.setattr(cpu, "available", lambda: False)
    one = Tape()
    monkeypatch.setattr(captured, "recorder", lambda device: one)
    return one


def _trained(folder: Path, **changes: Any) -> tuple[dict[str, Tensor], list[Any]]:
    training = tiny.begin(folder, **{**_RECIPE, **changes})
    rows = run(training).rows
    momentum = {
        f"{name} momentum": training.sgd.state[parameter]["momentum_buffer"]
        for name, parameter in training.network.named_parameters()
    }
    return {**training.network.state_dict(), **momentum}, list(rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"scheme": "random", "pool": "mixed"}, "weight_decay": 0.1, "brightness": 0.3},
        {"network": {"scheme": "random", "pool": "stochastic"}, "accumulate": 2},
        {"network": {"scheme": "random-fixed", "tiles": (4, 2)}, "mirror": False},
        {"network": {"scheme": "image-pad", "tiles": (4, 1)}},
        {"network": {"scheme": "alternate", "tiles": (4, 4)}, "amp": True},
        {"network": {"scheme": "perforated", "tiles": (2, 3)}},
        {},
    ],
)
def test_replayed_steps_are_the_steps(tmp_path: Path, tape: Tape, changes: dict[str, Any]) -> None:
    replayed, rows = _trained(tmp_path / "replayed", **changes)
    # Of the four batches of an epoch the first two are made, the third is recorded.
    assert (tape.recorded, tape.replayed) == (3, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured, "recorder", lambda device: None)
        expected, expected_rows = _trained(tmp_path / "made", **changes)
    assert rows == expected_rows
    assert replayed.keys() == expected.keys()
    for name, tensor in replayed.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_training_goes_on_within_an_epoch(tmp_path: Path, tape: Tape) -> None:
    class Stopping(Watcher):
        def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
            if (epoch, step) == (0, 4):
                stop.exit_code = 143

    network = {"scheme": "random"}
    whole, _ = _trained(tmp_path / "whole", network=network)
    stop = StopRequest()
    training = tiny.begin(tmp_path / "stopped", network=network, **_RECIPE)
    with pytest.raises(Interrupted):
        training.run(Stopping(), stop)
    on = loop.resume(tmp_path / "stopped", training.manifest, tiny.data_set(), tiny.CPU)
    run(on)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in on.network.state_dict().items())


def test_what_cannot_be_recorded_is_called() -> None:
    class Refusing(Tape):
        def record(self, function: Callable[[], object]) -> Callable[[], None]:
            self.recorded += 1
            raise RuntimeError("operation not permitted when stream is capturing")

    total, refusing = torch.zeros(()), Refusing()
    step = Captured(total.add_, refusing)
    for _ in range(5):
        step(torch.ones(()))
    assert total == 5
    assert refusing.recorded == 1
    assert not step.replays


def test_only_tensors_may_change() -> None:
    total, numbers = torch.zeros(()), iter((1, 10, 100, 1000, 10000))
    step = Captured(lambda tensor: total.add_(tensor * next(numbers)), Tape())
    for value in range(1, 6):
        step(torch.tensor(value))
        assert step.replays == (value > 2)
    # What Python counts stays as it was when the third call was recorded.
    assert total == 1 * 1 + 2 * 10 + (3 + 4 + 5) * 100


def test_what_is_not_captured(tmp_path: Path, tape: Tape) -> None:
    for number, changes in enumerate(
        (
            {"network": {"arrays": "Idealized"}, "momentum": 0.0, "weight_decay": 0.0},
            {"batch_size": loop._CAPTURED + 1},
        )
    ):
        run(tiny.begin(tmp_path / str(number), **{**_RECIPE, **changes}))  # type: ignore[dict-item]
    assert tape.recorded == 0


class OnTheDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a CUDA graph cannot hold: copies from memory of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        places = {tensor.device.type for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            assert "cpu" not in places, f"{func} copies from the host"
        return result


@pytest.mark.parametrize(
    ("scheme", "pool"),
    [*((scheme, "max") for scheme in SCHEMES), *(("random", pool) for pool in ("average", "mixed", "stochastic"))],
)
def test_a_step_needs_nothing_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, pool: str
) -> None:
    # On this device nothing has a value: what looks at one fails, as it does while a GPU is captured.
    device = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    network = {"scheme": scheme, "pool": pool, **({"tiles": (4, 2)} if scheme == "perforated" else {})}
    begun = tiny.begin(tmp_path, network=network, momentum=0.9, weight_decay=0.1, brightness=0.2)
    placed = begun.network.to(device).train()
    training = loop.Training(tmp_path, begun.manifest, begun.data, placed, optimizer(placed, begun.manifest.recipe))
    sums = Sums.of(training.progress, device)
    ids = torch.arange(7, device=device)
    images = torch.empty(7, *tiny.SHAPE, dtype=torch.uint8, device=device)
    with OnTheDevice():  # type: ignore[no-untyped-call]
        for _ in range(2):
            training._step(sums, 7, ids, images, ids)
    assert all(parameter.grad is not None for parameter in placed.parameters())


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert captured.recorder(tiny.CPU) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("network", [{}, {"scheme": "random"}, {"scheme": "random-fixed", "pool": "stochastic"}])
def test_replayed_steps_are_the_steps_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: dict[str, Any]
) -> None:
    device, data = torch.device("cuda", 0), tiny.data_set()
    made: list[captured.Captured] = []

    class Noted(Captured):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(captured, "Captured", Noted)
    found = []
    for setting in ("1", "0"):
        monkeypatch.setenv("RAPA_CUDA_GRAPH", setting)
        training = tiny.begin(tmp_path / setting, network=network, **_RECIPE)
        training = loop.resume(training.folder, training.manifest, data, device)
        rows = run(training).rows
        assert math.isfinite(rows[-1]["train_loss"])
        found.append(training.network.state_dict())
    assert len(made) == _RECIPE["epochs"]
    assert all(one.replays for one in made)
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-6)
