"""Converting an existing network: its convolutions become tiled ones that start from the same kernel in all tiles.

All of its matrices can go onto analog arrays.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from rapa_cli.analog.module import PulsedMatrices
from rapa_cli.analog.presets import refuse_uncalled
from rapa_cli.errors import suggestion
from rapa_cli.keyed import number_layers
from rapa_cli.layers.linear import AnalogLinear
from rapa_cli.tiling.arrays import AnyArrays, ArrayLayer
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import Scheme, balanced_tiles, scheme_named
from rapa_cli.tiling.tracing import Traced, tied_layers, trace

Tiles = int | Sequence[int] | Mapping[str, int] | Literal["auto"]
_TIED = "has weights that another layer holds too"
_Layer = TypeVar("_Layer", bound=ArrayLayer)


def convert(
    module: nn.Module,
    *,
    tiles: Tiles = "auto",
    scheme: str | Scheme = "random",
    shape: tuple[int, int, int] | None = None,
    arrays: AnyArrays | None = None,
) -> nn.Module:
    """Copies a network with its `nn.Conv2d` layers replaced by `TiledConv2d`, or puts all of its layers on arrays.

    Every tile starts from the weights of the layer, so that the network computes as before. Two schemes do not: in
    `image-pad` patches do not reach beyond the region of their tile, and in training `perforated` leaves patches out.
    Strides, dilations and all modes of padding are taken over. A convolution with groups stays as it is where it has
    one tile, as balanced ones have it, and cannot have more; so does one that is more than its weights: of a class with
    a product of its own, with hooks, with weights made from others, as by weight normalisation, or with weights that
    another layer holds too.

    On arrays `nn.Linear` layers become `AnalogLinear`, and a `TiledConv2d` on ideal arrays keeps its tiles and its
    scheme. Weights are written as `set_weights` does it: arrays that learn by pulses hold them within the bounds of
    their devices, and with write noise, so that such a network begins near `module`, not at it; a
    `mapping.weight_scaling_omega` makes room for large weights. Train these with `AnalogSGD`. Layers that are on arrays
    already stay, and so do linear layers of classes derived from `nn.Linear`, as `nn.MultiheadAttention` has them.

    Args:
        module: the network; it is left as it is.
        tiles: tiles of every convolution; or a number for each `nn.Conv2d` in the order of `module.modules()`; or
            numbers by the names of layers, of which the others have one tile; or "auto": balanced ones for images of
            `shape`, as `balanced` has them: n_p divided by the smallest n_p above 1, and one where a layer can have no
            more. Without a shape that is one tile where layers go onto arrays, and an error elsewhere.
        scheme: the tiling scheme: its name, or one of your own.
        shape: (C, H, W) of an image, for balanced tiles.
        arrays: what the arrays are made of, as `analog.presets` have them; None leaves them ideal, and linear layers
            as they are.

    Returns:
        A network that computes the same as `module` until its tiles are trained apart, but for the two schemes above;
        on arrays, what the arrays make of it.

    Raises:
        ConfigError: for balanced tiles, the network cannot take such images, or a layer computes twice for one.
        ValueError: numbers of tiles that do not match, or are for no layer, a convolution that cannot be tiled, a
            linear layer that cannot go onto arrays, or something else than arrays.
    """
    refuse_uncalled(arrays)
    scheme = scheme_named(scheme)
    module = copy.deepcopy(module)
    # A layer that a network holds in several places is one layer, with the name of the first.
    names: dict[nn.Module, str] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        names.setdefault(layer, name)
    convolutions = {name: layer for layer, name in names.items() if isinstance(layer, nn.Conv2d)}
    tied = tied_layers(module)
    count_of = _counts(module, tuple(convolutions), tiles, scheme, shape, arrays)
    made: dict[nn.Module, nn.Module] = {}
    for layer, name in names.items():
        if isinstance(layer, nn.Conv2d):
            whole = obstacle(layer, scheme, tied=layer in tied)
            if whole is None:
                made[layer] = _tiled(layer, count_of[name], scheme, arrays)
            elif count_of[name] != 1 or arrays is not None:
                place = f"{count_of[name]} tiles" if arrays is None else "arrays"
                raise ValueError(f"module: convolution '{name}' {whole}, and cannot be put on {place}")
        elif arrays is not None and isinstance(layer, TiledConv2d) and layer.arrays is None:
            made[layer] = _on_arrays(layer, arrays)
        elif arrays is not None and isinstance(layer, nn.LazyLinear):
            raise ValueError(f"module: linear layer '{name}' has no weights yet; give the network a batch first")
        elif arrays is not None and type(layer) is nn.Linear:
            if layer in tied:
                raise ValueError(f"module: linear layer '{name}' {_TIED}, and cannot be put on arrays")
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


def balanced(module: nn.Module, shape: tuple[int, int, int], scheme: str | Scheme = "random") -> dict[str, int]:
    """Balanced tiles of a network's convolutions, for images of a shape (C, H, W).

    Args:
        module: the network; it is left as it is.
        shape: (C, H, W) of an image.
        scheme: the tiling scheme.

    Returns:
        Tiles of each `nn.Conv2d` that computes more than one patch, by its name and in the order in which they
        compute: n_p divided by the smallest n_p of these; one where it can have no more, see `convert`.

    Raises:
        ConfigError: the network cannot take such images, or a convolution computes twice for one.
    """
    found = [one for one in trace(module, shape, (nn.Conv2d,)).layers if one.patches > 1]
    if not found:
        return {}
    patches, can = [one.patches for one in found], [tileable(one, scheme) for one in found]
    return dict(zip((one.name for one in found), balanced_tiles(patches, scheme, can), strict=True))


def tileable(traced: Traced, scheme: str | Scheme) -> bool:
    """Whether a traced convolution can have several tiles."""
    assert isinstance(traced.layer, nn.Conv2d)
    return obstacle(traced.layer, scheme_named(scheme), tied=traced.tied) is None


def kept_whole(module: nn.Module, scheme: str | Scheme) -> dict[str, str]:
    """Why each convolution of a network that can have no tiles cannot, by its name."""
    tied, scheme = tied_layers(module), scheme_named(scheme)
    convolutions = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}
    found = {name: obstacle(layer, scheme, tied=layer in tied) for name, layer in convolutions.items()}
    return {name: whole for name, whole in found.items() if whole is not None}


def _counts(
    module: nn.Module,
    names: Sequence[str],
    tiles: Tiles,
    scheme: Scheme,
    shape: tuple[int, int, int] | None,
    arrays: AnyArrays | None,
) -> dict[str, int]:
    """The tiles of each convolution, by its name."""
    if not isinstance(tiles, int | str | Mapping | Sequence):
        raise ValueError(f"tiles: got {tiles!r}, allowed are 'auto' and whole numbers")
    if isinstance(tiles, int):
        if tiles != 1 and not names and any(isinstance(one, TiledConv2d | ScriptModule) for one in module.modules()):
            raise ValueError(f"tiles: got {tiles}, but all convolutions are tiled or compiled already")
        return dict.fromkeys(names, tiles)
    if tiles == "auto":
        if shape is None and arrays is None and names and scheme.name != "none":
            raise ValueError("tiles: balanced ones depend on the size of the images; give shape=(C, H, W), or numbers")
        tiles = {} if shape is None or scheme.name == "none" else balanced(module, shape, scheme)
    if isinstance(tiles, Mapping):
        unknown = next((name for name in tiles if name not in names), None)
        if unknown is not None:
            raise ValueError(f"tiles: there is no convolution '{unknown}'; {suggestion(str(unknown), names)}")
        return {name: tiles.get(name, 1) for name in names}
    if isinstance(tiles, str):
        raise ValueError(f"tiles: got '{tiles}', allowed are 'auto' and numbers")
    if len(tiles) != len(names):
        raise ValueError(f"tiles: got {len(tiles)} numbers for {len(names)} convolutions ({', '.join(names)})")
    return dict(zip(names, tiles, strict=True))


def obstacle(layer: nn.Conv2d, scheme: Scheme, *, tied: bool = False) -> str | None:
    """Why a convolution cannot be tiled; None where it can.

    Args:
        layer: the convolution.
        scheme: the tiling scheme.
        tied: whether another layer holds a parameter of it too.
    """
    kind = type(layer)
    if layer.groups != 1:
        return f"has {layer.groups} groups"
    if parametrize.is_parametrized(layer):
        return "has weights that are made from others"
    if isinstance(layer.weight, UninitializedParameter):
        return "has no weights yet"
    if kind.forward is not nn.Conv2d.forward or kind._conv_forward is not nn.Conv2d._conv_forward:
        return f"is a {kind.__name__} with a product of its own"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "has hooks"
    if tied:
        return _TIED
    if layer.padding_mode != "zeros" and scheme.name == "image-pad":
        return f"has padding_mode='{layer.padding_mode}', while scheme 'image-pad' has zeros around its regions"
    return None


def _tiled(layer: nn.Conv2d, tiles: int, scheme: Scheme, arrays: AnyArrays | None) -> TiledConv2d:
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
        padding_mode=layer.padding_mode,
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
