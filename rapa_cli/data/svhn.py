"""SVHN from its official MATLAB files: 73,257 training and 26,032 test images of house numbers, without the extra ones.

Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011. The files are read here and
not by SciPy, whose reader a damaged file can crash; the format is "MATLAB: MAT-File Format", version 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapa_cli.data.images import Progress, Split
from rapa_cli.errors import FileError

FILES = ("train_32x32.mat", "test_32x32.mat")
CLASSES = tuple(str(digit) for digit in range(10))
# Bytes of a variable; the official files hardly pack at all: one may unpack to `_ROOM` and so many times its size.
_MOST = 2**30
_MAX_RATIO = 20
_ROOM = 16 * 2**20
# Of MATLAB's format: elements, flags, classes of arrays of numbers, and how numbers are stored.
_MATRIX, _COMPRESSED = 14, 15
_COMPLEX = 0x0800
_NUMERIC = range(6, 16)
_STORED = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
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
    try:
        found = variables(path)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}", hint=_HINT) from error
    except (ValueError, struct.error, zlib.error) as error:
        raise FileError(f"{path} is damaged: {error}", hint=_HINT) from error
    if found.keys() != {"X", "y"}:
        raise FileError(f"{path} is damaged: it has {sorted(found) or 'neither'}, not X and y as SVHN", hint=_HINT)
    return found["X"], found["y"]


def variables(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The variables X and y of a MATLAB 5 file, as far as they are there: numbers as they are stored, in 2 to 4 axes.

    Raises:
        OSError: it cannot be read.
        ValueError, struct.error, zlib.error: it is damaged.
    """
    if path.stat().st_size > _MOST:
        raise ValueError(f"it has more than {_MOST} bytes")
    content = memoryview(path.read_bytes())
    if bytes(content[124:128]) != b"\x00\x01IM":
        raise ValueError("it is no MATLAB 5 file")
    found: dict[str, np.ndarray[Any, Any]] = {}
    place = 128
    while place < len(content):
        kind, size = struct.unpack_from("<II", content, place)
        element = content[place + 8 : place + 8 + size]
        place += 8 + size
        if len(element) < size:
            raise ValueError("it is cut off")
        if kind == _COMPRESSED:
            unpacked = _unpacked(element)
            kind, size = struct.unpack_from("<II", unpacked)
            element = unpacked[8:]
            if len(element) != size:
                raise ValueError("a variable has another length than it says")
        if kind != _MATRIX:
            raise ValueError(f"an element of the kind {kind} where a variable is expected")
        flags, shape, name, numbers = _parts(element)
        variable = bytes(name[1]).decode("latin1")
        if variable in found:
            raise ValueError(f"the variable '{variable}' is there twice")
        if variable in ("X", "y"):
            found[variable] = _array(flags, shape, numbers)
    return found


def _unpacked(content: memoryview) -> memoryview:
    most = min(_MOST, _ROOM + _MAX_RATIO * len(content))
    stream = zlib.decompressobj()
    unpacked = stream.decompress(content, most)
    # Its end comes after its checksum.
    if not stream.eof:
        raise ValueError(f"a variable is cut off, or unpacks to more than {most} bytes")
    return memoryview(unpacked)


def _parts(matrix: memoryview) -> list[tuple[int, memoryview]]:
    """Flags, shape, name and numbers of a matrix: the kind and the bytes of each."""
    parts: list[tuple[int, memoryview]] = []
    place = 0
    while len(parts) < 4:
        kind, size = struct.unpack_from("<II", matrix, place)
        start = place + 8
        place = start + size + -size % 8
        if kind >> 16:
            # Up to four bytes stand in the place of their length, and their length above their kind.
            kind, size, start, place = kind & 0xFFFF, min(kind >> 16, 4), start - 4, start
        parts.append((kind, matrix[start : start + size]))
        if len(parts[-1][1]) < size:
            raise ValueError("a variable is shorter than it says")
    return parts


def _array(
    flags: tuple[int, memoryview], sizes: tuple[int, memoryview], numbers: tuple[int, memoryview]
) -> np.ndarray[Any, Any]:
    (first,) = struct.unpack_from("<I", flags[1])
    if first & _COMPLEX or first & 0xFF not in _NUMERIC or numbers[0] not in _STORED:
        raise ValueError("X or y holds something other than real numbers")
    shape = np.frombuffer(sizes[1], "<i4").tolist()
    values = np.frombuffer(numbers[1], _STORED[numbers[0]])
    if not 2 <= len(shape) <= 4 or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{len(values)} numbers cannot have the shape of X or y")
    return values.reshape(shape, order="F")
