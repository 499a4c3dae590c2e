"""Arrays by aihwkit's preset names: devices fitted to measurements, with the periphery that goes with them.

`ReRamES()` is aihwkit's `ReRamESPreset`; `preset("ReRamES")` finds it by either name. Presets apply many vector pairs
together, as each kind of device allows; `ReRamES(merge=1)` applies one after the other.
"""

from __future__ import annotations

from typing import Protocol

from rapa_cli.analog.aware import INFERENCE, STANDARD_HWA, InferenceArrays
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.cells import UpdatePolicy, VectorUnitCell
from rapa_cli.analog.device import PulsedDevice
from rapa_cli.analog.kinds import AnyDevice
from rapa_cli.analog.mixed import MixedPrecisionCompound
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.parameters import BoundManagement, IOParameters, NoiseManagement, UpdateParameters
from rapa_cli.analog.steps import (
    AnyPulsed,
    ConstantStepDevice,
    ExpStepDevice,
    LinearStepDevice,
    SoftBoundsReferenceDevice,
)
from rapa_cli.analog.transfer import BufferedTransferCompound, TransferCompound
from rapa_cli.errors import suggestion


class Preset(Protocol):
    """Makes the arrays of a preset."""

    def __call__(self, merge: int | None = None) -> Arrays:
        """The arrays, with another `merge` than the preset's, if one is given; 1 is the exact update."""


CHUNK = 256
"""Vector pairs that state-dependent devices get together: mean and spread of the change stay within 5 % of exact."""

CHUNK_OF_TTV2 = 64
"""Vector pairs after which transfers are made where each pair has one: fewer than any layer of `full` has lines."""

PRESET_IO = IOParameters(out_bound=20.0, out_noise=0.1)
"""The periphery of all device presets: a DAC of 7 bits and an ADC of 9."""

_TRANSFER_IO = PRESET_IO.model_copy(
    update={"noise_management": NoiseManagement.NONE, "bound_management": BoundManagement.NONE}
)

# Gong et al., Nature Communications, 2018: a fit of the exponential model.
_RE_RAM_ES = ExpStepDevice(
    dw_min=0.00135,
    dw_min_dtod=0.2,
    dw_min_std=5.0,
    up_down=0.259359,
    up_down_dtod=0.05,
    w_max=1.0,
    w_min=-1.0,
    write_noise_std=75.0,
    a=-0.5,
    b=-0.5,
    gamma_up=5.0,
    gamma_down=5.0,
    A_up=-1.18445,
    A_down=-0.081404,
)
# The same measurements, loosely, with soft bounds around the symmetry point.
_RE_RAM_SB = SoftBoundsReferenceDevice(
    dw_min=0.002,
    dw_min_std=3.75,
    w_max=1.25,
    w_max_dtod=0.3 / 1.25,
    w_min=-0.75,
    w_min_dtod=0.3 / 0.75,
    write_noise_std=56.0,
)
# Li et al., VLSI, 2018; the charge leaks.
_CAPACITOR = LinearStepDevice(
    dw_min=0.005,
    dw_min_dtod=0.1,
    up_down_dtod=0.06,
    w_max=1.0,
    w_max_dtod=0.07,
    w_min=-1.0,
    w_min_dtod=0.07,
    gamma_up=0.05,
    gamma_up_dtod=0.01,
    gamma_down=0.05,
    gamma_down_dtod=0.01,
    mult_noise=False,
    lifetime=1e6,
    lifetime_dtod=0.3,
)
# Tang et al., IEDM, 2018; the range is shifted so that the symmetry point is at 0.
_EC_RAM = LinearStepDevice(
    dw_min=0.002,
    dw_min_dtod=0.1,
    w_max=1.1724,
    w_max_dtod=0.05,
    w_min=-0.8276,
    w_min_dtod=0.05,
    gamma_up=0.1153,
    gamma_down=0.5085,
)
# Kim et al., IEDM, 2019.
_EC_RAM_MO = LinearStepDevice(
    dw_min=2.8214e-4,
    dw_min_dtod=0.1,
    dw_min_std=2.0,
    w_max=1.1714,
    w_max_dtod=0.05,
    w_min=-0.8286,
    w_min_dtod=0.05,
    gamma_up=0.4152,
    gamma_down=0.7342,
)
# Gokmen and Vlasov, Frontiers in Neuroscience, 2016, with 10 000 states and no asymmetry between devices.
_IDEALIZED = ConstantStepDevice(dw_min=0.0002, up_down_dtod=0.0, w_max=1.0, w_min=-1.0)
# The same specification with about the 1 200 states it asks for.
_GOKMEN_VLASOV = ConstantStepDevice(dw_min=0.0016, w_max=1.0, w_min=-1.0)
# Nandakumar et al., Frontiers in Neuroscience, 2020; only steps up.
_PCM = ExpStepDevice(
    dw_min=0.01,
    dw_min_dtod=0.2,
    dw_min_std=0.6,
    up_down_dtod=0.05,
    w_max=2.0,
    w_max_dtod=0.1,
    w_min=0.0,
    w_min_dtod=0.0,
    a=-1.0,
    b=0.0,
    gamma_up=2.5,
    gamma_down=2.5,
    A_up=-27.235,
    A_down=-2.235,
    dw_min_std_add=0.042,
    dw_min_std_slope=0.108,
    reset=0.01,
    reset_dtod=0.02,
)
_PCM_PAIR = OneSidedUnitCell(unit_cell_devices=(_PCM, _PCM), refresh_every=1, refresh_forward=PRESET_IO)
# Gong, Rasch et al., IEDM, 2022: arrays of an optimised material, and of hafnium oxide as it is.
_RE_RAM_ARRAY_OM = SoftBoundsReferenceDevice(
    dw_min=0.0949,
    dw_min_dtod=0.7829,
    dw_min_dtod_log_normal=True,
    dw_min_std=0.4158,
    w_max=1.0,
    w_max_dtod=0.3499,
    w_min=-1.0,
    w_min_dtod=0.5695,
    write_noise_std=1.4113,
    corrupt_devices_range=0.01,
    reference_std=0.05,
    subtract_symmetry_point=True,
)
_RE_RAM_ARRAY_HFO2 = _RE_RAM_ARRAY_OM.model_copy(
    update={
        "dw_min": 0.4622,
        "dw_min_dtod": 0.7125,
        "dw_min_std": 0.2174,
        "w_max_dtod": 0.4295,
        "w_min_dtod": 0.5990,
        "write_noise_std": 0.5841,
    }
)

