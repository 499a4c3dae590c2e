"""The store: one safetensors file for each split, written atomically and memory-mapped when it is read.

`FOLDER/train.safetensors` holds `images` (uint8, N x C x H x W), `labels` (int64, N), `mean`, `std` (float32, C) and
`mean_image` (float32, C x H x W); `FOLDER/test.safetensors` holds `images` and `labels`. Each has one JSON document
under the metadata key `rapa`. Both documents name the sha256 of all arrays, so two halves that were not written
together are found out, and so are images that are not those that were written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rapa_cli import config, tensors
from rapa_cli.data.images import DataSet, Split
from rapa_cli.data.stream import Images
from rapa_cli.errors import FileError
from rapa_cli.files import atomic, make_folder, system_error

FORMAT = 1
MAX_CLASSES = 65_536
_CHUNK_BYTES = 8 * 2**20
_METADATA_KEY = "rapa"
_CONSTANTS = ("mean", "std", "mean_image")


def exists(folder: Path) -> bool:
    """Whether a data set (whole or damaged) lies in the folder."""
    return (folder / "train.safetensors").is_file() or (folder / "test.safetensors").is_file()


def write(folder: Path, name: str, classes: tuple[str, ...], train: Split, test: Split, source: str) -> DataSet:
    """Checks a data set and writes it into the store.

    Args:
        folder: where the two files go; it is made where it does not exist.
        name: what the data set is called.
        classes: the name of each class.
        train: the training split, any strides.
        test: the test split, images of the same shape.
        source: where the images come from, one line without the paths of this machine.

    Returns:
        The data set as `read` gives it, memory-mapped.

    Raises:
        FileError: the images or labels are not what a data set needs, or the files cannot be written.
    """
    check(name, classes, train, test)
    arrays = {"images": train.images, "labels": train.labels}
    arrays |= dict(zip(_CONSTANTS, constants(train.images), strict=True))
    document = {
        "format": FORMAT,
        "name": name,
        "classes": list(classes),
        "provenance": {"source": source, "sha256": fingerprints(train, test) | _of_constants(arrays)},
    }
    with _asking_for_data_dir():
        make_folder(folder)
        _save(folder / "test.safetensors", {"images": test.images, "labels": test.labels}, document | {"split": "test"})
        _save(folder / "train.safetensors", arrays, document | {"split": "train"})
    return read(folder)


def read(folder: Path) -> DataSet:
    """Opens a data set of the store; the images stay in the file, and are read once to be sure of them.

    Raises:
        FileError: a file is missing, damaged, of another format, or the two do not belong together.
    """
    hint = f"make it again: rapa data get {folder.name} --force (and --from PATH where it came from files)"
    parts: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}
    for split in ("train", "test"):
        path = folder / f"{split}.safetensors"
        arrays, document = _load(path, hint)
        _check_document(path, document, split, hint)
        _check_arrays(path, arrays, len(document["classes"]), hint)
        parts[split] = arrays, document
    (train, document), (test, other) = parts["train"], parts["test"]
    if any(document[key] != other[key] for key in ("name", "classes", "provenance")):
        raise FileError(f"{folder}: train.safetensors and test.safetensors were not written together", hint=hint)
    if train["images"].shape[1:] != test["images"].shape[1:]:
        raise FileError(f"{folder}: training and test images differ in shape", hint=hint)
    _check_constants(folder / "train.safetensors", train, hint)
    splits = Split(train["images"], train["labels"]), Split(test["images"], test["labels"])
    written, constant = document["provenance"]["sha256"], _of_constants(train)
    # Data sets of earlier versions name none of the constants.
    present = {name: found for name, found in constant.items() if name in written}
    for name, found in (fingerprints(*splits) | present).items():
        if written.get(name) != found:
            split, _, array = name.partition(".")
            raise FileError(f"{folder / split}.safetensors is damaged: {array} are not those written", hint=hint)
    return DataSet(
        name=folder.name,
        classes=tuple(document["classes"]),
        train=splits[0],
        test=splits[1],
        mean=train["mean"],
        std=train["std"],
        mean_image=train["mean_image"],
        source=document["provenance"]["source"],
    )


def check(name: str, classes: tuple[str, ...], train: Split, test: Split) -> None:
    """Raises FileError unless the two splits make a data set."""
    if not 0 < len(classes) <= MAX_CLASSES:
        raise FileError(f"data set '{name}': got {len(classes)} classes, allowed are 1 to {MAX_CLASSES}")
    strange = next((entry for entry in classes if not entry.isprintable()), None)
    if strange is not None:
        hint = "give the class a name of letters, digits and signs"
        raise FileError(f"data set '{name}': the class name {strange!r} is not printable", hint=hint)
    for split, part in (("train", train), ("test", test)):
        problem = _problem(part.images, part.labels, len(classes))
        if problem:
            raise FileError(f"data set '{name}', {split}: {problem}")
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = f"{_sizes(train.images)} and {_sizes(test.images)}"
        raise FileError(f"data set '{name}': training and test images differ in shape, {shapes}")


def constants(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of each channel, and the mean image, on the [0, 1] scale.

    The sums are whole numbers and therefore exact; memory stays bounded by working through the images in chunks.

    Args:
        images: uint8, shape (N, C, H, W), N > 0.

    Returns:
        mean (C,), std (C,) with std at least 1/255, mean image (C, H, W), all float32.
    """
    count, *shape = images.shape
    total = torch.zeros(shape, dtype=torch.int64)
    squares = torch.zeros(shape[0], dtype=torch.int64)
    for chunk in _chunks(images, max(1, _CHUNK_BYTES // (4 * total.numel()))):
        whole = chunk.to(torch.int32)
        total += whole.sum(0)
        squares += (whole * whole).sum((0, 2, 3))
    pixels = count * shape[1] * shape[2]
    mean = total.sum((1, 2)).double() / pixels
    variance = squares.double() / pixels - mean * mean
    std = variance.clamp_min(1.0).sqrt()
    return (mean / 255).float(), (std / 255).float(), (total.double() / count / 255).float()


def fingerprints(train: Split, test: Split) -> dict[str, str]:
    """The sha256 of the bytes of each array, row-major, little-endian."""
    return {
        f"{split}.{name}": _sha256(array)
        for split, part in (("train", train), ("test", test))
        for name, array in (("images", part.images), ("labels", part.labels))
    }


def _of_constants(arrays: dict[str, Tensor]) -> dict[str, str]:
    return {f"train.{name}": _sha256(arrays[name]) for name in _CONSTANTS}


def _save(path: Path, arrays: dict[str, Tensor], document: dict[str, Any]) -> None:
    metadata = {_METADATA_KEY: json.dumps(document, ensure_ascii=False)}
    with atomic(path, tensors.size(arrays, metadata)) as temporary:
        try:
            save_file({name: array.contiguous() for name, array in arrays.items()}, temporary, metadata=metadata)
        except SafetensorError as error:
            raise system_error(error) from error


def _load(path: Path, hint: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        arrays, metadata = tensors.read(path)
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing", hint=hint) from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}", hint=hint) from error
    except ValueError as error:
        raise FileError(f"{path} is damaged: {error}", hint=hint) from error
    return arrays, _parse(path, metadata, hint)


@contextlib.contextmanager
def _asking_for_data_dir() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        hint = error.hint.replace("another folder", "another folder with --data-dir") if error.hint else None
        raise FileError(error.message, hint=hint) from error


def _parse(path: Path, metadata: dict[str, str], hint: str) -> dict[str, Any]:
    try:
        found = config.read_json(metadata[_METADATA_KEY])
    except KeyError as error:
        raise FileError(f"{path} is not a data set of rapa: no '{_METADATA_KEY}' metadata", hint=hint) from error
    except ValueError as error:
        raise FileError(f"{path} is damaged: its metadata is not JSON: {error}", hint=hint) from error
    if not isinstance(found, dict):
        raise FileError(f"{path} is damaged: its metadata is not a JSON object", hint=hint)
    return found


def _check_document(path: Path, found: dict[str, Any], split: str, hint: str) -> None:
    if found.get("format") != FORMAT:
        raise FileError(f"{path} has format {found.get('format')!r}, this rapa reads {FORMAT}", hint=hint)
    classes, provenance = found.get("classes"), found.get("provenance")
    if not (
        found.get("split") == split
        and isinstance(found.get("name"), str)
        and isinstance(classes, list)
        and 0 < len(classes) <= MAX_CLASSES
        and all(isinstance(entry, str) and entry.isprintable() for entry in classes)
        and isinstance(provenance, dict)
        and isinstance(provenance.get("source"), str)
        and provenance["source"].isprintable()
        and isinstance(provenance.get("sha256"), dict)
    ):
        raise FileError(f"{path} is damaged: its metadata lacks split, name, classes or provenance", hint=hint)


def _check_arrays(path: Path, arrays: dict[str, Tensor], classes: int, hint: str) -> None:
    for key in ("images", "labels"):
        if key not in arrays:
            raise FileError(f"{path} is damaged: it has no '{key}'", hint=hint)
    problem = _problem(arrays["images"], arrays["labels"], classes)
    if problem:
        raise FileError(f"{path} is damaged: {problem}", hint=hint)


def _check_constants(path: Path, arrays: dict[str, Tensor], hint: str) -> None:
    channels, height, width = arrays["images"].shape[1:]
    for key, shape in (("mean", (channels,)), ("std", (channels,)), ("mean_image", (channels, height, width))):
        array = arrays.get(key)
        if array is None:
            raise FileError(f"{path} is damaged: it has no '{key}'", hint=hint)
        if array.dtype != torch.float32 or array.shape != shape:
            got = f"{array.dtype} {tuple(array.shape)}"
            raise FileError(f"{path} is damaged: {key} is {got}, not float32 {shape}", hint=hint)
        low = 1 / 256 if key == "std" else 0.0
        if not bool(((array >= low) & (array <= 1)).all()):
            raise FileError(f"{path} is damaged: {key} has values outside [{low:.2g}, 1]", hint=hint)


def _problem(images: Images, labels: Tensor, classes: int) -> str | None:
    """What is wrong with the arrays of a split, if anything is."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        return f"images are {images.dtype} {tuple(images.shape)}, not uint8 (N, C, H, W)"
    if 0 in images.shape:
        return f"there are no images, shape {tuple(images.shape)}"
    if images.shape[1] not in (1, 3):
        return f"images have {images.shape[1]} channels, allowed are 1 (grey) and 3 (RGB)"
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        return f"labels are {labels.dtype} {tuple(labels.shape)}, not int64 ({len(images)},)"
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        return f"labels go from {low} to {high}, allowed are 0 to {classes - 1}"
    return None


def _sha256(array: Tensor) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(array, max(1, _CHUNK_BYTES // array[:1].nbytes)):
        digest.update(chunk.contiguous().numpy().data)
    return digest.hexdigest()


def _chunks(array: Tensor, size: int) -> Iterator[Tensor]:
    return (array[start : start + size] for start in range(0, len(array), size))


def _sizes(images: Tensor) -> str:
    return " x ".join(str(size) for size in images.shape[1:])
