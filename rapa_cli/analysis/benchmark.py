"""What a tiled convolution costs beside an ordinary one: all contenders in turn in one run, medians.

Only ratios within a run mean something on a machine that others share. Everything is made on the CPU and then put on
the device, so that the numbers are the same on any. On CUDA devices cuDNN looks for its fastest algorithms, and the
ordinary contenders and ours run as CUDA graphs too: without the launches the work of the device is left.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli import config
from rapa_cli.analog import presets
from rapa_cli.analog.aware import INFERENCE, STANDARD_HWA, InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.kernels import reference
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.keyed import draws
from rapa_cli.layers.network import build, resolve, sized_layers
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import partition_in_torch
from rapa_cli.training import captured
from rapa_cli.training.loop import placed
from rapa_cli.training.schedule import optimizer
from rapa_cli.training.sgd import AnalogSGD

SHAPE = (3, 32, 32)
CAPTURED = ", captured"
"""Ends the names of contenders whose steps are replayed from a CUDA graph."""
REPLAYED = ("conv NCHW", "conv NHWC", "ours", "none", "random")
"""Contenders that also run as graphs, where steps can be captured."""
_CPU = torch.device("cpu")
_CLASSES = 10
_RATE = 0.01
# A contender whose round takes longer is left out of further rounds.
_PATIENCE_SECONDS = 2.0
# Masked copies are left out beyond so many tiles, and so many copies of an image, which are all in memory at once.
_MOST_COPIES = (64, 2**14)
# On CUDA devices the first steps compile kernels and choose algorithms, and a sample lasts at least so long.
_WARM_UP = 3
_SAMPLE_SECONDS = 0.02

Step = Callable[[int], None]


@dataclass(frozen=True)
class Row:
    """One contender in one setting.

    Attributes:
        what: "layers", "training step" or "arrays".
        tiles: of each convolution.
        batch: images.
        contender: its name.
        milliseconds: median.
        ratio: median over the rounds of its time to that of the ordinary one; a graph's is to that one's graph.
        megabytes: most memory in use during a step beyond what was in use before it, in 10^6 bytes; None for a CUDA
            graph, which keeps its memory between steps.
    """

    what: str
    tiles: tuple[int, ...]
    batch: int
    contender: str
    milliseconds: float
    ratio: float
    megabytes: float | None


@dataclass(frozen=True)
class Timer:
    """How steps are timed.

    A CPU has done a step when the call returns. A CUDA device computes behind the host's back: there a sample is
    several steps in a row between two waits.

    Attributes:
        wait: returns when the device has done all that it was given.
        warm_up: how many steps come before the first sample.
        shortest: seconds that a sample lasts at least; with 0 it is one step.
        clock: gives seconds.
    """

    wait: Callable[[], object]
    warm_up: int
    shortest: float
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def of(cls, device: torch.device) -> Timer:
        """The one for a device."""
        if device.type == "cuda":
            return cls(functools.partial(torch.cuda.synchronize, device), _WARM_UP, _SAMPLE_SECONDS)
        return cls(lambda: None, 1, 0.0)

    def steps(self, step: Step) -> int:
        """Warms a step up; gives how many of it make a sample."""
        for _ in range(self.warm_up):
            step(0)
        count = 1
        while self.shortest and self.seconds(step, count) * count < self.shortest:
            count *= 2
        return count

    def seconds(self, step: Step, count: int, first: int = 0) -> float:
        """A sample: the mean of `count` steps, which are numbered from `first`."""
        self.wait()
        start = self.clock()
        for number in range(first, first + count):
            step(number)
        self.wait()
        return (self.clock() - start) / count


@contextlib.contextmanager
def cudnn_at_its_best() -> Iterator[None]:
    """Inside, cuDNN tries its algorithms on each new shape and takes the fastest; afterwards as it did before."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def definition() -> config.Network:
    """The network whose layers are measured."""
    return config.load_network("full")