DEVICES: dict[str, AnyPulsed] = {
    "ReRamES": _RE_RAM_ES,
    "ReRamSB": _RE_RAM_SB,
    "Capacitor": _CAPACITOR,
    "EcRam": _EC_RAM,
    "EcRamMO": _EC_RAM_MO,
    "Idealized": _IDEALIZED,
    "GokmenVlasov": _GOKMEN_VLASOV,
    "PCM": _PCM,
    "ReRamArrayOM": _RE_RAM_ARRAY_OM,
    "ReRamArrayHfO2": _RE_RAM_ARRAY_HFO2,
}
"""Single devices by aihwkit's names, without "PresetDevice"."""


def _chunk(device: AnyDevice) -> int:
    """How many vector pairs are applied together: all where steps are of one size or go in one direction only."""
    if isinstance(device, ConstantStepDevice | OneSidedUnitCell):
        return 0
    if isinstance(device, BufferedTransferCompound):
        return CHUNK_OF_TTV2
    if isinstance(device, TransferCompound):
        return _chunk(device.unit_cell_devices[0])
    if isinstance(device, VectorUnitCell):
        return max(_chunk(one) for one in device.unit_cell_devices)
    return CHUNK if isinstance(device, PulsedDevice) else 1


def _around(device: AnyDevice, update: UpdateParameters | None = None) -> Preset:
    """Arrays of a device with the periphery of all device presets."""

    def arrays(merge: int | None = None) -> Arrays:
        return Arrays(
            device=device,
            forward=PRESET_IO,
            backward=PRESET_IO,
            update=update or UpdateParameters(),
            merge=_chunk(device) if merge is None else merge,
        )

    return arrays


def _several(device: AnyPulsed, count: int) -> Preset:
    """Some devices at each cross-point, of which one at random is updated by each pair."""
    return _around(VectorUnitCell(unit_cell_devices=(device,) * count, update_policy=UpdatePolicy.SINGLE_RANDOM))


def _tiki_taka(device: AnyPulsed) -> Preset:
    """Version 1: a column each mini-batch, read without management, written with the usual pulses."""
    return _around(TransferCompound(unit_cell_devices=(device, device), transfer_forward=_TRANSFER_IO))


def _tiki_taka_2(device: AnyPulsed, fast_lr: float, auto_granularity: float, slots: int) -> Preset:
    """Version 2: a column each vector pair; devices with a reference have their symmetry point subtracted."""
    if isinstance(device, SoftBoundsReferenceDevice):
        device = device.model_copy(update={"subtract_symmetry_point": True})
    cell = BufferedTransferCompound(
        unit_cell_devices=(device, device),
        transfer_forward=_TRANSFER_IO,
        units_in_mbatch=False,
        fast_lr=fast_lr,
        auto_scale=True,
        auto_granularity=auto_granularity,
        momentum=0.0,
    )
    return _around(cell, UpdateParameters(desired_bl=slots))


def _mixed_precision(device: AnyPulsed | OneSidedUnitCell) -> Preset:
    return _around(MixedPrecisionCompound(device=device))


