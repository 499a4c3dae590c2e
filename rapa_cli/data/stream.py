"""Images that are decoded when they are wanted, so that a data set need not fit into memory.

Processes decode them ahead, as torch's DataLoader has them. What becomes of an image is a function of the seed, the
epoch and the image alone, and so the same with any number of processes, and after a run was stopped.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rapa_cli.data import image_files
from rapa_cli.data.image_files import Files
from rapa_cli.errors import FileError
from rapa_cli.machine import cores
from rapa_cli.philox import Purpose, uniform, words

# Of the shorter side: what is left of 256 pixels in a square of 224, as is usual on ImageNet.
_CENTRE = 7 / 8
# Random crops as torchvision's RandomResizedCrop has them: ratios of width to height, and how often one is tried.
_RATIO = 4 / 3
_TRIES = 10
_MOST_WORKERS = 8

Box = tuple[int, int, int, int]
"""Top, left, height and width, pixels."""
Decoded = Tensor | tuple[str, str | None]
"""A batch, or message and hint of the error that one of its images has."""


@dataclass(frozen=True)
class Crop:
    """The random crop of training images (Szegedy et al., "Going deeper with convolutions", section 6).

    Attributes:
        seed: of the run.
        epoch: each has its own crops.
        least: smallest share of an image's area that is cut out, in (0, 1].
    """

    seed: int
    epoch: int
    least: float


class StreamedImages:
    """The images of a split, each a file that is decoded when it is wanted, cut to a square and scaled.

    A slice is a stream of fewer images; int64 ids (B,) give the images themselves, uint8 (B, 3, size, size).

    Args:
        files: the images.
        size: height and width of what is given, pixels.
        workers: processes that decode batches ahead; 0 decodes in this one.
        chosen: which of the files, all by default.

    Attributes:
        shape: (N, 3, size, size).
        dtype: uint8.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(self, files: Files, size: int, workers: int = 0, chosen: range | None = None) -> None:
        self._files, self._size, self._workers = files, size, workers
        self._chosen = range(len(files)) if chosen is None else chosen
        self.shape = torch.Size((len(self._chosen), 3, size, size))

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, key: slice) -> StreamedImages: ...
    @overload
    def __getitem__(self, key: Tensor) -> Tensor: ...
    def __getitem__(self, key: slice | Tensor) -> StreamedImages | Tensor:
        if isinstance(key, slice):
            return StreamedImages(self._files, self._size, self._workers, self._chosen[key])
        return next(self.batches([key]))

    def batches(self, batches: Sequence[Tensor], crop: Crop | None = None) -> Iterator[Tensor]:
        """Decodes batches of images in turn, ahead of when they are wanted.

        Args:
            batches: ids of each, int64 (B,).
            crop: the random crop for training; None takes a square out of the middle.

        Raises:
            FileError: an image is missing, damaged or refused.
            RuntimeError: a process that decodes images was killed; torch raises it wherever this one is.
        """
        # Of one batch nothing can be decoded ahead.
        workers = min(self._workers, len(batches)) if len(batches) > 1 else 0
        with warnings.catch_warnings():
            # Torch's advice on how many there should be; somebody has asked for so many.
            warnings.simplefilter("ignore", UserWarning)
            loader = iter(
                DataLoader(
                    _Decoder(self._files, self._size, crop),
                    batch_size=None,
                    sampler=_Ids(batches, self._chosen),
                    collate_fn=_as_it_is,
                    num_workers=workers,
                    worker_init_fn=_start if workers else None,
                    # The global generator is for others.
                    generator=torch.Generator(),
                )
            )
        try:
            for found in loader:
                if isinstance(found, tuple):
                    raise FileError(found[0], hint=found[1])
                yield found
        except (EOFError, ConnectionError) as error:
            # A batch of a process that is no more; torch says the same where it notices first.
            raise RuntimeError("a DataLoader worker has ended") from error

    def fingerprint(self) -> str:
        """SHA-256 of the names and sizes of the files, and of the size to which they are cut."""
        digest = hashlib.sha256(f"{self._size}\n".encode())
        for index in self._chosen:
            path = self._files.path(index)
            try:
                digest.update(b"%d " % path.stat().st_size + os.fsencode(path.name) + b"\n")
            except OSError as error:
                raise FileError(f"cannot read {path}: {error.strerror}", hint=image_files.READABLE) from error
        return digest.hexdigest()


