"""What one kind of device does, for whole banks: the common part of all, and the ideal device.

A device object is a configuration; the devices of a bank are a `State`: named tensors of shape (tiles, out, in), drawn
independently at construction and changed in place. Spreads are those of aihwkit's `PulsedDevice`.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rapa_cli.analog.merged import MERGEABLE, Chunk, Moments, moments
from rapa_cli.analog.noise import drawn, gauss, uniform
from rapa_cli.analog.parameters import Compat, PulseType, UpdateParameters
from rapa_cli.analog.update import Batch, Pairs, Rule, coincidences
from rapa_cli.config import Frozen

State = dict[str, Tensor]
Shape = tuple[int, int, int]


class Device(Frozen, abc.ABC):
    """What holds the weights of a bank: a device at each cross-point, or a cell of several."""

    @abc.abstractmethod
    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices with their spreads, weights 0 (stuck devices where they are stuck).

        Args:
            shape: (tiles, out, in).
            generator: for the spreads.
            place: torch's device of the tensors.
        """

    @abc.abstractmethod
    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """Sets the weights, (tiles, out, in), as near as the devices' bounds allow."""

    @abc.abstractmethod
    def update_all(self, state: State, batch: Batch, rule: Rule, merge: int, generator: torch.Generator) -> None:
        """Changes the weights by -lr d x^T for all pairs of vectors, as the devices do it.

        Args:
            state: the bank's devices, changed in place.
            batch: the pairs.
            rule: how they change weights.
            merge: 1 applies one after the other, another number so many of each tile together, 0 all.
            generator: for pulse trains and steps.
        """

    def merges(self, update: UpdateParameters) -> bool:
        """Whether chunks of vector pairs can be applied together."""
        del update
        return False

    def rate(self, lr: float) -> float | None:
        """The learning rate of the pulses that `apply` takes; None where it takes none."""
        del lr
        return None

    def apply(self, state: State, pulses: Moments, generator: torch.Generator, chunk: Chunk | None = None) -> None:
        """Changes all devices once, by a step with the moments of the pulses of a chunk of pairs.

        Args:
            state: the bank's devices, changed in place.
            pulses: made with `rate`.
            generator: for the step and what follows from it.
            chunk: which pairs these are; only cells need it.

        Raises:
            NotImplementedError: these devices take no moments.
        """
        raise NotImplementedError

    def adds(self, update: UpdateParameters) -> bool:
        """Whether an update is the exact product, so that a whole batch is one product."""
        del update
        return False

    def after_step(self, state: State, generator: torch.Generator) -> None:
        """Decay and diffusion, once for each step of the optimizer."""
        del state, generator

    def weights(self, state: State) -> Tensor:
        """The weights as an array shows them, (tiles, out, in)."""
        return state["weight"]

    def check(self, update: UpdateParameters) -> None:
        """Raises ValueError where the device cannot be updated so."""
        del update


