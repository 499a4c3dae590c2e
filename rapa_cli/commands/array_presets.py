"""Array presets on the command line: a list of them, and one with its devices' response to pulses."""

from __future__ import annotations

import difflib
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapa_cli import console
from rapa_cli.errors import ConfigError, FileError

if TYPE_CHECKING:
    from torch import Tensor

    from rapa_cli.analog.aware import InferenceArrays
    from rapa_cli.analog.bank import Arrays
    from rapa_cli.analog.device import Device, PulsedDevice
    from rapa_cli.analog.parameters import IOParameters
    from rapa_cli.analysis.response import AtBounds, Response
    from rapa_cli.config import Frozen

# Columns of the names of a preset's parameters, and of the numbers before a drawing of weights.
_LABEL = 12
_NUMBERS = 46
# A space at which a text is not wrapped.
_TIED = "\N{NO-BREAK SPACE}"
_PROGRAMMED = "programmed once"
# Settings that are shown in words, and those that are shown only where they are not as usual.
_SHOWN_OF_IO = {"inp_bound", "inp_res", "inp_noise", "out_bound", "out_res", "out_noise", "w_noise", "w_noise_type"}
_SHOWN_OF_IO |= {"noise_management", "bound_management"}
_SELDOM = {"diffusion", "reset", "reset_dtod", "corrupt_devices_prob", "enforce_consistency", "perfect_bias"}


def preset_meant(name: str, *, best: bool) -> str | None:
    """The preset that a name means, or None where there is a checkpoint of that name.

    Raises:
        FileError: there is neither.
    """
    from rapa_cli.runs import find_checkpoint

    try:
        find_checkpoint(name, best=best)
        return None
    except FileError as error:
        if Path(name).exists() or "/" in name or "." in name:
            raise
        missing = error
    from rapa_cli.analog.presets import INFERENCE_PRESETS, PRESETS

    known, short = [*PRESETS, *INFERENCE_PRESETS], name.removesuffix("Preset")
    if short in known:
        return short
    near, of_runs = _nearest(short, known), missing.hint or ""
    if near is None:
        hint = f"{of_runs}; presets: rapa inspect --presets".removeprefix("; ")
    elif of_runs.startswith("did you mean"):
        hint = f"{of_runs.removesuffix('?')}, or the preset '{near}'?"
    else:
        hint = f"did you mean the preset '{near}'?"
    raise FileError(f"{missing.message}, and no preset of that name", hint=hint)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a name, whatever their cases."""
    words = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), words, n=1, cutoff=0.7)
    return words[near[0]] if near else None


def list_presets(*, json: bool) -> None:
    """Shows all presets, a line for each."""
    from rapa_cli.analog.presets import INFERENCE_PRESETS, PRESETS
    from rapa_cli.analysis.response import one_device

    rows: list[dict[str, Any]] = []
    for name in sorted(PRESETS, key=str.lower):
        device = PRESETS[name]().device
        one = one_device(device)
        rows.append({"name": name, "device": _kind(one), "states": round(one.states()), "cell": _cell(device)})
    for name, arrays in sorted(INFERENCE_PRESETS.items()):
        rows.append({"name": name, "device": arrays.noise_model.kind, "states": None, "cell": _PROGRAMMED})
    if json:
        console.print_json({"presets": rows})
        return
    console.show(f"{'preset':26}  {'device':19}  states  cell")
    for row in rows:
        states = "" if row["states"] is None else f"{row['states']:,}"
        console.show(f"{row['name']:26}  {row['device']:19}  {states:>6}  {row['cell']}".rstrip())


def show_preset(name: str, out: Path | None, seed: int, *, json: bool) -> None:
    """Shows a preset: its parameters and the response of its devices."""
    from rapa_cli.analog.bank import Arrays
    from rapa_cli.analog.parameters import plain
    from rapa_cli.analog.presets import preset

    arrays = preset(name)
    found = _response(arrays, seed) if isinstance(arrays, Arrays) else None
    document: dict[str, Any] = {"preset": name, "seed": seed, "arrays": plain(arrays), "response": None}
    if found is not None:
        document["response"] = _numbers(found)
    if out is not None:
        if found is None:
            raise ConfigError(
                f"--out: the weights of {name} are programmed: there is no response to pulses to draw",
                hint="leave --out out",
            )
        from rapa_cli.report import figures

        title = f"{name}: {found.kind}, {found.states:,.0f} states"
        document["figures"] = figures.write(figures.device_response(found, title), out, f"{name}-response")
    if json:
        console.print_json(document)
        return
    _print_rows([("preset", name)])
    if isinstance(arrays, Arrays):
        _print_rows([*_device_rows(arrays.device), ("", ""), *_around_rows(arrays)])
    else:
        _print_rows(_inference_rows(arrays))
    if found is not None:
        _print_rows([("", ""), *_response_rows(found), ("", "")])
        _print_trains(found)
        if out is None:
            console.show(f"a figure of this: rapa inspect {name} --out DIR")
    for path in document.get("figures", []):
        console.show(f"wrote {path}")


def _response(arrays: Arrays, seed: int) -> Response:
    import torch

    from rapa_cli.analysis.response import response

    with console.progress() as bar:
        bar.add_task("giving pulses to devices", total=None)
        return response(arrays.device, torch.Generator().manual_seed(seed))


def _numbers(found: Response) -> dict[str, Any]:
    """A response as plain numbers."""
    steps = found.steps

    def numbers(values: Tensor | None) -> list[float] | None:
        # Float32 has no more digits than these.
        return None if values is None else [float(f"{value:.7g}") for value in values.tolist()]

    return {
        "note": found.note,
        "kind": found.kind,
        "cells": found.cells,
        "states": found.states,
        "granularity": found.granularity,
        "train": found.train,
        "pulses": found.pulses.tolist(),
        "noise_free": numbers(found.noise_free),
        "mean": numbers(found.mean),
        "p10": numbers(found.band[0]),
        "p90": numbers(found.band[1]),
        "steps": {"weights": numbers(steps.weights), "up": numbers(steps.up), "down": numbers(steps.down)},
        "symmetry_point": found.symmetry_point,
        "symmetry_std": found.symmetry_std,
        "lower_bound": {"mean": found.lower_bound[0], "std": found.lower_bound[1]},
        "upper_bound": {"mean": found.upper_bound[0], "std": found.upper_bound[1]},
        "at_bounds_after_up": found.after_up and vars(found.after_up),
        "at_bounds_after_down": found.after_down and vars(found.after_down),
    }


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Prints names and what belongs to them, long texts in several lines."""
    width = max(console.out().width, 40) - _LABEL
    for label, text in rows:
        lines = textwrap.wrap(text, width) or [""]
        for number, line in enumerate(lines):
            console.show(f"{'' if number else label:{_LABEL}}{line.replace(_TIED, ' ')}".rstrip())


