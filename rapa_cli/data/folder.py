"""Images of the user's own from a folder of image files for each class.

`PATH/train/CLASS/*.png` and `PATH/test/CLASS/*.png`, or `PATH/CLASS/*.png` alone, of which a sixth of each class is
then kept for testing.
"""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rapa_cli.data.arrays import MAX_BYTES, MAX_RATIO, RATIO_FROM
from rapa_cli.data.images import Progress, Split
from rapa_cli.errors import FileError
from rapa_cli.philox import Purpose, words

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# By their content; of others Pillow runs programs to read some.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
TEST_SHARE = 6
_GREY = frozenset({"1", "L", "LA"})
_COLOUR = frozenset({"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB"})
_EVERY = 250

Labelled = list[tuple[Path, int]]


def is_folder(path: Path) -> bool:
    """Whether the path looks like a folder with a folder of images for each class."""
    inner = path / "train" if has_splits(path) else path
    return inner.is_dir() and any(_files(folder) for folder in _folders(inner))


def has_splits(path: Path) -> bool:
    """Whether the folder says which images are for training; else some of each class are kept for testing."""
    return (path / "train").is_dir()


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
    classes, train, test = _two_levels(path) if has_splits(path) else _one_level(path)
    files = [file for file, _ in (*train, *test)]
    channels, height, width = _common_shape(files)
    size, packed = len(files) * channels * height * width, sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        found = f"{len(files)} images of {width} x {height}"
        raise FileError(f"{path} has {found}, more than {MAX_BYTES} bytes", hint="make them smaller first")
    if size > RATIO_FROM and size > MAX_RATIO * packed:
        found = f"{len(files)} images unpack from {packed} to {size} bytes"
        raise FileError(f"{path} is refused: {found}", hint="images this empty or large are no data set")
    done = 0
    splits = []
    for part in (train, test):
        images = torch.empty((len(part), channels, height, width), dtype=torch.uint8)
        for index, (file, _) in enumerate(part):
            images[index] = _pixels(file, channels, height, width)
            done += 1
            if done % _EVERY == 0 or done == len(files):
                progress("reading images", done, len(files))
        splits.append(Split(images, torch.tensor([label for _, label in part], dtype=torch.int64)))
    return classes, splits[0], splits[1]


def _two_levels(path: Path) -> tuple[tuple[str, ...], Labelled, Labelled]:
    if not (path / "test").is_dir():
        hint = "give both, or one folder for each class alone: a sixth is then kept for testing"
        raise FileError(f"{path} has a folder train but no folder test", hint=hint)
    classes = tuple(folder.name for folder in _folders(path / "train"))
    unknown = [folder.name for folder in _folders(path / "test") if folder.name not in classes]
    if unknown:
        raise FileError(f"{path / 'test'} has the class '{unknown[0]}', which {path / 'train'} has not")
    train, test = (_labelled(path / split, classes) for split in ("train", "test"))
    seen = {label for _, label in train}
    empty = [name for label, name in enumerate(classes) if label not in seen]
    if empty:
        raise FileError(f"{path / 'train' / empty[0]} has no images", hint=_readable())
    if not test:
        raise FileError(f"{path / 'test'} has no images", hint=_readable())
    return classes, train, test


def _one_level(path: Path) -> tuple[tuple[str, ...], Labelled, Labelled]:
    classes = tuple(folder.name for folder in _folders(path))
    train: Labelled = []
    test: Labelled = []
    for label, name in enumerate(classes):
        files = _files(path / name)
        if len(files) < 2:
            hint = f"each class needs two images at least; {_readable()}"
            raise FileError(f"{path / name} has {len(files)} images, too few to keep some for testing", hint=hint)
        # The key is the file's own name, so that a file keeps its rank when others come.
        # Bytes of a name that are no text come as halves of surrogate pairs.
        paths = [f"{name}/{file.name}".encode("utf-8", "surrogateescape") for file in files]
        names = torch.tensor([zlib.crc32(path) for path in paths])
        first, second = words(Purpose.DATA, 0, images=names, count=2).unbind(1)
        order = torch.argsort((first << 31) | (second >> 1), stable=True)
        kept = set(order[: max(1, round(len(files) / TEST_SHARE))].tolist())
        for index, file in enumerate(files):
            (test if index in kept else train).append((file, label))
    return classes, train, test


def _labelled(path: Path, classes: tuple[str, ...]) -> Labelled:
    return [(file, label) for label, name in enumerate(classes) for file in _files(path / name)]


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    visible = (entry for entry in path.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in visible if entry.suffix.lower() in SUFFIXES and entry.is_file())


def _common_shape(files: list[Path]) -> tuple[int, int, int]:
    """Channels, height and width, from the files' headers alone."""
    first: tuple[int, int] | None = None
    grey = True
    for file in files:
        with _opened(file) as image:
            size, mode = image.size, image.mode
        if mode not in _GREY | _COLOUR:
            raise FileError(f"{file} has pixels of the kind {mode}", hint="readable are 8-bit grey and colour images")
        grey = grey and mode in _GREY
        first = first or size
        if size != first:
            sizes = f"{files[0]} has {first[0]} x {first[1]} pixels, {file} has {size[0]} x {size[1]}"
            raise FileError(f"images differ in size: {sizes}", hint="bring all images to one size first")
    if first is None:
        raise FileError("there are no images", hint=_readable())
    return (1 if grey else 3), first[1], first[0]


def _pixels(file: Path, channels: int, height: int, width: int) -> torch.Tensor:
    with _opened(file) as image:
        try:
            pixels = np.array(image.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
        except Exception as error:  # A damaged file can raise any exception that there is.
            raise FileError(f"{file} is damaged: {error}", hint=_readable()) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _opened(file: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of images so large that they could be an attack; they are no data set either way.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FileError(f"{file} is refused: it has too many pixels") from error
    except Exception as error:  # A damaged file can raise any exception that there is.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no image"
        raise FileError(f"cannot read {file}: {reason}", hint=_readable()) from error


def _readable() -> str:
    return f"images are files that end in {', '.join(sorted(SUFFIXES))}"
