"""CIFAR-10 and CIFAR-100 from the official Python archives, packed or unpacked.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapa_cli.data import pickles
from rapa_cli.data.images import Progress, Split
from rapa_cli.errors import FileError

_SHAPE = (3, 32, 32)
_MEMBER_BYTES = 256 * 2**20
_ARCHIVE_BYTES = 1024 * 2**20
# The official archives hardly pack at all: a file of this many bytes may unpack to `_ROOM` and so many times its size.
_MAX_RATIO = 20
_ROOM = 16 * 2**20
_BLOCK = 512


@dataclass(frozen=True)
class Layout:
    """How one of the two data sets is laid out.

    Attributes:
        title: what its authors call it.
        archive: the archive's file name.
        folder: the folder in the archive.
        train: the files of the training split, in order.
        test: the file of the test split.
        meta: the file of the class names.
        labels: the key of the labels.
        names: the key of the class names.
        classes: how many classes there are.
    """

    title: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str
    classes: int

    def is_folder(self, path: Path) -> bool:
        """Whether the path looks like the unpacked folder."""
        return all((path / name).is_file() for name in (self.train[0], self.test))

    def read(self, path: Path, progress: Progress) -> tuple[tuple[str, ...], Split, Split]:
        """Reads the unpacked folder, or the archive without unpacking it to the disk.

        Args:
            path: the folder or the archive.
            progress: called for each file read.

        Returns:
            Class names, training split, test split.

        Raises:
            FileError: a file is missing, damaged, or not what the official one holds.
        """
        wanted = (*self.train, self.test, self.meta)
        parts: dict[str, Split] = {}
        classes: tuple[str, ...] | None = None
        steps = pickles.Steps()
        with _files(path, wanted) as files:
            for where, content in files:
                progress(f"reading {self.title}", len(parts) + (classes is not None), len(wanted))
                found = pickles.load(content, where, steps)
                if where.name == self.meta:
                    classes = self._classes(found, where)
                else:
                    parts[where.name] = self._split(found, where)
        missing = [name for name in wanted if name not in parts and not (name == self.meta and classes)]
        if missing or classes is None:
            raise FileError(f"{path} lacks {', '.join(missing)}", hint=f"it should be the official {self.title}")
        progress(f"reading {self.title}", len(wanted), len(wanted))
        train = [parts.pop(name) for name in self.train]
        if len(train) == 1:
            return classes, train[0], parts[self.test]
        joined = Split(torch.cat([part.images for part in train]), torch.cat([part.labels for part in train]))
        return classes, joined, parts[self.test]

    def _classes(self, found: dict[str, Any], where: PurePath) -> tuple[str, ...]:
        names = found.get(self.names)
        if not isinstance(names, list) or len(names) != self.classes:
            raise FileError(f"{where} is damaged: '{self.names}' is not a list of {self.classes} names")
        texts = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)
        if not all(isinstance(text, str) for text in texts):
            raise FileError(f"{where} is damaged: '{self.names}' holds something that is no name")
        return texts

    def _split(self, found: dict[str, Any], where: PurePath) -> Split:
        data, labels = found.get("data"), found.get(self.labels)
        pixels = int(np.prod(_SHAPE))
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != pixels:
            got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise FileError(f"{where} is damaged: 'data' is {got}, not uint8 (N, {pixels})")
        images = torch.from_numpy(np.array(data, order="C")).reshape(len(data), *_SHAPE)
        return Split(images, self._labels(labels, len(data), where))

    def _labels(self, labels: Any, count: int, where: PurePath) -> Tensor:
        whole = isinstance(labels, np.ndarray) or (
            isinstance(labels, list) and all(type(label) is int for label in labels)
        )
        if not whole or np.shape(labels) != (count,):
            raise FileError(f"{where} is damaged: '{self.labels}' is not a list of {count} whole numbers")
        low, high = (min(labels), max(labels)) if count else (0, 0)
        if low < 0 or high >= self.classes:
            allowed = f"allowed are 0 to {self.classes - 1}"
            raise FileError(f"{where} is damaged: labels go from {low} to {high}, {allowed}")
        return torch.tensor([int(label) for label in labels], dtype=torch.int64)


CIFAR10 = Layout(
    title="CIFAR-10",
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    labels="labels",
    names="label_names",
    classes=10,
)
CIFAR100 = Layout(
    title="CIFAR-100",
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    meta="meta",
    labels="fine_labels",
    names="fine_label_names",
    classes=100,
)


def kind_of_archive(path: Path) -> str:
    """Which of the two an archive holds, "cifar10" or "cifar100", told by the names in it.

    Raises:
        FileError: it is damaged or holds neither.
    """
    with _explained(path), gzip.open(path) as stream:
        for name, _ in _members(_Limited(stream, path), ()):
            for kind, layout in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
                if name.parent.name == layout.folder and name.name in (*layout.train, layout.test, layout.meta):
                    return kind
    raise FileError(f"{path} is neither CIFAR-10's archive nor CIFAR-100's", hint="the Python version is meant")


@contextlib.contextmanager
def _files(path: Path, wanted: tuple[str, ...]) -> Iterator[Iterator[tuple[PurePath, bytes]]]:
    """The wanted files of a folder or an archive, one at a time in memory."""
    with _explained(path):
        if path.is_dir():
            yield ((path / name, _content(path / name)) for name in wanted if (path / name).is_file())
        else:
            with gzip.open(path) as stream:
                limited = _Limited(stream, path)
                yield (
                    (path / name.name, content) for name, content in _members(limited, wanted) if content is not None
                )
                # The checksum stands at the stream's very end, behind what tar needs.
                while limited.read(2**20):
                    pass


class _Limited:
    """A stream that ends in an error where it unpacks to more than an official archive can."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self._stream, self._path = stream, path
        self._left = self._most = min(_ARCHIVE_BYTES, _ROOM + _MAX_RATIO * path.stat().st_size)

    def read(self, size: int) -> bytes:
        """The next bytes, fewer only at the end."""
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise FileError(f"{self._path} unpacks to more than {self._most} bytes, more than the official archive")
        return content


