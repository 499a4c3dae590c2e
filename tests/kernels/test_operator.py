"""The tiled convolution by each kernel, in sizes that fill vectors, blocks and parts, against the definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rapa_cli import TiledConv2d
from rapa_cli.kernels import cpu, operator
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.kernels.operator import tiled_conv2d
from tests.tiling import oracles
from tests.tolerances import assert_near


@dataclass(frozen=True)
class Sizes:
    batch: int
    channels: int
    out: int
    side: int
    tiles: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: int = 1
    dilation: tuple[int, int] = (1, 1)


SIZES = [
    # The paper's layers, on fewer images.
    Sizes(3, 3, 32, 32, 16, (5, 5), padding=2),
    Sizes(3, 32, 32, 16, 4, (5, 5), padding=2),
    Sizes(3, 32, 64, 8, 1, (5, 5), padding=2),
    # Kernel matrices that are more than a cache holds.
    Sizes(2, 32, 64, 8, 64, (5, 5), padding=2),
    # Output channels around the widths of vectors, channels that make runs of any length.
    *[Sizes(2, channels, out, 6, 3) for channels, out in itertools.product((1, 7, 17), (1, 15, 16, 17, 31, 33, 48))],
    # More tiles than a block has patches, and many images for each.
    Sizes(1, 2, 5, 12, 144),
    Sizes(40, 1, 3, 4, 16),
    Sizes(33, 2, 4, 1, 1, (1, 1), padding=0),
    Sizes(5, 3, 20, 11, 7, (3, 2), (2, 3), 2, (2, 1)),
    Sizes(5, 3, 20, 11, 7, (2, 5), (1, 1), 1, (1, 2)),
]


@pytest.fixture(params=["c", "operator", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "torch":
        monkeypatch.setattr(cpu, "available", lambda: False)
    elif not cpu.available():
        pytest.skip("the C kernels could not be compiled here; `rapa doctor` says why")
    if name == "operator":
        monkeypatch.setattr(operator, "_past_operator", lambda *_: False)
    return name


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _problem(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor, Geometry]:
    torch.manual_seed(0)
    x = torch.randn(sizes.batch, sizes.channels, sizes.side, sizes.side, requires_grad=True)
    weight = torch.randn(sizes.tiles, sizes.out, sizes.channels, *sizes.kernel, requires_grad=True)
    bias = torch.randn(sizes.tiles, sizes.out, requires_grad=True)
    margins = (sizes.padding,) * 4
    return x, weight, bias, Geometry(sizes.side, sizes.side, sizes.kernel, sizes.stride, margins, sizes.dilation)


def _assignments(sizes: Sizes, patches: int) -> dict[str, Tensor]:
    shape = (sizes.batch, patches)
    even = torch.stack([torch.randperm(patches) * sizes.tiles // patches for _ in range(sizes.batch)])
    return {
        "even": even,
        "most to one tile": torch.where(torch.rand(shape) < 0.05, even, 0),
        "some left out": torch.where(torch.rand(shape) < 0.3, even, -1),
        "whole images left out": torch.where(torch.arange(sizes.batch)[:, None] % 2 == 0, even, -1),
    }


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_kernels_follow_the_definition(path: str, sizes: Sizes) -> None:
    x, weight, bias, geometry = _problem(sizes)
    inputs = (x, weight, bias)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for assignment in _assignments(sizes, geometry.patches).values():
        found = tiled_conv2d(x, weight, bias, assignment, geometry)
        padding = (sizes.padding, sizes.padding)
        expected = oracles.tiled(exact[0], exact[1], exact[2], assignment, sizes.stride, padding, sizes.dilation)
        assert_near(found, expected.float())
        left_out = (assignment < 0).view(sizes.batch, 1, geometry.out_height, geometry.out_width).expand_as(found)
        assert not found[left_out].any()
        towards = torch.randn_like(found)
        gradients = torch.autograd.grad(found, inputs, towards)
        for one, other in zip(gradients, torch.autograd.grad(expected, exact, towards.double()), strict=True):
            assert_near(one, other.float())


@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[3], SIZES[-2]], ids=str)
def test_threads_change_rounding_at_most(path: str, threads: None, sizes: Sizes) -> None:
    x, weight, bias, geometry = _problem(sizes)
    assignment = _assignments(sizes, geometry.patches)["some left out"]

    def results(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        output = tiled_conv2d(x, weight, bias, assignment, geometry)
        return [output, *torch.autograd.grad(output.square().sum(), (x, weight, bias))]

    single = results(1)
    for count in (1, 2, 3):
        one, other = results(count), results(count)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for a, b in zip(one, single, strict=True):
            assert_near(a, b)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3))[:-1])
def test_each_gradient_is_given_to_its_own_input(path: str, wanted: tuple[bool, bool, bool]) -> None:
    sizes = Sizes(4, 3, 5, 6, 5)
    x, weight, bias, geometry = _problem(sizes)
    assignment = _assignments(sizes, geometry.patches)["even"]
    every = torch.autograd.grad(tiled_conv2d(x, weight, bias, assignment, geometry).square().sum(), (x, weight, bias))
    inputs = [t.detach().requires_grad_(flag) for t, flag in zip((x, weight, bias), wanted, strict=True)]
    output = tiled_conv2d(inputs[0], inputs[1], inputs[2], assignment, geometry)
    torch.autograd.backward(output.square().sum())
    for tensor, flag, expected in zip(inputs, wanted, every, strict=True):
        assert (tensor.grad is not None) is flag
        if tensor.grad is not None:
            assert_near(tensor.grad, expected)


def test_without_bias(path: str) -> None:
    sizes = Sizes(4, 3, 5, 6, 5)
    x, weight, bias, geometry = _problem(sizes)
    assignment = _assignments(sizes, geometry.patches)["some left out"]
    output = tiled_conv2d(x, weight, None, assignment, geometry)
    expected = tiled_conv2d(x, weight, torch.zeros_like(bias), assignment, geometry)
    assert_near(output, expected)
    gradients = (torch.autograd.grad(y.square().sum(), (x, weight)) for y in (output, expected))
    for one, other in zip(*gradients, strict=True):
        assert_near(one, other)


def test_inputs_are_left_as_they_are(path: str) -> None:
    sizes = Sizes(4, 3, 5, 6, 5)
    x, weight, bias, geometry = _problem(sizes)
    assignment = _assignments(sizes, geometry.patches)["some left out"]
    inputs = (x, weight, bias, assignment)
    before = [tensor.detach().clone() for tensor in inputs]
    output = tiled_conv2d(x, weight, bias, assignment, geometry)
    towards = torch.randn_like(output)
    kept = towards.clone()
    torch.autograd.backward(output, towards)
    assert torch.equal(towards, kept)
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))


@pytest.mark.parametrize("out", [5, 16])
def test_the_operator_is_what_it_says_it_is(path: str, out: int) -> None:
    sizes = Sizes(2, 3, out, 6, 5)
    x, weight, bias, geometry = _problem(sizes)
    assignment = _assignments(sizes, geometry.patches)["even"]
    numbers = [6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs = (x, weight, bias, assignment, numbers)
    torch.library.opcheck(torch.ops.rapa.tiled_conv2d.default, inputs, test_utils=checks)
    # Gradients as they come: dense, of a transposed tensor, and of one number for all.
    gradients = (torch.randn(2, out, 6, 6), torch.randn(2, out, 6, 6).mT, torch.ones(1, 1, 1, 1).expand(2, out, 6, 6))
    for gradient in gradients:
        for wanted in ([True, True, True], [False, True, True], [True, False, False], [False, False, True]):
            backward = (gradient, x.detach(), weight.detach(), assignment, numbers, wanted)
            torch.library.opcheck(torch.ops.rapa.tiled_conv2d_backward.default, backward, test_utils=checks)


def test_exported_and_compiled_networks_see_one_operator() -> None:
    layer = TiledConv2d(3, 18, 3, padding=1, tiles=4).eval()
    x = torch.randn(2, 3, 8, 8)
    assignment = layer.assign(2, (8, 8))
    expected = layer(x, assignment)
    exported = torch.export.export(layer, (x, assignment))
    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert torch.ops.rapa.tiled_conv2d.default in called
    assert_near(exported.module()(x, assignment), expected)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_near(compiled(x, assignment), expected)


@pytest.mark.parametrize("way", ["C", "operator", "mixed precision"])
def test_what_follows_may_work_in_place(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "operator":
        monkeypatch.setattr(operator, "_past_operator", lambda *_: False)
    torch.manual_seed(0)
    layer, x = TiledConv2d(3, 8, 3, padding=1, tiles=4), torch.rand(2, 3, 8, 8)
    assignment = layer.assign(2, (8, 8))
    gradients = []
    for inplace in (True, False):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "mixed precision"):
            torch.nn.functional.relu(layer(x, assignment), inplace=inplace).sum().backward()  # type: ignore[no-untyped-call]
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)


def test_mixed_precision_leaves_tiles_in_float32() -> None:
    layer, x = TiledConv2d(3, 8, 3, padding=1, tiles=4), torch.rand(2, 3, 8, 8).to(torch.bfloat16)
    assignment = layer.assign(2, (8, 8))
    given = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(given, assignment)
        # Also where the way back is inside.
        found.sum().backward()
    assert found.dtype == torch.float32
    assert layer.weight.grad is not None
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    expected = layer(x.float(), assignment)
    expected.sum().backward()
    assert torch.equal(found, expected)
    assert torch.equal(gradient, layer.weight.grad)
    assert given.grad is not None
    assert given.grad.dtype == torch.bfloat16
