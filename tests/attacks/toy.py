"""A small randomised network that has learned something, its images, and what an attack must leave as it was."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rapa_cli.analog.module import PulsedMatrices
from rapa_cli.analog.presets import preset
from rapa_cli.attacks.oracle import Oracle
from rapa_cli.attacks.threat import View, parse_threat
from rapa_cli.keyed import draws
from rapa_cli.tiling.conv import TiledConv2d

CLASSES = 4


def batch(count: int = 12, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (B, 3, 8, 8) in [0, 1] with a brighter quarter that is the class, labels, and ids that are no places."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.15 + 0.6 * torch.rand(count, 3, 8, 8, generator=generator)
    labels = torch.arange(count) % CLASSES
    for image, label in zip(x, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 0.22
    return x, labels, 100 + 7 * torch.arange(count)


def layers(arrays: Any = None) -> nn.Sequential:
    """A new network of the toy's shape."""
    return nn.Sequential(
        TiledConv2d(3, 6, 3, padding=1, tiles=8, arrays=arrays),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        TiledConv2d(6, 6, 3, padding=1, tiles=4, arrays=arrays),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )


@functools.cache
def _trained() -> nn.Sequential:
    with fixed():
        torch.manual_seed(3)
        model = layers()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        x, labels, ids = batch(64, seed=2)
        for step in range(60):
            with draws(model, images=ids, draw=step, stream="train"):
                loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.zero_grad()
    return surer(model.eval(), 0.4)


def surer(model: nn.Sequential, scale: float) -> nn.Sequential:
    """The network with its logits multiplied; by 10 single precision cannot tell torch's cross-entropy from 0."""
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.mul_(scale)
    return model


def trained() -> nn.Sequential:
    """The network in evaluation mode; a copy."""
    return copy.deepcopy(_trained())


def analog() -> nn.Sequential:
    """A network on arrays that learn, half of it in training mode, with gradients, and with pulses that wait."""
    with fixed():
        torch.manual_seed(4)
        model = layers(preset("Idealized"))
        x, labels, ids = batch(5, seed=6)
        with draws(model, images=ids, stream="train"):
            F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
    model[4].eval()
    model[7].weight.requires_grad_(False)
    return model


def gradient_sign(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The sign of the loss's gradient at each pixel, (B, C, H, W), as one writes it down; the caller sets the draw."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), labels, reduction="sum"), point)
    return gradient.sign()


def view(model: nn.Module, threat: str = "fresh-draw", seed: int = 3) -> View:
    return View(Oracle(model, seed), parse_threat(threat))


@contextmanager
def fixed() -> Iterator[None]:
    """Leaves torch's generator as it was."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def everything(model: nn.Module) -> dict[str, Any]:
    """All that an attack must leave as it is: the network's state, and that of the global generators."""
    found: dict[str, Any] = {f"state {name}": value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found[f"grad {name}"] = None if parameter.grad is None else parameter.grad.clone()
        found[f"wants {name}"] = parameter.requires_grad
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = buffer.clone()
    for name, module in model.named_modules():
        found[f"mode {name}"] = module.training
        found[f"hooks {name}"] = (len(module._forward_hooks), len(module._backward_hooks))
        if isinstance(module, PulsedMatrices):
            found[f"pulses {name}"] = [id(update) for update in module._waiting]
            found[f"candidates {name}"] = [id(update) for update in module._candidates]
            found[f"reading {name}"] = (module.noise, module.exact_gradients)
            found |= {f"bank {name} {key}": value.clone() for key, value in module.bank.state.items()}
    found["torch"] = torch.get_rng_state()
    found["numpy"] = np.random.get_state()
    found["python"] = random.getstate()
    found["grad mode"] = torch.is_grad_enabled()
    return found


def same(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, Tensor):
        return isinstance(after, Tensor) and torch.equal(before, after)
    if isinstance(before, np.ndarray):
        return bool((before == after).all())
    if isinstance(before, tuple):
        return len(before) == len(after) and all(map(same, before, after))
    return bool(before == after)
