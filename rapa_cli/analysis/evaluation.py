"""The error of a network on a set of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rapa_cli.data.augmentation import pixels
from rapa_cli.data.stream import Images, StreamedImages, read
from rapa_cli.errors import ConfigError
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


def check_images(images: Images) -> None:
    """Checks what somebody hands over as images: bytes, or floats in [0, 1], of shape (N, C, H, W).

    Raises:
        ConfigError: they are something else.
    """
    if isinstance(images, StreamedImages):
        return
    allowed = "images are a tensor of shape (N, C, H, W), uint8 or floats from 0 to 1"
    if not isinstance(images, Tensor):
        raise ConfigError(f"images: got {type(images).__name__}, not a tensor", hint=allowed)
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ConfigError(f"images: got {images.dtype} of shape {tuple(images.shape)}", hint=allowed)
    if images.is_floating_point() and images.numel():
        low, high = (float(bound) for bound in images.aminmax())
        # Also where one of them is not a number.
        if not (low >= 0 and high <= 1):
            raise ConfigError(f"images: got floats from {low:g} to {high:g}", hint=allowed)


def check_labels(labels: Tensor, images: int, classes: int | None = None) -> None:
    """Checks what somebody hands over as labels: whole numbers from 0, one for each image, (N,).

    Args:
        labels: of any type of whole numbers.
        images: how many there are.
        classes: outputs of the network, where they are known.

    Raises:
        ConfigError: they are something else.
    """
    allowed = f"labels are a tensor of {images} whole numbers, one for each image"
    if not isinstance(labels, Tensor):
        raise ConfigError(f"labels: got {type(labels).__name__}, not a tensor", hint=allowed)
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != (images,):
        raise ConfigError(f"labels: got {labels.dtype} of shape {tuple(labels.shape)}", hint=allowed)
    if not images:
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or (classes is not None and high >= classes):
        most = "" if classes is None else f" to {classes - 1}, the network's classes"
        raise ConfigError(f"labels: got {low if low < 0 else high}", hint=f"labels are whole numbers from 0{most}")


def pixel_batches(images: Images, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Goes through images in order: their ids (B,), and pixels (B, C, H, W) in [0, 1], on the device.

    Raises:
        ConfigError: they are neither bytes nor floats in [0, 1].
    """
    check_images(images)
    wanted = torch.split(torch.arange(len(images)), size) if len(images) else ()
    for ids, found in zip(wanted, read(images, wanted), strict=True):
        yield ids.to(device), pixels(found, device)


def batches(images: Images, labels: Tensor, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Goes through a split in order: image ids (B,), pixels (B, C, H, W) in [0, 1], labels (B,), on the device.

    Raises:
        ConfigError: images or labels are something else than `check_images` and `check_labels` allow.
    """
    check_images(images)
    check_labels(labels, len(images))
    for ids, x in pixel_batches(images, size, device):
        yield ids, x, labels[ids.to(labels.device)].to(device, torch.int64)


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
        images: (N, C, H, W), uint8 or floats in [0, 1]; their ids are their places in the split.
        labels: whole numbers (N,).
        seed: of the draw.
        draw: its number.
        batch_size: changes the result in the last bits only.
        on_batch: called with the number of images after each batch.

    Raises:
        ConfigError: images or labels are something else.
    """
    device = next(model.parameters()).device
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model), torch.inference_mode():
        for ids, x, y in batches(images, labels, batch_size, device):
            with draws(model, images=ids, seed=seed, draw=draw, stream="test"):
                logits = model(x)
            check_labels(y, len(y), logits.shape[1])
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
