"""Converting an existing network: its convolutions become tiled ones that start from the same kernel in all tiles."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from rapa_cli.keyed import number_layers
from rapa_cli.tiling.conv import TiledConv2d


def convert(module: nn.Module, *, tiles: int | Sequence[int], scheme: str = "random") -> nn.Module:
    """Copies a network with its `nn.Conv2d` layers replaced by `TiledConv2d`.

    Args:
        module: the network; it is left as it is.
        tiles: tiles of every convolution, or a number for each in the order of `module.modules()`.
        scheme: the tiling scheme.

    Returns:
        A network that computes the same as `module` until its tiles are trained apart.

    Raises:
        ValueError: numbers of tiles that do not match, or a convolution with groups or with a padding other than zeros.
    """
    module = copy.deepcopy(module)
    # A convolution that a network holds in several places is one layer, with the name of the first.
    places = [
        (name, layer) for name, layer in module.named_modules(remove_duplicate=False) if isinstance(layer, nn.Conv2d)
    ]
    names: dict[nn.Conv2d, str] = {}
    for name, layer in places:
        names.setdefault(layer, name)
    counts = [tiles] * len(names) if isinstance(tiles, int) else list(tiles)
    if len(counts) != len(names):
        raise ValueError(
            f"tiles: got {len(counts)} numbers for {len(names)} convolutions ({', '.join(names.values())})"
        )
    tiled: dict[nn.Module, nn.Module] = {
        layer: _tiled(name, layer, count, scheme) for (layer, name), count in zip(names.items(), counts, strict=True)
    }
    module = replaced(module, tiled)
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


def _tiled(name: str, layer: nn.Conv2d, tiles: int, scheme: str) -> TiledConv2d:
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
    ).to(layer.weight.device, layer.weight.dtype)
    with torch.no_grad():
        tiled.weight.copy_(layer.weight.expand_as(tiled.weight))
        tiled.weight.requires_grad_(layer.weight.requires_grad)
        if tiled.bias is not None and layer.bias is not None:
            tiled.bias.copy_(layer.bias.expand_as(tiled.bias))
            tiled.bias.requires_grad_(layer.bias.requires_grad)
    tiled.train(layer.training)
    return tiled
