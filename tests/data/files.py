"""Small data sets in every format, for the tests of the data room."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from rapa_cli.data import arrays, svhn
from rapa_cli.data.images import Split

NAMES10 = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
NAMES100 = [f"fine{number}".encode() for number in range(100)]


def batch(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def write_cifar10(home: Path) -> Path:
    folder = home / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        content = {b"data": batch(4, number), b"labels": [number, 1, 2, 9], b"filenames": [b"a.png"] * 4}
        (folder / name).write_bytes(pickle.dumps(content | {b"batch_label": b"one"}, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": NAMES10, b"num_vis": 3072}, 2))
    (folder / "readme.html").write_text("hello", encoding="utf-8")
    return folder


def write_cifar100(home: Path) -> Path:
    folder = home / "cifar-100-python"
    folder.mkdir(parents=True)
    for number, name in enumerate(["train", "test"]):
        content = {b"data": batch(4, number), b"fine_labels": [0, 99, 5, 7], b"coarse_labels": [1, 2, 3, 4]}
        (folder / name).write_bytes(pickle.dumps(content, 2))
    names = {b"fine_label_names": NAMES100, b"coarse_label_names": [b"c"] * 20}
    (folder / "meta").write_bytes(pickle.dumps(names, 2))
    return folder


def write_svhn(home: Path, **change: Any) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(svhn.FILES):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
        labels = np.array([[10], [1], [9], [10], [2]], dtype=np.uint8)
        savemat(home / name, {"X": pixels, "y": labels} | change, do_compression=True)
    return home


def pack(folder: Path, archive: Path) -> Path:
    def without_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = 0
        return member

    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name, filter=without_time)
    return archive


Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def pixels(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_arrays(home: Path, shape: tuple[int, ...] = (6, 5, 3), **change: Any) -> Path:
    for number, name in enumerate(arrays.FILES):
        content = {"images": pixels(4, *shape, seed=number), "labels": np.array([0, 2, 5, 0])} | change
        np.savez_compressed(home / name, **{key: value for key, value in content.items() if value is not None})
    return home


def write_images(home: Path, classes: dict[str, int], *, mode: str = "RGB", size: tuple[int, int] = (5, 4)) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        (home / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            drawn = Image.fromarray(pixels(size[1], size[0], 3, seed=100 * number + index))
            drawn.convert(mode).save(home / name / f"{index:03d}.png")
    return home


def random_split(count: int, *, shape: tuple[int, int, int] = (3, 6, 5), classes: int = 4, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % classes)
