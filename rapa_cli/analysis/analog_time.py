"""Analog time: how many array operations a network needs one after the other (paper, sections 1 and 2, figure 1).

An array multiplies one patch with its whole matrix in one operation, however large the matrix is. A layer of n_p
patches on n_t tiles therefore takes as many operations as its largest tile has patches, n_p / n_t where tiles are
balanced, while a computer takes n_p k c_out multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rapa_cli import config
from rapa_cli.errors import ConfigError, commas
from rapa_cli.layers.network import ANY_CLASSES, resolve, sized_layers
from rapa_cli.shown import Shown
from rapa_cli.tiling.schemes import balanced_tiles, scheme_named


@dataclass(frozen=True)
class Layer:
    """A convolution before it is tiled; a linear layer is one with 1 x 1 kernels, of a single patch for an image.

    Attributes:
        name: as its network names it.
        height: of the output, pixels.
        width: of the output, pixels.
        kernel: height and width, pixels.
        c_in: input channels.
        c_out: output channels.
        groups: each has a kernel matrix of its own, from c_in / groups to c_out / groups channels.
        bias: whether there is a bias, a further line of each array.
        whole: why `convert` and `rapa train` leave it on one tile, as "has 2 groups"; None where they need not.
        padding_mode: of the convolution; regions of `image-pad` have zeros alone around them.
        widens: whether its outputs are channels of the network, which free width multiplies; those of the linear layers
            at the end, and of the last layer of all, are not.
    """

    name: str
    height: int
    width: int
    kernel: tuple[int, int]
    c_in: int
    c_out: int
    groups: int = 1
    bias: bool = True
    whole: str | None = None
    padding_mode: str = "zeros"
    widens: bool = True

    def obstacle(self, scheme: str) -> str | None:
        """Why it has one tile whatever is wished; None where it can have several."""
        if self.whole is None and scheme == "image-pad" and self.padding_mode != "zeros":
            return f"has padding_mode='{self.padding_mode}'"
        return self.whole

    @property
    def n_p(self) -> int:
        """Patches of an image."""
        return self.height * self.width

    @property
    def k(self) -> int:
        """Weights of a filter, without its bias."""
        return self.kernel[0] * self.kernel[1] * self.c_in // self.groups


@dataclass(frozen=True, repr=False)
class LayerCost(Shown):
    """What a layer costs for one image.

    Attributes:
        name: as its network names it.
        n_p: patches of an image, whether they are computed or not.
        k: weights of a filter without its bias; its group's only.
        c_out: output channels.
        macs: multiply-adds of the computed patches, without biases.
        tiles: n_t; of `perforated` the perforation: its one matrix computes n_p / n_t patches in training, and all of
            them in test.
        array_cycles: operations one after the other: the patches of the largest tile.
        computed: patches that are computed: n_p, or those of `perforated` in training.
        matrices: kernel matrices of the layer, each of them of all groups.
        groups: of the convolution.
        bias: whether there is a bias.
        whole: why it can have no further tiles; None where it can.
    """

    shown: ClassVar = ("name", "n_p", "k", "c_out", "macs", "tiles", "array_cycles")

    name: str
    n_p: int
    k: int
    c_out: int
    macs: int
    tiles: int
    array_cycles: int
    computed: int
    matrices: int
    groups: int = 1
    bias: bool = True
    whole: str | None = None

    @property
    def weights(self) -> int:
        """Weights and biases on all tiles."""
        return self.matrices * self.c_out * (self.k + self.bias)


def layer_costs(definition: config.Network, shape: tuple[int, int, int]) -> list[LayerCost]:
    """Costs of each convolution of a network under its tiling.

    Args:
        definition: its tiles are resolved where they are not yet.
        shape: (C, H, W) of an image.

    Raises:
        ConfigError: the layers do not fit the images, or the tiles do not fit the layers.
    """
    definition = resolve(definition, shape)
    assert definition.tiles is not None
    convolutions, _ = layers_of(definition, shape)
    return costs(convolutions, definition.tiles, definition.scheme)


def costs(layers: Sequence[Layer], tiles: Sequence[int], scheme: str = "random") -> list[LayerCost]:
    """Costs of layers on tiles.

    Args:
        layers: of any network.
        tiles: n_t of each, from 1 to n_p.
        scheme: how patches are assigned. Those that cut images into squares have tiles of unequal sizes where the
            squares do not divide the image.

    Raises:
        ConfigError: a wrong number of tiles, or tiles that the layer or the scheme cannot work with.
    """
    if len(tiles) != len(layers):
        raise ConfigError(
            f"tiles: got {len(tiles)} numbers ({_short(tiles)}) for {len(layers)} convolutions",
            hint=f"give one number for each, as in --tiles {_short(balanced(layers, scheme))}",
        )
    rule = scheme_named(scheme)
    found = []
    for layer, count in zip(layers, tiles, strict=True):
        try:
            rule.check(count)
        except ValueError as error:
            fits = "leave --tiles out to get tiles that fit, or choose another --scheme"
            raise ConfigError(f"{layer.name}: {error}", hint=fits) from None
        whole = layer.obstacle(scheme)
        if whole is not None and count > 1:
            raise ConfigError(
                f"tiles: {layer.name} {whole}, and cannot be put on {count} tiles",
                hint="give it one tile, or leave --tiles out to get tiles that fit",
            )
        if count > layer.n_p:
            raise ConfigError(
                f"tiles: {layer.name} got {count} tiles, but its output has only {layer.n_p} patches",
                hint=f"its number of tiles may be 1 to {layer.n_p}; further arrays would have nothing to compute",
            )
        cycles = largest_tile(layer, count, scheme)
        computed = cycles if scheme == "perforated" else layer.n_p
        found.append(
            LayerCost(
                name=layer.name,
                n_p=layer.n_p,
                k=layer.k,
                c_out=layer.c_out,
                macs=computed * layer.k * layer.c_out,
                tiles=count,
                array_cycles=cycles,
                computed=computed,
                matrices=rule.matrices(count),
                groups=layer.groups,
                bias=layer.bias,
                whole=whole,
            )
        )
    return found


def acceleration(layers: Sequence[LayerCost]) -> float:
    """How much faster than one array for each layer, the layers pipelined: ratio of the slowest layers."""
    return max(layer.n_p for layer in layers) / max(layer.array_cycles for layer in layers)


def acceleration_sequential(layers: Sequence[LayerCost]) -> float:
    """How much faster than one array for each layer, one layer after the other: ratio of the sums."""
    return sum(layer.n_p for layer in layers) / sum(layer.array_cycles for layer in layers)


def largest_tile(layer: Layer, tiles: int, scheme: str = "random") -> int:
    """Patches of the largest tile: those that its array computes one after the other."""
    if scheme_named(scheme).square:
        q = math.isqrt(tiles)
        return -(-layer.height // q) * -(-layer.width // q)
    return -(-layer.n_p // tiles)


def balanced(layers: Sequence[Layer], scheme: str = "random") -> tuple[int, ...]:
    """The paper's tiling: floor(n_p / smallest n_p) tiles for each layer; the square below it for square schemes.

    Layers that can have no more have one tile.
    """
    can = [layer.obstacle(scheme) is None for layer in layers]
    return balanced_tiles([layer.n_p for layer in layers], scheme, can)


def widened(layers: Sequence[Layer], channels: int = 1, kernel: int | None = None) -> list[Layer]:
    """The layers with more channels and larger kernels, padded so that images keep their sizes (paper, section 5).

    Args:
        layers: in order; the first one reads images, whose channels stay.
        channels: what the channels between layers are multiplied by; a depthwise convolution stays one.
        kernel: side of the kernels, pixels; those of 1 x 1, which mix channels only, stay.
    """
    wider = []
    for number, layer in enumerate(layers):
        depthwise = 1 < layer.groups == layer.c_in
        wider.append(
            replace(
                layer,
                c_in=layer.c_in * (channels if number else 1),
                c_out=layer.c_out * (channels if layer.widens else 1),
                groups=layer.groups * (channels if depthwise and number else 1),
                kernel=layer.kernel if kernel is None or layer.kernel == (1, 1) else (kernel, kernel),
            )
        )
    return wider


def widened_linear(layers: Sequence[Layer], channels: int) -> list[Layer]:
    """Layers of one patch in a network whose convolutions have more channels.

    Those between convolutions, as in squeeze-and-excitation, have more on both sides; of those at the end the first one
    reads more.
    """
    wider = []
    end = False
    for layer in layers:
        depthwise = channels if layer.widens and 1 < layer.groups == layer.c_in else 1
        wider.append(
            replace(
                layer,
                c_in=layer.c_in * (1 if end else channels),
                c_out=layer.c_out * (channels if layer.widens else 1),
                groups=layer.groups * depthwise,
            )
        )
        end = end or not layer.widens
    return wider


def layers_of(
    definition: config.Network, shape: tuple[int, int, int], classes: int = ANY_CLASSES
) -> tuple[list[Layer], list[Layer]]:
    """The convolutions and the linear layers of a definition that fits its images.

    Args:
        definition: of the network.
        shape: (C, H, W) of an image.
        classes: outputs of linear layers that name none.
    """
    convolutions, linear = list[Layer](), list[Layer]()
    for layer, before, (c_out, height, width) in sized_layers(definition, shape, classes):
        if isinstance(layer, config.Conv):
            name, kernel = f"conv{len(convolutions) + 1}", (layer.kernel, layer.kernel)
            convolutions.append(Layer(name, height, width, kernel, before[0], c_out))
        elif isinstance(layer, config.Linear):
            name = f"linear{len(linear) + 1}"
            linear.append(Layer(name, 1, 1, (1, 1), math.prod(before), c_out, widens=False))
    return convolutions, linear


def _short(counts: Sequence[int]) -> str:
    """Numbers with commas; of many only the first."""
    return commas(counts) if len(counts) <= 8 else f"{commas(counts[:6])},..."
