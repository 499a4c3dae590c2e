"""How speed is measured: on fake devices, on fake CUDA graphs, and on a device that holds no numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from rapa_cli.analysis import benchmark
from rapa_cli.analysis.benchmark import Row, Timer
from rapa_cli.kernels import cpu
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.training import captured
from tests.kernels.without_device import device_wanted
from tests.meta import META
from tests.training.tape import Refusing, Tape

_SMALL = ((4, 2, 1), 2)
_KEPT = benchmark._MOST_COPIES


@dataclass
class Device:
    """One that computes while the host goes on, in seconds of its own.

    Attributes:
        launch: what a step costs the host.
        work: what it costs the device.
        first: what each of the first three costs the host besides.
    """

    launch: float
    work: float
    first: float = 1.0
    now: float = 0.0
    done: float = 0.0
    steps: int = 0

    def step(self, number: int) -> None:
        self.now += self.launch + (self.first if self.steps < 3 else 0)
        self.done = max(self.done, self.now) + self.work
        self.steps += 1

    def wait(self) -> None:
        self.now = max(self.now, self.done)


@pytest.mark.parametrize("work", [2e-5, 3e-4, 0.0099, 0.019, 0.5])
def test_a_sample_is_as_long_as_the_work(work: float) -> None:
    launch = 1e-5
    device = Device(launch, work)
    timer = Timer(device.wait, 3, 0.02, lambda: device.now)
    count = timer.steps(device.step)
    # The fewest steps, doubled from one, whose work with the launch of the first lasts long enough.
    assert launch + count * work >= 0.02
    assert count == 1 or launch + count / 2 * work < 0.02
    # What was begun before is not counted.
    device.step(0)
    assert timer.seconds(device.step, count) == pytest.approx(work + launch / count)


def test_a_sample_is_as_long_as_the_launches() -> None:
    device = Device(launch=1e-3, work=1e-4)
    timer = Timer(device.wait, 3, 0.02, lambda: device.now)
    count = timer.steps(device.step)
    assert count == 32
    assert timer.seconds(device.step, count) == pytest.approx(1e-3 + 1e-4 / count)


def test_a_cpu_is_timed_step_by_step() -> None:
    numbers: list[int] = []
    timer = Timer.of(torch.device("cpu"))
    assert timer.steps(numbers.append) == 1
    assert timer.seconds(numbers.append, 1, 7) >= 0
    assert numbers == [0, 7]


def test_samples_number_their_steps() -> None:
    numbers: list[int] = []
    Timer(lambda: None, 3, 0.02).seconds(numbers.append, 4, 8)
    assert numbers == [8, 9, 10, 11]


def test_the_memory_of_a_step() -> None:
    assert benchmark.peak_megabytes(_holding) == 12.0


@pytest.mark.parametrize("before", [False, True])
def test_cudnn_is_left_as_it_was(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with pytest.raises(ZeroDivisionError), benchmark.cudnn_at_its_best():
        assert torch.backends.cudnn.benchmark
        _ = 1 / 0
    assert torch.backends.cudnn.benchmark == before


def test_ratios_are_those_of_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that others share are slow for all contenders of a round alike."""
    clock, slow = [0.0], random.Random(1)
    factors: dict[int, float] = {}

    def taking(seconds: float) -> Callable[[int], None]:
        def step(number: int) -> None:
            clock[0] += seconds * factors.setdefault(number, 1 + slow.random())

        return step

    monkeypatch.setattr(Timer, "of", lambda device: Timer(lambda: None, 1, 0.0, lambda: clock[0]))
    contenders = {"a": taking(0.2), "b": taking(0.1), "ours": taking(0.15), "slow": taking(5.0)}
    rows = benchmark._rows("layers", (4,), 2, contenders, ("a", "b"), 9, torch.device("cpu"))
    assert [row.contender for row in rows] == ["a", "b", "ours", "slow"]
    assert [row.ratio for row in rows] == pytest.approx([2, 1, 1.5, 50])
    middle = sorted(factors[number] for number in range(9))[4]
    assert [row.milliseconds for row in rows[:3]] == pytest.approx([200 * middle, 100 * middle, 150 * middle])
    # One that takes so long has one turn.
    assert rows[3].milliseconds == pytest.approx(5000 * factors[0])


def test_steps_are_not_captured_on_a_cpu() -> None:
    rows = benchmark.training_step(*_SMALL, rounds=1)
    assert [row.contender for row in rows] == ["none", "random", "plain torch"]
    assert rows[0].ratio == 1
    assert all(row.milliseconds > 0 and row.megabytes is not None and row.megabytes > 0 for row in rows)


def test_captured_steps_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    tapes: list[Tape] = []

    def recorder(device: torch.device) -> Tape:
        assert torch.backends.cudnn.benchmark
        tapes.append(Tape())
        return tapes[-1]

    # No operator calls the C kernels, which a tape would miss.
    monkeypatch.setattr(cpu, "available", lambda: False)
    monkeypatch.setattr(captured, "recorder", recorder)
    rows = benchmark.training_step(*_SMALL, rounds=3)
    assert [row.contender for row in rows][3:] == ["none, captured", "random, captured"]
    assert [row.megabytes for row in rows[3:]] == [None, None]
    (tape,) = tapes
    # Each when it is recorded, in a warm-up and in three rounds.
    assert (tape.recorded, tape.replayed) == (2, 10)


def test_what_cannot_be_captured_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = Refusing()
    monkeypatch.setattr(captured, "recorder", lambda device: refusing)
    rows = benchmark.training_step(*_SMALL, rounds=1)
    assert refusing.recorded == 2
    assert [row.contender for row in rows] == ["none", "random", "plain torch"]


def test_everything_lies_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator refuses tensors of two devices; of the one called meta it computes shapes only."""
    # The reference looks at how many patches a tile has.
    monkeypatch.setattr(benchmark, "_Gathered", TiledConv2d)
    rows: list[Row] = []
    for measure in (benchmark.layers, benchmark.training_step):
        rows += measure(*_SMALL, rounds=1, device=META)
    assert len(rows) == 8
    for row in rows:
        assert row.megabytes is not None
        assert row.megabytes < 1e-3, f"{row.contender} holds memory of the CPU"
    assert benchmark.weight_traffic(_SMALL[0], rounds=1, device=META) > 0


def test_masked_copies_that_would_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_Gathered", TiledConv2d)
    monkeypatch.setattr(benchmark, "_MOST_COPIES", (4, 12))
    for tiles, batch, masked in (((4, 1, 1), 3, True), ((4, 1, 1), 4, False), ((5, 1, 1), 2, False)):
        rows = benchmark.layers(tiles, batch, rounds=1, device=META)
        assert ("masked copies" in [row.contender for row in rows]) == masked
    # What the results were measured with is not left out.
    assert _KEPT[0] * 100 <= _KEPT[1]


@device_wanted
@pytest.mark.gpu
def test_the_memory_of_a_step_on_a_device() -> None:
    device = torch.device("cuda", 0)
    # Of a larger block that is free already more would be taken.
    torch.cuda.empty_cache()
    found = benchmark.peak_megabytes(lambda number: _holding(number, device), device)
    # Blocks are of whole 512 bytes.
    assert found == pytest.approx(12.0, abs=1e-3)


def _holding(number: int, device: torch.device | None = None) -> None:
    """Holds 12 MB at most: of 16 that it takes it first gives 4 back."""
    first = torch.empty(1_000_000, device=device)
    del first
    second, third = torch.empty(2_000_000, device=device), torch.empty(1_000_000, device=device)
    del second, third
