"""Devices that change by steps, each with its law of the step (aihwkit's device classes of the same names).

In all of them xi is N(0, 1) for each step, sigma is `dw_min_std`, and the bounds apply after each step.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.device import PulsedDevice, Responses, State
from rapa_cli.analog.noise import drawn
from rapa_cli.analog.parameters import Compat


class ConstantStepDevice(PulsedDevice):
    """Steps of one size: w += up (1 + sigma xi), w -= down (1 + sigma xi)."""

    kind: Literal["ConstantStep"] = "ConstantStep"

    def responses(self, w: Tensor, parameters: State) -> Responses:
        """Steps up and down."""
        del w
        up, down = parameters["dwmin_up"], -parameters["dwmin_down"]
        return Responses(up, down, up, down)


class NoisyWriteDevice(PulsedDevice):
    """A device whose state is read with a noise that stays until the device is touched again.

    Attributes:
        write_noise_std: what is read is what is kept + `write_noise_std` `dw_min` xi.
        apply_write_noise_on_set: whether setting weights, too, leaves such noise.
    """

    write_noise_std: float = Field(0.0, ge=0)
    apply_write_noise_on_set: bool = True

    def noise_of_writing(self) -> float:
        """Standard deviation, in units of weights."""
        return self.write_noise_std * self.dw_min

    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """Sets what is kept, cut to each device's bounds."""
        super().write(state, weights, generator)
        if "hidden" in state and not self.apply_write_noise_on_set:
            state["weight"].copy_(state["hidden"])


class _Linear(NoisyWriteDevice):
    """Steps that are linear in the weight.

    Attributes:
        mult_noise: whether the noise is relative to the step at w, and not to the step at 0.
        reverse_up: whether steps up shrink towards the lower bound, not the upper.
        reverse_down: likewise for steps down.
        reverse_offset: how far beyond the bound a reversed step vanishes.
    """

    mult_noise: bool = True
    reverse_up: bool = False
    reverse_down: bool = False
    reverse_offset: float = 0.01

    @model_validator(mode="after")
    def _noise_of_reversed(self) -> Self:
        if (self.reverse_up or self.reverse_down) and not self.mult_noise:
            raise ValueError("mult_noise: got false, with reverse_up or reverse_down allowed is true")
        return self

    def slopes(self, state: State, up: Tensor, down: Tensor, high: Tensor | float, low: Tensor | float) -> None:
        """Draws `slope_up` and `slope_down`, the change of a step with w, from relative slopes and references."""
        for name, steps, gamma, reference in (
            ("slope_up", "dwmin_up", up, low - self.reverse_offset if self.reverse_up else high),
            ("slope_down", "dwmin_down", down, high + self.reverse_offset if self.reverse_down else low),
        ):
            at = torch.as_tensor(reference, dtype=gamma.dtype, device=gamma.device)
            state[name] = torch.where(at != 0, -gamma * state[steps] / at, 0.0)

    def responses(self, w: Tensor, parameters: State) -> Responses:
        """Steps up and down."""
        base_up, base_down = parameters["dwmin_up"], parameters["dwmin_down"]
        up = base_up + parameters["slope_up"] * w
        down = -(base_down + parameters["slope_down"] * w)
        return Responses(up, down, up, down) if self.mult_noise else Responses(up, down, base_up, -base_down)


