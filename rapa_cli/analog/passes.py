"""Reading and updating arrays patch by patch by the C kernels in `kernels/analog_conv.c`; float32 on a CPU.

What `periphery` and `merged` define for a matrix of vectors, these passes compute for the patches of images, without
that matrix. Where they do not serve (`supports`, `supports_update`) the torch path does. Noise has the same law on both
paths but not the same numbers: here every Gaussian is a function of a key and of its place, so that a patch gets the
same noise in any batch and with any number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rapa_cli.analog.merged import MERGEABLE, Moments
from rapa_cli.analog.parameters import (
    BoundManagement,
    IOParameters,
    NoiseManagement,
    ProductType,
    UpdateParameters,
    WeightNoise,
    step_of,
)
from rapa_cli.kernels.cpu import Work, available, filled, library, pointer

# The kernels' numbers of what they know.
_DIVISORS = {
    NoiseManagement.NONE: 0,
    NoiseManagement.CONSTANT: 0,
    NoiseManagement.ABS_MAX: 1,
    NoiseManagement.MAX: 2,
}
_WEIGHT_NOISE = {WeightNoise.NONE: 0, WeightNoise.ADDITIVE_CONSTANT: 1, WeightNoise.PCM_READ: 2}
# The number of a reading has six bits in the key of its noise.
_READINGS = 60
# Levels beyond 2^22 would not be rounded.
_LEVELS = 2.0**21
_KEY_BITS = 16
# Rows of transposed matrices are this many numbers apart, times an odd number.
_CACHE_LINE = 16


@dataclass(frozen=True)
class NoiseKey:
    """Whose noise: every Gaussian is a pure function of this and of its place.

    Attributes:
        key: the Philox key, as `philox.key_of` makes it: two numbers below 2^32 and 2^16.
        layer: the layer's number in its network.
        images: image ids, int64 (B,).
        draws: number of the draw for each image, int64 (B,).

    Raises:
        ValueError: a key or a layer that is out of range.
    """

    key: tuple[int, int]
    layer: int
    images: Tensor
    draws: Tensor

    def __post_init__(self) -> None:
        allowed = (2**32, 2**_KEY_BITS)
        if not all(0 <= half < limit for half, limit in zip(self.key, allowed, strict=True)):
            raise ValueError(f"key: got {self.key}, allowed are numbers from 0 below {allowed}")
        if not 0 <= self.layer < 2**32:
            raise ValueError(f"layer: got {self.layer}, allowed are whole numbers from 0 below {2**32}")


def supports(io: IOParameters, state: Mapping[str, Tensor], *, forward: bool) -> bool:
    """Whether these passes can take the place of `Periphery.read`; else the caller takes the torch path.

    Args:
        io: the periphery's parameters.
        state: its tensors, as `Periphery.draw` makes them.
        forward: whether the reading is a forward one; bound management is off in others.
    """
    managed = (BoundManagement.NONE, BoundManagement.ITERATIVE)
    steps = ((io.inp_step, io.inp_bound), (io.out_step, io.out_bound))
    return (
        available()
        and not io.is_perfect
        and not state
        and io.mv_type is ProductType.ONE_PASS
        and not (io.inp_sto_round or io.out_sto_round or io.inp_asymmetry or io.out_asymmetry)
        and not (io.v_offset_std or io.r_series or io.out_nonlinearity or io.slope_calibration or io.out_noise_std)
        and io.noise_management in _DIVISORS
        and (not forward or io.bound_management in managed)
        and all(step <= 0 or bound / step <= _LEVELS for step, bound in steps)
    )


def supports_update(update: UpdateParameters) -> bool:
    """Whether `moments` can take the place of `merged.moments`."""
    step = step_of(update.res)
    return available() and update.pulse_type in MERGEABLE and not update.sto_round and (step <= 0 or step > 1 / _LEVELS)


def forward(
    work: Work, x: Tensor, weights: Tensor, io: IOParameters, key: NoiseKey, *, bias_line: bool
) -> tuple[Tensor, Tensor | None]:
    """Reads every patch with the array of its tile, as `Periphery.read` does.

    Args:
        work: the batch's patches, sorted.
        x: images (B, C, H, W).
        weights: (tiles, out, lines) with lines ordered (kh, kw, C), after them the bias line if there is one.
        io: the periphery, one that is supported.
        key: for the noise of reading.
        bias_line: whether the last line is one whose input is always 1.

    Returns:
        Outputs (B, out, h, w), channels last in memory, 0 where no tile computes a patch; and uint8 (B n_p, out), 1
        where the ADC clipped in the last reading of a patch, or None where it did so nowhere.
    """
    out, lines = weights.shape[1:]
    geometry, batch = work.geometry, len(x)
    padded = work.padded(x)
    matrices = filled(weights.transpose(1, 2), work.out)
    array = _Array(io, matrices, (lines, out), key, backward=False)
    rows = (torch.empty if work.complete else torch.zeros)(batch * geometry.patches, out)
    # Memory from numpy takes no time before the first output clips.
    clipped = torch.from_numpy(np.zeros((batch * geometry.patches, out), dtype=np.uint8))
    outcome = library().rapa_analog_forward(
        work.reference,
        array.reference,
        pointer(padded),
        ctypes.c_int64(bias_line),
        pointer(rows),
        pointer(clipped),
        torch.get_num_threads(),
    )
    if outcome < 0:
        raise MemoryError
    y = rows.view(batch, geometry.out_height, geometry.out_width, out).permute(0, 3, 1, 2)
    return y, clipped if outcome else None


def backward(
    work: Work,
    d: Tensor,
    weights: Tensor,
    io: IOParameters,
    key: NoiseKey,
    *,
    channels: int,
    bias_line: bool,
    clipped: Tensor | None,
) -> Tensor:
    """Reads the transposed product for every patch and adds what comes out to its pixels.

    Args:
        work: the batch's patches, sorted.
        d: gradients of the outputs (B, out, h, w).
        weights: as for `forward`; what comes out of the bias line is dropped.
        io: the periphery of backward readings, one that is supported; bound management is off.
        key: for the noise of reading; forward readings with the same key have other numbers.
        channels: C.
        bias_line: whether the last line is the bias line.
        clipped: what `forward` returned: these outputs pass no gradient.

    Returns:
        Gradients of the images (B, C, H, W), channels last in memory.
    """
    out, lines = weights.shape[1], weights.shape[2] - bias_line
    rows = d.permute(0, 2, 3, 1).contiguous()
    apart = (-(-lines // _CACHE_LINE) | 1) * _CACHE_LINE
    matrices = filled(weights[:, :, :lines], apart)
    array = _Array(io, matrices, (out, lines), key, backward=True)
    total = torch.empty(work.problem.batch, work.problem.image)
    failed = library().rapa_analog_backward(
        work.reference,
        array.reference,
        pointer(rows),
        None if clipped is None else pointer(clipped),
        pointer(total),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError
    return work.cropped(total, channels)


def moments(
    work: Work,
    x: Tensor,
    d: Tensor,
    lr: float,
    granularity: float,
    update: UpdateParameters,
    *,
    bias_line: bool,
    chunk: tuple[int, int] = (0, 1),
) -> Moments:
    """Means and variances of the pulses from all patches, as `merged.moments` finds them; the same for all threads.

    Args:
        work: the batch's patches, sorted.
        x: images (B, C, H, W).
        d: gradients of the outputs (B, out, h, w), not masked.
        lr: learning rate, 0 or more.
        granularity: the size of one step.
        update: its parameters, those of an update that is supported.
        bias_line: whether the arrays have a line whose input is always 1.
        chunk: (i, n) takes the i-th of n parts of the batch: patches number B n_p i // n to B n_p (i + 1) // n.

    Returns:
        Moments (tiles, out, lines).

    Raises:
        ValueError: there is no such chunk.
    """
    index, chunks = chunk
    if not 0 <= index < chunks:
        raise ValueError(f"chunk: got {chunk}, allowed are (i, n) with i from 0 to n - 1")
    problem, out = work.problem, d.shape[1]
    lines = problem.lines * problem.run + bias_line
    shape = (4, problem.tiles, out, lines)
    total = problem.batch * problem.patches
    first, last = total * index // chunks, total * (index + 1) // chunks
    if lr <= 0 or first == last:
        return Moments(*torch.zeros(shape))
    results = Moments(*torch.empty(shape))
    images = slice(first // problem.patches, -(-last // problem.patches))
    padded, rows = work.padded(x, images), d.permute(0, 2, 3, 1).contiguous()
    trains = _Update.of(lr, granularity, update)
    failed = library().rapa_analog_moments(
        work.reference,
        ctypes.byref(trains),
        pointer(padded),
        pointer(rows),
        *map(ctypes.c_int64, (first, last, lines, bias_line, out)),
        *map(pointer, results),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError
    return results


class _IO(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_float)
            for name in (
                *("constant", "threshold"),
                *("inp_inverse", "inp_step", "inp_bound", "inp_noise"),
                *("out_inverse", "out_step", "out_bound", "out_noise"),
                *("out_scale", "w_noise", "ir_drop", "ir_current"),
            )
        ),
        *(
            (name, ctypes.c_int32)
            for name in ("management", "w_noise_type", "negative_too", "passes", "reads_zeros", "backward")
        ),
        *((name, ctypes.c_uint32) for name in ("key0", "key1", "layer", "unused")),
        *((name, ctypes.c_void_p) for name in ("images", "draws")),
    ]


class _Matrices(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("io", "plain", "magnitude", "dropped")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "stride")),
    ]


class _Array:
    """One direction of reading as the kernels take it, and what must live as long.

    Args:
        io: the periphery.
        plain: matrices (tiles, inputs, stride), outputs filled up with zeros.
        sizes: inputs and outputs.
        key: for the noise.
        backward: the direction.
    """

    def __init__(
        self, io: IOParameters, plain: Tensor, sizes: tuple[int, int], key: NoiseKey, *, backward: bool
    ) -> None:
        inputs, outputs = sizes
        images, draws = key.images.contiguous(), key.draws.contiguous()
        noisy = _WEIGHT_NOISE[io.w_noise_type] if io.w_noise > 0 else 0
        magnitude = plain.abs() if noisy == _WEIGHT_NOISE[WeightNoise.PCM_READ] or io.ir_drop > 0 else None
        dropped = None
        if io.ir_drop > 0:
            remaining = 1 - torch.arange(inputs, dtype=torch.float32) / inputs
            dropped = plain * (1 - remaining**2)[:, None]
        constant = io.noise_management is NoiseManagement.CONSTANT and io.nm_thres > 0
        parameters = _IO(
            constant=io.nm_thres if constant else 1.0,
            threshold=io.nm_thres if io.nm_thres > 0 else torch.inf,
            inp_inverse=_inverse(io.inp_step),
            inp_step=io.inp_step,
            inp_bound=io.inp_bound if io.inp_bound > 0 else torch.inf,
            inp_noise=io.inp_noise,
            out_inverse=_inverse(io.out_step),
            out_step=io.out_step,
            out_bound=io.out_bound if io.out_bound > 0 else torch.inf,
            out_noise=io.out_noise,
            out_scale=io.out_scale,
            w_noise=io.w_noise,
            ir_drop=io.ir_drop,
            ir_current=inputs / io.ir_drop_g_ratio,
            management=_DIVISORS[io.noise_management],
            w_noise_type=noisy,
            negative_too=io.bm_test_negative_bound,
            passes=1 if backward else _readings(io),
            reads_zeros=io.inp_noise > 0 and not backward,
            backward=backward,
            key0=key.key[0],
            key1=key.key[1],
            layer=key.layer,
            images=images.data_ptr(),
            draws=draws.data_ptr(),
        )
        self._matrices = _Matrices(
            io=ctypes.addressof(parameters),
            plain=plain.data_ptr(),
            magnitude=None if magnitude is None else magnitude.data_ptr(),
            dropped=None if dropped is None else dropped.data_ptr(),
            inputs=inputs,
            outputs=outputs,
            stride=plain.shape[2],
        )
        self._keep = (parameters, plain, magnitude, dropped, images, draws)
        self.reference = ctypes.byref(self._matrices)


def _readings(io: IOParameters) -> int:
    """How often bound management reads a vector at most."""
    if io.bound_management is BoundManagement.NONE:
        return 1
    readings = 1
    while readings < _READINGS:
        reduction = 2 ** (readings - 1)
        if reduction > io.max_bm_factor or (io.inp_step > 0 and reduction > io.max_bm_res / io.inp_step):
            break
        readings += 1
    return readings


def _inverse(step: float) -> float:
    """One over the step as a kernel holds it, 0 where there is none."""
    return 1 / ctypes.c_float(step).value if step > 0 else 0.0


class _Update(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_float) for name in ("rate", "granularity", "a", "grad_scale", "inverse", "step")),
        *((name, ctypes.c_int32) for name in ("managed", "bl_managed", "slots", "desired")),
    ]

    @classmethod
    def of(cls, lr: float, granularity: float, update: UpdateParameters) -> _Update:
        """The part of `update.scales` that is the same for all pairs."""
        rate, g = torch.tensor(lr), torch.tensor(granularity)
        slots, a, step = update.desired_bl, None, step_of(update.res)
        if not (update.fixed_bl or update.update_bl_management) and granularity * slots < lr:
            slots, a = max(int(torch.ceil(rate / g)), 1), 1.0
        return cls(
            rate=lr,
            granularity=granularity,
            a=float(torch.sqrt(rate / (g * slots))) if a is None else a,
            grad_scale=update.um_grad_scale,
            inverse=_inverse(step),
            step=step,
            managed=update.update_management or update.update_bl_management,
            bl_managed=update.update_bl_management,
            slots=slots,
            desired=update.desired_bl,
        )
