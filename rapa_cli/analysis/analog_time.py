"""Analog time: how many array operations a network needs one after the other (paper, sections 1 and 2, figure 1).

An array multiplies one patch with its whole matrix in one operation, however large the matrix is. A layer of n_p
patches on n_t tiles therefore takes as many operations as its largest tile has patches, n_p / n_t where tiles are
balanced, while a computer takes n_p k c_out multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rapa_cli import config
from rapa_cli.errors import ConfigError, commas
from rapa_cli.kernels.geometry import Geometry
from rapa_cli.layers.network import resolve
from rapa_cli.layers.pooling import pooled_size
from rapa_cli.tiling.schemes import scheme_named


@dataclass(frozen=True)
class Layer:
    """A convolution, or a linear layer as one of a single patch, before it is tiled.

    Attributes:
        name: as its network names it.
        height: of the output, pixels.
        width: of the output, pixels.
        k: weights of a filter without its bias: k_h k_w c_in, divided by the groups.
        c_out: output channels.
        groups: each has a kernel matrix of its own, (k, c_out / groups).
        bias: whether there is a bias, a further line of each array.
    """

    name: str
    height: int
    width: int
    k: int
    c_out: int
    groups: int = 1
    bias: bool = True

    @property
    def n_p(self) -> int:
        """Patches of an image."""
        return self.height * self.width


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs for one image.

    Attributes:
        name: as its network names it.
        n_p: patches of an image, whether they are computed or not.
        k: weights of a filter without its bias, in each group.
        c_out: output channels.
        macs: multiply-adds of the computed patches, without biases.
        tiles: n_t; of `perforated` the perforation: its one matrix computes n_p / n_t patches in training, and all of
            them in test.
        array_cycles: operations one after the other: the patches of the largest tile.
        matrices: kernel matrices, each of them of all groups.
        groups: of the convolution.
        bias: whether there is a bias.
    """

    name: str
    n_p: int
    k: int
    c_out: int
    macs: int
    tiles: int
    array_cycles: int
    matrices: int
    groups: int = 1
    bias: bool = True

    @property
    def weights(self) -> int:
        """Weights and biases of all tiles: devices that hold something."""
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
        tiles: n_t of each, from 1.
        scheme: how patches are assigned; those of square regions have tiles of different sizes where the number of
            tiles does not divide the image.

    Raises:
        ConfigError: a wrong number of tiles, or tiles that the scheme cannot work with.
    """
    if len(tiles) != len(layers):
        raise ConfigError(
            f"tiles: got {len(tiles)} numbers ({commas(tiles)}) for {len(layers)} convolutions",
            hint=f"give one number for each, as in {commas(balanced(layers))}",
        )
    found = []
    for layer, count in zip(layers, tiles, strict=True):
        rule = scheme_named(scheme)
        try:
            rule.check(count)
        except ValueError as error:
            raise ConfigError(f"{layer.name}: {error}", hint="choose other tiles, or another scheme") from None
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
                matrices=rule.matrices(count),
                groups=layer.groups,
                bias=layer.bias,
            )
        )
    return found


def largest_tile(layer: Layer, tiles: int, scheme: str = "random") -> int:
    """Patches of the largest tile: those that its array computes one after the other."""
    if scheme_named(scheme).square:
        q = math.isqrt(tiles)
        return -(-layer.height // q) * -(-layer.width // q)
    return -(-layer.n_p // tiles)


def balanced(layers: Sequence[Layer]) -> tuple[int, ...]:
    """The paper's tiling: floor(n_p / smallest n_p) tiles for each layer."""
    smallest = min(layer.n_p for layer in layers)
    return tuple(layer.n_p // smallest for layer in layers)


def layers_of(
    definition: config.Network, shape: tuple[int, int, int], classes: int = 10
) -> tuple[list[Layer], list[Layer]]:
    """The convolutions and the linear layers of a definition that fits its images.

    Args:
        definition: of the network.
        shape: (C, H, W) of an image.
        classes: outputs of linear layers that name none.
    """
    channels, height, width = shape
    convolutions, linear = list[Layer](), list[Layer]()
    for layer in definition.layers:
        if isinstance(layer, config.Conv):
            padding, stride, dilation = (layer.padding,) * 4, (layer.stride,) * 2, (layer.dilation,) * 2
            geometry = Geometry(height, width, (layer.kernel,) * 2, stride, padding, dilation)
            height, width = geometry.out_height, geometry.out_width
            name = f"conv{len(convolutions) + 1}"
            convolutions.append(Layer(name, height, width, layer.kernel**2 * channels, layer.channels))
            channels = layer.channels
        elif isinstance(layer, config.Pool):
            height, width = (pooled_size(size, layer.kernel, layer.stride) for size in (height, width))
        elif isinstance(layer, config.Linear):
            features = layer.features or classes
            linear.append(Layer(f"linear{len(linear) + 1}", 1, 1, channels * height * width, features))
            channels, height, width = features, 1, 1
    return convolutions, linear
