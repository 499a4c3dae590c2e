"""Weights as aihwkit lays them out on its tiles, without aihwkit.

aihwkit has one matrix (out, in kh kw) for each convolution, columns ordered (in, kh, kw), as
`torch.nn.functional.unfold` orders the pixels of a patch, and (out, in) for each linear layer; where the bias is analog
too it is one more column, the last. A tiled convolution has one such matrix for each of its tiles.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rapa_cli.errors import ConfigError
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.tiling.arrays import ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d

_Layer = nn.Conv2d | nn.Linear | TiledConv2d | AnalogLinear


def to_aihwkit(model: nn.Module) -> dict[str, Tensor]:
    """The matrices of a network's convolutions and linear layers; of arrays, the weights that they show.

    Args:
        model: it is left as it is.

    Returns:
        For tile j of layer NAME, under `NAME.tile_j`: (out, in kh kw) or (out, in), and one more column where the layer
        has a bias; contiguous, on the CPU. Layers without tiles have tile 0.

    Raises:
        ConfigError: a convolution has groups.
    """
    return {
        f"{name}.tile_{number}": matrix
        for name, layer in _layers(model).items()
        for number, matrix in enumerate(_matrices(layer))
    }


def from_aihwkit(model: nn.Module, matrices: Mapping[str, Tensor]) -> nn.Module:
    """Copies a network with weights in aihwkit's layout in the place of its own.

    Arrays that learn by pulses take them as near as the bounds and write noise of their devices allow. What the
    matrices do not hold stays as in `model`: normalisation, what a pooling has learned.

    Args:
        model: a network with the same layers; it is left as it is.
        matrices: as `to_aihwkit` gives them.

    Raises:
        ConfigError: a matrix is missing, or there is one too many, or one has the wrong shape or numbers that are not
            finite.
    """
    expected = {name: matrix.shape for name, matrix in to_aihwkit(model).items()}
    hint = "take matrices of a network with the same layers and tiles"
    missing = [name for name in expected if name not in matrices]
    extra = [name for name in matrices if name not in expected]
    if missing or extra:
        what = f"matrix '{missing[0]}' is missing" if missing else f"there is no layer for matrix '{extra[0]}'"
        raise ConfigError(f"weights of aihwkit: {what}", hint=hint)
    for name, shape in expected.items():
        found = matrices[name]
        if found.shape != shape:
            got, allowed = tuple(found.shape), tuple(shape)
            raise ConfigError(f"weights of aihwkit: matrix '{name}' has shape {got}, not {allowed}", hint=hint)
        if not bool(torch.isfinite(found).all()):
            raise ConfigError(f"weights of aihwkit: matrix '{name}' has numbers that are not finite")
    model = copy.deepcopy(model)
    for name, layer in _layers(model).items():
        tiles = [matrices[f"{name}.tile_{number}"] for number in range(len(_matrices(layer)))]
        _set(layer, torch.stack(tiles))
    return model


def layout(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the matrices of each layer mean: its kind, tiles, kernel shape (out, in, kh, kw) or (out, in), bias."""
    return {
        name: {
            "kind": "linear" if layer.weight.ndim == 2 else "conv",
            "tiles": len(_matrices(layer)),
            "kernel": list(layer.weight.shape[-4:]),
            "bias": layer.bias is not None,
        }
        for name, layer in _layers(model).items()
    }


def _layers(model: nn.Module) -> dict[str, _Layer]:
    found: dict[str, _Layer] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise ConfigError(
                f"convolution '{name}' has {layer.groups} groups, which aihwkit's layers do not have",
                hint="use another form, such as --to onnx",
            )
        if isinstance(layer, (nn.Conv2d, nn.Linear, TiledConv2d, AnalogLinear)):
            found[name or "layer"] = layer
    return found


def _matrices(layer: _Layer) -> Tensor:
    """(tiles, out, columns), on the CPU."""
    weight = layer.weight.detach().cpu()
    bias = None if layer.bias is None else layer.bias.detach().cpu()
    if not isinstance(layer, TiledConv2d):
        weight, bias = weight[None], None if bias is None else bias[None]
    flat = weight.flatten(2)
    return (flat if bias is None else torch.cat([flat, bias[..., None]], 2)).contiguous()


def _set(layer: _Layer, matrices: Tensor) -> None:
    """Writes (tiles, out, columns) into a layer."""
    matrices = matrices.to(layer.weight.device, layer.weight.dtype)
    shape = layer.weight.shape
    weight, bias = matrices, None
    if layer.bias is not None:
        weight, bias = matrices[..., :-1], matrices[..., -1].reshape(layer.bias.shape)
    weight = weight.reshape(shape)
    if isinstance(layer, ArrayLayer):
        layer.set_weights(weight, bias)
        return
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
