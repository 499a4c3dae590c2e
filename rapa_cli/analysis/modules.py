"""The convolutions and linear layers of any PyTorch network, found by sending one image through it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rapa_cli.analysis.analog_time import Layer
from rapa_cli.errors import ConfigError, suggestion
from rapa_cli.tiling.conv import TiledConv2d
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
    convolutions, linear = list[Layer](), list[Layer]()
    inside: set[int] = set()
    for traced in trace(network, shape, (nn.Conv2d, TiledConv2d, nn.Linear)).layers:
        layer = traced.layer
        inside |= {id(parameter) for parameter in layer.parameters()}
        bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, nn.Linear):
            patches = math.prod(traced.out) // layer.out_features
            found = Layer(traced.name, patches, 1, (1, 1), layer.in_features, layer.out_features, 1, bias)
        else:
            assert isinstance(layer, (nn.Conv2d, TiledConv2d))
            kernel = (layer.kernel_size[0], layer.kernel_size[1])
            channels, groups = (layer.in_channels, layer.out_channels), getattr(layer, "groups", 1)
            found = Layer(traced.name, traced.out[-2], traced.out[-1], kernel, *channels, groups, bias)
        (convolutions if found.n_p > 1 else linear).append(found)
    if not convolutions:
        raise ConfigError("the network has no convolution", hint="plan a convolutional network")
    outside = [weight for weight in network.parameters() if weight.ndim > 1 and id(weight) not in inside]
    everything = sum(weight.numel() for weight in network.parameters())
    return Found(convolutions, linear, sum(weight.numel() for weight in outside) / everything)


def torchvision_layers(name: str, size: int = 224) -> Found:
    """The layers of a classification network of torchvision, without its weights.

    Args:
        name: as torchvision lists it, such as `resnet18`.
        size: height and width of the images, which have three channels.

    Raises:
        ConfigError: there is none of that name, or it cannot take such images.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        hint = suggestion(name, known)
        raise ConfigError(
            f"torchvision has no classification network '{name}'",
            hint=hint if len(hint) < 100 else "torchvision.models.list_models() lists all",
        )
    with warnings.catch_warnings(), _WeightsOnMeta():
        # Some announce how their weights will be drawn, and here none are.
        warnings.simplefilter("ignore")
        network = models.get_model(name, weights=None)
    return layers_of_module(network.to("meta"), (3, size, size))


class _WeightsOnMeta(TorchFunctionMode):
    """Layers made under it have no memory for weights; numbers that a network computes its sizes from stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
