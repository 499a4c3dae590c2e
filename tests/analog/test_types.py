"""Arrays in other number types than float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rapa_cli.analog.bank import AnalogBank, Arrays
from rapa_cli.analog.onesided import OneSidedUnitCell
from rapa_cli.analog.presets import DEVICES, PRESET_IO, PRESETS
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.training.sgd import AnalogSGD

KINDS = ["ReRamES", "EcRam2", "PCM", "TikiTakaEcRam", "TTv2EcRam", "MixedPrecisionEcRam", "MixedPrecisionPCM"]


def images(dtype: torch.dtype) -> Tensor:
    return torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("merge", [None, 1])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_cell_learns_in_float64(name: str, merge: int | None) -> None:
    layer = TiledConv2d(2, 3, 3, tiles=2, arrays=PRESETS[name](merge)).double()
    before, sgd = layer.weight, AnalogSGD(layer, lr=0.5)
    for _ in range(2):
        sgd.zero_grad()
        y = layer(images(torch.float64))
        assert y.dtype == torch.float64
        y.square().sum().backward()
        sgd.step()
    assert layer.weight.dtype == torch.float64
    assert name.startswith("TikiTaka") or not torch.equal(layer.weight, before)
    assert all(values.dtype in (torch.float64, torch.int64) for values in layer.state_dict().values())


def test_a_refresh_in_float64() -> None:
    pcm = DEVICES["PCM"]
    cell = OneSidedUnitCell(unit_cell_devices=(pcm, pcm), refresh_forward=PRESET_IO, refresh_lower_thres=-1.0)
    draws = torch.Generator().manual_seed(0)
    bank = AnalogBank(Arrays(device=cell), 2, 3, 4, draws)
    bank.set_weights(torch.full((2, 3, 4), 1.8), draws)
    bank.move(lambda values: values.double() if values.is_floating_point() else values)
    assert cell.refresh(bank.devices, torch.arange(2), draws) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_would_be_lost_in_16_bits(dtype: torch.dtype) -> None:
    arrays = PRESETS["EcRam"]()
    message = rf"^arrays: got devices in {dtype}, in which steps are lost in rounding; allowed are torch\.float32 and"
    with pytest.raises(TypeError, match=message):
        TiledConv2d(2, 3, 3, arrays=arrays).to(dtype)(images(dtype))
    with pytest.raises(TypeError, match=message):
        AnalogLinear(4, 3, arrays=arrays).to(dtype)(images(dtype))
