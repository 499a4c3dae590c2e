"""Phase-change memory that holds trained weights: programming noise, drift and read noise.

The statistical model of Nandakumar et al. (ICECS 2020), with the constants of aihwkit's `PCMLikeNoiseModel`.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.noise import gauss
from rapa_cli.config import Frozen

# The conductance that the fits of noise are for, in microsiemens.
_G_OF_FIT = 25.0
_LEAST_RELATIVE = 1e-7


class PCMLikeNoiseModel(Frozen):
    """What becomes of target conductances; all in microsiemens and seconds, q = g / `g_max`.

    Attributes:
        g_max: conductance of the largest weight.
        g_min: conductance of weight 0.
        prog_coeff: polynomial in q of the programming noise's standard deviation, at a `g_max` of 25.
        t_0: time from programming to the first reading.
        t_read: duration of a reading.
        prog_noise_scale: factor of the programming noise.
        read_noise_scale: factor of the read noise.
        drift_scale: factor of the drift coefficients.
        custom_drift: (conductance, mean, spread) of the drift coefficients at some conductances, ascending, in place
            of the fit; between them they are interpolated linearly.
    """

    kind: Literal["PCMLike"] = "PCMLike"
    g_max: float = Field(25.0, gt=0)
    g_min: float = Field(0.0, ge=0)
    prog_coeff: tuple[float, ...] = (0.26348, 1.9650, -1.1731)
    t_0: float = Field(20.0, gt=0)
    t_read: float = Field(250e-9, gt=0)
    prog_noise_scale: float = Field(1.0, ge=0)
    read_noise_scale: float = Field(1.0, ge=0)
    drift_scale: float = 1.0
    custom_drift: tuple[tuple[float, float, float], ...] = ()

    @model_validator(mode="after")
    def _has_range(self) -> Self:
        if self.g_min >= self.g_max:
            raise ValueError(f"g_min: got {self.g_min}, allowed are numbers below g_max, {self.g_max}")
        places = [place for place, _, _ in self.custom_drift]
        if any(after <= before for before, after in itertools.pairwise(places)):
            raise ValueError(f"custom_drift: conductances must ascend, got {places}")
        return self

    def program(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """Programmed conductances, max(g_t + sigma xi, 0), of any shape."""
        q, sigma = target / self.g_max, torch.zeros_like(target)
        for coefficient in reversed(self.prog_coeff):
            sigma = sigma * q + coefficient
        sigma = sigma * (self.prog_noise_scale * self.g_max / _G_OF_FIT)
        return (target + sigma * gauss(target, generator)).clamp_min(0)

    def coefficients(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """Drift coefficients nu = |mu + s xi|, drawn once, at programming, from the targets."""
        if self.custom_drift:
            mean, spread = self._interpolated(target)
            return (mean + spread * gauss(target, generator)).abs() * self.drift_scale
        logarithm = (target / self.g_max).clamp_min(_LEAST_RELATIVE).log()
        mean = (-0.0155 * logarithm + 0.0244).clamp(0.049, 0.1)
        spread = (-0.0125 * logarithm - 0.0059).clamp(0.008, 0.045)
        return (mean + spread * gauss(target, generator)).abs() * self.drift_scale

    def _interpolated(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the custom drift coefficients at some conductances."""
        places, means, spreads = target.new_tensor(self.custom_drift).T.contiguous()
        right = torch.searchsorted(places, target.contiguous()).clamp(0, len(places) - 1)
        left = (right - 1).clamp_min(0)
        width = torch.where(right > left, places[right] - places[left], 1.0)
        part = ((target - places[left]) / width).clamp(0, 1)
        return torch.lerp(means[left], means[right], part), torch.lerp(spreads[left], spreads[right], part)

    def at(self, programmed: Tensor, nu: Tensor, t_inference: float, generator: torch.Generator) -> Tensor:
        """Conductances that are read some time after programming.

        g_d = g_p (t / t_0)^-nu with t = t_inference + t_0, and max(g_d + g_d Q(g_p) sqrt(ln((t + t_read) /
        (2 t_read))) xi, 0), Q = min(0.0088 / max(q^0.65, 0.001), 0.2): there is read noise at t_inference = 0, too.

        Args:
            programmed: g_p, any shape.
            nu: the drift coefficients, the same shape.
            t_inference: seconds after the first reading, 0 or more.
            generator: for the read noise.
        """
        t = t_inference + self.t_0
        drifted = programmed * (t / self.t_0) ** -nu
        if self.read_noise_scale <= 0:
            return drifted
        q = 0.0088 / ((programmed / self.g_max) ** 0.65).clamp_min(1e-3)
        growth = math.sqrt(math.log((t + self.t_read) / (2 * self.t_read)))
        noise = drifted.abs() * q.clamp_max(0.2) * (self.read_noise_scale * growth)
        return (drifted + noise * gauss(drifted, generator)).clamp_min(0)