def _device_rows(device: Device) -> list[tuple[str, str]]:
    """What a device, or the one that stands for those of a cell, is made of."""
    from rapa_cli.analog.device import PulsedDevice
    from rapa_cli.analog.steps import NoisyWriteDevice
    from rapa_cli.analysis.response import one_device

    one = one_device(device)
    low, high = (
        f"{bound:g} +- {_percent(spread)}"
        for bound, spread in ((one.w_min, one.w_min_dtod), (one.w_max, one.w_max_dtod))
    )
    noise = one.noise_of_writing()
    weaker = f"{'down' if one.up_down > 0 else 'up'} weaker by {_percent(abs(one.up_down))}"
    life = f"{one.lifetime:,.0f} steps of the optimizer +- {_percent(one.lifetime_dtod)}"
    rows = [("cell", _cell(device))] if _cell(device) else []
    if device is not one:
        rows += _settings("", [(key, value) for key, value in _unusual(device) if isinstance(value, (int, float, str))])
    rows += [
        ("device", _kind(one)),
        ("states", f"{one.states():,.0f} between the bounds, in steps of {one.granularity():.4g} at weight 0"),
        ("bounds", f"{low} to {high} between devices"),
        ("dw_min", f"{one.dw_min:g} +- {_percent(one.dw_min_dtod)} between devices{_log(one)}"),
        ("up/down", f"steps {weaker if one.up_down else 'alike'} +- {_percent(one.up_down_dtod)} between devices"),
        ("cycle noise", f"{_percent(one.dw_min_std)} of the step"),
        ("write noise", f"{noise:.3g}, {noise / one.dw_min:g} dw_min" if noise else "none"),
        ("lifetime", life if one.lifetime else "for ever"),
    ]
    common = {*PulsedDevice.model_fields, *NoisyWriteDevice.model_fields, "kind", "reverse_offset"}
    own = [(key, value) for key, value in one if key not in common]
    # The numbers of a law count, as set or not; switches only where they are not as usual.
    law = [(key, value) for key, value in own if not isinstance(value, bool) and value != 0]
    law += _unusual(one, {key for key, value in own if isinstance(value, bool)})
    law += _unusual(one, _SELDOM)
    return [*rows, *_settings("law", law)]


