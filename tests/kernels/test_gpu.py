"""The Triton kernels against the definition: interpreted on the CPU, compiled without running, and on a CUDA device."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rapa_cli.kernels import reference
from rapa_cli.kernels.cuda import convolution_precision
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.kernels.operator import tiled_conv2d
from rapa_cli.keyed import Draw
from rapa_cli.philox import Stream
from rapa_cli.tiling.schemes import balanced_partition
from tests.kernels.without_device import ROOT, compile_only, device_wanted, main, no_waiting, run_checks, triton_wanted
from tests.meta import META, OnMeta

_ALL = (True, True, True)


@dataclass(frozen=True)
class Case:
    """A convolution to check; `empty` is the share of patches that no tile computes."""

    batch: int
    channels: int
    out: int
    size: tuple[int, int]
    tiles: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    empty: float = 0.0

    @property
    def geometry(self) -> Geometry:
        return Geometry(*self.size, self.kernel, self.stride, self.padding, self.dilation)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Images, kernels, biases, an assignment to tiles of quite unequal sizes, and the output's gradient."""
        g = torch.Generator().manual_seed(1)
        shape = self.geometry
        x = torch.randn(self.batch, self.channels, *self.size, generator=g)
        weight = torch.randn(self.tiles, *self.kernel, self.channels, self.out, generator=g).permute(0, 4, 3, 1, 2)
        bias = torch.randn(self.tiles, self.out, generator=g)
        chance = torch.rand(3, self.batch, shape.patches, generator=g)
        assignment = (self.tiles * chance[0] * chance[1]).long()
        assignment[chance[2] < self.empty] = -1
        gradient = torch.randn(self.batch, self.out, shape.out_height, shape.out_width, generator=g)
        return x, weight, bias, assignment, gradient


_FIXED = [
    # The paper's first two layers, smaller.
    Case(2, 3, 32, (9, 9), 4, (5, 5), padding=(2, 2, 2, 2)),
    Case(2, 32, 32, (5, 6), 3, (5, 5), padding=(2, 2, 2, 2), empty=0.2),
    # Two blocks of output channels; a tile of more patches than a block; channels that fill blocks of 16, not of 32.
    Case(1, 16, 70, (8, 9), 2, (1, 2), padding=(0, 0, 0, 0)),
    # Labels of two bytes, more tiles than patches.
    Case(1, 3, 5, (6, 6), 130, (1, 1), padding=(0, 0, 0, 0)),
    # Nothing is computed.
    Case(2, 3, 4, (4, 4), 2, empty=1.0),
]


def _drawn(count: int) -> list[Case]:
    draw = random.Random(2)
    cases: list[Case] = []
    while len(cases) < count:
        pair = functools.partial(lambda low, high: (draw.randint(low, high), draw.randint(low, high)))
        case = Case(
            batch=draw.randint(1, 3),
            channels=draw.choice([1, 2, 5, 7, 17, 20, 32]),
            out=draw.choice([1, 8, 10, 33, 54]),
            size=pair(3, 9),
            tiles=draw.choice([1, 2, 5, 9]),
            kernel=pair(1, 4),
            stride=pair(1, 3),
            padding=(*pair(0, 2), *pair(0, 2)),
            dilation=pair(1, 2),
            empty=draw.choice([0.0, 0.3]),
        )
        try:
            _ = case.geometry
        except ValueError:
            continue
        cases.append(case)
    return cases


def _assert_near(actual: Tensor, expected: Tensor, case: Case) -> None:
    assert actual.shape == expected.shape, case
    error = float((actual.double().cpu() - expected).norm())
    assert error <= 1e-5 * float(expected.norm()), f"error {error} of {float(expected.norm())}: {case}"


def _expected(case: Case) -> list[Tensor]:
    """The output and the gradients of x, weight and bias, float64."""
    x, weight, bias, assignment, gradient = (t.double() if t.is_floating_point() else t for t in case.tensors())
    y = reference.forward(x, weight, bias, assignment, case.geometry)
    gradients = reference.backward(gradient, x, weight, assignment, case.geometry, wanted=_ALL)
    return [y, *(part for part in gradients if part is not None)]