@cudnn_at_its_best()
def layers(tiles: Sequence[int], batch: int, *, rounds: int, device: torch.device = _CPU) -> list[Row]:
    """Forward and backward of the convolutions of `full` alone, the drawing of assignments counted in.

    The ordinary ones run in both memory formats, and each round counts the faster. Masked copies convolve with every
    tile's kernel and mask; gather and product is the reference in torch.
    """
    sizes = _sizes()

    def ordinary(memory: torch.memory_format) -> Step:
        return _together(_ordinary(sizes, device, memory), sizes, batch, memory, device)

    def tiled(kind: type[TiledConv2d]) -> Step:
        return _together(_tiled(kind, tiles, sizes, device), sizes, batch, torch.channels_last, device)

    makers: dict[str, Callable[[], Step]] = {
        "conv NCHW": lambda: ordinary(torch.contiguous_format),
        "conv NHWC": lambda: ordinary(torch.channels_last),
        "ours": lambda: tiled(TiledConv2d),
        "gather and product": lambda: tiled(_Gathered),
    }
    most_tiles, most_copies = _MOST_COPIES
    if max(tiles) <= most_tiles and max(tiles) * batch <= most_copies:
        makers["masked copies"] = lambda: tiled(_Masked)
    contenders = _contenders(makers, device)
    return _rows("layers", tuple(tiles), batch, contenders, ("conv NCHW", "conv NHWC"), rounds, device)


@cudnn_at_its_best()
def training_step(tiles: Sequence[int], batch: int, *, rounds: int, device: torch.device = _CPU) -> list[Row]:
    """The whole training step of `full` on random images, ordinary and tiled, and a plain loop in torch.

    On CUDA devices the plain loop runs in both memory formats.
    """
    makers: dict[str, Callable[[], Step]] = {
        "none": lambda: _step_of("none", None, batch, device),
        "random": lambda: _step_of("random", tuple(tiles), batch, device),
    }
    if device.type == "cuda":
        makers["plain torch NCHW"] = lambda: _plain_step(batch, device, torch.contiguous_format)
        makers["plain torch NHWC"] = lambda: _plain_step(batch, device, torch.channels_last)
    else:
        makers["plain torch"] = lambda: _plain_step(batch, device, torch.contiguous_format)
    return _rows("training step", tuple(tiles), batch, _contenders(makers, device), ("none",), rounds, device)


@cudnn_at_its_best()
def arrays(tiles: Sequence[int], batch: int, *, rounds: int, device: torch.device = _CPU) -> list[Row]:
    """Forward, backward and update of the convolutions of `full`, on arrays of several kinds.

    The ordinary ones are `nn.Conv2d` with `torch.optim.SGD` in both memory formats, and each round counts the faster.
    Of arrays that learn by pulses the time may depend on how large gradients are, so that two sizes are measured.
    """
    sizes, small, large = _sizes(), 1e-4, 1e-2

    def on(kind: Arrays | InferenceArrays | None, errors: float) -> Step:
        modules = _tiled(TiledConv2d, tiles, sizes, device, arrays=kind)
        sgd = AnalogSGD(nn.ModuleList(modules), lr=_RATE)
        return _together(modules, sizes, batch, torch.channels_last, device, sgd, errors)

    def ordinary(memory: torch.memory_format) -> Step:
        modules = _ordinary(sizes, device, memory)
        sgd = torch.optim.SGD(nn.ModuleList(modules).parameters(), lr=_RATE)
        return _together(modules, sizes, batch, memory, device, sgd, small)

    contenders = {
        "conv NCHW": ordinary(torch.contiguous_format),
        "conv NHWC": ordinary(torch.channels_last),
        "ideal": on(None, small),
    }
    for name in ("Idealized", "ReRamES"):
        for errors in (small, large):
            contenders[f"{name}, gradients {errors:g}"] = on(presets.preset(name), errors)
    contenders["Inference"] = on(INFERENCE, small)
    contenders["StandardHWATraining"] = on(STANDARD_HWA, small)
    return _rows("arrays", tuple(tiles), batch, contenders, ("conv NCHW", "conv NHWC"), rounds, device)