def _log(device: PulsedDevice) -> str:
    return " (log-normal)" if device.dw_min_dtod_log_normal else ""


def _around_rows(arrays: Arrays) -> list[tuple[str, str]]:
    """What lies around arrays: converters, noise, and how they are updated."""
    update = arrays.update
    rows = _io_rows(arrays.forward)
    if arrays.backward == arrays.forward:
        rows.append(("backward", "the same, without bound management"))
    else:
        rows += [("backward", "without bound management:"), *_io_rows(arrays.backward)]
    managed = {"update management": update.update_management, "pulse length management": update.update_bl_management}
    how = ", ".join(key for key, value in managed.items() if value) or "no management"
    rows.append(("update", f"{update.pulse_type}, at most {update.desired_bl} pulses; {how}"))
    if arrays.merge != 1:
        rows.append(("merge", f"{arrays.merge or 'all'} vector pairs of a tile together"))
    return [*rows, *_settings("mapping", _unusual(arrays.mapping))]


def _inference_rows(arrays: InferenceArrays) -> list[tuple[str, str]]:
    """Arrays that are only programmed."""
    own = _unusual(arrays, {"weight_scaling_omega", "weight_scaling_columnwise", "drift_compensation"})
    rows = [("weights", f"{_PROGRAMMED}, as {arrays.noise_model.kind}; no response to pulses")]
    rows += [*_settings("noise model", _numbers_of(arrays.noise_model)), *_settings("scaling", own)]
    rows.append(("drift", f"outputs are {'' if arrays.drift_compensation else 'not '}compensated"))
    for label, part in (("modifier", arrays.modifier), ("clipping", arrays.clip), ("remapping", arrays.remap)):
        rows += _settings(label, _unusual(part)) or [(label, "none")]
    of_range = _settings("input range", _numbers_of(arrays.input_range)) if arrays.input_range else []
    rows += of_range or [("input range", "by noise management")]
    return [*rows, ("", ""), *_io_rows(arrays.forward), ("backward", "exact")]


def _io_rows(io: IOParameters) -> list[tuple[str, str]]:
    if io.is_perfect:
        return [("reading", "exact")]
    noise = f"{io.inp_noise:g} on inputs, {io.out_noise:g} on outputs"
    weights = f"{io.w_noise:g} on weights ({io.w_noise_type})" if io.w_noise else "none on weights"
    rows = [
        ("DAC", _converter(io.inp_step, io.inp_bound)),
        ("ADC", _converter(io.out_step, io.out_bound)),
        ("read noise", f"{noise}, {weights}"),
        ("management", f"of noise {io.noise_management}, of bounds {io.bound_management}"),
    ]
    return [*rows, *_settings("also", _unusual(io, set(type(io).model_fields) - _SHOWN_OF_IO))]


def _settings(label: str, settings: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    """A row of settings, or none where there are none."""
    text = ", ".join(f"{key}{_TIED}{_plain(value)}" for key, value in settings)
    return [(label, text)] if text else []


def _numbers_of(settings: Frozen) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in settings if isinstance(value, (int, float)) and value]


def _unusual(settings: Frozen, names: set[str] | None = None) -> list[tuple[str, Any]]:
    """Those of some settings, or of all, that are not as they are by default."""
    fields = type(settings).model_fields
    chosen = fields.keys() if names is None else fields.keys() & names
    return [(key, value) for key, value in settings if key in chosen and value != fields[key].default]


