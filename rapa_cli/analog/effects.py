"""Settings of arrays that change nothing, because another setting turns off what they are about.

The classes take them, as aihwkit's do; in a table that a user writes they are a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from rapa_cli.analog.aware import InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.device import IdealDevice, PulsedDevice
from rapa_cli.analog.mixed import MixedPrecisionCompound
from rapa_cli.analog.modifiers import ClipType, ModifierType, RemapType, WeightClip, WeightModifier, WeightRemap
from rapa_cli.analog.parameters import (
    BoundManagement,
    IOParameters,
    NoiseManagement,
    PulseType,
    UpdateParameters,
    step_of,
)
from rapa_cli.analog.parameters import Mapping as Placement

# What lacks where a setting has no effect, or None where it has one.
Lack = Callable[[Any], str | None]


def without_effect(made: BaseModel, written: Mapping[str, Any]) -> list[str]:
    """Lists the settings in a table that change nothing, each with what it lacks.

    Args:
        made: the object that the table, and what it leaves to defaults or to a preset, has become.
        written: the table alone; a setting that it leaves at the value of the class is none.

    Returns:
        As "forward.out_noise_std: has no effect without out_noise", in the order of the table.
    """
    return [f"{name}: has no effect {lack}" for name, lack in _found(made, written)]


def _found(made: BaseModel, written: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    fields = type(made).model_fields
    for name, given in written.items():
        value = getattr(made, name)
        inner = zip(value, given, strict=True) if isinstance(value, tuple) and isinstance(given, list | tuple) else ()
        for number, (part, table) in enumerate(inner):
            if isinstance(part, BaseModel) and isinstance(table, Mapping):
                yield from ((f"{name}.{number}.{below}", lack) for below, lack in _found(part, table))
        if isinstance(value, BaseModel) and isinstance(given, Mapping):
            yield from ((f"{name}.{below}", lack) for below, lack in _found(value, given))
        elif value != fields[name].default:
            lacks = (rules[name](made) for kind, rules in _RULES.items() if isinstance(made, kind) and name in rules)
            yield from ((name, lack) for lack in lacks if lack is not None)


def _without(what: str, lacks: Callable[[Any], bool]) -> Lack:
    return lambda made: f"without {what}" if lacks(made) else None


def _of_reading(lack: Lack) -> Lack:
    """The rule where a reading is not perfect; where it is, that says by itself that all else has no effect."""
    return lambda io: None if io.is_perfect else lack(io)


def _nm_thres(io: IOParameters) -> str | None:
    ignoring = (NoiseManagement.NONE, NoiseManagement.AVERAGE_ABS_MAX)
    return f"with noise_management {io.noise_management}" if io.noise_management in ignoring else None


def _bound_management(io: IOParameters) -> str | None:
    return "with bound_management None" if io.bound_management is BoundManagement.NONE else None


def _max_bm_res(io: IOParameters) -> str | None:
    # This noise management shares the limit.
    return None if io.noise_management is NoiseManagement.ABS_MAX_NP_SUM else _bound_management(io)


def _res(update: UpdateParameters) -> str | None:
    implicit = update.pulse_type is PulseType.DETERMINISTIC_IMPLICIT
    return f"with pulse_type {update.pulse_type}; use x_res_implicit and d_res_implicit" if implicit else None


def _sto_round(update: UpdateParameters) -> str | None:
    if update.pulse_type is PulseType.DETERMINISTIC_IMPLICIT:
        steps = step_of(update.x_res_implicit) + step_of(update.d_res_implicit)
        return None if steps else "without x_res_implicit or d_res_implicit"
    return None if step_of(update.res) else "without res"


def _merge(arrays: Arrays) -> str | None:
    if isinstance(arrays.device, IdealDevice | MixedPrecisionCompound):
        return f"with {arrays.device.kind} devices, whose products are summed exactly"
    return f"with update.pulse_type {arrays.update.pulse_type}" if arrays.device.adds(arrays.update) else None


_columnwise = _without("weight_scaling_omega", lambda made: made.weight_scaling_omega <= 0)

_RULES: dict[type[BaseModel], dict[str, Lack]] = {
    IOParameters: {
        name: _of_reading(lack)
        for name, lack in {
            "inp_sto_round": _without("inp_res and inp_bound", lambda io: io.inp_step == 0),
            "out_sto_round": _without("out_res and out_bound", lambda io: io.out_step == 0),
            "out_noise_std": _without("out_noise", lambda io: io.out_noise <= 0),
            "nm_thres": _nm_thres,
            "max_bm_factor": _bound_management,
            "max_bm_res": _max_bm_res,
            "bm_test_negative_bound": _bound_management,
            "w_noise_type": _without("w_noise", lambda io: io.w_noise <= 0),
            "ir_drop_g_ratio": _without("ir_drop", lambda io: io.ir_drop <= 0),
            "out_nonlinearity_std": _without("out_nonlinearity", lambda io: io.out_nonlinearity <= 0),
            "slope_calibration": _without(
                "out_nonlinearity or r_series", lambda io: io.out_nonlinearity <= 0 and io.r_series <= 0
            ),
            "v_offset_w_min": _without(
                "v_offset_std or r_series", lambda io: io.v_offset_std <= 0 and io.r_series <= 0
            ),
        }.items()
    },
    UpdateParameters: {
        "res": _res,
        "sto_round": _sto_round,
        "um_grad_scale": _without(
            "update_management or update_bl_management",
            lambda update: not (update.update_management or update.update_bl_management),
        ),
    },
    PulsedDevice: {
        "lifetime_dtod": _without("lifetime", lambda device: device.lifetime <= 0),
        "diffusion_dtod": _without("diffusion", lambda device: device.diffusion <= 0),
    },
    Placement: {"weight_scaling_columnwise": _columnwise},
    Arrays: {"merge": _merge},
    InferenceArrays: {"weight_scaling_columnwise": _columnwise},
    WeightModifier: {
        "sto_round": _without("res", lambda modifier: modifier.res <= 0),
        "assumed_wmax": lambda modifier: "with rel_to_actual_wmax" if modifier.rel_to_actual_wmax else None,
        "rel_to_actual_wmax": _without("a type", lambda modifier: modifier.type is ModifierType.NONE),
    },
    WeightRemap: {"remapped_wmax": _without("a type", lambda remap: remap.type is RemapType.NONE)},
    WeightClip: {
        "fixed_value": _without("a type", lambda clip: clip.type is ClipType.NONE),
        "sigma": _without("type LayerGaussian", lambda clip: clip.type is not ClipType.LAYER_GAUSSIAN),
    },
}
