"""What a file or folder of the user's holds, told by its content, and the reader that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rapa_cli.data import arrays, cifar, folder, svhn
from rapa_cli.data.images import Progress, Split
from rapa_cli.errors import FileError, one_line

_CIFAR = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}


@dataclass(frozen=True)
class Source:
    """Something that holds images.

    Attributes:
        kind: "cifar10", "cifar100", "svhn", "arrays" or "folder".
        path: the archive or folder.
    """

    kind: str
    path: Path


@dataclass(frozen=True)
class Contents:
    """What a reader found.

    Attributes:
        kind: the kind of its source.
        classes: the name of each class.
        train: the training split.
        test: the test split.
        source: where the images come from, one line.
    """

    kind: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    source: str


def find(name: str, home: Path) -> Source | None:
    """The official files of a known data set in a folder: unpacked, as the archive, or in a folder of its own."""
    if name == "svhn":
        places = (home, home / "svhn")
        return next((Source(name, place) for place in places if svhn.is_folder(place)), None)
    layout = _CIFAR.get(name)
    if layout is None:
        return None
    candidates = (
        home / layout.folder,
        home / layout.archive,
        home / name / layout.folder,
        home / name / layout.archive,
    )
    fits = (path for path in candidates if path.is_file() or layout.is_folder(path))
    return next((Source(name, path) for path in fits), None)


def recognise(path: Path) -> Source:
    """Tells what a path that the user named holds.

    Raises:
        FileError: it does not exist, or holds nothing that a reader reads.
    """
    if not path.exists():
        raise FileError(f"there is no file or folder {path}", hint="is the path right? It counts from this folder")
    hint = (
        "readable are the official CIFAR archives and folders, SVHN's train_32x32.mat and test_32x32.mat, a folder "
        "with train.npz and test.npz, and a folder with a folder of images for each class"
    )
    if path.is_file():
        if path.name in svhn.FILES and svhn.is_folder(path.parent):
            return Source("svhn", path.parent)
        if path.name in arrays.FILES:
            return Source("arrays", path.parent)
        if path.name.endswith((".tar.gz", ".tgz")):
            return Source(cifar.kind_of_archive(path), path)
        raise FileError(f"{path} is not a file that rapa reads", hint=hint)
    for kind in ("cifar10", "cifar100", "svhn"):
        layout = _CIFAR.get(kind)
        if layout is not None and layout.is_folder(path):
            return Source(kind, path)
        found = find(kind, path)
        if found is not None:
            return found
    if any((path / name).is_file() for name in arrays.FILES):
        return Source("arrays", path)
    if folder.is_folder(path):
        return Source("folder", path)
    raise FileError(f"{path} holds nothing that rapa reads", hint=hint)


def load(source: Source, progress: Progress) -> Contents:
    """Reads all images of a source into memory.

    Raises:
        FileError: something is missing, damaged or not allowed.
    """
    read: Callable[[Path, Progress], tuple[tuple[str, ...], Split, Split]]
    if source.kind in _CIFAR:
        layout = _CIFAR[source.kind]
        what = f"official {layout.title} files"
        read = layout.read
    elif source.kind == "svhn":
        what, read = "official SVHN files, without the extra images", svhn.read
    elif source.kind == "arrays":
        what, read = "train.npz and test.npz", arrays.read
    else:
        what, read = "a folder of images", folder.read
    classes, train, test = read(source.path, progress)
    origin = f"{what} ({one_line(source.path.resolve().name)})"
    if source.kind == "folder" and not folder.has_splits(source.path):
        origin += ", a sixth of each class kept for testing"
    return Contents(source.kind, classes, train, test, origin)