class IdealDevice(Device):
    """A weight that takes any value; every update is exact, whatever the pulse type.

    Attributes:
        lifetime: steps in which a weight decays by a factor e; 0 is for ever.
        diffusion: standard deviation of the random walk for each step.
    """

    kind: Literal["Ideal"] = "Ideal"
    lifetime: float = Field(0.0, ge=0)
    diffusion: float = Field(0.0, ge=0)

    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices, weights 0."""
        del generator
        return {"weight": torch.zeros(shape, device=place)}

    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """Sets the weights exactly."""
        del generator
        state["weight"].copy_(weights)

    def update_all(self, state: State, batch: Batch, rule: Rule, merge: int, generator: torch.Generator) -> None:
        """W <- W - lr d x^T, in one product."""
        del merge
        self.add(state, batch.product(-rule.lr), generator)

    def adds(self, update: UpdateParameters) -> bool:
        """Always."""
        del update
        return True

    def add(self, state: State, change: Tensor, generator: torch.Generator) -> None:
        """W <- W + change."""
        del generator
        state["weight"] += change

    def after_step(self, state: State, generator: torch.Generator) -> None:
        """Decay by 1 - 1 / lifetime, and diffusion."""
        if self.lifetime > 0:
            state["weight"] *= max(1 - 1 / self.lifetime, 0.0)
        if self.diffusion > 0:
            state["weight"] += self.diffusion * gauss(state["weight"], generator)


class PulsedBase(Device, abc.ABC):
    """What is updated by pulses: a device, or a cell of several."""

    @abc.abstractmethod
    def granularity(self, compat: Compat = None) -> float:
        """The typical step at w = 0, which update management counts in."""

    @abc.abstractmethod
    def update(self, state: State, pairs: Pairs, rule: Rule, generator: torch.Generator) -> None:
        """Changes the weights by -lr d x^T for one pair of vectors of each tile."""

    def update_all(self, state: State, batch: Batch, rule: Rule, merge: int, generator: torch.Generator) -> None:
        """Pairs one after the other, or chunks of them by the moments of their pulses."""
        if merge == 1:
            for number in range(batch.longest):
                self.update(state, batch.pairs(number), rule, generator)
            return
        size = merge or max(batch.longest, 1)
        for start in range(0, batch.longest, size):
            counts = (batch.counts - start).clamp(0, size)
            x, d = batch.part(torch.full_like(counts, start), counts)
            sizes = counts.tolist()
            d, rate = self.rated(state, x, d, sizes, rule)
            pulses = moments(x, d, sizes, rate, self.granularity(rule.compat), rule.update, generator)
            self.apply(state, pulses, generator, Chunk(counts, batch.counts, rule.lr, rule.compat))

    def merges(self, update: UpdateParameters) -> bool:
        """With stochastic pulses."""
        return update.pulse_type in MERGEABLE

    def rate(self, lr: float) -> float | None:
        """The learning rate of the pulses that `apply` takes; None where every pair has one of its own."""
        return lr

    def rated(self, state: State, x: Tensor, d: Tensor, sizes: Sequence[int], rule: Rule) -> tuple[Tensor, float]:
        """Gradients and learning rate that the pulses of a chunk of pairs are made with."""
        del state, x, sizes
        rate = self.rate(rule.lr)
        assert rate is not None
        return d, rate


class Responses(NamedTuple):
    """What single pulses do to devices.

    Attributes:
        up: change of the weight by a pulse upwards without noise.
        down: by one downwards; mostly below 0.
        up_noise: what the noise `dw_min_std` xi of a pulse upwards is multiplied by.
        down_noise: likewise downwards.
    """

    up: Tensor
    down: Tensor
    up_noise: Tensor
    down_noise: Tensor


class PulsedDevice(PulsedBase):
    """A device that changes by steps, with spreads between devices and between its own steps.

    With xi independent N(0, 1): bounds b = w (1 + w_dtod xi); steps up = dw_min (min(up_down, 0) + gain + rho) and
    down = dw_min (-max(up_down, 0) + gain - rho), where gain = 1 + dw_min_dtod xi, or exp(dw_min_dtod xi), and
    rho = up_down_dtod xi. A positive `up_down` thus weakens the step down only, and the two steps of a device are
    nearly proportional to each other.

    State: `weight` (what is read), `hidden` (what is kept, with write noise only), `max_bound`, `min_bound`,
    `dwmin_up`, `dwmin_down`, `decay_scales`, `diffusion_rates`, `reset_bias`.

    Attributes:
        dw_min: mean step, in units of weights.
        dw_min_dtod: relative spread of the step over devices.
        dw_min_dtod_log_normal: whether that spread is log-normal.
        dw_min_std: spread of one device's steps, relative to the step.
        up_down: imbalance of steps up and down, relative.
        up_down_dtod: its spread over devices.
        w_max: mean upper bound.
        w_max_dtod: its relative spread.
        w_min: mean lower bound.
        w_min_dtod: its relative spread.
        enforce_consistency: whether steps and bounds are given the signs they ought to have; without, devices with
            crossed bounds do not move.
        perfect_bias: whether the devices of the last input line have no spread, and 100 times the bounds.
        corrupt_devices_prob: probability of a device that is stuck.
        corrupt_devices_range: where it is stuck: uniform within this and its bounds.
        lifetime: mean steps in which a weight decays towards its reset value by a factor e; 0 is for ever.
        lifetime_dtod: its relative spread.
        diffusion: standard deviation of the random walk for each step.
        diffusion_dtod: its relative spread.
        reset: mean of what a reset sets the weight to.
        reset_dtod: its spread over devices.
        reset_std: its spread from one reset to the next.
    """

    dw_min: float = Field(0.001, gt=0)
    dw_min_dtod: float = Field(0.3, ge=0)
    dw_min_dtod_log_normal: bool = False
    dw_min_std: float = Field(0.3, ge=0)
    up_down: float = 0.0
    up_down_dtod: float = Field(0.01, ge=0)
    w_max: float = Field(0.6, ge=0)
    w_max_dtod: float = Field(0.3, ge=0)
    w_min: float = Field(-0.6, le=0)
    w_min_dtod: float = Field(0.3, ge=0)
    enforce_consistency: bool = True
    perfect_bias: bool = False
    corrupt_devices_prob: float = Field(0.0, ge=0, le=1)
    corrupt_devices_range: float = Field(0.1, ge=0)
    lifetime: float = Field(0.0, ge=0)
    lifetime_dtod: float = Field(0.0, ge=0)
    diffusion: float = Field(0.0, ge=0)
    diffusion_dtod: float = Field(0.0, ge=0)
    reset: float = 0.0
    reset_dtod: float = Field(0.0, ge=0)
    reset_std: float = Field(0.01, ge=0)

    @model_validator(mode="after")
    def _has_range(self) -> Self:
        if self.w_max <= self.w_min:
            raise ValueError(f"w_max: got {self.w_max}, allowed are numbers above w_min, {self.w_min}")
        return self

    @abc.abstractmethod
    def responses(self, w: Tensor, parameters: State) -> Responses:
        """What pulses in both directions would do to devices, before the bounds apply.

        Args:
            w: weights, any shape.
            parameters: the devices' parameters, in the shape of `w` each.
        """

    def step(self, w: Tensor, up: Tensor, parameters: State, noise: Tensor | float) -> Tensor:
        """The change that one pulse makes, before the bounds apply.

        Args:
            w: weights (n,).
            up: bool (n,), the direction.
            parameters: the devices' parameters, (n,) each.
            noise: `dw_min_std` xi, (n,), or 0 for none.

        Returns:
            Change of w, (n,).
        """
        both = self.responses(w, parameters)
        change = torch.where(up, both.up, both.down)
        if isinstance(noise, float) and noise == 0:
            return change
        return change + noise * torch.where(up, both.up_noise, both.down_noise)

    def granularity(self, compat: Compat = None) -> float:
        """The typical step at w = 0, which update management counts in: `dw_min`."""
        del compat
        return self.dw_min

    def states(self, compat: Compat = None) -> float:
        """How many steps lie between the mean bounds."""
        return (self.w_max - self.w_min) / self.granularity(compat)

    def noise_of_writing(self) -> float:
        """Standard deviation of what is read around what is kept, in units of weights."""
        return 0.0

    def draw(self, shape: Shape, generator: torch.Generator, place: torch.device) -> State:
        """New devices with their spreads, weights 0 within the bounds."""

        def spread(mean: float, std: float) -> Tensor:
            return drawn(shape, mean, std, generator, place)

        high, low = self.w_max * spread(1, self.w_max_dtod), self.w_min * spread(1, self.w_min_dtod)
        gain = spread(0, self.dw_min_dtod).exp() if self.dw_min_dtod_log_normal else spread(1, self.dw_min_dtod)
        rho = spread(0, self.up_down_dtod)
        up = self.dw_min * (min(self.up_down, 0.0) + gain + rho)
        down = self.dw_min * (-max(self.up_down, 0.0) + gain - rho)
        if self.enforce_consistency:
            up, down = up.abs(), down.abs()
            high, low = torch.maximum(high, low).abs(), -torch.minimum(high, low).abs()
        else:
            middle = (high + low) / 2
            high, low = torch.where(low > high, middle, high), torch.where(low > high, middle, low)
        if self.corrupt_devices_prob > 0:
            stuck = uniform(up, generator) < self.corrupt_devices_prob
            least, most = low.clamp_min(-self.corrupt_devices_range), high.clamp_max(self.corrupt_devices_range)
            place_stuck = least + (most - least) * uniform(up, generator)
            high, low = torch.where(stuck, place_stuck, high), torch.where(stuck, place_stuck, low)
            up, down = up.masked_fill(stuck, 0), down.masked_fill(stuck, 0)
        if self.perfect_bias:
            up[..., -1], down[..., -1] = self.dw_min, self.dw_min
            high[..., -1], low[..., -1] = 100 * self.w_max, 100 * self.w_min
        state = {"max_bound": high, "min_bound": low, "dwmin_up": up, "dwmin_down": down}
        state["decay_scales"] = spread(1, 0)
        if self.lifetime > 0:
            steps = self.lifetime * spread(1, self.lifetime_dtod)
            state["decay_scales"] = torch.where(steps > 1, 1 - 1 / steps, 0.0)
        state["diffusion_rates"] = (self.diffusion * spread(1, self.diffusion_dtod)).abs()
        state["reset_bias"] = spread(self.reset, self.reset_dtod)
        self.draw_more(state, generator)
        state["weight"] = torch.zeros_like(high)
        if self.noise_of_writing() > 0:
            state["hidden"] = torch.zeros_like(high)
        self.clip(state)
        if "hidden" in state:
            state["weight"].copy_(state["hidden"])
        return state

    def draw_more(self, state: State, generator: torch.Generator) -> None:
        """Adds the parameters of a device's own model."""
        del state, generator

    def within(self, w: Tensor, parameters: State) -> Tensor:
        """Weights cut to the devices' bounds."""
        return torch.minimum(torch.maximum(w, parameters["min_bound"]), parameters["max_bound"])

    def clip(self, state: State) -> None:
        """Cuts what is kept to the devices' bounds."""
        kept = _kept(state)
        kept.copy_(self.within(kept, state))

    def show(self, state: State, generator: torch.Generator) -> None:
        """Draws new write noise for all devices."""
        if "hidden" in state:
            noise = self.noise_of_writing() * gauss(state["hidden"], generator)
            torch.add(state["hidden"], noise, out=state["weight"])

    def write(self, state: State, weights: Tensor, generator: torch.Generator) -> None:
        """Sets what is kept, cut to each device's bounds; what is read has write noise."""
        _kept(state).copy_(weights)
        self.clip(state)
        self.show(state, generator)

    def pulse(self, state: State, where: Tensor, counts: Tensor, generator: torch.Generator) -> None:
        """Gives devices their pulses one after the other, each followed by the bounds.

        Args:
            state: the bank's devices.
            where: int64 (n,), each device once, counted over the flattened bank.
            counts: whole numbers (n,), positive ones upwards, none 0.
            generator: for the spread between steps and for write noise.
        """
        order = torch.argsort(counts.abs(), descending=True, stable=True)
        where, counts = where[order], counts[order]
        parameters = {name: values.view(-1)[where] for name, values in state.items()}
        w, up, pulses = _kept(state).view(-1)[where], counts > 0, counts.abs()
        # Devices with most pulses come first: those that still have pulses left are a slice.
        left = [int((pulses > k).sum()) for k in range(int(pulses[0]))] if len(pulses) else []
        for n in left:
            part = {name: values[:n] for name, values in parameters.items()}
            noise = self.dw_min_std * gauss(w[:n], generator) if self.dw_min_std > 0 else 0.0
            w[:n] = self.within(w[:n] + self.step(w[:n], up[:n], part, noise), part)
        self._keep(state, where, w, generator)

    def update(self, state: State, pairs: Pairs, rule: Rule, generator: torch.Generator) -> None:
        """Pulses for one pair of each tile; NONE_WITH_DEVICE adds the exact product and cuts it to the bounds."""
        if rule.update.pulse_type is PulseType.NONE_WITH_DEVICE:
            change = torch.zeros_like(state["weight"])
            change[pairs.tiles] = -rule.lr * (pairs.d[:, :, None] * pairs.x[:, None, :])
            self.add(state, change, generator, bounded=True)
            return
        counts = coincidences(pairs.x, pairs.d, rule.lr, self.granularity(rule.compat), rule.update, generator)
        self.pulse(state, *addresses(counts, pairs.tiles), generator)

    def update_all(self, state: State, batch: Batch, rule: Rule, merge: int, generator: torch.Generator) -> None:
        """By pulses, but with NONE in one product."""
        if self.adds(rule.update):
            self.add(state, batch.product(-rule.lr), generator)
        else:
            super().update_all(state, batch, rule, merge, generator)

    def apply(self, state: State, pulses: Moments, generator: torch.Generator, chunk: Chunk | None = None) -> None:
        """Changes each device once, by a Gaussian step with the moments of all its pulses.

        With f the step at the present weight and c what its noise xi is multiplied by: the mean is n_up f_up + n_down
        f_down, the variance v_up f_up^2 + v_down f_down^2 + sigma^2 (n_up c_up^2 + n_down c_down^2).
        """
        del chunk
        self.shift(state, pulses, generator)

    def shift(
        self,
        state: State,
        pulses: Moments,
        generator: torch.Generator,
        excess: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Does what `apply` does, with numbers of pulses that were drawn already.

        Args:
            state: the bank's devices.
            pulses: moments of the numbers of pulses.
            generator: for the step and for write noise.
            excess: what the numbers of pulses up and down exceed their means by, where several devices share that.
        """
        kept = _kept(state)
        both = self.responses(kept, state)
        up, down = pulses.up, pulses.down
        if excess is None:
            variance = both.up.square().mul_(pulses.up_variance)
            variance.addcmul_(both.down.square(), pulses.down_variance)
        else:
            up, down, variance = up + excess[0], down + excess[1], torch.zeros_like(kept)
        if self.dw_min_std > 0:
            noise = both.up_noise.square().mul_(pulses.up).addcmul_(both.down_noise.square(), pulses.down)
            variance.add_(noise, alpha=self.dw_min_std**2)
        change = torch.addcmul(kept, up, both.up).addcmul_(down, both.down)
        change.addcmul_(variance.sqrt_(), gauss(kept, generator))
        kept.copy_(self.within(change, state))
        self.show(state, generator)

    def adds(self, update: UpdateParameters) -> bool:
        """Only without pulses and without bounds: NONE."""
        return update.pulse_type is PulseType.NONE

    def add(self, state: State, change: Tensor, generator: torch.Generator, *, bounded: bool = False) -> None:
        """Adds to what is kept, with new write noise."""
        _kept(state).add_(change)
        if bounded:
            self.clip(state)
        self.show(state, generator)

    def reset_devices(self, state: State, where: Tensor, generator: torch.Generator) -> None:
        """Resets devices: w = reset_bias + reset_std xi, within the bounds.

        Args:
            state: the bank's devices.
            where: int64 (n,), counted over the flattened bank.
            generator: for the spread between resets, and write noise.
        """
        parameters = {name: values.view(-1)[where] for name, values in state.items()}
        target = parameters["reset_bias"]
        if self.reset_std > 0:
            target = target + self.reset_std * gauss(target, generator)
        self._keep(state, where, self.within(target, parameters), generator)

    def _keep(self, state: State, where: Tensor, w: Tensor, generator: torch.Generator) -> None:
        """Sets what some devices keep; what is read of them has new write noise."""
        _kept(state).view(-1)[where] = w
        if "hidden" in state:
            state["weight"].view(-1)[where] = w + self.noise_of_writing() * gauss(w, generator)

    def after_step(self, state: State, generator: torch.Generator) -> None:
        """Decay w <- (w - b) s + b with b the reset value and s = 1 - 1 / lifetime; diffusion; then the bounds."""
        if self.lifetime <= 0 and self.diffusion <= 0:
            return
        kept = _kept(state)
        if self.lifetime > 0:
            bias = state["reset_bias"]
            kept.copy_((kept - bias) * state["decay_scales"] + bias)
        if self.diffusion > 0:
            kept.add_(state["diffusion_rates"] * gauss(kept, generator))
        self.clip(state)
        self.show(state, generator)


def addresses(counts: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Which devices of a bank get pulses, and how many.

    Args:
        counts: (m, out, in), of m tiles.
        tiles: which tiles, int64 (m,).

    Returns:
        Indices into the flattened bank, int64 (n,), and the counts that are not 0, (n,).
    """
    pair, row, column = counts.nonzero(as_tuple=True)
    return (tiles[pair] * counts.shape[1] + row) * counts.shape[2] + column, counts[pair, row, column]


def pulse_lines(
    device: Pulsable,
    state: State,
    shape: Sequence[int],
    tiles: Tensor,
    lines: Tensor,
    change: Tensor,
    rule: Rule,
    generator: torch.Generator,
    *,
    columns: bool,
) -> None:
    """Changes columns or rows of some tiles by lr times `change`: each is an array with one line of its own.

    Args:
        device: what the devices are.
        state: those of the bank.
        shape: (tiles, out, in).
        tiles: whose lines, int64 (m,).
        lines: which columns or rows, int64 (m,); no line of a tile twice.
        change: (m, out) of columns, (m, in) of rows.
        rule: with pulses.
        generator: for pulse trains and steps.
        columns: whether these are columns, and not rows.
    """
    ones, granularity = torch.ones_like(change[:, :1]), device.granularity(rule.compat)
    x, d = (ones, -change) if columns else (change, -ones)
    counts = coincidences(x, d, rule.lr, granularity, rule.update, generator).flatten(1)
    line, across = counts.nonzero(as_tuple=True)
    row, column = (across, lines[line]) if columns else (lines[line], across)
    device.pulse(state, (tiles[line] * shape[1] + row) * shape[2] + column, counts[line, across], generator)


class Pulsable(Protocol):
    """A device, or a pair of them, that can be given pulses one by one."""

    def granularity(self, compat: Compat = None) -> float:
        """The step that pulses are counted in."""

    def pulse(self, state: State, where: Tensor, counts: Tensor, generator: torch.Generator) -> None:
        """Gives devices their pulses; see `PulsedDevice.pulse`."""


def load_into(state: State, other: State) -> None:
    """Copies each tensor of another state into the one of its name.

    Raises:
        ValueError: names or shapes differ; nothing is copied.
    """
    if other.keys() != state.keys():
        raise ValueError(f"state: got {sorted(other)}, allowed are {sorted(state)}")
    for name, values in state.items():
        if other[name].shape != values.shape:
            raise ValueError(f"state: {name} has shape {tuple(other[name].shape)}, allowed is {tuple(values.shape)}")
    for name, values in state.items():
        values.copy_(other[name])


def _kept(state: State) -> Tensor:
    return state["hidden"] if "hidden" in state else state["weight"]
