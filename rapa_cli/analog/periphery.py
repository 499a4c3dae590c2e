"""Reading an array: DAC, product, the non-idealities of lines and devices, ADC, and the management of ranges.

The model is that of aihwkit's RPUCuda: each vector on its own goes through noise management, converters and bound
management. A bank of tiles is read at once, its vectors in the order of their tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rapa_cli.analog.noise import drawn, gauss, rounded
from rapa_cli.analog.parameters import (
    BoundManagement,
    Compat,
    IOParameters,
    NoiseManagement,
    ProductType,
    WeightNoise,
)

# What AVERAGE_ABS_MAX forgets with each vector, and the weights that ABS_MAX_NP_SUM expects.
_FORGETTING = 1e-3
_EXPECTED_W_MAX = 0.6


class Reading(NamedTuple):
    """What a bank answers.

    Attributes:
        values: (N, out), in the units of inputs times weights.
        clipped: bool (N, out), whether the ADC clipped the value in the last reading.
        seen: (N, in), the inputs, cut to what the DAC could give in it.
    """

    values: Tensor
    clipped: Tensor
    seen: Tensor


class Periphery:
    """What lies around the arrays of a bank in one direction of reading.

    Args:
        io: its parameters.
        state: named tensors as `Periphery.draw` makes them; the running divisor changes in place.
    """

    def __init__(self, io: IOParameters, state: dict[str, Tensor]) -> None:
        self.io, self.state = io, state

    def quiet(self) -> Periphery:
        """The same periphery without anything random; the running divisor is shared."""
        return Periphery(self.io.quiet(), {name: values for name, values in self.state.items() if name != "out_noise"})

    @staticmethod
    def draw(
        io: IOParameters, shape: tuple[int, int, int], generator: torch.Generator, place: torch.device
    ) -> dict[str, Tensor]:
        """Draws what is fixed for each line and device.

        Args:
            io: the parameters.
            shape: tiles, output lines and input lines in the direction of reading.
            generator: for the spreads.
            place: torch's device of the arrays.

        Returns:
            Those that the parameters ask for: `v_offset`, `out_nonlinearity`, `out_noise` of shape (tiles, out),
            `w_asymmetry` (tiles, out, in), and `nm_average` (tiles,), the running divisor of AVERAGE_ABS_MAX, -1
            before the first vector and changed by every reading.
        """
        state: dict[str, Tensor] = {}
        if io.is_perfect:
            return state
        lines = shape[:2]
        if io.v_offset_std > 0 or io.r_series > 0:
            state["v_offset"] = drawn(lines, 0.0, io.v_offset_std, generator, place).clamp_min_(0)
        if io.out_nonlinearity > 0 or io.slope_calibration > 0:
            strength = io.out_nonlinearity / (io.out_bound if io.out_bound > 0 else 1.0)
            state["out_nonlinearity"] = (strength * drawn(lines, 1.0, io.out_nonlinearity_std, generator, place)).abs()
        if io.out_noise_std > 0:
            state["out_noise"] = (io.out_noise * drawn(lines, 1.0, io.out_noise_std, generator, place)).abs()
        if io.w_read_asymmetry_dtod > 0:
            state["w_asymmetry"] = drawn(shape, 1.0, io.w_read_asymmetry_dtod, generator, place)
        if io.noise_management is NoiseManagement.AVERAGE_ABS_MAX:
            state["nm_average"] = torch.full(lines[:1], -1.0, device=place)
        return state

    def read(
        self,
        weights: Tensor,
        x: Tensor,
        sizes: Sequence[int],
        generator: torch.Generator,
        *,
        bound_management: bool = True,
        compat: Compat = None,
    ) -> Reading:
        """Multiplies each vector with the matrix of its tile, as the hardware does (aihwkit's `forwardVector`).

        For each vector: alpha from the noise management; then with r = 1, 2, 4, ... the DAC's output
        u = clip(round(x / (alpha r))), v = W u with the non-idealities, the ADC's output clip(round(v + noise)),
        until none of the vector's outputs exceeds the bound or r exceeds its limits; the result is v alpha r.
        The noise after this rescaling is `out_noise` alpha r: it grows with the vector's largest input.
        A vector that noise management divides by 0 or less gives exactly 0.

        Args:
            weights: (tiles, out, in) as they are read.
            x: vectors (N, in), those of the first tile first.
            sizes: how many of them each tile has, `tiles` numbers that sum to N.
            generator: for all noise of this reading.
            bound_management: whether it applies; never in backward readings.
            compat: "torch" joins the bound management of all vectors, as aihwkit's torch tile does.

        Returns:
            Values and what was clipped.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check(weights, x, sizes)
        io = self.io
        if io.is_perfect:
            values = io.out_scale * product(x, weights, sizes)
            return Reading(values, torch.zeros_like(values, dtype=torch.bool), x)
        tile_of = torch.repeat_interleave(torch.tensor(sizes, device=x.device))
        managed = bound_management and io.bound_management is not BoundManagement.NONE
        alpha = self._divisors(io.noise_management, x, sizes)
        values = x.new_zeros(len(x), weights.shape[1])
        clipped = torch.zeros_like(values, dtype=torch.bool)
        # Divided by its own largest value a vector fits the DAC.
        fits = io.nm_thres <= 0 and io.noise_management in (NoiseManagement.ABS_MAX, NoiseManagement.ABS_MAX_NP_SUM)
        seen = x if fits or io.inp_bound <= 0 else x.clone()
        silent = (alpha <= 0) & (io.noise_management is not NoiseManagement.NONE)
        if io.inp_noise > 0 and bound_management:
            # With noise on its inputs even an array without inputs answers; it is read unscaled.
            silent = torch.zeros_like(silent)
        rows = (~silent).nonzero()[:, 0]
        reduction, passes = 1.0, 0
        while len(rows):
            if passes == 1 and self._turns_to_worst_case():
                alpha, reduction = self._divisors(NoiseManagement.ABS_MAX_NP_SUM, x, sizes), 1.0
            scale = torch.where(alpha > 0, 1 / alpha, 1.0)[rows] / reduction
            inputs = x if len(rows) == len(x) else x[rows]
            outputs, over, hit = self._pass(weights, inputs * scale[:, None], tile_of[rows], generator)
            values[rows] = outputs * (io.out_scale / scale)[:, None]
            clipped[rows] = over
            if seen is not x:
                # The largest input times its own inverse may come out a rounding error above the bound.
                limit = (io.inp_bound * (1 + 1e-6) / scale)[:, None]
                seen[rows] = torch.maximum(torch.minimum(inputs, limit), -limit)
            passes += 1
            if not managed or int(reduction) > io.max_bm_factor:
                break
            if io.inp_step > 0 and reduction > io.max_bm_res / io.inp_step:
                break
            rows = rows[hit.any().expand_as(hit) if compat == "torch" else hit]
            reduction *= 2
        return Reading(values, clipped, seen)

    def _divisors(self, management: NoiseManagement, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """The noise management's alpha of each vector, shape (N,)."""
        io = self.io
        if management is NoiseManagement.NONE or x.shape[1] == 0:
            return x.new_ones(len(x))
        if management is NoiseManagement.CONSTANT:
            return x.new_full((len(x),), io.nm_thres if io.nm_thres > 0 else 1.0)
        if management is NoiseManagement.MAX:
            return _limited(x.amax(1), io.nm_thres)
        largest = x.abs().amax(1)
        if management is NoiseManagement.ABS_MAX:
            return _limited(largest, io.nm_thres)
        if management is NoiseManagement.ABS_MAX_NP_SUM:
            largest = _limited(largest, io.nm_thres)
            one_sided = torch.maximum(x.clamp_min(0).sum(1), -x.clamp_max(0).sum(1))
            expected = _EXPECTED_W_MAX * one_sided / (io.out_bound if io.out_bound > 0 else 1.0)
            if io.inp_step > 0:
                expected = torch.minimum(expected, largest * (io.max_bm_res / io.inp_step))
            return torch.maximum(largest, expected)
        return self._averages(largest, sizes)

    def _averages(self, largest: Tensor, sizes: Sequence[int]) -> Tensor:
        """The running mean of each tile's largest inputs, vector by vector."""
        averages: list[float] = []
        running = self.state["nm_average"].tolist()
        for tile, values in enumerate(groups(largest, sizes)):
            for value in values.tolist():
                before = running[tile]
                running[tile] = value if before < 0 else (1 - _FORGETTING) * before + _FORGETTING * value
                averages.append(running[tile])
        self.state["nm_average"].copy_(torch.tensor(running))
        return largest.new_tensor(averages)

    def _turns_to_worst_case(self) -> bool:
        """Whether a second reading takes another divisor, and not half of the first range."""
        worst = self.io.bound_management is BoundManagement.ITERATIVE_WORST_CASE
        return worst and self.io.noise_management is not NoiseManagement.ABS_MAX_NP_SUM

    def _pass(
        self, weights: Tensor, x: Tensor, tile_of: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One reading of scaled vectors, which are overwritten.

        Returns:
            Outputs (n, out), which of them clipped, and which vectors hit the bound (n,).
        """
        io = self.io
        u = rounded(x, io.inp_step, generator if io.inp_sto_round else None)
        if io.inp_bound > 0:
            u.clamp_(-io.inp_bound, io.inp_bound)
        if io.inp_noise > 0:
            u.add_(gauss(u, generator), alpha=io.inp_noise)
        if io.inp_asymmetry:
            u = torch.where(u < 0, u * (1 - io.inp_asymmetry), u)
        sizes = torch.bincount(tile_of, minlength=len(weights)).tolist()
        if io.mv_type is ProductType.ONE_PASS:
            return self._converted(self._currents(weights, u, sizes, tile_of, generator), tile_of, generator)
        for_negative = weights * self.state["w_asymmetry"] if "w_asymmetry" in self.state else weights
        negative = self._currents(for_negative, u.clamp_max(0), sizes, tile_of, generator)
        positive = self._currents(weights, u.clamp_min(0), sizes, tile_of, generator)
        if io.mv_type is ProductType.POS_NEG_SEPARATE:
            return self._converted(positive + negative, tile_of, generator)
        below = self._converted(negative, tile_of, generator)
        above = self._converted(positive, tile_of, generator)
        return below[0] + above[0], below[1] | above[1], below[2] | above[2]

    def _currents(
        self, weights: Tensor, u: Tensor, sizes: Sequence[int], tile_of: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The product with IR drop, voltage offsets, series resistance and weight noise, in this order."""
        io = self.io
        v = product(u, weights, sizes)
        if io.ir_drop > 0:
            v = v - self._ir_drop(weights, u, sizes)
        if "v_offset" in self.state:
            offset, reference = self.state["v_offset"][tile_of], -io.v_offset_w_min * u.sum(1, keepdim=True)
            total, r = v + reference, io.r_series
            v = (1 - offset) * total / (1 + r * total.abs()) - (1 + offset) * reference / (1 + r * reference.abs())
        if io.w_noise > 0 and io.w_noise_type is WeightNoise.ADDITIVE_CONSTANT:
            v = v + io.w_noise * u.norm(dim=1, keepdim=True) * gauss(v, generator)
        elif io.w_noise > 0:
            v = v + io.w_noise * product(u**2, weights.abs(), sizes).sqrt() * gauss(v, generator)
        return v

    def _ir_drop(self, weights: Tensor, u: Tensor, sizes: Sequence[int]) -> Tensor:
        """What is lost along the lines: c_i sum_j w_ij u_j (1 - (1 - j/n)^2), c a cubic in the line's total current."""
        io, n = self.io, u.shape[1]
        a = product(u.abs(), weights.abs(), sizes) * (n / io.ir_drop_g_ratio)
        c = a * (a * (0.05 * a - 0.2) + 0.5)
        remaining = 1 - torch.arange(n, device=u.device, dtype=u.dtype) / n
        return io.ir_drop * c * product(u * (1 - remaining**2), weights, sizes)

    def _converted(self, v: Tensor, tile_of: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Output lines and ADC: non-linearity, asymmetry, noise, rounding, clipping."""
        io = self.io
        if "out_nonlinearity" in self.state:
            n = self.state["out_nonlinearity"]
            bound = io.out_bound if io.out_bound > 0 else 1.0
            factor = (1 + (n.mean(1, keepdim=True) + io.r_series) * io.slope_calibration * bound) ** 2
            v = (factor[tile_of] if io.slope_calibration > 0 else 1.0) * v / (1 + (n[tile_of] * v).abs())
        if io.out_asymmetry:
            v = torch.where(v < 0, v * (1 - io.out_asymmetry), v)
        if "out_noise" in self.state:
            v = v + self.state["out_noise"][tile_of] * gauss(v, generator)
        elif io.out_noise > 0:
            v = v.add(gauss(v, generator), alpha=io.out_noise)
        v = rounded(v, io.out_step, generator if io.out_sto_round else None)
        if io.out_bound <= 0:
            return v, torch.zeros_like(v, dtype=torch.bool), v.new_zeros(len(v), dtype=torch.bool)
        above, below = v > io.out_bound, v < -io.out_bound
        hit = (above | below if io.bm_test_negative_bound else above).any(1)
        return v.clamp(-io.out_bound, io.out_bound), above | below, hit


def product(x: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Each vector times the matrix of its tile: x (N, in), weights (tiles, out, in), result (N, out)."""
    if len(weights) == 1:
        return x @ weights[0].T
    return torch.cat([part @ matrix.T for part, matrix in zip(groups(x, sizes), weights, strict=True)])


def groups(rows: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The rows of each tile, where `sizes` says how many each has."""
    ends = list(itertools.accumulate(sizes))
    return [rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _limited(values: Tensor, threshold: float) -> Tensor:
    return values.clamp_max(threshold) if threshold > 0 else values


def _check(weights: Tensor, x: Tensor, sizes: Sequence[int]) -> None:
    if x.ndim != 2 or x.shape[1] != weights.shape[2]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, allowed is (N, {weights.shape[2]})")
    if len(sizes) != len(weights) or sum(sizes) != len(x) or any(size < 0 for size in sizes):
        raise ValueError(
            f"sizes: got {list(sizes)}, allowed are {len(weights)} numbers from 0 that sum to {len(x)} vectors"
        )
