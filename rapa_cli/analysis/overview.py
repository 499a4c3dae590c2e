"""Answers about whole networks, named or at hand: what tiles would give, and how alike they have become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from rapa_cli.analysis import balancing, planning
from rapa_cli.analysis.hardware import Hardware
from rapa_cli.analysis.modules import layers_of_module
from rapa_cli.analysis.planning import Plan, Subject
from rapa_cli.analysis.similarity import similarity as similarity_of
from rapa_cli.errors import ConfigError, suggestion
from rapa_cli.layers.network import Network
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import SCHEMES


def plan(
    network: str | Path | nn.Module,
    *,
    tiles: int | Sequence[int] | None = None,
    acceleration: float | None = None,
    arrays: int | None = None,
    scheme: str | None = None,
    shape: tuple[int, int, int] | None = None,
    hardware: Hardware | None = None,
) -> Plan:
    """What replicated arrays would give for a network, as `rapa plan` shows it; nothing is computed.

    Args:
        network: a network; or the name of a definition, a TOML file, `torchvision:NAME`, a checkpoint or a run folder.
        tiles: of each convolution, or one number for all; the network's own, or balanced ones, if left out.
        acceleration: instead of tiles, the fewest arrays that are so many times as fast as one for each layer.
        arrays: instead of tiles, the best acceleration with at most so many arrays.
        scheme: the tiling scheme; the network's own, or `random`, if left out.
        shape: (C, H, W) of an image; needed for a network that does not know it.
        hardware: figures of the arrays.

    Raises:
        ConfigError: tiles that do not fit, more than one way to choose them, or an unknown scheme.
        FileError: there is no such network.
        ValueError: no shape.
    """
    if sum(value is not None for value in (tiles, acceleration, arrays)) > 1:
        raise ConfigError(
            "tiles, acceleration and arrays cannot go together", hint="each of them says how many tiles there are"
        )
    if scheme is not None and scheme not in SCHEMES:
        raise ConfigError(f"scheme: there is no '{scheme}'", hint=suggestion(scheme, SCHEMES))
    subject = _of_module(network, shape) if isinstance(network, nn.Module) else _named(str(network), shape)
    own = scheme is None and subject.scheme != "none"
    rule = scheme or (subject.scheme if own else "random")
    figures = hardware or Hardware()
    counts: Sequence[int] | None = (tiles,) * len(subject.convolutions) if isinstance(tiles, int) else tiles
    if acceleration is not None:
        counts = balancing.for_acceleration(subject.convolutions, acceleration, rule)
    elif arrays is not None:
        counts = planning.tiles_for_arrays(subject.convolutions, arrays, rule, figures)
    elif counts is None and own:
        counts = subject.tiles
    return planning.plan(subject.convolutions, subject.linear, counts, rule, figures)


def similarity(model: nn.Module) -> dict[str, float | None]:
    """S of each convolution with several tiles, by its name (paper, section 4).

    S is the correlation of a channel's filters in two tiles, averaged over all pairs of tiles and output channels; None
    where no filter varies.
    """
    return {
        name: similarity_of(layer.weight)
        for name, layer in model.named_modules()
        if isinstance(layer, TiledConv2d) and len(layer.weight) > 1
    }


def _named(name: str, shape: tuple[int, int, int] | None) -> Subject:
    if shape is not None and shape[1] != shape[2]:
        raise ConfigError(f"shape: got {shape}, but networks are planned by name for square images")
    return planning.find(name, size=None if shape is None else shape[1])


def _of_module(module: nn.Module, shape: tuple[int, int, int] | None) -> Subject:
    shape = shape or (module.shape if isinstance(module, Network) else None)
    if shape is None:
        raise ValueError("shape: it cannot be told from the network; give (C, H, W) of an image")
    found = layers_of_module(module, shape)
    layers = {each.name: module.get_submodule(each.name) for each in found.convolutions}
    tiled = {name: layer for name, layer in layers.items() if isinstance(layer, TiledConv2d)}
    schemes = [layer.scheme for layer in tiled.values()]
    own = tuple(tiled[name].tiles if name in tiled else 1 for name in layers)
    scheme = schemes[0] if schemes else "none"
    name = type(module).__name__
    return Subject(name, shape, found.convolutions, found.linear, scheme, own if schemes else None, found.elsewhere)
