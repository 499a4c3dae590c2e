"""How devices respond to pulses: trains up and down, the size of a step, and which devices sit at their bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rapa_cli.analog.cells import UpdatePolicy, VectorUnitCell, part
from rapa_cli.analog.device import Device, PulsedDevice, State
from rapa_cli.analog.mixed import MixedPrecisionCompound
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.parameters import IOParameters, PulseType
from rapa_cli.analog.transfer import TransferCompound

_POINTS = 200
"""Readings of a train."""

_MARGIN = 1.25
"""Pulses of a train over those that take a device without spread and noise to its bounds."""

_MOST_STATES = 8
"""Longest train, in states of the device: where steps vanish fast, the bounds are never reached."""

_GRID = 101
"""Weights at which steps are measured."""

_NOISE = ("dw_min_std", "write_noise_std", "reference_std", "reset_std", "corrupt_devices_prob")
_NEAR = 1e-6
_NEAR_IN_RANGE = 0.01
_CPU = torch.device("cpu")
_QUANTILES = torch.tensor([0.1, 0.9])

Responding = PulsedDevice | VectorUnitCell | OneSidedUnitCell
"""What takes pulses as a whole."""


@dataclass(frozen=True)
class AtBounds:
    """What part of some devices sits at their bounds; stuck devices are not counted.

    Attributes:
        fraction: at either bound, 0 to 1.
        lower: at the lower bound.
        upper: at the upper bound.
    """

    fraction: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Steps:
    """The size of one step against the weight, within the bounds of a device without spread and noise.

    Attributes:
        weights: ascending (G,).
        up: change of the weight by a pulse up, without noise, of a device without spread (G,).
        down: the same down, positive where the weight falls; None where devices only step up.
        up_band: 10 and 90 % over devices, without noise (2, G); NaN where no device has such weights.
        down_band: the same down.
    """

    weights: Tensor
    up: Tensor
    down: Tensor | None
    up_band: Tensor
    down_band: Tensor | None


@dataclass(frozen=True)
class Response:
    """What trains of pulses do to new devices: from weight 0 first up, then as many down.

    Attributes:
        note: what is shown where the cell is not one device; "" for one device.
        kind: of the devices.
        cells: how many there were.
        states: steps between the mean bounds of one device.
        granularity: its typical step at weight 0.
        train: pulses up, and pulses down after them.
        pulses: given so far, int64 (P,), from 0 to 2 `train`.
        noise_free: weights of a cell without spread and noise (P,).
        mean: over all cells, as they are read (P,).
        band: 10 and 90 % over cells (2, P).
        singles: the first cells (S, P).
        steps: of one device.
        symmetry_point: the weight at which steps up and down of a device without spread are of one size; None where
            there is none, or all weights are such.
        symmetry_std: its spread over the devices that have one; None for fewer than two.
        lower_bound: mean and standard deviation over devices.
        upper_bound: the same.
        after_up: devices at their bounds after the pulses up, of a pair only those that got them; None where all are
            stuck.
        after_down: the same after the pulses down.
    """

    note: str
    kind: str
    cells: int
    states: float
    granularity: float
    train: int
    pulses: Tensor
    noise_free: Tensor
    mean: Tensor
    band: Tensor
    singles: Tensor
    steps: Steps
    symmetry_point: float | None
    symmetry_std: float | None
    lower_bound: tuple[float, float]
    upper_bound: tuple[float, float]
    after_up: AtBounds | None
    after_down: AtBounds | None


def at_bounds(state: Mapping[str, Tensor]) -> AtBounds | None:
    """What part of the devices of a bank sits at their bounds.

    A device does where what it keeps (without write noise) is at most one of its own steps from a bound, or 1 % of its
    range where its steps are larger than that, or 1e-6. All devices of a cell count, whatever their part in the
    weight, so that the idle device of a pair is at its lower bound; `part` of `cells` has those of one.

    Args:
        state: tensors by name, as a bank or a layer's state dictionary has them: "max_bound", "min_bound", "weight" or
            "hidden", "dwmin_up", "dwmin_down", with any prefix that ends in a dot ("0.", "matrices.0.device.1.").

    Returns:
        The fractions, or None where nothing has bounds or all devices are stuck.
    """
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    for name in state:
        prefix = name.removesuffix("max_bound")
        if prefix == name or (prefix and not prefix.endswith(".")):
            continue
        high, low = state[name], state[f"{prefix}min_bound"]
        kept = state[f"{prefix}hidden"] if f"{prefix}hidden" in state else state[f"{prefix}weight"]
        if f"{prefix}reference" in state:
            kept = kept + state[f"{prefix}reference"]
        moves = high > low
        widest = _NEAR_IN_RANGE * (high - low)
        for found, distance, step in ((upper, high - kept, "dwmin_up"), (lower, kept - low, "dwmin_down")):
            tolerance = torch.minimum(state[f"{prefix}{step}"].abs(), widest).clamp_min(_NEAR)
            found.append((distance <= tolerance)[moves])
    at_lower, at_upper = (torch.cat(found) if found else torch.empty(0) for found in (lower, upper))
    if not len(at_upper):
        return None
    return AtBounds(*(float(there.float().mean()) for there in (at_lower | at_upper, at_lower, at_upper)))


def shown(device: Device) -> tuple[Responding, str]:
    """What of a device or cell responds to pulses, and a line that says so.

    Returns:
        A device, or a cell that takes pulses as a whole; and the line, "" where it is the device itself.

    Raises:
        ValueError: nothing does: an ideal device takes any value.
    """
    if isinstance(device, PulsedDevice):
        return device, ""
    if isinstance(device, VectorUnitCell):
        how = {
            UpdatePolicy.ALL: "each pulse goes to all",
            UpdatePolicy.SINGLE_FIXED: f"pulses go to device {device.first_update_idx}",
            UpdatePolicy.SINGLE_SEQUENTIAL: "pulses go to them in turn",
            UpdatePolicy.SINGLE_RANDOM: "each pulse goes to one at random",
        }[device.update_policy]
        return device, f"cells of {len(device.unit_cell_devices)} devices; {how}"
    if isinstance(device, OneSidedUnitCell):
        return device, "pairs g+ - g-; pulses up go to g+, pulses down to g-"
    if isinstance(device, TransferCompound):
        fast, slow = device.unit_cell_devices[0], device.unit_cell_devices[-1]
        alike = " (the fast one is alike)" if fast == slow else ""
        return slow, f"a Tiki-Taka cell has no curve of its own: this is its slow device{alike}"
    if isinstance(device, MixedPrecisionCompound):
        inner, note = shown(device.device)
        return inner, f"what mixed precision writes to{f': {note}' if note else ''}"
    raise ValueError("device: an ideal device takes any value and has no response to pulses")


def one_device(device: Device) -> PulsedDevice:
    """The device, or the one that stands for those of a cell: the slow one, g+, or else the first.

    Raises:
        ValueError: as `shown`.
    """
    cell, _ = shown(device)
    if isinstance(cell, PulsedDevice):
        return cell
    return cell.unit_cell_devices[-1 if isinstance(cell, OneSidedUnitCell) else 0]


def response(device: Device, generator: torch.Generator, *, devices: int = 200, singles: int = 4) -> Response:
    """Gives new devices a train of pulses up and one down, and measures their steps.

    The trains are long enough for a device without spread and noise to reach its bounds, and a quarter longer. Weights
    are read up to 200 times in a train. A pair is refreshed after each reading if it is time.

    Args:
        device: what holds the weights of a bank; see `shown` for cells.
        generator: for spreads, noise and turns.
        devices: how many devices or cells.
        singles: how many of them are given one by one.

    Raises:
        ValueError: an ideal device, which has no steps; or numbers below 1, or more singles than devices.
    """
    if not 1 <= singles <= devices:
        raise ValueError(f"singles: got {singles} of {devices} devices, allowed are 1 to as many as there are devices")
    cell, note = shown(device)
    cell = _each(cell, _ordinary)
    one, one_sided = one_device(cell), isinstance(cell, OneSidedUnitCell)
    stride, readings = _train(cell, one)
    state = cell.draw((devices, 1, 1), generator, _CPU)
    weights, after_up, after_down = _trains(cell, state, stride, readings, generator)
    quiet = _quiet(cell)
    noise_free, _, _ = _trains(quiet, quiet.draw((1, 1, 1), generator, _CPU), stride, readings, generator)
    population = state if isinstance(cell, PulsedDevice) else part(state, "1" if one_sided else "0")
    steps, points = _steps(one, population, one_sided=one_sided)
    return Response(
        note=note,
        cells=devices,
        kind=type(one).__name__.removesuffix("Device"),
        states=one.states(),
        granularity=one.granularity(),
        train=stride * readings,
        pulses=torch.arange(2 * readings + 1) * stride,
        noise_free=noise_free[:, 0],
        mean=weights.mean(1),
        band=torch.quantile(weights, _QUANTILES, dim=1),
        singles=weights[:, :singles].T.contiguous(),
        steps=steps,
        symmetry_point=_crossing(steps.weights, steps.up, steps.down) if steps.down is not None else None,
        symmetry_std=float(points.std()) if len(points) > 1 else None,
        lower_bound=_mean_and_std(population["min_bound"]),
        upper_bound=_mean_and_std(population["max_bound"]),
        after_up=after_up,
        after_down=after_down,
    )


def _trains(
    cell: Responding, state: State, stride: int, readings: int, generator: torch.Generator
) -> tuple[Tensor, AtBounds | None, AtBounds | None]:
    """Weights (2 `readings` + 1, n), and who is at a bound after each train; changes the state."""
    weights = [cell.weights(state).flatten().clone()]
    ends = []
    for direction in (1, -1):
        for _ in range(readings):
            _pulse(cell, state, direction, stride, generator)
            weights.append(cell.weights(state).flatten().clone())
        pulsed = state
        if isinstance(cell, OneSidedUnitCell):
            pulsed = part(state, "1" if direction > 0 else "0")
        ends.append(at_bounds(pulsed))
    return torch.stack(weights), ends[0], ends[1]


def _pulse(cell: Responding, state: State, direction: int, count: int, generator: torch.Generator) -> None:
    """Gives each cell `count` pulses, up for a direction of 1, down for -1."""
    cells = state["weight"].numel()
    where = torch.arange(cells)
    if isinstance(cell, VectorUnitCell):
        for k, (device, due) in enumerate(
            zip(cell.unit_cell_devices, _shares(cell, state, count, generator), strict=True)
        ):
            chosen = due > 0
            device.pulse(part(state, str(k)), where[chosen], direction * due[chosen], generator)
        cell.combine(state)
        return
    cell.pulse(state, where, torch.full((cells,), float(direction * count)), generator)
    if isinstance(cell, OneSidedUnitCell):
        cell.settle(state, where, torch.ones_like(where), generator)


def _shares(cell: VectorUnitCell, state: State, count: int, generator: torch.Generator) -> Tensor:
    """How many of `count` pulses each device of each cell gets, (devices of a cell, n)."""
    devices, cells, policy = len(cell.unit_cell_devices), state["weight"].numel(), cell.update_policy
    if policy is UpdatePolicy.ALL:
        return torch.full((devices, cells), float(count))
    if policy is UpdatePolicy.SINGLE_RANDOM:
        turns = torch.randint(devices, (count, cells), generator=generator)
    elif policy is UpdatePolicy.SINGLE_SEQUENTIAL:
        turns = (state["turn"] + 1 + torch.arange(count)[:, None]) % devices
    else:
        turns = state["turn"].expand(count, cells)
    state["turn"].copy_(turns[-1])
    return torch.stack([(turns == k).sum(0).float() for k in range(devices)])


def _train(cell: Responding, one: PulsedDevice) -> tuple[int, int]:
    """Pulses from one reading to the next, and readings of a train."""
    quiet, generator = _quiet_device(one), torch.Generator()
    state = quiet.draw((1, 1, 1), generator, _CPU)
    most = math.ceil(_MOST_STATES * one.states())
    burst = max(1, math.ceil(one.states() / _POINTS))
    longest = 1
    for direction in (1,) if isinstance(cell, OneSidedUnitCell) else (1, -1):
        given = 0
        while given < most:
            _pulse(quiet, state, direction, burst, generator)
            given += burst
            there = at_bounds(state)
            if there is None or (there.upper if direction > 0 else there.lower) == 1:
                break
        longest = max(longest, given)
    if isinstance(cell, VectorUnitCell) and cell.update_policy not in (UpdatePolicy.ALL, UpdatePolicy.SINGLE_FIXED):
        longest *= len(cell.unit_cell_devices)
    stride = math.ceil(_MARGIN * longest / _POINTS)
    return stride, math.ceil(_MARGIN * longest / stride)


def _steps(one: PulsedDevice, population: State, *, one_sided: bool) -> tuple[Steps, Tensor]:
    """Steps, and the symmetry points of the devices that have one."""
    quiet = _quiet_device(one)
    typical = quiet.draw((1, 1, 1), torch.Generator(), _CPU)
    offset = float(typical["reference"]) if "reference" in typical else 0.0
    low, high = (float(typical[name]) - offset for name in ("min_bound", "max_bound"))
    weights = torch.linspace(low, high, _GRID)
    directions = (True,) if one_sided else (True, False)
    sizes = [_sizes(quiet, typical, weights, up=up)[:, 0] for up in directions]
    of_all = [_sizes(one, population, weights, up=up) for up in directions]
    bands = [torch.nanquantile(size, _QUANTILES, dim=1) for size in of_all]
    if one_sided:
        return Steps(weights, sizes[0], None, bands[0], None), torch.empty(0)
    found = (_crossing(weights, up, down) for up, down in zip(of_all[0].T, of_all[1].T, strict=True))
    points = torch.tensor([point for point in found if point is not None])
    return Steps(weights, sizes[0], sizes[1], bands[0], bands[1]), points


def _sizes(device: PulsedDevice, state: State, weights: Tensor, *, up: bool) -> Tensor:
    """Sizes of noise-free steps before the bounds apply, (G, n); NaN beyond a device's bounds."""
    count = state["weight"].numel()
    w = weights.repeat_interleave(count)
    parameters = {name: values.flatten().repeat(len(weights)) for name, values in state.items()}
    change = device.step(w, torch.full_like(w, up, dtype=torch.bool), parameters, 0.0)
    inside = (device.within(w, parameters) - w).abs() <= _NEAR
    return torch.where(inside, change if up else -change, torch.nan).view(len(weights), count)


