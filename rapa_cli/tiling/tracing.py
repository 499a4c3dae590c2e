"""The layers that compute when an image goes through a network, and the sizes of what they give."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rapa_cli.errors import ConfigError
from rapa_cli.keyed import draws


@dataclass(frozen=True)
class Traced:
    """A layer that computed.

    Attributes:
        name: as the network names it.
        layer: itself.
        out: shape of what it gave for one image, without the batch.
        tied: whether another layer of the network holds a parameter of it too.
    """

    name: str
    layer: nn.Module
    out: tuple[int, ...]
    tied: bool = False

    @property
    def patches(self) -> int:
        """n_p of a convolution."""
        return self.out[-2] * self.out[-1]


@dataclass(frozen=True)
class Trace:
    """What one image found in a network.

    Attributes:
        layers: those that were looked for, in the order in which they computed.
        out: shape of what the network gave, without the batch; None where that is no tensor.
        weights: numbers in the parameters of the network, those of other layers too.
    """

    layers: list[Traced]
    out: tuple[int, ...] | None
    weights: int


def tied_layers(network: nn.Module) -> set[nn.Module]:
    """The layers of a network of which another one holds a parameter too."""
    layers = list(network.modules())
    holders = Counter(id(parameter) for layer in layers for parameter in layer.parameters(recurse=False))
    return {layer for layer in layers if any(holders[id(one)] > 1 for one in layer.parameters(recurse=False))}


def trace(network: nn.Module, shape: tuple[int, int, int], kinds: tuple[type[nn.Module], ...]) -> Trace:
    """Sends one image of zeros through a network, in evaluation mode; what the network holds does not change.

    Args:
        network: on any device, also without data on the device "meta".
        shape: (C, H, W) of the image.
        kinds: layers to look for.

    Raises:
        ConfigError: the network cannot take such an image, or a layer of these kinds computes twice for it.
    """
    found: dict[str, Traced] = {}
    tied = tied_layers(network)

    def note(name: str, layer: nn.Module, out: Tensor) -> None:
        if name in found:
            raise ConfigError(
                f"layer '{name}' computes more than once for an image, so that it has no one number of patches",
                hint="take a network in which each layer computes once",
            )
        found[name] = Traced(name, layer, tuple(out.shape[1:]), layer in tied)

    def hook(name: str) -> Any:
        return lambda layer, _, out: note(name, layer, out)

    handles = [
        layer.register_forward_hook(hook(name)) for name, layer in network.named_modules() if isinstance(layer, kinds)
    ]
    before = {layer: layer.training for layer in network.modules()}
    first = next(network.parameters(), torch.zeros(()))
    image = torch.zeros(1, *shape, device=first.device, dtype=first.dtype)
    ids = torch.zeros(1, dtype=torch.int64, device=first.device)
    try:
        # Inside `draws` no layer counts its calls.
        with torch.no_grad(), draws(network, images=ids):
            out = network.eval()(image)
    except ConfigError:
        raise
    except Exception as error:  # A network can raise any exception that there is.
        size = " x ".join(map(str, shape))
        raise ConfigError(
            f"the network cannot take an image of {size}: {type(error).__name__}: {' '.join(str(error).split())[:160]}",
            hint="choose another size (`rapa plan` takes --image-size); most networks of torchvision are made for 224",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in before.items():
            layer.training = training
    weights = sum(parameter.numel() for parameter in network.parameters())
    return Trace(list(found.values()), tuple(out.shape[1:]) if isinstance(out, Tensor) else None, weights)