def _members(stream: _Limited, wanted: tuple[str, ...]) -> Iterator[tuple[PurePath, bytes | None]]:
    """The members of a tar archive: their names, and the content of the wanted files.

    Only plain headers are understood, which are all that the official archives need: whatever extends them is passed
    over as if it were a file, and so can neither name places nor unpack to anything.

    Raises:
        EOFError: it ends too early.
        ValueError: a header is damaged.
    """
    while (head := stream.read(_BLOCK)).strip(b"\0"):
        # A header's sum counts blanks in the place of the sum.
        if sum(head[:148] + b" " * 8 + head[156:]) != _octal(head[148:156]):
            raise ValueError("the checksum of a header is wrong")
        prefix = _text(head[345:500]) if head[257:263] == b"ustar\0" else ""
        name, size = PurePath(prefix, _text(head[:100])), _octal(head[124:136])
        content = None
        left = size + -size % _BLOCK
        official = name.name in wanted and name.parent.name in (CIFAR10.folder, CIFAR100.folder)
        if official and head[156:157] in (b"0", b"\0"):
            if size > _MEMBER_BYTES:
                raise ValueError(f"{name.name} has {size} bytes, allowed are {_MEMBER_BYTES}")
            content = stream.read(size)
            left -= len(content)
        while left > 0:
            skipped = stream.read(min(left, 2**20))
            if not skipped:
                raise EOFError(f"it ends in {name.name}")
            left -= len(skipped)
        yield name, content


def _octal(field: bytes) -> int:
    number = int(field.strip(b" \0") or b"0", 8)
    if number < 0:
        raise ValueError("a number in a header is negative")
    return number


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("latin1")


def _content(path: Path) -> bytes:
    if path.stat().st_size > _MEMBER_BYTES:
        raise FileError(f"{path} has {path.stat().st_size} bytes, allowed are {_MEMBER_BYTES}")
    return path.read_bytes()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise FileError(f"{path} is damaged: {error}", hint="delete it and fetch it again") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
