"""SVHN from its official MATLAB files: 73,257 training and 26,032 test images of house numbers, without the extra ones.

Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapa_cli.data.images import Progress, Split
from rapa_cli.errors import FileError

FILES = ("train_32x32.mat", "test_32x32.mat")
CLASSES = tuple(str(digit) for digit in range(10))
_MAX_IMAGES = 200_000
# The official files hardly pack at all: a file may hold `_ROOM` numbers and so many times its bytes.
_MAX_RATIO = 20
_ROOM = 16 * 2**20
_NUMBERS = {"double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
_HINT = "it should be one of the official files in format 2 (cropped digits)"


def is_folder(path: Path) -> bool:
    """Whether both files lie in the folder."""
    return all((path / name).is_file() for name in FILES)


def read(path: Path, progress: Progress) -> tuple[tuple[str, ...], Split, Split]:
    """Reads both files.

    Args:
        path: the folder they lie in.
        progress: called for each file read.

    Returns:
        Class names "0" to "9", training split, test split. The files' label 10 is the digit 0.

    Raises:
        FileError: a file is missing, damaged, or not what the official one holds.
    """
    splits = []
    for number, name in enumerate(FILES):
        progress("reading SVHN", number, len(FILES))
        splits.append(_split(path / name))
    progress("reading SVHN", len(FILES), len(FILES))
    return CLASSES, splits[0], splits[1]


def _split(path: Path) -> Split:
    images, labels = _variables(path)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.shape[3] == 0:
        raise FileError(f"{path} is damaged: X is {images.dtype} {images.shape}, not uint8 (32, 32, 3, N)", hint=_HINT)
    count = images.shape[3]
    if labels.dtype.kind not in "ui" or labels.shape != (count, 1):
        raise FileError(f"{path} is damaged: y is {labels.dtype} {labels.shape}, not ({count}, 1) integers", hint=_HINT)
    low, high = int(labels.min()), int(labels.max())
    if low < 1 or high > 10:
        raise FileError(f"{path} is damaged: labels go from {low} to {high}, allowed are 1 to 10", hint=_HINT)
    digits = labels[:, 0].astype(np.int64) % 10
    return Split(torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))), torch.from_numpy(digits))


def _variables(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from scipy.io import loadmat, whosmat

    try:
        # What there is is read first: a small file may unpack to more than the memory holds, and cells in cells to more
        # than the stack does.
        shapes = [(name, shape, kind) for name, shape, kind in whosmat(path) if name in ("X", "y")]
        most = min(_MAX_IMAGES * 32 * 32 * 3, _ROOM + _MAX_RATIO * path.stat().st_size)
        if sorted(name for name, _, _ in shapes) == ["X", "y"] and all(
            kind in _NUMBERS and math.prod(shape) <= most for _, shape, kind in shapes
        ):
            found = loadmat(path, variable_names=["X", "y"])
            return np.asarray(found["X"]), np.asarray(found["y"])
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}", hint=_HINT) from error
    except Exception as error:  # A damaged file can raise any exception that there is.
        raise FileError(f"{path} is damaged: {error}", hint=_HINT) from error
    raise FileError(f"{path} is damaged: it has {shapes or 'no variables'}, not X and y as SVHN", hint=_HINT)
