"""The tiled convolution as one torch operator, and the choice of the kernel that computes it.

In float32 the C kernels serve on a CPU where they could be compiled, and the Triton kernels on a CUDA device where
Triton is installed; everywhere else the reference in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rapa_cli.kernels import cpu, reference
from rapa_cli.kernels.cuda import triton_serves
from rapa_cli.kernels.geometry import Geometry


def tiled_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    geometry: Geometry,
) -> Tensor:
    """Convolves each patch with the kernel matrix of its tile (paper, section 2).

    Args:
        x: images (B, C, H, W).
        weight: kernels (tiles, out, C, kh, kw).
        bias: (tiles, out) or None.
        assignment: int64 (B, n_p), values in [0, tiles); where -1 the output is 0.
        geometry: of the convolution, for images of this size.

    Returns:
        (B, out, h, w), channels last in memory. Gradients flow to x, weight and bias, once.
    """
    if _past_operator(x, weight, bias, geometry):
        direct: Tensor = _Direct.apply(x, weight, bias, assignment, geometry)
        return direct
    output: Tensor = _forward(x, weight, bias, assignment, _numbers(geometry))
    return output


def _past_operator(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> bool:
    """Whether the C kernels are called without the operator: not where a graph is traced."""
    # In float32, as all of them are then, mixed precision changes nothing.
    return not torch.compiler.is_compiling() and len(x) > 0 and in_c(x, weight, bias) and cpu.fits(x, geometry)


class _Direct(torch.autograd.Function):
    """The C kernels without the operator around them, which costs as much as they do on a small batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, assignment: Tensor, geometry: Geometry
    ) -> Tensor:
        ctx.work = cpu.Work.of(assignment, weight, geometry)
        ctx.save_for_backward(x, weight)
        return reference.no_view(cpu.forward(ctx.work, x, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        return (*cpu.backward(ctx.work, gradients[0], x, weight, wanted=wanted), None, None)


def in_c(*tensors: Tensor | None) -> bool:
    """Whether the C kernels can serve: float32 on a CPU, and compiled."""
    return all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors) and cpu.available()


def in_triton(x: Tensor, geometry: Geometry, *others: Tensor | None) -> ModuleType | None:
    """The Triton kernels where they can serve, else None."""
    if not all(t is None or (t.is_cuda and t.dtype == torch.float32) for t in (x, *others)):
        return None
    if not triton_serves(x.device):
        return None
    from rapa_cli.kernels import gpu

    return gpu if gpu.fits(x, geometry) else None


@torch.library.custom_op("rapa::tiled_conv2d", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    geometry: Sequence[int],
) -> Tensor:
    shape = geometry_of(geometry)
    if len(x) and in_c(x, weight, bias) and cpu.fits(x, shape):
        output = cpu.forward(cpu.Work.of(assignment, weight, shape), x, weight, bias)
    elif len(x) and (gpu := in_triton(x, shape, weight, bias)):
        output = gpu.forward(x, weight, bias, assignment, shape)
    else:
        output = reference.forward(x, weight, bias, assignment, shape)
    return reference.no_view(_as_images(output))


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    assignment: Tensor,
    geometry: Sequence[int],
) -> Tensor:
    shape = geometry_of(geometry)
    size = (x.shape[0], shape.out_height, shape.out_width, weight.shape[1])
    return x.new_empty(size).permute(0, 3, 1, 2)


@torch.library.custom_op("rapa::tiled_conv2d_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    assignment: Tensor,
    geometry: Sequence[int],
    wanted: Sequence[bool],
) -> list[Tensor]:
    shape, flags = geometry_of(geometry), (wanted[0], wanted[1], wanted[2])
    if len(x) and in_c(gradient, x, weight) and cpu.fits(x, shape):
        gradients = cpu.backward(cpu.Work.of(assignment, weight, shape), gradient, x, weight, wanted=flags)
    elif len(x) and (gpu := in_triton(x, shape, gradient, weight)):
        gradients = gpu.backward(gradient, x, weight, assignment, shape, wanted=flags)
    else:
        gradients = reference.backward(gradient, x, weight, assignment, shape, wanted=flags)
    layouts: tuple[Callable[[Tensor], Tensor], ...] = (_as_images, _as_matrices, Tensor.contiguous)
    return [layout(part) for layout, part in zip(layouts, gradients, strict=True) if part is not None]


@_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    assignment: Tensor,
    geometry: Sequence[int],
    wanted: Sequence[bool],
) -> list[Tensor]:
    batch, channels, height, width = x.shape
    tiles, out, _, kh, kw = weight.shape
    parts = (
        x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2),
        weight.new_empty(tiles, kh, kw, channels, out).permute(0, 4, 3, 1, 2),
        weight.new_empty(tiles, out),
    )
    return [part for part, flag in zip(parts, wanted, strict=True) if flag]


def _as_images(images: Tensor) -> Tensor:
    """Channels last and dense in memory, as the operator says of its results before they are computed."""
    return images.contiguous(memory_format=torch.channels_last)


def _as_matrices(weight: Tensor) -> Tensor:
    """Each tile a dense matrix (kh kw in, out), likewise."""
    return weight.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, assignment, geometry = inputs
    ctx.save_for_backward(x, weight, assignment)
    ctx.geometry = geometry


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, assignment = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    parts = iter(_backward(gradient, x, weight, assignment, ctx.geometry, wanted) if any(wanted) else ())
    return (*(next(parts) if flag else None for flag in wanted), None, None)


torch.library.register_autograd("rapa::tiled_conv2d", _gradients, setup_context=_setup)


# Mixed precision leaves tiles in float32, as the kernels are.
for _device in ("cpu", "cuda"):
    for _operator in ("rapa::tiled_conv2d", "rapa::tiled_conv2d_backward"):
        torch.library.register_autocast(_operator, _device, torch.float32)


def _numbers(geometry: Geometry) -> list[int]:
    size = (geometry.in_height, geometry.in_width)
    return [*size, *geometry.kernel, *geometry.stride, *geometry.padding, *geometry.dilation]


def geometry_of(n: Sequence[int]) -> Geometry:
    """The geometry that the operator `rapa::tiled_conv2d` was given as numbers."""
    return Geometry(n[0], n[1], (n[2], n[3]), (n[4], n[5]), (n[6], n[7], n[8], n[9]), (n[10], n[11]))
