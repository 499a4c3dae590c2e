"""Image files: which there are, listed in little memory, and the pixels of one."""

from __future__ import annotations

import os
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rapa_cli.errors import FileError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
READABLE = f"images are files that end in {', '.join(sorted(SUFFIXES))}"
GREY = frozenset({"1", "L", "LA"})
_COLOUR = frozenset({"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"})
# By their content; of others Pillow runs programs to read some.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Files:
    """Files with their labels. A file takes the bytes of its name and 12 more, so that millions can be listed."""

    def __init__(self) -> None:
        self._folders: dict[int, Path] = {}
        self._names = bytearray()
        self._ends = array("q", [0])
        self._labels = array("i")

    def add(self, folder: Path, names: Sequence[str], label: int) -> None:
        """Adds files of a class; all of a class lie in one folder."""
        self._folders[label] = folder
        for name in names:
            self._names += os.fsencode(name)
            self._ends.append(len(self._names))
        self._labels.extend([label] * len(names))

    def __len__(self) -> int:
        return len(self._labels)

    def path(self, index: int) -> Path:
        """Of a file, in the order in which they were added."""
        name = bytes(self._names[self._ends[index] : self._ends[index + 1]])
        return self._folders[self._labels[index]] / os.fsdecode(name)

    def __iter__(self) -> Iterator[Path]:
        return map(self.path, range(len(self)))

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        return torch.tensor(self._labels, dtype=torch.int64)


def names_in(folder: Path) -> list[str]:
    """The names of the image files in a folder, in the order of the alphabet; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name) and entry.is_file())


def opened(file: Path) -> Image.Image:
    """An image whose header has been read; close it.

    Raises:
        FileError: it is no readable image, or refused.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of images so large that they could be an attack; they are no data set either way.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FileError(f"{file} is refused: it has too many pixels") from error
    except Exception as error:  # A damaged file can raise any exception that there is.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no image"
        raise FileError(f"cannot read {file}: {reason}", hint=READABLE) from error


def check_kind(file: Path, image: Image.Image) -> None:
    """Raises FileError where the pixels are neither grey nor colours of 8 bits."""
    if image.mode not in GREY | _COLOUR:
        raise FileError(f"{file} has pixels of the kind {image.mode}", hint="readable are 8-bit grey and colour images")


def decoded(file: Path, channels: int) -> Image.Image:
    """An image in memory; transparency is dropped.

    Args:
        file: the file.
        channels: 1 for grey, 3 for RGB.

    Raises:
        FileError: it is missing, damaged or refused.
    """
    with opened(file) as image:
        check_kind(file, image)
        try:
            return image.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # A damaged file can raise any exception that there is.
            raise FileError(f"{file} is damaged: {error}", hint=READABLE) from error


def pixels(image: Image.Image) -> Tensor:
    """The pixels of a grey or RGB image, uint8 (C, H, W)."""
    return torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - millions of them