def _check(cases: Sequence[Case]) -> None:
    from rapa_cli.kernels import gpu

    assert gpu.available(torch.device("cpu")), "Triton is not interpreted"
    for case in cases:
        x, weight, bias, assignment, gradient = case.tensors()
        y = gpu.forward(x, weight, bias, assignment, case.geometry)
        gradients = gpu.backward(gradient, x, weight, assignment, case.geometry, wanted=_ALL)
        expected = _expected(case)
        for actual, wanted in zip((y, *gradients), expected, strict=True):
            assert actual is not None
            assert actual.stride() == wanted.stride(), case
            _assert_near(actual, wanted, case)


def check_fixed() -> None:
    _check(_FIXED)


def check_drawn() -> None:
    _check(_drawn(10))


def check_parts() -> None:
    """Tiles of several segments, image gradients of several passes, as large batches have them."""
    from rapa_cli.kernels import gpu

    gpu._PROGRAMS, gpu._BUFFER = 4, 1500
    _check(
        [
            Case(3, 3, 9, (8, 9), 3, (3, 2), empty=0.1),
            Case(2, 16, 16, (10, 10), 2, (2, 3), (1, 2)),
            # A tile of one segment and an empty one among others.
            Case(2, 2, 4, (9, 9), 40, (1, 1), padding=(0, 0, 0, 0)),
        ]
    )


def check_wanted() -> None:
    """Only what is wanted, no bias, and tensors that lie in memory in another order."""
    from rapa_cli.kernels import gpu

    case = Case(2, 3, 6, (5, 6), 3, (2, 2))
    x, weight, bias, assignment, gradient = case.tensors()
    x, weight = x.contiguous(memory_format=torch.channels_last), weight.contiguous()
    y, *expected = _expected(case)
    plain = gpu.forward(x, weight, None, assignment, case.geometry)
    _assert_near(plain + bias[assignment].view(2, 6, 7, 6).permute(0, 3, 1, 2), y, case)
    for flags in ((True, False, False), (False, True, False), (False, False, True), (False, True, True)):
        parts = gpu.backward(gradient, x, weight, assignment, case.geometry, wanted=flags)
        for flag, part, full in zip(flags, parts, expected, strict=True):
            assert flag == (part is not None), flags
            if part is not None:
                _assert_near(part, full, case)


def check_the_host() -> None:
    """What is done around the launches neither reads from the device nor copies to it."""
    import triton

    from rapa_cli.kernels import gpu, gpu_draws

    launched: set[str] = set()
    triton.JITFunction.run = lambda self, *_, **__: launched.add(self.__name__)
    cases = (Case(10, 3, 32, (32, 32), 16, (5, 5)), Case(128, 32, 64, (8, 8), 1), Case(9, 3, 32, (32, 32), 128))
    for case in cases:
        x, weight, bias, _, gradient = (tensor.to(META) for tensor in case.tensors())
        ids, seed = torch.empty(2, case.batch, dtype=torch.int64, device=META)
        with (
            OnMeta(),
            mock.patch("rapa_cli.tiling.schemes.in_triton", return_value=gpu_draws),
            mock.patch("rapa_cli.philox.in_triton", return_value=gpu_draws),
        ):
            for key in (1, seed[0]):
                place = Draw(key, 3, ids, Stream.TRAIN)
                assignment = balanced_partition(place, patches=case.geometry.patches, tiles=case.tiles)
            assert gpu.forward(x, weight, bias, assignment, case.geometry).shape == gradient.shape
            gpu.backward(gradient, x, weight, assignment, case.geometry, wanted=_ALL)
    assert len(launched) == 8


def check_compiles() -> None:
    """Every kernel compiles for a GPU that need not be there."""
    from rapa_cli.kernels import gpu

    compiled = compile_only()
    assert convolution_precision() == "tf32"
    for case in (Case(4, 3, 32, (32, 32), 16, (5, 5)), Case(4, 32, 10, (16, 16), 4)):
        x, weight, bias, assignment, gradient = case.tensors()
        gpu.forward(x, weight, bias, assignment, case.geometry)
        gpu.backward(gradient, x, weight, assignment, case.geometry, wanted=_ALL)
        torch.backends.cudnn.allow_tf32 = False
        assert convolution_precision() == "ieee"
    assert len({name for name, _ in compiled}) == 6, compiled


