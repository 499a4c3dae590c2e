"""Reduction: one ordinary kernel matrix made from the tiles (paper, section 4)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rapa_cli.analog.specification import IDEAL
from rapa_cli.errors import suggestion
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.network import Network
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.conversion import replaced

WAYS = ("norm",)


def reduce(model: nn.Module, by: str = "norm") -> nn.Module:
    """Copies a network with its tiled convolutions replaced by ordinary ones.

    From arrays that are not ideal it takes the weights that they show; the copy is digital.

    Args:
        model: it is left as it is.
        by: `norm`: each output channel takes the filter of the tile with the largest L2 norm of its k weights, and
            that tile's bias.

    Returns:
        A network of `nn.Conv2d`.

    Raises:
        ValueError: `by` is not known.
    """
    if by not in WAYS:
        raise ValueError(f"by: there is no '{by}'; {suggestion(by, WAYS)}")
    model = copy.deepcopy(model)
    ordinary: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, TiledConv2d):
            ordinary[layer] = _ordinary(layer, largest_norm(layer.weight.detach()))
        elif isinstance(layer, AnalogLinear):
            ordinary[layer] = _linear(layer)
    model = replaced(model, ordinary)
    if isinstance(model, Network):
        ones = (1,) * len(model.definition.tiles or ())
        update = {"scheme": "none", "tiles": ones, "arrays": IDEAL}
        model.definition = model.definition.model_copy(update=update)
    return model


def largest_norm(weight: Tensor) -> Tensor:
    """The tile of each output channel's filter with the largest L2 norm.

    Args:
        weight: kernels (tiles, out, in, kh, kw).

    Returns:
        int64 (out,).
    """
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(2), dim=2)
    return norms.argmax(0)


def _ordinary(layer: TiledConv2d, tile: Tensor) -> nn.Conv2d:
    """The convolution in which output channel c has the filter and the bias of tile[c]."""
    with torch.random.fork_rng(devices=[]):
        convolution = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=layer.bias is not None,
        ).to(layer.weight.device, layer.weight.dtype)
    channel = torch.arange(layer.out_channels, device=tile.device)
    with torch.no_grad():
        convolution.weight.copy_(layer.weight[tile, channel])
        if layer.bias is not None and convolution.bias is not None:
            convolution.bias.copy_(layer.bias[tile, channel])
    return convolution.train(layer.training)


def _linear(layer: AnalogLinear) -> nn.Linear:
    """The ordinary layer with the weights that the array shows."""
    weight, bias = layer.weight.detach(), layer.bias
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(layer.in_features, layer.out_features, bias is not None).to(weight.device, weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear.train(layer.training)
