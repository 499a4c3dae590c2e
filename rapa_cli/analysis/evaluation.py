"""The error of a network on a set of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rapa_cli.data.augmentation import pixels
from rapa_cli.data.stream import Images, read
from rapa_cli.keyed import draws
from rapa_cli.shown import Shown

# The 97.5 % point of the normal distribution.
_Z95 = 1.959963984540054


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """The result of one draw.

    Attributes:
        images: how many were classified.
        wrong: how many of them wrongly.
        loss: mean cross-entropy, nats.
    """

    shown: ClassVar = ("error", "ci95", "loss", "images", "wrong")

    images: int
    wrong: int
    loss: float

    @property
    def error(self) -> float:
        """Test error in percent."""
        return 100 * self.wrong / self.images

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the error, percent."""
        return wilson(self.wrong, self.images)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, in percent (Wilson 1927)."""
    if not trials:
        return (0.0, 100.0)
    p, z2 = successes / trials, _Z95**2
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == trials else min(1.0, middle + half)
    return (100 * low, 100 * high)


def batches(images: Images, labels: Tensor, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Goes through a split in order: image ids (B,), pixels (B, C, H, W) in [0, 1], labels (B,), on the device."""
    wanted = torch.split(torch.arange(len(images)), size) if len(images) else ()
    for ids, found in zip(wanted, read(images, wanted), strict=True):
        yield ids.to(device), pixels(found, device), labels[ids].to(device)


def evaluate(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    *,
    seed: int = 0,
    draw: int = 0,
    batch_size: int = 200,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Classifies images with one draw; the model's mode is as before afterwards.

    Args:
        model: takes (B, C, H, W) in [0, 1].
        images: uint8 (N, C, H, W); their ids are their places in the split.
        labels: int64 (N,).
        seed: of the draw.
        draw: its number.
        batch_size: changes the result in the last bits only.
        on_batch: called with the number of images after each batch.
    """
    device = next(model.parameters()).device
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model), torch.inference_mode():
        for ids, x, y in batches(images, labels, batch_size, device):
            with draws(model, images=ids, seed=seed, draw=draw, stream="test"):
                logits = model(x)
            wrong += (logits.argmax(1) != y).sum()
            loss += nn.functional.cross_entropy(logits, y, reduction="sum")
            if on_batch:
                on_batch(len(x))
    return Evaluation(len(images), int(wrong), float(loss) / len(images))


class evaluating:  # noqa: N801 - a context manager is named as the function it is used like
    """Inside the block every module is in evaluation mode; afterwards each has the mode it had."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modes: list[tuple[nn.Module, bool]] = []

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self._modes:
            module.training = mode