def _converter(step: float, bound: float) -> str:
    """A converter's bits, levels and bounds."""
    within = f"within +-{bound:g}" if bound > 0 else "unbounded"
    if step <= 0:
        return f"exact, {within}"
    levels = round(2 * bound / step) + 1
    return f"{math.ceil(math.log2(levels))} bits ({levels} levels), {within}"


def _response_rows(found: Response) -> list[tuple[str, str]]:
    """What the pulses showed."""
    rows = [("response", f"{found.cells} new cross-points: {found.train:,} pulses up from 0, then as many down")]
    if found.note:
        rows.append(("of", found.note))
    point = "no point of it: steps up and down are of one size nowhere, or everywhere"
    if found.steps.down is None:
        point = "no point of it: devices only step up"
    elif found.symmetry_point is not None:
        spread = f" +- {found.symmetry_std:.2f} between devices" if found.symmetry_std is not None else ""
        point = f"steps up and down are of one size at {_weight(found.symmetry_point)}{spread}"
    rows.append(("symmetry", point))
    for label, ends in (("at bounds", found.after_up), ("", found.after_down)):
        rows.append((label, f"{_ends(ends)} after the pulses {'up' if label else 'down'}"))
    return rows


def _ends(ends: AtBounds | None) -> str:
    return "nothing (all devices are stuck)" if ends is None else f"{_percent(ends.fraction)} of the devices"


def _print_trains(found: Response) -> None:
    """A line for each quarter of a train: weights as numbers, and drawn between the least and the most."""
    quarters = (len(found.pulses) - 1) / 8
    chosen = [round(n * quarters) for n in range(9)]
    low = min(float(found.band.min()), float(found.noise_free.min()))
    high = max(float(found.band.max()), float(found.noise_free.max()))
    room = min(console.out().width, 80) - _NUMBERS
    console.show(f"{'pulses':>12}  {'noise-free':>10}  {'mean':>5}  {'10 to 90 %':>11}")
    for number in chosen:
        given = int(found.pulses[number])
        up, down = min(given, found.train), max(given - found.train, 0)
        label = f"{down:,} down" if down else f"{up:,} up"
        mean, (p10, p90) = float(found.mean[number]), found.band[:, number].tolist()
        noise_free = float(found.noise_free[number])
        numbers = f"{_weight(noise_free):>10}  {_weight(mean):>5}  {_weight(p10):>5} {_weight(p90):>5}"
        line = f"{label:>12}  {numbers}"
        if room >= 20:
            line += f"  {_strip(low, high, p10, mean, p90, room)}"
        console.show(line)
    if room >= 20:
        console.show(f"{'':{_NUMBERS}}{_weight(low)}{_weight(high):>{room - len(_weight(low))}}")


def _strip(low: float, high: float, p10: float, mean: float, p90: float, room: int) -> str:
    """Where the middle 80 % (=) and their mean (o) lie between two weights."""
    first, middle, last = (round((value - low) / (high - low) * (room - 1)) for value in (p10, mean, p90))
    return "".join("o" if n == middle else "=" if first <= n <= last else "." for n in range(room))


def _cell(device: Device) -> str:
    """The cell around a device; "" for none."""
    from rapa_cli.analog.cells import VectorUnitCell
    from rapa_cli.analog.mixed import MixedPrecisionCompound
    from rapa_cli.analog.onesided import OneSidedUnitCell
    from rapa_cli.analog.transfer import BufferedTransferCompound, TransferCompound

    if isinstance(device, VectorUnitCell):
        return f"cell of {len(device.unit_cell_devices)}"
    if isinstance(device, OneSidedUnitCell):
        return "pair"
    if isinstance(device, TransferCompound):
        return f"Tiki-Taka {2 if isinstance(device, BufferedTransferCompound) else 1}"
    if isinstance(device, MixedPrecisionCompound):
        inner = _cell(device.device)
        return f"mixed precision{f', {inner}' if inner else ''}"
    return ""


def _kind(device: Device) -> str:
    return type(device).__name__.removesuffix("Device")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _weight(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"
