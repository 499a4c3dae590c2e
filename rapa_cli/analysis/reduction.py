"""Reduction: one ordinary kernel matrix made from the tiles (paper, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rapa_cli.analog.specification import IDEAL
from rapa_cli.analysis.winners import count_wins, has_choice
from rapa_cli.data.stream import Images
from rapa_cli.errors import suggestion
from rapa_cli.layers.conversion import replaced
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.layers.network import Network
from rapa_cli.tiling.conv import TiledConv2d

WAYS = ("norm", "winner", "mean", "first")


def reduce(
    model: nn.Module,
    by: str = "norm",
    *,
    images: Images | None = None,
    seed: int = 0,
    batch_size: int = 200,
    on_batch: Callable[[int], None] | None = None,
    on_unpooled: Callable[[list[str]], None] | None = None,
) -> nn.Module:
    """Copies a network with its tiled convolutions replaced by ordinary ones.

    From arrays that are not ideal it takes the weights that they show; the copy is digital.

    Args:
        model: it is left as it is.
        by: what each output channel takes as its filter, and with it as its bias:
            `norm`: that of the tile with the largest L2 norm of its k weights ("the filter with the highest norm").
            `winner`: that of the tile which most often wins the max pooling on training images, see `count_wins`; of
            tiles that win equally often that of the largest norm. Layers that no pooling follows go by `norm`.
            `mean`: the mean over the tiles, the paper's theta-bar (section 4), which is what "a kernel matrix of any
            tile" is where all are alike.
            `first`: that of the first tile.
        images: for `winner`, those of the training set, (N, C, H, W), uint8 or floats in [0, 1].
        seed: for `winner`, of the draw that is counted.
        batch_size: for `winner`, images computed at a time.
        on_batch: for `winner`, called with the number of images after each batch.
        on_unpooled: for `winner`, called with the names of the layers that no pooling follows, where there are some.

    Returns:
        A network of `nn.Conv2d`.

    Raises:
        ConfigError: for `winner`, no pooling follows any layer with several tiles.
        ValueError: `by` is not known, or for `winner` there are no images.
    """
    if by not in WAYS:
        raise ValueError(f"by: there is no '{by}'; {suggestion(by, WAYS)}")
    wins: dict[str, Tensor] = {}
    if by == "winner" and any(map(has_choice, model.modules())):
        if images is None:
            raise ValueError("images: 'winner' counts on training images; give them, (N, C, H, W)")
        wins = count_wins(model, images, seed=seed, batch_size=batch_size, on_batch=on_batch)
        unpooled = [name for name, layer in model.named_modules() if has_choice(layer) and name not in wins]
        if unpooled and on_unpooled:
            on_unpooled(unpooled)
    model = copy.deepcopy(model)
    ordinary: dict[nn.Module, nn.Module] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, TiledConv2d):
            ordinary[layer] = _ordinary(layer, *_chosen(layer, by, wins.get(name)))
        elif isinstance(layer, AnalogLinear):
            ordinary[layer] = _linear(layer)
    model = replaced(model, ordinary)
    if isinstance(model, Network):
        ones = (1,) * len(model.definition.tiles or ())
        update = {"scheme": "none", "tiles": ones, "arrays": IDEAL}
        model.definition = model.definition.model_copy(update=update)
    return model


def same_filters(tiled: nn.Module, one: nn.Module, other: nn.Module) -> float | None:
    """Share of the filters that two reductions of a network have in common, in [0, 1].

    Args:
        tiled: the network; the layers of it count that have several tiles.
        one: a reduction of it.
        other: another one.

    Returns:
        The share; None where no layer has several tiles.
    """
    same = [
        (one.get_submodule(name).get_parameter("weight") == other.get_submodule(name).get_parameter("weight"))
        .flatten(1)
        .all(1)
        for name, layer in tiled.named_modules()
        if has_choice(layer)
    ]
    return float(torch.cat(same).double().mean()) if same else None


def largest_norm(weight: Tensor) -> Tensor:
    """The tile of each output channel's filter with the largest L2 norm.

    Args:
        weight: kernels (tiles, out, in, kh, kw).

    Returns:
        int64 (out,).
    """
    return _norms(weight).argmax(0)


def most_wins(wins: Tensor, weight: Tensor) -> Tensor:
    """The tile of each output channel that won most often; of equals the one with the largest L2 norm.

    Args:
        wins: int64 (tiles, out), as `count_wins` gives them.
        weight: kernels (tiles, out, in, kh, kw).

    Returns:
        int64 (out,).
    """
    leading = wins == wins.max(0, keepdim=True).values
    return _norms(weight).masked_fill(~leading, -1).argmax(0)


def _norms(weight: Tensor) -> Tensor:
    """L2 norms of the filters, (tiles, out)."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(2), dim=2)
    return norms


def _chosen(layer: TiledConv2d, by: str, wins: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The one kernel matrix (out, in, kh, kw), and its bias (out,)."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if by == "mean":
        return weight.mean(0), None if bias is None else bias.mean(0)
    channel = torch.arange(layer.out_channels, device=weight.device)
    tile = torch.zeros_like(channel)
    if wins is not None:
        tile = most_wins(wins, weight)
    elif by in ("norm", "winner"):
        tile = largest_norm(weight)
    return weight[tile, channel], None if bias is None else bias[tile, channel]


def _ordinary(layer: TiledConv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """The convolution with this kernel matrix and bias."""
    with torch.random.fork_rng(devices=[]):
        convolution = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=bias is not None,
            padding_mode=layer.padding_mode,
        ).to(weight.device, weight.dtype)
    with torch.no_grad():
        convolution.weight.copy_(weight)
        if bias is not None and convolution.bias is not None:
            convolution.bias.copy_(bias)
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
