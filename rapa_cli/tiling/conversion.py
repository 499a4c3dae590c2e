"""Converting an existing network: its convolutions become tiled ones that start from the same kernel in all tiles.

All of its matrices can go onto analog arrays.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from rapa_cli.analog.module import PulsedMatrices
from rapa_cli.analog.presets import refuse_uncalled
from rapa_cli.keyed import number_layers
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.tiling.arrays import AnyArrays, ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d

_Layer = TypeVar("_Layer", bound=ArrayLayer)


def convert(
    module: nn.Module, *, tiles: int | Sequence[int] = 1, scheme: str = "random", arrays: AnyArrays | None = None
) -> nn.Module:
    """Copies a network with its `nn.Conv2d` layers replaced by `TiledConv2d`, or puts all of its layers on arrays.

    On arrays `nn.Linear` layers become `AnalogLinear`, and a `TiledConv2d` on ideal arrays keeps its tiles and its
    scheme. Weights are written as `set_weights` does it: arrays that learn by pulses hold them within the bounds of
    their devices, and with write noise, so that such a network begins near `module`, not at it; a
    `mapping.weight_scaling_omega` makes room for large weights. Train these with `AnalogSGD`. Layers that are on arrays
    already stay, and so do linear layers of classes derived from `nn.Linear`, as `nn.MultiheadAttention` has them.

    Args:
        module: the network; it is left as it is.
        tiles: tiles of every convolution, or a number for each `nn.Conv2d` in the order of `module.modules()`.
        scheme: the tiling scheme.
        arrays: what the arrays are made of, as `analog.presets` have them; None leaves them ideal, and linear layers
            as they are.

    Returns:
        A network that computes the same as `module` until its tiles are trained apart; on arrays, what the arrays make
        of it.

    Raises:
        ValueError: numbers of tiles that do not match, a convolution with groups or with a padding other than zeros, a
            linear layer without weights yet, or something else than arrays.
    """
    refuse_uncalled(arrays)
    module = copy.deepcopy(module)
    # A layer that a network holds in several places is one layer, with the name of the first.
    names: dict[nn.Module, str] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        names.setdefault(layer, name)
    convolutions = [layer for layer in names if isinstance(layer, nn.Conv2d)]
    counts = [tiles] * len(convolutions) if isinstance(tiles, int) else list(tiles)
    if len(counts) != len(convolutions):
        listed = ", ".join(names[layer] for layer in convolutions)
        raise ValueError(f"tiles: got {len(counts)} numbers for {len(convolutions)} convolutions ({listed})")
    count_of = dict(zip(convolutions, counts, strict=True))
    made: dict[nn.Module, nn.Module] = {}
    for layer, name in names.items():
        if isinstance(layer, nn.Conv2d):
            made[layer] = _tiled(name, layer, count_of[layer], scheme, arrays)
        elif arrays is not None and isinstance(layer, TiledConv2d) and layer.arrays is None:
            made[layer] = _on_arrays(layer, arrays)
        elif arrays is not None and isinstance(layer, nn.LazyLinear):
            raise ValueError(f"module: linear layer '{name}' has no weights yet; give the network a batch first")
        elif arrays is not None and type(layer) is nn.Linear:
            made[layer] = _linear(layer, arrays)
    module = replaced(module, made)
    number_layers(module)
    return module


def replaced(module: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Puts layers in the place of others, wherever the network holds them.

    Args:
        module: the network; it is changed.
        replacements: the new layer for each old one.

    Returns:
        The network, or its replacement where it is itself one of the old layers.
    """
    if module in replacements:
        return replacements[module]
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if layer in replacements:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, replacements[layer])
    return module


def _tiled(name: str, layer: nn.Conv2d, tiles: int, scheme: str, arrays: AnyArrays | None) -> TiledConv2d:
    if layer.groups != 1 or layer.padding_mode != "zeros":
        raise ValueError(
            f"module: convolution '{name}' has groups={layer.groups} and padding_mode='{layer.padding_mode}', "
            "supported are groups=1 and padding_mode='zeros'"
        )
    tiled = TiledConv2d(
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size[0], layer.kernel_size[1]),
        (layer.stride[0], layer.stride[1]),
        layer.padding if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1]),
        (layer.dilation[0], layer.dilation[1]),
        layer.bias is not None,
        tiles=tiles,
        scheme=scheme,
        arrays=arrays,
    )
    matrices = len(tiled.weight)
    bias = None if layer.bias is None else layer.bias.expand(matrices, -1)
    return _starting_from(layer, tiled, layer.weight.expand(matrices, -1, -1, -1, -1), bias)


def _on_arrays(layer: TiledConv2d, arrays: AnyArrays) -> TiledConv2d:
    tiled = layer.another(arrays)
    # Which patches a fixed tile has is of the layer's own seed.
    tiled.seed.copy_(layer.seed)
    tiled.calls.copy_(layer.calls)
    return _starting_from(layer, tiled, layer.weight, layer.bias)


def _linear(layer: nn.Linear, arrays: AnyArrays) -> AnalogLinear:
    linear = AnalogLinear(layer.in_features, layer.out_features, layer.bias is not None, arrays=arrays)
    return _starting_from(layer, linear, layer.weight, layer.bias)


def _starting_from(before: nn.Module, layer: _Layer, weight: Tensor, bias: Tensor | None) -> _Layer:
    """A layer with these weights, in the place and the mode of the one before it; what was frozen is."""
    layer.to(weight.device, weight.dtype)
    layer.set_weights(weight.detach(), None if bias is None else bias.detach())
    if isinstance(layer.matrices, PulsedMatrices):
        # Weights and bias are on the same arrays.
        layer.matrices.pulses.requires_grad_(weight.requires_grad)
    else:
        layer.weight.requires_grad_(weight.requires_grad)
        if layer.bias is not None and bias is not None:
            layer.bias.requires_grad_(bias.requires_grad)
    layer.train(before.training)
    return layer
