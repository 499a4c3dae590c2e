"""Captured steps: a training whose steps are replayed is the training whose steps are made one by one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from rapa_cli import config
from rapa_cli.errors import Interrupted
from rapa_cli.kernels import cpu
from rapa_cli.layers.network import build
from rapa_cli.tiling.schemes import SCHEMES
from rapa_cli.training import captured, loop
from rapa_cli.training.captured import Captured
from rapa_cli.training.loop import Sums
from rapa_cli.training.parallel import Team
from rapa_cli.training.schedule import optimizer
from rapa_cli.training.stopping import StopRequest
from tests.kernels.without_device import device_wanted, triton_wanted
from tests.meta import META, OnMeta
from tests.tolerances import assert_near
from tests.training import tiny
from tests.training.tape import Refusing, Tape
from tests.training.test_loop import Watcher, run

# 30 images: 4 whole batches in each of 3 epochs, and a rest; the rate changes from one to the next.
_RECIPE: dict[str, Any] = {"epochs": 3, "batch_size": 7, "momentum": 0.9, "warmup_epochs": 1, "step_epochs": 2}


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """Records every training; the C kernels, which no operator calls, are left out."""
    monkeypatch.setattr(cpu, "available", lambda: False)
    one = Tape()

    def recorder(device: torch.device) -> Tape:
        assert device == tiny.CPU
        one.given += 1
        return one

    monkeypatch.setattr(captured, "recorder", recorder)
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
    assert (tape.given, tape.recorded, tape.replayed) == (1, 3, 6)
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


def _without_device(monkeypatch: pytest.MonkeyPatch, graph: Callable[..., Any]) -> captured.CudaGraphs:
    """What captures, where a context manager takes the place of the capture and nothing that of streams."""
    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: mock.Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return captured.CudaGraphs(torch.device("cuda", 0))


def test_after_a_capture_that_failed_no_other_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    @contextlib.contextmanager
    def graph(_graph: object, *, stream: object) -> Iterator[None]:
        tried.append(stream)
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs, calls = _without_device(monkeypatch, graph), list[int]()
    for _ in range(2):
        step = Captured(lambda: calls.append(1), graphs)
        with contextlib.ExitStack() as stack:
            if not tried:
                stack.enter_context(pytest.warns(UserWarning, match=r"launched one by one.*not permitted"))
            for _ in range(4):
                step()
        assert not step.replays
    assert tried == [graphs._stream]
    # The capture itself carries nothing out on a device; here it did, once.
    assert len(calls) == 2 * 4 + 1


def test_a_second_interrupt_while_a_step_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("the capture was not ended")

    def interrupted() -> None:
        raise KeyboardInterrupt

    graphs = _without_device(monkeypatch, graph)
    with pytest.raises(KeyboardInterrupt):
        graphs.record(interrupted)


def test_what_needs_the_host_is_not_recorded(tmp_path: Path, tape: Tape) -> None:
    ordinary = tiny.begin(tmp_path / "ordinary")
    assert ordinary._recorder is tape
    assert tiny.begin(tmp_path / "pulsed", network={"arrays": "Idealized"}, weight_decay=0.0)._recorder is None
    assert tiny.begin(tmp_path / "aware", network={"arrays": "Inference"})._recorder is None
    definition = config.Network(name="x", layers=(), module=config.Module(name="squeezenet1_1"))
    network = build(definition, (3, 32, 32), 3)
    assert loop.Training(tmp_path, ordinary.manifest, ordinary.data, network, ordinary.sgd)._recorder is None
    network, team = ordinary.network, Team(rank=1, size=2)
    assert loop.Training(tmp_path, ordinary.manifest, ordinary.data, network, ordinary.sgd, team)._recorder is None


def test_where_something_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [torch.device("cuda", number) for number in (0, 1)]
    monkeypatch.delenv("RAPA_CUDA_GRAPH", raising=False)
    monkeypatch.setattr(captured, "CudaGraphs", lambda device: Tape())
    monkeypatch.setattr(captured, "triton_serves", devices[0].__eq__)
    assert isinstance(captured.recorder(devices[0]), Tape)
    assert captured.recorder(devices[1]) is None
    assert captured.recorder(tiny.CPU) is None
    for setting, found in (("1", True), ("0", False)):
        monkeypatch.setenv("RAPA_CUDA_GRAPH", setting)
        assert (captured.recorder(devices[0]) is not None) == found


@pytest.mark.parametrize(
    ("scheme", "pool"),
    [*((scheme, "max") for scheme in SCHEMES), *(("random", pool) for pool in ("average", "mixed", "stochastic"))],
)
def test_a_step_needs_nothing_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, pool: str
) -> None:
    # What looks at a number, or copies from elsewhere, fails here as it does while a GPU is captured.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    network = {"scheme": scheme, "pool": pool, **({"tiles": (4, 2)} if scheme == "perforated" else {})}
    begun = tiny.begin(tmp_path, network=network, momentum=0.9, weight_decay=0.1, brightness=0.2)
    placed = begun.network.to(META).train()
    training = loop.Training(tmp_path, begun.manifest, begun.data, placed, optimizer(placed, begun.manifest.recipe))
    sums = Sums.of(training.progress, META)
    ids = torch.arange(7, device=META)
    images = torch.empty(7, *tiny.SHAPE, dtype=torch.uint8, device=META)
    with OnMeta():
        for _ in range(2):
            training._step(sums, 7, ids, images, ids)
    assert all(parameter.grad is not None for parameter in placed.parameters())


@device_wanted
@triton_wanted
@pytest.mark.gpu
@pytest.mark.parametrize("network", [{}, {"scheme": "random"}, {"scheme": "random-fixed", "pool": "stochastic"}])
def test_replayed_steps_are_the_steps_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: dict[str, Any]
) -> None:
    device, data = torch.device("cuda", 0), tiny.data_set()
    made: list[Captured] = []

    class Noted(Captured):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(captured, "Captured", Noted)
    # Rounding to tf32 would make more of sums in another order, as cuDNN and poolings take them.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = []
    for setting in ("1", "0"):
        monkeypatch.setenv("RAPA_CUDA_GRAPH", setting)
        # Of a single epoch, since poolings may add in any order, and what they differ by grows.
        training = tiny.begin(tmp_path / setting, network=network, **{**_RECIPE, "epochs": 1})
        training = loop.resume(training.folder, training.manifest, data, device)
        rows = run(training).rows
        assert math.isfinite(rows[-1]["train_loss"])
        found.append(training.network.state_dict())
    assert [one.replays for one in made] == [True]
    for name, tensor in found[0].items():
        assert_near(tensor, found[1][name])