class LinearStepDevice(_Linear):
    """Steps that shrink linearly towards a hard bound.

    w += up (1 - G+ w / ref+) (1 + sigma xi), w -= down (1 - G- w / ref-) (1 + sigma xi); with additive noise the last
    factors become a term sigma xi in the brackets. G = |gamma + gamma_dtod xi|, drawn once for each device.

    Attributes:
        gamma_up: how far steps up have shrunk at the upper bound; 1 is to nothing.
        gamma_down: how far steps down have shrunk at the lower bound.
        gamma_up_dtod: spread of `gamma_up` over devices.
        gamma_down_dtod: spread of `gamma_down`.
        allow_increasing: whether drawn slopes keep their signs.
        mean_bound_reference: whether ref is the mean bound and not the device's own.
    """

    kind: Literal["LinearStep"] = "LinearStep"
    gamma_up: float = 0.0
    gamma_down: float = 0.0
    gamma_up_dtod: float = Field(0.05, ge=0)
    gamma_down_dtod: float = Field(0.05, ge=0)
    allow_increasing: bool = False
    mean_bound_reference: bool = True

    def draw_more(self, state: State, generator: torch.Generator) -> None:
        """Draws the slopes."""
        place = state["dwmin_up"]
        up = drawn(place.shape, self.gamma_up, self.gamma_up_dtod, generator, place.device)
        down = drawn(place.shape, self.gamma_down, self.gamma_down_dtod, generator, place.device)
        if not self.allow_increasing:
            up, down = up.abs(), down.abs()
        if self.mean_bound_reference:
            self.slopes(state, up, down, self.w_max, self.w_min)
        else:
            self.slopes(state, up, down, state["max_bound"], state["min_bound"])


class SoftBoundsDevice(_Linear):
    """Steps that shrink linearly to nothing at the device's own bounds: LinearStep with G = 1 and no spread of it."""

    kind: Literal["SoftBounds"] = "SoftBounds"

    def draw_more(self, state: State, generator: torch.Generator) -> None:
        """Takes the slopes from the drawn bounds."""
        del generator
        ones = torch.ones_like(state["dwmin_up"])
        self.slopes(state, ones, ones, state["max_bound"], state["min_bound"])


class SoftBoundsReferenceDevice(NoisyWriteDevice):
    """Soft bounds of v = w + r, where r is the device's reference, whose own state does not change.

    v += up (1 - v / b_max + sigma xi), v -= down (1 - v / b_min + sigma xi), v cut to its bounds, w = v - r; with
    `mult_noise` the noise is a factor 1 + sigma xi. The bounds are those of v in everything: weights that are set are
    cut so that v lies within them (aihwkit cuts w).

    Attributes:
        mult_noise: whether the noise is relative to the step at v.
        slope_up_dtod: relative spread of the slope of steps up, which moves the upper bound.
        slope_down_dtod: likewise down.
        reference_mean: mean of r.
        reference_std: spread of r over devices.
        subtract_symmetry_point: whether r also has the weight at which steps up and down are of one size, so that
            this point is at w = 0; resets go there too.
    """

    kind: Literal["SoftBoundsReference"] = "SoftBoundsReference"
    mult_noise: bool = False
    slope_up_dtod: float = Field(0.0, ge=0)
    slope_down_dtod: float = Field(0.0, ge=0)
    reference_mean: float = 0.0
    reference_std: float = Field(0.0, ge=0)
    subtract_symmetry_point: bool = False

    def draw_more(self, state: State, generator: torch.Generator) -> None:
        """Draws slopes and references."""
        up, down, high, low = (state[name] for name in ("dwmin_up", "dwmin_down", "max_bound", "min_bound"))
        proper = (high > 0) & (low < 0)
        for bound, spread in ((high, self.slope_up_dtod), (low, self.slope_down_dtod)):
            if spread > 0:
                steeper = drawn(bound.shape, 1.0, spread, generator, bound.device).abs()
                bound.copy_(torch.where(proper, bound / steeper, bound))
        reference = drawn(up.shape, self.reference_mean, self.reference_std, generator, up.device)
        if self.subtract_symmetry_point:
            balance = up / high - down / low
            moves = proper & (balance > 0)
            symmetric = torch.where(moves, (up - down) / torch.where(moves, balance, 1.0), 0.0)
            reference += symmetric
            state["reset_bias"] += symmetric
        state["reference"] = reference

    def within(self, w: Tensor, parameters: State) -> Tensor:
        """Weights cut so that w + r is within the bounds."""
        reference = parameters["reference"]
        return super().within(w + reference, parameters) - reference

    def responses(self, w: Tensor, parameters: State) -> Responses:
        """Steps up and down."""
        v, high, low = w + parameters["reference"], parameters["max_bound"], parameters["min_bound"]
        base_up, base_down = parameters["dwmin_up"], -parameters["dwmin_down"]
        up = base_up * (1 - torch.where(high > 0, v / high, 0.0))
        down = base_down * (1 - torch.where(low < 0, v / low, 0.0))
        return Responses(up, down, up, down) if self.mult_noise else Responses(up, down, base_up, base_down)


