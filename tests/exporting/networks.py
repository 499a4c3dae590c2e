"""Networks to export that are not built from definitions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rapa_cli

SHAPE = (3, 9, 8)


class Branches(nn.Module):
    """Nested layers, a shortcut, and convolutions of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU())
        self.even = nn.ModuleDict({"a": nn.Conv2d(4, 4, (3, 2), padding="same", dilation=(1, 2), bias=False)})
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.even["a"](x)
        logits: Tensor = self.head(self.down(x).mean((2, 3)))
        return logits


def branches() -> nn.Module:
    """Tiled by the scheme random, every tile with weights of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = rapa_cli.convert(Branches(), tiles=[5, 3, 2]).eval()
        for name, parameter in network.named_parameters():
            if not name.startswith("head"):
                parameter.data.uniform_(-0.4, 0.4)
    return network


def pixels(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