def weight_traffic(tiles: Sequence[int], *, rounds: int, device: torch.device = _CPU) -> float:
    """Milliseconds that it takes to read all kernel matrices and write as many gradients, median."""
    numbers = sum(t * out * c * k * k for t, (c, out, k, _, _) in zip(tiles, _sizes(), strict=True))
    source, target = torch.ones(numbers, device=device), torch.ones(numbers, device=device)

    def step(number: int) -> None:
        target.copy_(source)

    timer = Timer.of(device)
    count = timer.steps(step)
    return 1e3 * statistics.median(timer.seconds(step, count) for _ in range(rounds))


def peak_megabytes(step: Step, device: torch.device = _CPU) -> float:
    """The most memory that torch had in use during a step beyond what it had before, in MB (10^6 bytes)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(0)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(0)
    in_use = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak / 1e6


def _contenders(makers: dict[str, Callable[[], Step]], device: torch.device) -> dict[str, Step]:
    """The steps, and those that are replayed, unless one of these cannot be captured."""
    steps = {name: make() for name, make in makers.items()}
    recorder = captured.recorder(device)
    if recorder is None:
        return steps
    graphs = {name + CAPTURED: _captured(make(), recorder) for name, make in makers.items() if name in REPLAYED}
    found = {name: step for name, step in graphs.items() if step is not None}
    return steps | found if len(found) == len(graphs) else steps


def _captured(step: Step, recorder: captured.Recorder) -> Step | None:
    """The step of draw 0 captured and replayed; None where it cannot be."""
    replayed = captured.Captured(lambda: step(0), recorder)
    for _ in range(captured.EAGER_CALLS + 1):
        replayed()
    return (lambda number: replayed()) if replayed.replays else None


def _rows(
    what: str,
    tiles: tuple[int, ...],
    batch: int,
    contenders: dict[str, Step],
    baseline: tuple[str, ...],
    rounds: int,
    device: torch.device,
) -> list[Row]:
    timer = Timer.of(device)
    counts = {name: timer.steps(step) for name, step in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        measured = {}
        for name, step in contenders.items():
            if times[name] and times[name][-1] > _PATIENCE_SECONDS:
                continue
            measured[name] = timer.seconds(step, counts[name], number * counts[name])
        for name, seconds in measured.items():
            kind = CAPTURED if name.endswith(CAPTURED) else ""
            times[name].append(seconds)
            ratios[name].append(seconds / min(measured[ordinary + kind] for ordinary in baseline))
    return [
        Row(
            what,
            tiles,
            batch,
            name,
            1e3 * statistics.median(times[name]),
            statistics.median(ratios[name]),
            None if name.endswith(CAPTURED) else peak_megabytes(step, device),
        )
        for name, step in contenders.items()
    ]


def _sizes() -> list[tuple[int, int, int, int, int]]:
    """Channels in, channels out, kernel, padding and side of each convolution; they are square with stride 1."""
    return [
        (channels, layer.channels, layer.kernel, layer.padding, side)
        for layer, (channels, side, _), _ in sized_layers(definition(), SHAPE)
        if isinstance(layer, config.Conv)
    ]


def _ordinary(
    sizes: Sequence[tuple[int, int, int, int, int]], device: torch.device, memory: torch.memory_format
) -> list[nn.Module]:
    # As the program trains them.
    kernels = memory if device.type == "cuda" else torch.contiguous_format
    return [nn.Conv2d(c, out, k, padding=p).to(device).to(memory_format=kernels) for c, out, k, p, _ in sizes]


def _tiled(
    kind: type[TiledConv2d],
    tiles: Sequence[int],
    sizes: Sequence[tuple[int, int, int, int, int]],
    device: torch.device,
    *,
    arrays: Arrays | InferenceArrays | None = None,
) -> list[nn.Module]:
    return [
        kind(c, out, k, padding=p, tiles=count, scheme="random", arrays=arrays).to(device)
        for count, (c, out, k, p, _) in zip(tiles, sizes, strict=True)
    ]


def _together(
    modules: Sequence[nn.Module],
    sizes: Sequence[tuple[int, int, int, int, int]],
    batch: int,
    memory: torch.memory_format,
    device: torch.device,
    sgd: torch.optim.Optimizer | None = None,
    size: float = 1.0,
) -> Step:
    """A step through all layers, each on its own random input; the first one's input, the image, needs no gradient.

    With an optimizer its step is a part of this one; `size` is the standard deviation of the outputs' gradients.
    """
    inputs, errors = [], []
    for number, (channels, out, _, _, side) in enumerate(sizes):
        # What follows a ReLU is not negative.
        x = torch.randn(batch, channels, side, side).clamp_min(0.0 if number else -torch.inf)
        inputs.append(x.to(device).contiguous(memory_format=memory).requires_grad_(number > 0))
        errors.append(size * torch.randn(batch, out, side, side).to(device).contiguous(memory_format=memory))
    holder = nn.ModuleList(modules)
    ids = torch.arange(batch, device=device)

    def step(number: int) -> None:
        holder.zero_grad(set_to_none=True)
        with draws(holder, images=ids, draw=number, stream="train"):
            for layer, x, error in zip(modules, inputs, errors, strict=True):
                x.grad = None
                layer(x).backward(error)
        if sgd is not None:
            sgd.step()

    return step


class _Gathered(TiledConv2d):
    """Gather and batched product, in plain torch."""

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        geometry = self.geometry(x.shape[2], x.shape[3])
        if self.tiles == 1:
            return super().forward(x)
        drawn = partition_in_torch(self.draw_for(len(x), x.device), patches=geometry.patches, tiles=self.tiles)
        output: Tensor = _ReferenceFunction.apply(x, self.weight, self.bias, drawn, geometry)
        return output


class _ReferenceFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, assignment: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight, assignment)
        ctx.geometry = geometry
        return reference.forward(x, weight, bias, assignment, geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, assignment = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], True, True)
        geometry = ctx.geometry
        parts = reference.backward(gradients[0], x, weight, assignment, geometry, wanted=wanted)
        return (*parts, None, None)


class _Masked(TiledConv2d):
    """Every tile convolves the whole image, and a mask keeps its own patches."""

    def forward(self, x: Tensor, assignment: Tensor | None = None) -> Tensor:
        if self.tiles == 1 or self.bias is None:
            return super().forward(x)
        geometry = self.geometry(x.shape[2], x.shape[3])
        drawn = self.assign(len(x), (geometry.out_height, geometry.out_width))
        plane = drawn.view(len(x), 1, geometry.out_height, geometry.out_width)
        padding = geometry.padding[0]
        outputs = (
            F.conv2d(x, self.weight[tile], self.bias[tile], padding=padding) * (plane == tile)
            for tile in range(self.tiles)
        )
        return torch.stack(list(outputs)).sum(0)


def _step_of(scheme: str, tiles: tuple[int, ...] | None, batch: int, device: torch.device) -> Step:
    model = placed(build(resolve(definition(), SHAPE, scheme=scheme, tiles=tiles), SHAPE, _CLASSES), device)
    sgd = optimizer(model, config.load_recipe("short", scheme))
    x = torch.rand(batch, *SHAPE).to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(_CLASSES, (batch,)).to(device)
    ids = torch.arange(batch, device=device)

    def step(number: int) -> None:
        with draws(model, images=ids, draw=number, stream="train"):
            loss = F.cross_entropy(model(x), labels)
        sgd.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()

    return step


def _plain_step(batch: int, device: torch.device, memory: torch.memory_format) -> Step:
    """`full` as one writes it by hand in torch, without anything of this program."""

    class Normalisation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1 + 5e-5 * F.avg_pool2d(x * x, 3, 1, 1)) ** -0.75

    def block(channels: int, out: int, pool: nn.Module) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 5, padding=2), nn.ReLU(), pool, Normalisation()]

    model = nn.Sequential(
        *block(3, 32, nn.MaxPool2d(3, 2, ceil_mode=True)),
        *block(32, 32, nn.MaxPool2d(3, 2, ceil_mode=True)),
        *block(32, 64, nn.AvgPool2d(3, 2, ceil_mode=True)),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, _CLASSES),
    )
    model.to(device).to(memory_format=memory)
    sgd = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9, weight_decay=1e-4)
    x = torch.rand(batch, *SHAPE).to(device).contiguous(memory_format=memory)
    labels = torch.randint(_CLASSES, (batch,)).to(device)

    def step(number: int) -> None:
        loss = F.cross_entropy(model(x), labels)
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()

    return step
