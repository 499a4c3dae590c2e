"""Everything that can hold the weights of a bank, as one type that its configuration tells apart by `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rapa_cli.analog.cells import VectorUnitCell
from rapa_cli.analog.device import IdealDevice
from rapa_cli.analog.mixed import MixedPrecisionCompound
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.steps import (
    ConstantStepDevice,
    ExpStepDevice,
    LinearStepDevice,
    PiecewiseStepDevice,
    PowStepDevice,
    SoftBoundsDevice,
    SoftBoundsReferenceDevice,
)
from rapa_cli.analog.transfer import BufferedTransferCompound, TransferCompound

AnyDevice = Annotated[
    IdealDevice
    | ConstantStepDevice
    | LinearStepDevice
    | SoftBoundsDevice
    | SoftBoundsReferenceDevice
    | ExpStepDevice
    | PowStepDevice
    | PiecewiseStepDevice
    | VectorUnitCell
    | OneSidedUnitCell
    | TransferCompound
    | BufferedTransferCompound
    | MixedPrecisionCompound,
    Field(discriminator="kind"),
]
