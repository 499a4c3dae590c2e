"""Time and energy of an image from figures of the hardware, and arrays of a limited size.

Only what the arrays do is counted: integration, converters, devices. Digital work (pooling, activations, adding the
parts of cut matrices), data movement and what idle arrays take is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapa_cli.analysis.analog_time import LayerCost

HAENSCH = "Haensch, Gokmen, Puri: The next generation of deep learning hardware: analog computing, Proc. IEEE 107, 2019"
SHAFIEE = "Shafiee et al.: ISAAC, ISCA 2016"

# Where each default comes from.
SOURCES = {
    "integration_ns": f"{HAENSCH}, sec. IV, fig. 8; an ADC for 16 columns keeps up with it (200 MS/s x 80 ns)",
    "adc_pj": f"{HAENSCH}, sec. IV, fig. 8: 23 pJ per sample, 9 bits",
    "dac_pj": f"5 bits, as {HAENSCH} finds sufficient, one after the other by DACs of 1 bit that take 4 mW for 8 x 128 "
    f"of them at 100 ns, or 0.39 pJ each ({SHAFIEE})",
    "device_fj": f"V^2 t / R with R = 24 MOhm and t = 80 ns ({HAENSCH}, fig. 8) and V = 1 V, which is assumed: at most "
    "this much, where all inputs are full",
}


@dataclass(frozen=True)
class Hardware:
    """Figures of arrays and their periphery; `SOURCES` says where the defaults come from.

    Attributes:
        integration_ns: time of an array operation, ns; conversions happen at the same time.
        dac_pj: energy of a digital-to-analog conversion: of one input, pJ.
        adc_pj: energy of an analog-to-digital conversion: of one output, pJ.
        device_fj: energy of one device in an operation, fJ.
        rows: input lines of the largest array; None is any number.
        columns: its output lines.
    """

    integration_ns: float = 80.0
    dac_pj: float = 1.95
    adc_pj: float = 23.0
    device_fj: float = 3.3
    rows: int | None = None
    columns: int | None = None


@dataclass(frozen=True)
class Energy:
    """Energy of the arrays for one image, nJ."""

    dac: float
    adc: float
    devices: float

    @property
    def total(self) -> float:
        """The sum, nJ."""
        return self.dac + self.adc + self.devices


def parts(layer: LayerCost, hardware: Hardware) -> tuple[int, int]:
    """Into how many parts the kernel matrix of a group is cut along its inputs (the bias is one), and its outputs."""
    inputs, outputs = layer.k + layer.bias, layer.c_out // layer.groups
    return (
        1 if hardware.rows is None else -(-inputs // hardware.rows),
        1 if hardware.columns is None else -(-outputs // hardware.columns),
    )


def arrays_per_tile(layer: LayerCost, hardware: Hardware) -> int:
    """Arrays of one tile, which work at the same time: one for each part of the kernel matrix of each group."""
    down, across = parts(layer, hardware)
    return layer.groups * down * across


def arrays(layers: Sequence[LayerCost], hardware: Hardware) -> int:
    """Arrays of all layers."""
    return sum(layer.matrices * arrays_per_tile(layer, hardware) for layer in layers)


def energy(layers: Sequence[LayerCost], hardware: Hardware) -> Energy:
    """Energy of one image; tiles do not change it, as each patch is computed once however many arrays there are.

    Each array converts its own inputs and outputs. Where a matrix is cut, inputs are therefore converted for each part
    of its outputs, and outputs for each part of its inputs.
    """
    dac = adc = devices = 0
    for layer in layers:
        down, across = parts(layer, hardware)
        inputs = layer.k + layer.bias
        dac += layer.computed * layer.groups * inputs * across
        adc += layer.computed * layer.c_out * down
        devices += layer.computed * inputs * layer.c_out
    return Energy(dac * hardware.dac_pj * 1e-3, adc * hardware.adc_pj * 1e-3, devices * hardware.device_fj * 1e-6)


def interval(layers: Sequence[LayerCost], hardware: Hardware) -> float:
    """Time from one image to the next where layers are pipelined, us: that of the slowest layer."""
    return max(layer.array_cycles for layer in layers) * hardware.integration_ns * 1e-3


def latency(layers: Sequence[LayerCost], hardware: Hardware) -> float:
    """Time of one image through all layers, each of which waits for the one before, us."""
    return sum(layer.array_cycles for layer in layers) * hardware.integration_ns * 1e-3
