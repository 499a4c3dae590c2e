"""The learning rate over the epochs (paper, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rapa_cli.analog.module import AwareMatrices, PulsedMatrices
from rapa_cli.config import Recipe
from rapa_cli.layers.pooling import MixedPool2d
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.training.sgd import AnalogSGD

# Of a layer's tiles, by the scaling of its rate.
_EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def rate(recipe: Recipe, epoch: int) -> float:
    """The rate in an epoch, counted from 0: stepwise, and lower while it warms up."""
    warmup = recipe.warmup_factor if epoch < recipe.warmup_epochs else 1.0
    return recipe.lr * warmup * float(recipe.step_factor ** (epoch // recipe.step_epochs))


def optimizer(network: nn.Module, recipe: Recipe) -> AnalogSGD:
    """SGD with a group of parameters for each scaling of the rate and each weight decay; the groups' key is `scale`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, scale, decay in _parameters(network, recipe):
        groups.setdefault((scale, decay), []).append(parameter)
    tables: list[dict[str, Any]] = [
        {"params": parameters, "scale": scale, "weight_decay": decay, "lr": recipe.lr * scale}
        for (scale, decay), parameters in groups.items()
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in network.parameters())
    return AnalogSGD(network, tables, lr=recipe.lr, momentum=recipe.momentum, fused=fused)


def set_rate(sgd: torch.optim.Optimizer, value: float) -> None:
    """Sets the rate of every group, times its scale."""
    for group in sgd.param_groups:
        group["lr"] = value * group["scale"]


def _parameters(network: nn.Module, recipe: Recipe) -> Iterator[tuple[nn.Parameter, float, float]]:
    """Each parameter once, also where layers share it, with its scale and its decay."""
    seen: set[nn.Parameter] = set()
    for parameter, scale, decay in _of_layers(network, recipe):
        if parameter not in seen:
            yield parameter, scale, decay
        seen.add(parameter)


def _of_layers(network: nn.Module, recipe: Recipe) -> Iterator[tuple[nn.Parameter, float, float]]:
    for layer in network.modules():
        scale = float(layer.tiles ** _EXPONENTS[recipe.lr_scaling]) if isinstance(layer, TiledConv2d) else 1.0
        # What reads a layer's arrays is a module of its own, and a part of the layer.
        own = [] if isinstance(layer, (PulsedMatrices, AwareMatrices)) else layer.named_parameters(recurse=False)
        matrices = getattr(layer, "matrices", None)
        of_arrays = [] if matrices is None else matrices.named_parameters()
        for name, parameter in (*own, *of_arrays):
            if name == "input_range":
                yield parameter, 1.0, 0.0
                continue
            decays = recipe.decay_mixture if isinstance(layer, MixedPool2d) else recipe.decay_bias or name != "bias"
            yield parameter, scale, recipe.weight_decay if decays else 0.0