class ExpStepDevice(NoisyWriteDevice):
    """Steps that shrink exponentially towards the bounds, as in measured ReRAM and PCM.

    up: dw = up max(1 - A_up exp(gamma_up z), 0), down: dw = -down max(1 - A_down exp(-gamma_down z), 0), where
    z = 2 a w / (b_max - b_min) + b. The noise is sigma |dw| xi, and with `dw_min_std_add` or `dw_min_std_slope`
    sigma (|dw| + dw_min_std_add + dw_min_std_slope |w|) xi.

    Attributes:
        A_up: strength of the curvature of steps up; below 0 steps are larger than `dw_min`.
        A_down: likewise down.
        gamma_up: how fast steps up change with the weight.
        gamma_down: likewise down.
        a: slope of the argument.
        b: its offset.
        dw_min_std_add: noise of steps that does not depend on them, in units of weights.
        dw_min_std_slope: noise of steps that grows with the weight.
    """

    kind: Literal["ExpStep"] = "ExpStep"
    A_up: float = 0.00081
    A_down: float = 0.36833
    gamma_up: float = 12.44625
    gamma_down: float = 12.78785
    a: float = 0.244
    b: float = 0.2425
    dw_min_std_add: float = Field(0.0, ge=0)
    dw_min_std_slope: float = Field(0.0, ge=0)

    def granularity(self, compat: Compat = None) -> float:
        """The mean of the steps up and down at w = 0; aihwkit takes the step down twice ("rpucuda")."""
        up = self.dw_min * (1 + min(self.up_down, 0.0)) * max(1 - self.A_up * math.exp(self.gamma_up * self.b), 0.0)
        down = (
            self.dw_min * (1 - max(self.up_down, 0.0)) * max(1 - self.A_down * math.exp(-self.gamma_down * self.b), 0.0)
        )
        return down if compat == "rpucuda" else (up + down) / 2

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.granularity() <= 0:
            raise ValueError(
                "A_up, A_down: a device must step at w = 0; allowed are less than exp(-gamma b), exp(gamma b)"
            )
        return self

    def responses(self, w: Tensor, parameters: State) -> Responses:
        """Steps up and down."""
        span = parameters["max_bound"] - parameters["min_bound"]
        z = 2 * w * self.a / torch.where(span > 0, span, 1.0) + self.b
        up = parameters["dwmin_up"] * (1 - self.A_up * torch.exp(self.gamma_up * z)).clamp_min_(0)
        down = -parameters["dwmin_down"] * (1 - self.A_down * torch.exp(-self.gamma_down * z)).clamp_min_(0)
        if self.dw_min_std_add == 0 and self.dw_min_std_slope == 0:
            return Responses(up, down, up, down)
        more = self.dw_min_std_add + self.dw_min_std_slope * w.abs()
        return Responses(up, down, up.abs() + more, down.abs() + more)


