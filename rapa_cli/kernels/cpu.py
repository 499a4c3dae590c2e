"""The tiled convolution and the drawing of partitions by the C kernels in `tiled_conv.c`; float32 on a CPU."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rapa_cli.kernels.compiled import kernels
from rapa_cli.kernels.geometry import Geometry

_COUNTS = ("batch", "patches", "tiles", "lines", "run", "out", "image", "parts", "part_images")
_POINTERS = ("line_offset", "order", "base", "start")
# Numbers of a part's images and gradients that stay in a core's second-level cache, and patches of a tile in a part
# that make up for reading its kernel matrix again.
_CACHED_NUMBERS = 1 << 17
_WORTH_READING = 96
# Numbers of kernel matrices that the cores' shared cache holds beside the rest.
_SHARED_NUMBERS = 1 << 20


class _Problem(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _COUNTS] + [(name, ctypes.c_void_p) for name in _POINTERS]


def available() -> bool:
    """Whether the kernels could be compiled and loaded."""
    return kernels().library is not None


def partition(
    key: tuple[int, int], layer: int, images: Tensor, draws: Tensor, *, patches: int, tiles: int, offset_block: int
) -> Tensor:
    """Balanced random partitions, int64 (B, patches): the same integers as the torch path of the `random` scheme.

    Args:
        key: the Philox key.
        layer: the layer's index.
        images: image ids, int64 (B,).
        draws: number of the draw for each image, int64 (B,).
        patches: of an image.
        tiles: parts.
        offset_block: block of the word that turns the labels.
    """
    images, draws = images.contiguous(), draws.contiguous()
    assignment = torch.empty(len(images), patches, dtype=torch.int64)
    failed = library().rapa_partition(
        ctypes.c_uint32(key[0]),
        ctypes.c_uint32(key[1]),
        ctypes.c_uint32(layer),
        pointer(images),
        pointer(draws),
        ctypes.c_int64(len(images)),
        ctypes.c_int64(patches),
        ctypes.c_int64(tiles),
        ctypes.c_uint32(offset_block),
        pointer(assignment),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError
    return assignment


def forward(work: Work, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution, (B, out, h, w), channels last in memory; arguments as `kernels.reference.forward`."""
    out, geometry = weight.shape[1], work.geometry
    padded, kernel = work.padded(x), _kernel_matrices(weight, work.out)
    offset = None if bias is None else filled(bias, work.out)
    rows = torch.empty if work.complete else torch.zeros
    y = rows(work.problem.batch * geometry.patches, work.out)
    library().rapa_forward(
        work.reference,
        pointer(padded),
        pointer(kernel),
        None if offset is None else pointer(offset),
        pointer(y),
        torch.get_num_threads(),
    )
    images = y.view(-1, geometry.out_height, geometry.out_width, work.out)
    return images[..., :out].contiguous().permute(0, 3, 1, 2)


