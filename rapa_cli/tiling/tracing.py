"""The layers that compute when an image goes through a network, and the sizes of what they give."""

from __future__ import annotations

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
    """

    name: str
    layer: nn.Module
    out: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What one image found in a network.

    Attributes:
        layers: those that were looked for, in the order in which they computed.
        out: shape of what the network gave, without the batch; None where that is no tensor.
    """

    layers: list[Traced]
    out: tuple[int, ...] | None


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

    def note(name: str, layer: nn.Module, out: Tensor) -> None:
        if name in found:
            raise ConfigError(
                f"layer '{name}' computes more than once for an image, which is not planned for",
                hint="plan a network in which each layer computes once",
            )
        found[name] = Traced(name, layer, tuple(out.shape[1:]))

    def hook(name: str) -> Any:
        return lambda layer, _, out: note(name, layer, out)

    handles = [
        layer.register_forward_hook(hook(name)) for name, layer in network.named_modules() if isinstance(layer, kinds)
    ]
    before = {layer: layer.training for layer in network.modules()}
    weights = next(network.parameters(), torch.zeros(()))
    image = torch.zeros(1, *shape, device=weights.device, dtype=weights.dtype)
    ids = torch.zeros(1, dtype=torch.int64, device=weights.device)
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
            hint="choose another size (--image-size of `rapa plan`); most networks of torchvision are made for 224",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in before.items():
            layer.training = training
    return Trace(list(found.values()), tuple(out.shape[1:]) if isinstance(out, Tensor) else None)