class PowStepDevice(NoisyWriteDevice):
    """Steps that shrink as a power of the distance to the bound.

    w += up om^g (1 + sigma xi), om = (b_max - w) / (b_max - b_min); w -= down (1 - om)^g (1 + sigma xi). The exponents
    are drawn as the steps of `PulsedDevice` are: from a gain and an imbalance.

    Attributes:
        pow_gamma: mean exponent g.
        pow_gamma_dtod: relative spread of both exponents of a device together.
        pow_up_down: imbalance of the exponents, relative.
        pow_up_down_dtod: its spread.
    """

    kind: Literal["PowStep"] = "PowStep"
    pow_gamma: float = Field(1.0, ge=0)
    pow_gamma_dtod: float = Field(0.1, ge=0)
    pow_up_down: float = 0.0
    pow_up_down_dtod: float = Field(0.0, ge=0)

    def granularity(self, compat: Compat = None) -> float:
        """The step half way between the bounds, `dw_min` 0.5^g."""
        del compat
        return float(self.dw_min * 0.5**self.pow_gamma)

    def draw_more(self, state: State, generator: torch.Generator) -> None:
        """Draws the exponents."""
        shape, place = state["dwmin_up"].shape, state["dwmin_up"].device
        gain = drawn(shape, 1.0, self.pow_gamma_dtod, generator, place)
        rho = drawn(shape, 0.0, self.pow_up_down_dtod, generator, place)
        up = self.pow_gamma * (min(self.pow_up_down, 0.0) + gain + rho)
        down = self.pow_gamma * (-max(self.pow_up_down, 0.0) + gain - rho)
        state["gamma_up"], state["gamma_down"] = (up.abs(), down.abs()) if self.enforce_consistency else (up, down)

    def responses(self, w: Tensor, parameters: State) -> Responses:
        """Steps up and down."""
        high, low = parameters["max_bound"], parameters["min_bound"]
        span = torch.where(high > low, high - low, 1.0)
        up = parameters["dwmin_up"] * ((high - w) / span).clamp_min_(0) ** parameters["gamma_up"]
        down = -parameters["dwmin_down"] * ((w - low) / span).clamp_min_(0) ** parameters["gamma_down"]
        return Responses(up, down, up, down)


class PiecewiseStepDevice(NoisyWriteDevice):
    """Steps interpolated linearly between nodes that lie evenly from the lower to the upper bound of the device.

    w += up interp(piecewise_up) (1 + sigma xi), w -= down interp(piecewise_down) (1 + sigma xi).

    Attributes:
        piecewise_up: relative steps up at the nodes.
        piecewise_down: relative steps down, as many.
    """

    kind: Literal["PiecewiseStep"] = "PiecewiseStep"
    piecewise_up: tuple[float, ...] = (1.0,)
    piecewise_down: tuple[float, ...] = (1.0,)

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if not self.piecewise_up or len(self.piecewise_up) != len(self.piecewise_down):
            raise ValueError(
                f"piecewise_down: got {len(self.piecewise_down)} nodes, allowed are as many as of piecewise_up, "
                f"{len(self.piecewise_up)}, and at least 1"
            )
        return self

    def responses(self, w: Tensor, parameters: State) -> Responses:
        """Steps up and down."""
        high, low = parameters["max_bound"], parameters["min_bound"]
        sections = len(self.piecewise_up) - 1
        place = ((w - low) / torch.where(high > low, high - low, 1.0)).clamp(0, 1) * sections
        left = place.floor().clamp_max(max(sections - 1, 0)).long()
        right, part = (left + 1).clamp_max(sections), place - left
        rising, falling = w.new_tensor(self.piecewise_up), w.new_tensor(self.piecewise_down)
        up = parameters["dwmin_up"] * torch.lerp(rising[left], rising[right], part)
        down = -parameters["dwmin_down"] * torch.lerp(falling[left], falling[right], part)
        return Responses(up, down, up, down)


AnyPulsed = Annotated[
    ConstantStepDevice
    | LinearStepDevice
    | SoftBoundsDevice
    | SoftBoundsReferenceDevice
    | ExpStepDevice
    | PowStepDevice
    | PiecewiseStepDevice,
    Field(discriminator="kind"),
]
"""Every device that changes by steps."""