Images = Tensor | StreamedImages
"""Images uint8 (N, C, H, W), in memory or decoded when they are wanted."""


def read(images: Images, batches: Sequence[Tensor], crop: Crop | None = None) -> Iterator[Tensor]:
    """The images of each batch in turn.

    Args:
        images: uint8 (N, C, H, W).
        batches: ids of each, int64 (B,).
        crop: for a stream, the random crop for training.

    Returns:
        uint8 (B, C, H, W) for each batch.
    """
    return images.batches(batches, crop) if isinstance(images, StreamedImages) else (images[ids] for ids in batches)


def usual_workers() -> int:
    """How many processes decode images unless somebody says otherwise: one for each core that may be used, up to 8."""
    return min(cores(), _MOST_WORKERS)


def centre_box(height: int, width: int) -> Box:
    """The square in the middle of an image, 7/8 of its shorter side."""
    side = max(1, round(_CENTRE * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


def random_box(image: int, height: int, width: int, crop: Crop) -> Box:
    """The random crop of an image.

    The share of the area is uniform, the ratio of width to height uniform in its logarithm; where 10 boxes do not fit
    into the image, the largest of an allowed ratio is taken out of its middle.

    Args:
        image: its id.
        height: pixels.
        width: pixels.
        crop: seed, epoch and smallest share.
    """
    chances = words(Purpose.CROP, crop.seed, images=torch.tensor([image]), count=4 * _TRIES, draw=crop.epoch)
    for share, ratio, down, right in uniform(chances).view(_TRIES, 4).tolist():
        area = (crop.least + (1 - crop.least) * share) * height * width
        stretch = math.exp((2 * ratio - 1) * math.log(_RATIO))
        w, h = round(math.sqrt(area * stretch)), round(math.sqrt(area / stretch))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = min(height, max(1, round(width * _RATIO))), min(width, max(1, round(height * _RATIO)))
    return (height - h) // 2, (width - w) // 2, h, w


class _Ids:
    """The numbers of the files of each batch, made when they are asked for."""

    def __init__(self, batches: Sequence[Tensor], chosen: range) -> None:
        self._batches, self._chosen = batches, chosen

    def __iter__(self) -> Iterator[list[int]]:
        return ([self._chosen[index] for index in ids.tolist()] for ids in self._batches)


class _Decoder(Dataset[Decoded]):
    """Batches by the ids of their images.

    An error is handed over: raised in another process, it would come out with all of its places in the message.
    """

    def __init__(self, files: Files, size: int, crop: Crop | None) -> None:
        self._files, self._size, self._crop = files, size, crop

    def __getitem__(self, ids: list[int]) -> Decoded:
        batch = torch.empty((len(ids), 3, self._size, self._size), dtype=torch.uint8)
        try:
            for place, index in enumerate(ids):
                image = image_files.decoded(self._files.path(index), channels=3)
                size = (image.height, image.width)
                box = centre_box(*size) if self._crop is None else random_box(index, *size, self._crop)
                scaled = image.resize((self._size, self._size), Image.Resampling.BILINEAR, box=_corners(box))
                batch[place] = image_files.pixels(scaled)
        except FileError as error:
            return error.message, error.hint
        return batch


def _corners(box: Box) -> tuple[int, int, int, int]:
    """As Pillow has boxes: left, top, right, bottom."""
    top, left, height, width = box
    return left, top, left + width, top + height


def _as_it_is(found: Any) -> Any:
    return found


def _start(_: int) -> None:
    # Ctrl-C reaches all processes of a terminal; the first one ends the others when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
