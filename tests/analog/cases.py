"""Reading the reference cases: objects from their parameters, and what it means to agree with them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from rapa_cli.analog import presets, steps
from rapa_cli.analog.cells import Cell, VectorUnitCell
from rapa_cli.analog.device import Device, IdealDevice
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.parameters import Compat, IOParameters, UpdateParameters
from rapa_cli.analog.transfer import BufferedTransferCompound, TransferCompound

Case = dict[str, Any]

ERRORS = 4.0


def load() -> list[Case]:
    """The cases of the file that RAPA_ANALOG_REFERENCE names, or of the copy beside this module."""
    path = Path(os.environ.get("RAPA_ANALOG_REFERENCE") or Path(__file__).with_name("reference.json"))
    cases: list[Case] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return cases


def generator(case: Case) -> torch.Generator:
    """Seeded by the case's name."""
    return torch.Generator().manual_seed(int.from_bytes(case["id"].encode()[-7:], "little"))


def compat(case: Case) -> Compat:
    """What a case imitates: aihwkit's torch tile, or a fault of RPUCuda that it shows; mostly neither."""
    if "Torch" in case["api"]:
        return "torch"
    made = device(case["params"])
    parts = made.unit_cell_devices if isinstance(made, Cell) else (made,)
    faulty_granularity = any(isinstance(part, steps.ExpStepDevice) for part in parts)
    return "rpucuda" if faulty_granularity or _masks_too_much(case) else None


def _masks_too_much(case: Case) -> bool:
    """Whether there are outputs above the ADC's bound, whose gradients aihwkit masks, clipped or not."""
    bound = (case["params"].get("forward") or {}).get("out_bound", 0.0)
    if "grad_y" not in case["inputs"] or "y" not in case["expected"] or bound <= 0:
        return False
    return float(tensor(case["expected"]["y"]).abs().max()) >= 0.999 * float(bound)


def first_of(tables: dict[str, Any] | list[dict[str, Any]], *names: str, default: Any = None) -> Any:
    """What the first of these names that is there stands for, in one table or several."""
    for table in tables if isinstance(tables, list) else [tables]:
        for name in names:
            if table.get(name) is not None:
                return table[name]
    return default


def io(table: dict[str, Any] | None) -> IOParameters:
    """The periphery; bounds that are infinite are none, which here is 0."""
    if table is None:
        return IOParameters(is_perfect=True)
    known = _known(IOParameters, table)
    none = {name: 0.0 for name in ("inp_bound", "out_bound") if known.get(name) == math.inf}
    return IOParameters(**{**known, **none})


def update(table: dict[str, Any] | None) -> UpdateParameters:
    return UpdateParameters(**_known(UpdateParameters, table or {}))


def device(params: dict[str, Any]) -> Device:
    """The device of a case; those of presets are ours by their names, once they prove to be the same."""
    table, preset = params.get("device"), str(params.get("preset") or "").removesuffix("Preset")
    if isinstance(table, dict):
        return _device(table)
    names = [name for name in (preset, str(table or "").removesuffix("Device").removesuffix("Preset")) if name]
    for name in names:
        if name in presets.DEVICES:
            return presets.DEVICES[name]
        if name in presets.PRESETS:
            return presets.PRESETS[name]().device
    assert set(names) <= {"Ideal", "FloatingPoint"}, f"there is no device of the names {names}"
    return IdealDevice()


def _device(table: dict[str, Any]) -> Device:
    name = table["class"]
    if "unit_cell_devices" in table:
        parts = tuple(_device(part) for part in table["unit_cell_devices"])
        kind = next(kind for field, kind in _CELLS.items() if field in table)
        nested = {key: value for key, value in _known(kind, table).items() if key != "unit_cell_devices"}
        for key, value in nested.items():
            if isinstance(value, dict):
                nested[key] = io(value) if "forward" in key else update(value)
        return kind.model_validate({**nested, "unit_cell_devices": parts})
    if name in ("IdealDevice", "FloatingPointDevice"):
        return IdealDevice.model_validate(_known(IdealDevice, table))
    short = name.removesuffix("Device").removesuffix("Preset")
    single: type[Device] = type(presets.DEVICES[short]) if short in presets.DEVICES else getattr(steps, name)
    made = single.model_validate(_known(single, table))
    if short in presets.DEVICES:
        pairs = zip(made.model_dump().values(), presets.DEVICES[short].model_dump().values(), strict=True)
        alike = (a == (pytest.approx(b, rel=1e-9) if isinstance(b, float) else b) for a, b in pairs)
        assert all(alike), f"the preset {short} differs"
    return made


# Fields by which aihwkit's cells are told apart, the more special ones first.
_CELLS: dict[str, type[Device]] = {
    "thres_scale": BufferedTransferCompound,
    "transfer_every": TransferCompound,
    "refresh_every": OneSidedUnitCell,
    "unit_cell_devices": VectorUnitCell,
}


def _known(kind: type[BaseModel], table: dict[str, Any]) -> dict[str, Any]:
    """The fields that a table sets. Others of aihwkit's are left out: if they have an effect, the results differ."""
    return {key: value for key, value in table.items() if key in kind.model_fields and value is not None}


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def vectors(values: Any) -> Tensor:
    """Some vectors (N, n), or one alone."""
    made = tensor(values)
    return made if made.ndim > 1 else made.view(1, -1)


def assert_near(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """Equal shapes, and values within the tolerance, which is relative to values above 1."""
    actual = torch.as_tensor(actual, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    worst = ((actual - expected).abs() / expected.abs().clamp_min(1)).max() if expected.numel() else torch.zeros(())
    assert float(worst) <= tolerance, f"{what}: off by {float(worst):.3g}\n{actual}\n{expected}"


def assert_sample(sample: Tensor, expected: dict[str, float], what: str) -> None:
    """Mean and standard deviation within four standard errors of the difference of two samples."""
    sample = sample.double().flatten()
    n, other = len(sample), expected["n"]
    mean, variance = sample.mean(), sample.var()
    spread = float(variance.sqrt())
    if expected["std"] == 0:
        assert spread < 2e-6, f"{what}: spread {spread} instead of none"
        assert_near(mean, expected["mean"], 2e-6, what)
        return
    # The error of a standard deviation depends on the fourth moment; that of the reference is for Gaussian samples.
    fourth = float(((sample - mean) ** 4).mean())
    of_mean = math.sqrt(float(variance) / n + expected["std"] ** 2 / other)
    of_std = math.sqrt(max(fourth - float(variance) ** 2, 0.0)) / (2 * spread or 1.0) * math.sqrt(1 / n + 1 / other)
    for name, actual, error in (("mean", float(mean), of_mean), ("std", spread, of_std)):
        distance = abs(actual - expected[name]) / (error or 2e-6)
        assert distance < ERRORS, f"{what}: {name} {actual} instead of {expected[name]}, {distance:.2f} errors"