def backward(
    work: Work, gradient: Tensor, x: Tensor, weight: Tensor, *, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those that are wanted; arguments as `kernels.reference.backward`."""
    threads = torch.get_num_threads()
    tiles, out, channels = weight.shape[:3]
    error = filled(gradient.permute(0, 2, 3, 1).reshape(-1, out), work.out)
    x_grad = weight_grad = bias_grad = None
    if wanted[1] or wanted[2]:
        padded = work.padded(x)
        matrices = torch.empty(tiles, *work.geometry.kernel, channels, work.out)
        sums = torch.empty(tiles, work.out) if wanted[2] else None
        failed = library().rapa_kernel_gradient(
            work.reference,
            pointer(padded),
            pointer(error),
            pointer(matrices),
            None if sums is None else pointer(sums),
            threads,
        )
        if failed:
            raise MemoryError
        weight_grad = matrices[..., :out].permute(0, 4, 3, 1, 2) if wanted[1] else None
        bias_grad = None if sums is None else sums[:, :out]
    if wanted[0]:
        total = torch.zeros(work.problem.batch, work.problem.image)
        kernel = _kernel_matrices(weight, work.out)
        # Every thread more adds to images of its own, which must not cost more than the kernel matrices save.
        by_tile = kernel.numel() > max(_SHARED_NUMBERS, total.numel() * (threads - 1))
        if library().rapa_image_gradient(
            work.reference, pointer(kernel), pointer(error), pointer(total), int(by_tile), threads
        ):
            raise MemoryError
        x_grad = work.cropped(total, channels)
    return x_grad, weight_grad, bias_grad


@dataclass
class Work:
    """What forward and backward share: the patches sorted by part and tile, and where each lies in memory."""

    problem: _Problem
    geometry: Geometry
    out: int
    complete: bool
    keep: tuple[Tensor, ...]

    @property
    def reference(self) -> Any:
        """The problem as the kernels take it."""
        return ctypes.byref(self.problem)

    @classmethod
    def of(cls, assignment: Tensor, weight: Tensor, geometry: Geometry) -> Work:
        """Sorts the patches of a batch; arguments as `kernels.reference.forward`."""
        tiles, out, channels = weight.shape[:3]
        return cls.sized(assignment, geometry, tiles=tiles, out=out, channels=channels)

    @classmethod
    def sized(cls, assignment: Tensor, geometry: Geometry, *, tiles: int, out: int, channels: int) -> Work:
        """Sorts the patches of a batch for matrices of these sizes."""
        width = _vector_width()
        batch, patches = assignment.shape
        padded_out = -(-out // width) * width
        lines, patch_offset, run, image = _offsets(geometry, channels)
        part = _part_images(batch, patches, tiles, image + patches * padded_out)
        parts = -(-batch // part)
        order = torch.empty(batch * patches, dtype=torch.int32)
        base = torch.empty(batch * patches, dtype=torch.int32)
        start = torch.empty(parts * tiles + 1, dtype=torch.int64)
        assignment = assignment.contiguous()
        total = library().rapa_sort(
            pointer(assignment),
            ctypes.c_int64(batch),
            ctypes.c_int64(patches),
            ctypes.c_int64(tiles),
            ctypes.c_int64(part),
            pointer(patch_offset),
            ctypes.c_int64(image),
            pointer(order),
            pointer(base),
            pointer(start),
            torch.get_num_threads(),
        )
        problem = _Problem(
            batch, patches, tiles, len(lines), run, padded_out, image, parts, part,
            lines.data_ptr(), order.data_ptr(), base.data_ptr(), start.data_ptr(),
        )  # fmt: skip
        return cls(problem, geometry, padded_out, total == batch * patches, (lines, order, base, start))

    def padded(self, x: Tensor, images: slice = slice(None)) -> Tensor:
        """Images channels last with their padding, (B, image); others than these are left unwritten."""
        plain = x[images].permute(0, 2, 3, 1).contiguous()
        padded = torch.empty(len(x), self.problem.image)
        self._pad(plain, padded[images], x.shape[1], back=False)
        return padded

    def cropped(self, padded: Tensor, channels: int) -> Tensor:
        """Images (B, C, H, W), channels last in memory, without their padding."""
        plain = torch.empty(len(padded), self.geometry.in_height, self.geometry.in_width, channels)
        self._pad(plain, padded, channels, back=True)
        return plain.permute(0, 3, 1, 2)

    def _pad(self, plain: Tensor, padded: Tensor, channels: int, *, back: bool) -> None:
        geometry = self.geometry
        numbers = (
            len(plain),
            geometry.in_height,
            geometry.in_width * channels,
            geometry.padded_width * channels,
            geometry.padding[0],
            geometry.padding[2] * channels,
            self.problem.image,
        )
        library().rapa_pad(
            pointer(plain), pointer(padded), *map(ctypes.c_int64, numbers), int(back), torch.get_num_threads()
        )


def _part_images(batch: int, patches: int, tiles: int, image_numbers: int) -> int:
    """Images of a part: few enough for the cache, enough for a tile to be worth reading, and work for all threads."""
    cached = _CACHED_NUMBERS // image_numbers
    filling = -(-_WORTH_READING * tiles // patches)
    threads = torch.get_num_threads()
    most = batch if tiles >= 4 * threads else -(-batch // threads)
    return max(min(max(cached, filling), most), 1)


def fits(x: Tensor, geometry: Geometry) -> bool:
    """Whether the padded images can be counted with the kernels' 32-bit offsets."""
    return len(x) * max(_offsets(geometry, x.shape[1])[3], geometry.patches) < 2**31


@functools.lru_cache(maxsize=64)
def _offsets(geometry: Geometry, channels: int) -> tuple[Tensor, Tensor, int, int]:
    """Offsets of a patch's runs and of the patches in a padded image, the length of a run, and of an image."""
    (kh, kw), (dh, dw), (sh, sw) = geometry.kernel, geometry.dilation, geometry.stride
    row = geometry.padded_width * channels
    y = torch.arange(kh) * dh * row
    if dw == 1:
        lines, run = y, kw * channels
    else:
        lines, run = (y[:, None] + torch.arange(kw) * dw * channels).reshape(-1), channels
    patches = (torch.arange(geometry.out_height) * sh * row)[:, None] + torch.arange(geometry.out_width) * sw * channels
    return lines, patches.reshape(-1).to(torch.int32), run, geometry.padded_height * row + _vector_width()


def _kernel_matrices(weight: Tensor, out: int) -> Tensor:
    """Kernel matrices (tiles, k, out) with k ordered (kh, kw, C), filled with zeros to `out` channels."""
    return filled(weight.permute(0, 3, 4, 2, 1), out)


def filled(values: Tensor, out: int) -> Tensor:
    """Contiguous, the last dimension filled with zeros to `out`."""
    missing = out - values.shape[-1]
    return torch.nn.functional.pad(values, (0, missing)) if missing else values.contiguous()


@functools.cache
def _vector_width() -> int:
    return int(library().rapa_vector_width())


def library() -> ctypes.CDLL:
    """The compiled kernels, where `available` says that there are any."""
    loaded = kernels().library
    assert loaded is not None
    return loaded


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Where a tensor's numbers lie."""
    return ctypes.c_void_p(tensor.data_ptr())
