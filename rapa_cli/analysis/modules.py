"""The convolutions and linear layers of any PyTorch network, found by sending one image through it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from rapa_cli.analysis.analog_time import Layer, LayerCost, costs, layers_of
from rapa_cli.errors import ConfigError
from rapa_cli.layers.conversion import obstacle
from rapa_cli.layers.network import Network
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import SCHEMES
from rapa_cli.tiling.tracing import trace


@dataclass(frozen=True)
class Found:
    """Layers of a network.

    Attributes:
        convolutions: layers with more than one patch for an image, in the order in which they compute: convolutions,
            and linear layers that see each pixel by itself.
        linear: layers of one patch.
        elsewhere: share of the network's weights that lies in neither, such as the matrices of attention; vectors,
            such as those of normalisations, are not meant.
    """

    convolutions: list[Layer]
    linear: list[Layer]
    elsewhere: float


def layers_of_module(network: nn.Module, shape: tuple[int, int, int]) -> Found:
    """Finds the layers of a network; what it holds does not change.

    Args:
        network: on any device, also without data on the device "meta".
        shape: (C, H, W) of an image.

    Raises:
        ConfigError: the network cannot take such an image, has no convolution, or a layer of it computes twice for an
            image.
    """
    layers = list[Layer]()
    last = -1
    inside: set[int] = set()
    for traced in trace(network, shape, (nn.Conv2d, TiledConv2d, nn.Linear)).layers:
        layer = traced.layer
        inside |= {id(parameter) for parameter in layer.parameters()}
        bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, nn.Linear):
            patches = math.prod(traced.out) // layer.out_features
            sizes = layer.in_features, layer.out_features
            found = Layer(
                traced.name, patches, 1, (1, 1), *sizes, 1, bias, "is a linear layer" if patches > 1 else None
            )
        else:
            assert isinstance(layer, (nn.Conv2d, TiledConv2d))
            kernel = (layer.kernel_size[0], layer.kernel_size[1])
            channels, groups = (layer.in_channels, layer.out_channels), getattr(layer, "groups", 1)
            whole = obstacle(layer, SCHEMES["random"], tied=traced.tied) if isinstance(layer, nn.Conv2d) else None
            size = traced.out[-2], traced.out[-1]
            mode = layer.padding_mode
            found = Layer(traced.name, *size, kernel, *channels, groups, bias, whole, mode)
        layers.append(found)
        if found.n_p > 1 or not isinstance(layer, nn.Linear):
            last = len(layers) - 1
    # What stands after the last convolution, and the last layer of all, has outputs of its own number.
    last = min(last, len(layers) - 2)
    layers = [replace(layer, widens=number <= last) for number, layer in enumerate(layers)]
    convolutions = [layer for layer in layers if layer.n_p > 1]
    linear = [layer for layer in layers if layer.n_p == 1]
    if not convolutions:
        raise ConfigError("the network has no convolution", hint="plan a convolutional network")
    outside = [weight for weight in network.parameters() if weight.ndim > 1 and id(weight) not in inside]
    everything = sum(weight.numel() for weight in network.parameters())
    return Found(convolutions, linear, sum(weight.numel() for weight in outside) / everything)


def layers_of_network(network: Network) -> Found:
    """The layers of one of our networks, by the names that it gives them."""
    if network.definition.module is not None:
        return layers_of_module(network, network.shape)
    return Found(*layers_of(network.definition, network.shape, network.classes), 0.0)


def network_costs(network: Network) -> list[LayerCost]:
    """Costs of the convolutions of one of our networks, on its own tiles; layers that are not tiled have one."""
    layers = layers_of_network(network).convolutions
    found: list[LayerCost] = []
    for layer in layers:
        module = network.get_submodule(layer.name)
        if isinstance(module, TiledConv2d):
            # Tiles of a scheme of one's own count as of equal size.
            found += costs([layer], [module.tiles], module.scheme if module.scheme in SCHEMES else "random")
        else:
            found += costs([layer], [1], "none")
    return found
