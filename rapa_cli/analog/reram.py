"""ReRAM that holds trained weights: deviations from the targets that grow with time, without a drift of the mean.

Fits of the deviations published by Wan et al. (Nature, 2022) at 1 second, 1 day and 2 days, as aihwkit's
`ReRamWan2022NoiseModel` has them.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.noise import gauss
from rapa_cli.config import Frozen

# The conductance that the fits are for, in microsiemens, and the fits: (seconds, coefficients of q^0, q^1, ...).
_G_OF_FIT = 40.0
_DAY = 86400.0
_FITS = (
    (1.0, (0.348, 16.030, -43.853, 45.393, -16.815)),
    (_DAY, (0.701, 22.086, -50.773, 47.095, -16.458)),
    (2 * _DAY, (0.782, 20.274, -43.507, 37.062, -11.934)),
)


class ReRamWan2022NoiseModel(Frozen):
    """What becomes of target conductances; all in microsiemens and seconds, q = g / `g_max`.

    The deviation's standard deviation is a polynomial in q, scaled by `g_max` / 40 (aihwkit means to do so, but does
    not unless `g_max` is 40). Programming is the fit at 1 second; there are no others than the fitted times.

    Attributes:
        g_max: conductance of the largest weight.
        g_min: conductance of weight 0.
        noise_scale: factor of the deviation.
    """

    kind: Literal["ReRamWan2022"] = "ReRamWan2022"
    g_max: float = Field(40.0, gt=0)
    g_min: float = Field(0.0, ge=0)
    noise_scale: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _has_range(self) -> Self:
        if self.g_min >= self.g_max:
            raise ValueError(f"g_min: got {self.g_min}, allowed are numbers below g_max, {self.g_max}")
        return self

    @staticmethod
    def times() -> tuple[float, ...]:
        """The times in seconds for which there is a fit."""
        return tuple(time for time, _ in _FITS)

    def program(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """Programmed conductances, those read after 1 second, of any shape."""
        return self._deviating(target, _FITS[0][1], generator)

    def coefficients(self, target: Tensor, generator: torch.Generator) -> Tensor:
        """The targets themselves: later deviations are from them."""
        del generator
        return target.clone()

    def at(self, programmed: Tensor, target: Tensor, t_inference: float, generator: torch.Generator) -> Tensor:
        """Conductances that are read some time after programming.

        Args:
            programmed: without effect but at `t_inference` 0, which reads them as they are.
            target: what `coefficients` gave.
            t_inference: 0, or one of the fitted times.
            generator: for the deviations.

        Raises:
            ValueError: another time.
        """
        if t_inference == 0:
            return programmed.clone()
        fit = dict(_FITS).get(t_inference)
        if fit is None:
            allowed = ", ".join(f"{time:g}" for time in (0.0, *self.times()))
            raise ValueError(f"t_inference: got {t_inference:g} s, for this ReRAM allowed are {allowed}")
        return self._deviating(target, fit, generator)

    def _deviating(self, target: Tensor, fit: tuple[float, ...], generator: torch.Generator) -> Tensor:
        q, sigma = target / self.g_max, torch.zeros_like(target)
        for coefficient in reversed(fit):
            sigma = sigma * q + coefficient
        sigma = sigma.clamp_min(0) * (self.noise_scale * self.g_max / _G_OF_FIT)
        return (target + sigma * gauss(target, generator)).clamp_min(0)