def _crossing(weights: Tensor, up: Tensor, down: Tensor) -> float | None:
    """The lowest weight at which two curves (G,) cross, between points linearly; None where they do not."""
    points = [(w, d) for w, d in zip(weights.tolist(), (up - down).tolist(), strict=True) if not math.isnan(d)]
    for (w, before), (w_after, after) in itertools.pairwise(points):
        if before * after < 0 or (after == 0 and before != 0):
            return float(w + (w_after - w) * before / (before - after))
    return None


def _mean_and_std(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std(correction=0))


def _each(cell: Responding, change: Callable[[PulsedDevice], PulsedDevice]) -> Responding:
    """The same cell of changed devices."""
    if isinstance(cell, PulsedDevice):
        return change(cell)
    return cell.model_copy(update={"unit_cell_devices": tuple(change(device) for device in cell.unit_cell_devices)})


def _ordinary(device: PulsedDevice) -> PulsedDevice:
    """Without the last line's special devices: every device here would be one."""
    return device.model_copy(update={"perfect_bias": False})


def _quiet_device(device: PulsedDevice) -> PulsedDevice:
    """The device without spread and noise."""
    fields = type(device).model_fields
    without = [name for name in fields if name.endswith("_dtod") or name in _NOISE]
    return device.model_copy(update=dict.fromkeys(without, 0.0))


def _quiet(cell: Responding) -> Responding:
    """The device or cell without spread, noise and chance."""
    quiet = _each(cell, _quiet_device)
    if isinstance(quiet, VectorUnitCell) and quiet.update_policy is UpdatePolicy.SINGLE_RANDOM:
        return quiet.model_copy(update={"update_policy": UpdatePolicy.SINGLE_SEQUENTIAL})
    if isinstance(quiet, OneSidedUnitCell):
        pulses = quiet.refresh_update.model_copy(update={"pulse_type": PulseType.MEAN_COUNT})
        return quiet.model_copy(update={"refresh_forward": IOParameters(is_perfect=True), "refresh_update": pulses})
    return quiet