@triton_wanted
@pytest.mark.parametrize(
    ("interpret", "checks"),
    [(True, (check_fixed, check_drawn, check_parts, check_wanted)), (False, (check_compiles, check_the_host))],
    ids=["interpreted", "compiled"],
)
def test_without_a_device(interpret: bool, checks: Sequence[Callable[[], None]], tmp_path: Path) -> None:
    run_checks(checks, interpret=interpret, cache=tmp_path)


def test_a_tensor_on_the_cpu_imports_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from rapa_cli.kernels import operator; from rapa_cli.kernels.geometry import Geometry\n"
        "x = torch.ones(1, 1, 2, 2); w = torch.ones(1, 1, 1, 1, 1); a = torch.zeros(1, 4, dtype=torch.int64)\n"
        "assert operator.tiled_conv2d(x, w, None, a, Geometry(2, 2, (1, 1))).sum() == 4\n"
        "assert operator.in_triton(x, Geometry(2, 2, (1, 1)), w) is None\n"
        "from rapa_cli.keyed import Draw; from rapa_cli.philox import Stream, in_triton\n"
        "from rapa_cli.tiling.schemes import balanced_partition\n"
        "assert balanced_partition(Draw(0, 0, a[0], Stream.TEST), patches=4, tiles=2).sum() == 8\n"
        "assert in_triton(x.device) is None\n"
    )
    environment = {**os.environ, "RAPA_KERNEL": "torch"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of whole float32 numbers, which convolutions on a GPU round to tf32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@device_wanted
@triton_wanted
@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("case", [*_FIXED, *_drawn(10), Case(64, 32, 32, (16, 16), 4, (5, 5))])
def test_equals_the_reference_on_a_device(case: Case) -> None:
    actual = _on_device(case)
    for part, expected in zip(actual, _expected(case), strict=True):
        _assert_near(part, expected, case)
    assert all(torch.equal(part, again) for part, again in zip(actual, _on_device(case), strict=True))


@device_wanted
@triton_wanted
@pytest.mark.gpu
def test_it_rounds_as_cudnn_does() -> None:
    case = Case(64, 32, 32, (16, 16), 1, (5, 5), padding=(2, 2, 2, 2))
    x, weight, bias, _, gradient = (t.cuda() for t in case.tensors())
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    cudnn = F.conv2d(leaves[0], leaves[1][0], leaves[2][0], padding=2)
    theirs = (cudnn, *torch.autograd.grad(cudnn, leaves, gradient))
    # The sum over the errors, the bias's gradient, has no products; tf32 leaves 10 bits of each factor.
    for parts in (theirs[:3], _on_device(case)[:3]):
        for part, expected in zip(parts, _expected(case), strict=False):
            error = float((part.detach().double().cpu() - expected).norm() / expected.norm())
            assert 1e-5 < error < 2**-9


@device_wanted
@triton_wanted
@pytest.mark.gpu
def test_a_step_is_captured_in_a_graph() -> None:
    case = Case(10, 3, 32, (32, 32), 16, (5, 5))
    x, weight, bias, assignment, gradient = (t.cuda() for t in case.tensors())

    def step() -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        y = tiled_conv2d(leaves[0], leaves[1], leaves[2], assignment, case.geometry)
        return y, *torch.autograd.grad(y, leaves, gradient)

    first = step()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(part, replayed) for part, replayed in zip(first, captured, strict=True))
    # Another assignment of other tile sizes runs through the same graph.
    assignment.copy_(assignment.flip(0).clamp(max=3))
    graph.replay()
    assert all(torch.equal(part, replayed) for part, replayed in zip(step(), captured, strict=True))


@device_wanted
@triton_wanted
@pytest.mark.gpu
def test_the_host_never_waits() -> None:
    case = Case(10, 32, 32, (16, 16), 4, (5, 5), empty=0.1)
    x, weight, bias, assignment, gradient = (t.cuda() for t in case.tensors())
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    with no_waiting():
        y = tiled_conv2d(leaves[0], leaves[1], leaves[2], assignment, case.geometry)
        torch.autograd.grad(y, leaves, gradient)


def _on_device(case: Case) -> tuple[Tensor, ...]:
    x, weight, bias, assignment, gradient = (t.cuda() for t in case.tensors())
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = tiled_conv2d(leaves[0], leaves[1], leaves[2], assignment, case.geometry)
    return y.detach(), *torch.autograd.grad(y, leaves, gradient)


if __name__ == "__main__":
    main(globals())
