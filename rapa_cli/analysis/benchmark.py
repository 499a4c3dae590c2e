"""What a tiled convolution costs beside an ordinary one: all contenders in turn in one run, medians.

Only ratios within a run mean something on a machine that others share.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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
from rapa_cli.training.schedule import optimizer
from rapa_cli.training.sgd import AnalogSGD

SHAPE = (3, 32, 32)
_CLASSES = 10
_RATE = 0.01
# A contender whose round takes longer is left out of further rounds.
_PATIENCE_SECONDS = 2.0

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
        ratio: median over the rounds of its time to that of the ordinary one.
        megabytes: most memory in use during a step beyond what was in use before it.
    """

    what: str
    tiles: tuple[int, ...]
    batch: int
    contender: str
    milliseconds: float
    ratio: float
    megabytes: float


def definition() -> config.Network:
    """The network whose layers are measured."""
    return config.load_network("full")


def layers(tiles: Sequence[int], batch: int, *, rounds: int) -> list[Row]:
    """Forward and backward of the convolutions of `full` alone, the drawing of assignments counted in.

    The ordinary ones run in both memory formats, and each round counts the faster. Masked copies convolve with every
    tile's kernel and mask; gather and product is the reference in torch.
    """
    sizes = _sizes()
    ordinary = [nn.Conv2d(c, out, k, padding=p) for c, out, k, p, _ in sizes]
    contenders: dict[str, Step] = {
        "conv NCHW": _together(ordinary, sizes, batch, torch.contiguous_format),
        "conv NHWC": _together(ordinary, sizes, batch, torch.channels_last),
        "ours": _together(_tiled(TiledConv2d, tiles, sizes), sizes, batch, torch.channels_last),
        "gather and product": _together(_tiled(_Gathered, tiles, sizes), sizes, batch, torch.channels_last),
    }
    if max(tiles) <= 64:
        contenders["masked copies"] = _together(_tiled(_Masked, tiles, sizes), sizes, batch, torch.channels_last)
    return _rows("layers", tuple(tiles), batch, contenders, ("conv NCHW", "conv NHWC"), rounds)


def training_step(tiles: Sequence[int], batch: int, *, rounds: int) -> list[Row]:
    """The whole training step of `full` on random images, ordinary and tiled, and a plain loop in torch."""
    contenders = {
        "none": _step_of("none", None, batch),
        "random": _step_of("random", tuple(tiles), batch),
        "plain torch": _plain_step(batch),
    }
    return _rows("training step", tuple(tiles), batch, contenders, ("none",), rounds)


def arrays(tiles: Sequence[int], batch: int, *, rounds: int) -> list[Row]:
    """Forward, backward and update of the convolutions of `full`, on arrays of several kinds.

    The ordinary ones are `nn.Conv2d` with `torch.optim.SGD` in both memory formats, and each round counts the faster.
    Of arrays that learn by pulses the time may depend on how large gradients are, so that two sizes are measured.
    """
    sizes, small, large = _sizes(), 1e-4, 1e-2

    def on(kind: Arrays | InferenceArrays | None, errors: float) -> Step:
        modules: list[nn.Module] = [
            TiledConv2d(c, out, k, padding=p, tiles=count, scheme="random", arrays=kind)
            for count, (c, out, k, p, _) in zip(tiles, sizes, strict=True)
        ]
        return _together(
            modules, sizes, batch, torch.channels_last, AnalogSGD(nn.ModuleList(modules), lr=_RATE), errors
        )

    def ordinary(memory: torch.memory_format) -> Step:
        modules = [nn.Conv2d(c, out, k, padding=p) for c, out, k, p, _ in sizes]
        sgd = torch.optim.SGD(nn.ModuleList(modules).parameters(), lr=_RATE)
        return _together(modules, sizes, batch, memory, sgd, small)

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
    return _rows("arrays", tuple(tiles), batch, contenders, ("conv NCHW", "conv NHWC"), rounds)


def weight_traffic(tiles: Sequence[int], *, rounds: int) -> float:
    """Milliseconds that it takes to read all kernel matrices and write as many gradients, median."""
    numbers = sum(t * out * c * k * k for t, (c, out, k, _, _) in zip(tiles, _sizes(), strict=True))
    source, target = torch.ones(numbers), torch.ones(numbers)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def peak_megabytes(step: Step) -> float:
    """The most memory that torch had in use during a step beyond what it had before, in MB (10^6 bytes)."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(0)
    in_use = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak / 1e6


def _rows(
    what: str,
    tiles: tuple[int, ...],
    batch: int,
    contenders: dict[str, Step],
    baseline: tuple[str, ...],
    rounds: int,
) -> list[Row]:
    for step in contenders.values():
        step(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        measured = {}
        for name, step in contenders.items():
            if times[name] and times[name][-1] > _PATIENCE_SECONDS:
                continue
            start = time.perf_counter()
            step(number)
            measured[name] = time.perf_counter() - start
        ordinary = min(measured[name] for name in baseline)
        for name, seconds in measured.items():
            times[name].append(seconds)
            ratios[name].append(seconds / ordinary)
    return [
        Row(
            what,
            tiles,
            batch,
            name,
            1e3 * statistics.median(times[name]),
            statistics.median(ratios[name]),
            peak_megabytes(step),
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


def _together(
    modules: Sequence[nn.Module],
    sizes: Sequence[tuple[int, int, int, int, int]],
    batch: int,
    memory: torch.memory_format,
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
        inputs.append(x.contiguous(memory_format=memory).requires_grad_(number > 0))
        errors.append(size * torch.randn(batch, out, side, side).contiguous(memory_format=memory))
    holder = nn.ModuleList(modules)
    ids = torch.arange(batch)

    def step(number: int) -> None:
        holder.zero_grad(set_to_none=True)
        with draws(holder, images=ids, draw=number, stream="train"):
            for layer, x, error in zip(modules, inputs, errors, strict=True):
                x.grad = None
                layer(x).backward(error)
        if sgd is not None:
            sgd.step()

    return step


def _tiled(
    kind: type[TiledConv2d], tiles: Sequence[int], sizes: Sequence[tuple[int, int, int, int, int]]
) -> list[nn.Module]:
    return [
        kind(c, out, k, padding=p, tiles=count, scheme="random")
        for count, (c, out, k, p, _) in zip(tiles, sizes, strict=True)
    ]


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


def _step_of(scheme: str, tiles: tuple[int, ...] | None, batch: int) -> Step:
    model = build(resolve(definition(), SHAPE, scheme=scheme, tiles=tiles), SHAPE, _CLASSES)
    sgd = optimizer(model, config.load_recipe("short", scheme))
    x = torch.rand(batch, *SHAPE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(_CLASSES, (batch,))
    ids = torch.arange(batch)

    def step(number: int) -> None:
        with draws(model, images=ids, draw=number, stream="train"):
            loss = F.cross_entropy(model(x), labels)
        sgd.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()

    return step


def _plain_step(batch: int) -> Step:
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
    sgd = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9, weight_decay=1e-4)
    x, labels = torch.rand(batch, *SHAPE), torch.randint(_CLASSES, (batch,))

    def step(number: int) -> None:
        loss = F.cross_entropy(model(x), labels)
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()

    return step
