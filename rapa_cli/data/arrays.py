"""Images of the user's own from two numpy files, train.npz and test.npz."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy

from rapa_cli.data.images import Progress, Split
from rapa_cli.data.store import MAX_CLASSES
from rapa_cli.errors import FileError

FILES = ("train.npz", "test.npz")
MAX_BYTES = 8 * 2**30
"""The most that an array may unpack to."""
MAX_RATIO = 300
"""The most that an array of more than `RATIO_FROM` bytes may be compressed; images seldom reach 20."""
RATIO_FROM = 64 * 2**20
_FORMAT = "images uint8 (N, H, W) or (N, H, W, C), labels (N,) whole numbers"


def read(path: Path, progress: Progress) -> tuple[tuple[str, ...], Split, Split]:
    """Reads both files.

    Args:
        path: the folder they lie in.
        progress: called for each file read.

    Returns:
        Class names "0", "1", ... up to the highest label, training split, test split.

    Raises:
        FileError: a file or array is missing, damaged, too large, or not what it should be.
    """
    splits = []
    for number, name in enumerate(FILES):
        progress("reading arrays", number, len(FILES))
        splits.append(_split(path / name))
    progress("reading arrays", len(FILES), len(FILES))
    highest = max(int(split.labels.max()) for split in splits)
    return tuple(str(label) for label in range(highest + 1)), splits[0], splits[1]


def _split(path: Path) -> Split:
    images, labels = _load(path)
    if images.dtype != np.uint8:
        hint = "images on another scale must be brought to 0...255 and saved as uint8 first"
        raise FileError(f"{path}: images are {images.dtype}, not uint8", hint=hint)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise FileError(f"{path}: images have the shape {images.shape}", hint=_FORMAT)
    if labels.dtype.kind not in "ui" or labels.shape != images.shape[:1]:
        got = f"{labels.dtype} {labels.shape} for {len(images)} images"
        raise FileError(f"{path}: labels are {got}", hint=_FORMAT)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        hint = "number the classes from 0 up and save the labels again"
        raise FileError(f"{path}: labels go from {low} to {high}, allowed are 0 to {MAX_CLASSES - 1}", hint=hint)
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def _load(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if not path.is_file():
        raise FileError(f"{path} is missing", hint=f"the folder needs train.npz and test.npz, each with {_FORMAT}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _array(archive, "images", path), _array(archive, "labels", path)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}", hint="may you read it?") from error
    except FileError:
        raise
    except Exception as error:  # A damaged file can raise any exception that there is.
        raise FileError(f"{path} is damaged: {error}", hint="write it again") from error


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise FileError(f"{path} has no array '{name}'", hint=_FORMAT) from None
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FileError(
            f"{path} is refused: '{name}' is packed in a way that numpy does not use", hint="write it again"
        )
    size = member.file_size
    if size > MAX_BYTES or (size > RATIO_FROM and size > MAX_RATIO * member.compress_size):
        got = f"'{name}' unpacks from {member.compress_size} to {size} bytes"
        raise FileError(f"{path} is refused: {got}", hint="an array this empty or large is no set of images")
    with archive.open(member) as file:
        # numpy makes room for the shape that the header claims, so it has to agree with the file first.
        shape, dtype = _header(file)
        if dtype.hasobject:
            raise FileError(f"{path} is refused: '{name}' holds Python objects", hint=_FORMAT)
        if int(np.prod(shape, dtype=object)) * dtype.itemsize != size - file.tell():
            claim = f"'{name}' claims the shape {shape}, but has {size} bytes"
            raise FileError(f"{path} is damaged: {claim}", hint="write it again")
    with archive.open(member) as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"numpy format {version} is not readable here")
    return shape, dtype
