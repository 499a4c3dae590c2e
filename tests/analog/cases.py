"""Reading the reference cases: objects from their parameters, and what it means to agree with them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapa_cli.analog import presets, steps
from rapa_cli.analog.device import Device, IdealDevice
from rapa_cli.analog.parameters import Compat, IOParameters, UpdateParameters

Case = dict[str, Any]

ERRORS = 4.0
# What aihwkit keeps beside a device's parameters, and where it is off in every case.
_BESIDE = {"class", "construction_seed", "count_pulses"}


def load() -> list[Case]:
    """The cases of the file that RAPA_ANALOG_REFERENCE names, or of the copy beside this module."""
    path = Path(os.environ.get("RAPA_ANALOG_REFERENCE") or Path(__file__).with_name("reference.json"))
    cases: list[Case] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return cases


def generator(case: Case) -> torch.Generator:
    """Seeded by the case's name."""
    return torch.Generator().manual_seed(int.from_bytes(case["id"].encode()[-7:], "little"))


def compat(case: Case) -> Compat:
    """What a case imitates: aihwkit's torch tile, or a fault of RPUCuda that it records; mostly neither."""
    if case["api"].startswith("TorchInference"):
        return "torch"
    device = case["params"].get("device") or {}
    faulty_granularity = "A_up" in device or "A_up" in (device.get("unit_cell_devices") or [{}])[0]
    return "rpucuda" if faulty_granularity or "quirk" in case["description"] else None


def io(table: dict[str, Any] | None) -> IOParameters:
    return IOParameters(is_perfect=True) if table is None else IOParameters(**table)


def update(table: dict[str, Any]) -> UpdateParameters:
    return UpdateParameters(**table)


def device(params: dict[str, Any]) -> Device:
    """The device of a case; those of presets are ours by their names, once they prove to be the same."""
    table, preset = params.get("device"), params.get("preset", "").removesuffix("Preset")
    if table is None or "unit_cell_devices" in table:
        if preset in presets.PRESETS:
            return presets.PRESETS[preset]().device
        return IdealDevice()
    name = table["class"]
    if name in ("IdealDevice", "FloatingPointDevice"):
        return IdealDevice(lifetime=table.get("lifetime", 0.0), diffusion=table.get("diffusion", 0.0))
    fields = {key: value for key, value in table.items() if key not in _BESIDE}
    short = name.removesuffix("PresetDevice")
    if short in presets.DEVICES:
        ours = presets.DEVICES[short]
        assert type(ours)(**fields) == ours, f"the preset {short} differs"
        return ours
    kind: type[Device] = getattr(steps, name)
    return kind(**fields)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


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