ReRamES = _around(_RE_RAM_ES)
ReRamSB = _around(_RE_RAM_SB)
Capacitor = _around(_CAPACITOR)
EcRam = _around(_EC_RAM)
EcRamMO = _around(_EC_RAM_MO)
Idealized = _around(_IDEALIZED)
GokmenVlasov = _around(_GOKMEN_VLASOV)
PCM = _around(_PCM_PAIR)
TikiTakaReRamES = _tiki_taka(_RE_RAM_ES)
TikiTakaReRamSB = _tiki_taka(_RE_RAM_SB)
TikiTakaCapacitor = _tiki_taka(_CAPACITOR)
TikiTakaEcRam = _tiki_taka(_EC_RAM)
TikiTakaEcRamMO = _tiki_taka(_EC_RAM_MO)
TikiTakaIdealized = _tiki_taka(_IDEALIZED)
TTv2ReRamES = _tiki_taka_2(_RE_RAM_ES, 0.5, 1000, 31)
TTv2ReRamSB = _tiki_taka_2(_RE_RAM_SB, 0.5, 1000, 31)
TTv2Capacitor = _tiki_taka_2(_CAPACITOR, 0.1, 1000, 31)
TTv2EcRam = _tiki_taka_2(_EC_RAM, 0.1, 500, 100)
TTv2EcRamMO = _tiki_taka_2(_EC_RAM_MO, 0.1, 500, 100)
TTv2Idealized = _tiki_taka_2(_IDEALIZED, 0.1, 500, 100)
MixedPrecisionReRamES = _mixed_precision(_RE_RAM_ES)
MixedPrecisionReRamSB = _mixed_precision(_RE_RAM_SB)
MixedPrecisionCapacitor = _mixed_precision(_CAPACITOR)
MixedPrecisionEcRam = _mixed_precision(_EC_RAM)
MixedPrecisionEcRamMO = _mixed_precision(_EC_RAM_MO)
MixedPrecisionIdealized = _mixed_precision(_IDEALIZED)
MixedPrecisionGokmenVlasov = _mixed_precision(_GOKMEN_VLASOV)
MixedPrecisionPCM = _mixed_precision(_PCM_PAIR)

_SIX = ("ReRamES", "ReRamSB", "Capacitor", "EcRam", "EcRamMO", "Idealized")
PRESETS: dict[str, Preset] = {
    **{name: value for name, value in globals().items() if name.removeprefix("MixedPrecision") in DEVICES},
    **{prefix + name: globals()[prefix + name] for prefix in ("TikiTaka", "TTv2") for name in _SIX},
    **{f"{name}{count}": _several(DEVICES[name], count) for count in (2, 4) for name in _SIX},
}
"""Arrays by aihwkit's names, without "Preset"; those with 2 or 4 have as many devices at each cross-point."""


INFERENCE_PRESETS: dict[str, InferenceArrays] = {"Inference": INFERENCE, "StandardHWATraining": STANDARD_HWA}
"""Arrays that are only programmed, for hardware-aware training and inference; aihwkit has no preset `Inference`."""


def preset(name: str, merge: int | None = None) -> Arrays | InferenceArrays:
    """Arrays by aihwkit's name.

    Args:
        name: as "ReRamES" or "ReRamESPreset".
        merge: another number of vector pairs that are applied together; 1 is the exact update, 0 a whole batch. Arrays
            of inference have none.

    Returns:
        `Arrays` of `PRESETS`, which are trained by pulses, or `InferenceArrays` of `INFERENCE_PRESETS`.

    Raises:
        ValueError: there is no such preset; the nearest names are given.
    """
    short = name.removesuffix("Preset")
    if short in INFERENCE_PRESETS:
        return INFERENCE_PRESETS[short]
    if short not in PRESETS:
        raise ValueError(f"arrays: there is no preset '{name}'; {suggestion(short, [*PRESETS, *INFERENCE_PRESETS])}")
    return PRESETS[short](merge)


def refuse_uncalled(arrays: object) -> None:
    """Raises ValueError where the name of a preset, or its function, is given in place of the arrays that it makes."""
    if isinstance(arrays, str) and arrays.removesuffix("Preset") in (*PRESETS, *INFERENCE_PRESETS):
        raise ValueError(
            f"arrays: got '{arrays}', allowed are None (ideal arrays), Arrays and InferenceArrays; "
            f"those of the preset: arrays=preset('{arrays}')"
        )
    name = next((name for name, function in PRESETS.items() if function is arrays), None)
    if name is not None:
        raise ValueError(f"arrays: got the preset {name} itself, allowed are the arrays it makes: arrays={name}()")
    if callable(arrays):
        raise ValueError(f"arrays: got {arrays!r} itself, allowed are the arrays it makes: call it")
