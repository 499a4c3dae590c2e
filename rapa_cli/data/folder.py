"""Images of the user's own in a folder for each class.

`PATH/train/CLASS/*.png` and `PATH/test/CLASS/*.png` (or `val`), or `PATH/CLASS/*.png` alone, of which a sixth of each
class is then kept for testing. `read` reads small images of one size into memory; `stream` has images of any size
decoded when they are wanted.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rapa_cli.data import image_files
from rapa_cli.data.arrays import MAX_BYTES, MAX_RATIO, RATIO_FROM
from rapa_cli.data.image_files import GREY, READABLE, Files, names_in
from rapa_cli.data.images import IMAGENET_MEAN, IMAGENET_STD, DataSet, Progress, Split, silent
from rapa_cli.data.stream import StreamedImages
from rapa_cli.errors import FileError
from rapa_cli.philox import Purpose, random_order

TEST_SHARE = 6
_EVERY = 250
# Where test images lie; the first that is there.
_TESTS = ("test", "val")


@dataclass(frozen=True)
class Listing:
    """Which files there are.

    Attributes:
        classes: their names, in the order of the alphabet.
        train: training images in the order of their paths.
        test: likewise.
    """

    classes: tuple[str, ...]
    train: Files
    test: Files


def is_folder(path: Path) -> bool:
    """Whether the path looks like a folder with a folder of images for each class."""
    inner = path / "train" if has_splits(path) else path
    return inner.is_dir() and any(names_in(folder) for folder in _folders(inner))


def has_splits(path: Path) -> bool:
    """Whether the folder says which images are for training; else some of each class are kept for testing."""
    return (path / "train").is_dir()


def listed(path: Path, progress: Progress = silent) -> Listing:
    """Lists all images, and opens none.

    Args:
        path: the folder.
        progress: called for each class.

    Raises:
        FileError: there are no images, or some of a class or split are missing.
    """
    found = _two_levels(path, progress) if has_splits(path) else _one_level(path, progress)
    if not found.classes:
        raise FileError(f"{path} has no folder of images", hint=f"it needs one for each class; {READABLE}")
    return found


def read(path: Path, progress: Progress) -> tuple[tuple[str, ...], Split, Split]:
    """Reads all images.

    Images are grey where every file is grey, else RGB; transparency is dropped. All must have one size.

    Args:
        path: the folder.
        progress: called as images are read.

    Returns:
        The class names in the order of the alphabet, training split, test split; images in the order of their paths.

    Raises:
        FileError: images are missing, damaged, or of several sizes.
    """
    found = listed(path)
    files = [*found.train, *found.test]
    channels, height, width = _common_shape(files)
    size, packed = len(files) * channels * height * width, sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        what = f"{len(files)} images of {width} x {height}"
        hint = f"make them smaller first, or stream them: --data folder:{path}"
        raise FileError(f"{path} has {what}, more than {MAX_BYTES} bytes", hint=hint)
    if size > RATIO_FROM and size > MAX_RATIO * packed:
        what = f"{len(files)} images unpack from {packed} to {size} bytes"
        raise FileError(f"{path} is refused: {what}", hint="images this empty or large are no data set")
    done = 0
    splits = []
    for part in (found.train, found.test):
        images = torch.empty((len(part), channels, height, width), dtype=torch.uint8)
        for index, file in enumerate(part):
            images[index] = image_files.pixels(image_files.decoded(file, channels))
            done += 1
            if done % _EVERY == 0 or done == len(files):
                progress("reading images", done, len(files))
        splits.append(Split(images, part.labels))
    return found.classes, splits[0], splits[1]


def stream(path: Path, name: str, size: int, *, workers: int, progress: Progress = silent) -> DataSet:
    """Opens a folder of images of any size, without reading them: they are decoded in batches, and cut to a square.

    Images are RGB. The constants are those of ImageNet, so that opening takes no pass over the images.

    Args:
        path: the folder.
        name: what the data set is called.
        size: height and width to which images are cut, pixels.
        workers: processes that decode images; 0 decodes them in this one.
        progress: called for each class that is listed.

    Raises:
        FileError: images are missing.
    """
    if not path.is_dir():
        raise FileError(
            f"there is no folder {path}", hint="it counts from this folder; give another by --data folder:PATH"
        )
    found = listed(path, progress)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    train, test = (Split(StreamedImages(part, size, workers), part.labels) for part in (found.train, found.test))
    mean_image = mean[:, None, None].expand(3, size, size)
    return DataSet(
        name, found.classes, train, test, mean, std, mean_image, f"a folder of images ({path.resolve().name})"
    )


def _two_levels(path: Path, progress: Progress) -> Listing:
    test = next((path / name for name in _TESTS if (path / name).is_dir()), None)
    if test is None:
        hint = "give both, or one folder for each class alone: a sixth is then kept for testing"
        raise FileError(f"{path} has a folder train but no folder test or val", hint=hint)
    classes = tuple(folder.name for folder in _folders(path / "train"))
    unknown = [folder.name for folder in _folders(test) if folder.name not in classes]
    if unknown:
        raise FileError(f"{test} has the class '{unknown[0]}', which {path / 'train'} has not")
    found = Listing(classes, Files(), Files())
    for label, name in enumerate(classes):
        progress("listing images", label, len(classes))
        images = names_in(path / "train" / name)
        if not images:
            raise FileError(f"{path / 'train' / name} has no images", hint=READABLE)
        found.train.add(path / "train" / name, images, label)
        found.test.add(test / name, names_in(test / name), label)
    progress("listing images", len(classes), len(classes))
    if not len(found.test):
        raise FileError(f"{test} has no images", hint=READABLE)
    return found


def _one_level(path: Path, progress: Progress) -> Listing:
    classes = tuple(folder.name for folder in _folders(path))
    found = Listing(classes, Files(), Files())
    for label, name in enumerate(classes):
        progress("listing images", label, len(classes))
        images = names_in(path / name)
        if len(images) < 2:
            hint = f"each class needs two images at least; {READABLE}"
            raise FileError(f"{path / name} has {len(images)} images, too few to keep some for testing", hint=hint)
        kept = _kept(name, images)
        found.train.add(path / name, [image for index, image in enumerate(images) if index not in kept], label)
        found.test.add(path / name, [image for index, image in enumerate(images) if index in kept], label)
    progress("listing images", len(classes), len(classes))
    return found


def _kept(folder: str, names: Sequence[str]) -> set[int]:
    """Which images of a class are kept for testing."""
    # The key is the file's own name, so that a file keeps its rank when others come.
    # Bytes of a name that are no text come as halves of surrogate pairs.
    paths = [f"{folder}/{name}".encode("utf-8", "surrogateescape") for name in names]
    ids = torch.tensor([zlib.crc32(path) for path in paths])
    return set(random_order(Purpose.DATA, 0, ids)[: max(1, round(len(names) / TEST_SHARE))].tolist())


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _common_shape(files: list[Path]) -> tuple[int, int, int]:
    """Channels, height and width, from the files' headers alone."""
    first: tuple[int, int] | None = None
    grey = True
    for file in files:
        with image_files.opened(file) as image:
            image_files.check_kind(file, image)
            size, mode = image.size, image.mode
        grey = grey and mode in GREY
        first = first or size
        if size != first:
            sizes = f"{files[0]} has {first[0]} x {first[1]} pixels, {file} has {size[0]} x {size[1]}"
            raise FileError(
                f"images differ in size: {sizes}",
                hint="bring all images to one size first, or stream them: --data folder:PATH",
            )
    assert first is not None
    return (1 if grey else 3), first[1], first[0]
