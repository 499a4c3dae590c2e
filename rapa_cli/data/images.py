"""What a data set is: images and labels in two splits, with the constants of the training split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rapa_cli.shown import Shown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels of ImageNet's images, on the [0, 1] pixel scale."""

Progress = Callable[[str, int, int], None]
"""Called as a long step goes on with what is being done, how much of it is done, and how much there is in all
(0 where that is not known)."""


def silent(what: str, done: int, total: int) -> None:
    """The `Progress` that shows nothing."""


@dataclass(frozen=True, repr=False)
class Split(Shown):
    """Images and what they show.

    Attributes:
        images: uint8, shape (N, C, H, W); it may lie in a memory-mapped file, so treat it as read-only. Those of a
            folder that is streamed are `StreamedImages`.
        labels: int64, shape (N,), values in [0, number of classes).
    """

    shown: ClassVar = ("images", "labels")

    # StreamedImages for a folder that is streamed; a union would ask every reader of other data which it has.
    images: Tensor | Any
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, repr=False)
class DataSet(Shown):
    """A data set; its constants come from the training split and are on the [0, 1] pixel scale.

    Attributes:
        name: what `--data` calls it.
        classes: the name of each class.
        train: the training split.
        test: the test split.
        mean: mean of each channel, float32, shape (C,).
        std: standard deviation of each channel, float32, shape (C,); at least one grey level (1/255), so that
            dividing by it is safe.
        mean_image: mean of each pixel, float32, shape (C, H, W).
        source: where the images come from, one line.
    """

    shown: ClassVar = ("name", "classes", "train", "test", "mean", "std", "source")

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: Tensor
    std: Tensor
    mean_image: Tensor
    source: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return int(channels), int(height), int(width)
