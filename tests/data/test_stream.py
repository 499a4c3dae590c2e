"""Images that are decoded when they are wanted: the same in any batch and with any number of processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import v2

from rapa_cli.data.catalog import open_data
from rapa_cli.data.image_files import Files, names_in
from rapa_cli.data.stream import Crop, StreamedImages, centre_box, random_box, read
from rapa_cli.errors import ConfigError, FileError
from tests.data.files import pixels

CLASSES = ("ant", "bee", "cow")


def write(home: Path, *, each: int = 4, test: str = "val") -> Path:
    """Images of many sizes, JPEG and PNG, grey and in colour."""
    for split, count in (("train", each), (test, 2)):
        for label, name in enumerate(CLASSES):
            folder = home / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                number = 100 * label + index + 1000 * (split != "train")
                size = (20 + 7 * (number % 5), 24 + 5 * (number % 4))
                image = Image.fromarray(pixels(*size, 3, seed=number)).convert("L" if index == 1 else "RGB")
                image.save(folder / f"{index}.{'png' if index % 2 else 'jpg'}")
    return home


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write(tmp_path / "photos")


def opened(photos: Path, workers: int = 0, size: int = 16) -> StreamedImages:
    images = open_data(f"folder:{photos}@{size}", workers=workers).train.images
    assert isinstance(images, StreamedImages)
    return images


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_folder_is_a_data_set(tmp_path: Path, test: str) -> None:
    write(tmp_path, test=test)
    data = open_data(f"folder:{tmp_path}@16", workers=0)
    assert (data.name, data.classes, data.shape) == (f"folder:{tmp_path}@16", CLASSES, (3, 16, 16))
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (len(data.train), len(data.test), tuple(data.test.images.shape)) == (12, 6, (6, 3, 16, 16))
    assert data.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert data.mean_image.shape == (3, 16, 16)
    assert open_data(f"folder:{tmp_path}").shape == (3, 224, 224)


def test_a_sixth_is_kept_where_there_are_no_splits(tmp_path: Path) -> None:
    shutil.move(write(tmp_path / "all", each=12) / "train", tmp_path / "photos")
    data = open_data(f"folder:{tmp_path / 'photos'}@8", workers=0)
    assert data.train.labels.bincount().tolist() == [10, 10, 10]
    assert data.test.labels.bincount().tolist() == [2, 2, 2]


def test_test_images_are_resized_and_cut_as_torchvision_does(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    # Smooth, since the two round their sizes differently.
    down, right = np.mgrid[0:300, 0:400]
    Image.fromarray((down / 2 + right / 4).astype(np.uint8)).convert("RGB").save(tmp_path / "a" / "0.png")
    files = Files()
    files.add(tmp_path / "a", names_in(tmp_path / "a"), 0)
    with Image.open(tmp_path / "a" / "0.png") as image:
        expected = v2.functional.pil_to_tensor(v2.CenterCrop(224)(v2.Resize(256)(image)))
    found = StreamedImages(files, 224)[torch.tensor([0])][0]
    assert (found.int() - expected.int()).abs().max() <= 1


def test_boxes_of_the_middle() -> None:
    assert centre_box(256, 256) == (16, 16, 224, 224)
    assert centre_box(256, 512) == (16, 144, 224, 224)
    assert centre_box(1, 1) == (0, 0, 1, 1)


def test_random_boxes_have_their_law() -> None:
    crop = Crop(seed=3, epoch=1, least=0.25)
    boxes = torch.tensor([random_box(image, 4000, 4000, crop) for image in range(2000)]).double()
    top, left, height, width = boxes.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + height <= 4000) & (left + width <= 4000)).all())
    # Boxes of all shares and ratios fit now and then, the small ones always.
    small = Crop(seed=3, epoch=1, least=0.0)
    boxes = torch.tensor([random_box(image, 4000, 4000, small) for image in range(2000)]).double()
    inside = boxes[(boxes[:, 2] * boxes[:, 3]) < 0.5 * 4000**2]
    share, ratio = inside[:, 2] * inside[:, 3] / 4000**2, (inside[:, 3] / inside[:, 2]).log() / np.log(4 / 3)
    assert stats.kstest(share.numpy() / 0.5, "uniform").pvalue > 1e-3
    assert stats.kstest((ratio.numpy() + 1) / 2, "uniform").pvalue > 1e-3
    place = inside[:, 0] / (4000 - inside[:, 2])
    assert stats.kstest(place.numpy(), "uniform").pvalue > 1e-3


def test_where_no_box_fits_the_largest_is_taken() -> None:
    crop = Crop(seed=0, epoch=0, least=1.0)
    assert random_box(0, 10, 1000, crop) == (0, 493, 10, 13)
    assert random_box(0, 1000, 10, crop) == (493, 0, 13, 10)
    assert random_box(5, 1, 1, crop) == (0, 0, 1, 1)


@pytest.mark.parametrize("crop", [None, Crop(seed=1, epoch=2, least=0.08)], ids=["middle", "random"])
def test_images_depend_on_neither_processes_nor_batches(photos: Path, crop: Crop | None) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    found = []
    for workers, batch in ((0, 12), (0, 5), (1, 5), (2, 5), (5, 1)):
        parts = list(read(opened(photos, workers), torch.split(order, batch), crop))
        assert [len(part) for part in parts[:-1]] == [batch] * (len(parts) - 1)
        found.append(torch.cat(parts))
    assert found[0].dtype == torch.uint8
    assert all(torch.equal(found[0], other) for other in found)


def test_crops_are_of_seed_epoch_and_image(photos: Path) -> None:
    images, ids = opened(photos), [torch.arange(12)]

    def crops(seed: int, epoch: int) -> torch.Tensor:
        return next(images.batches(ids, Crop(seed, epoch, 0.08)))

    assert torch.equal(crops(1, 2), crops(1, 2))
    for other in (crops(2, 2), crops(1, 3)):
        assert all(not torch.equal(one, two) for one, two in zip(crops(1, 2), other, strict=True))


def test_the_global_generator_is_left_alone(photos: Path) -> None:
    before = torch.get_rng_state()
    list(opened(photos, workers=2).batches([torch.arange(3), torch.arange(3)]))
    assert torch.equal(torch.get_rng_state(), before)


def test_slices_are_streams(photos: Path) -> None:
    images = opened(photos)
    whole = images[torch.arange(12)]
    part = images[2:11][::3]
    assert isinstance(part, StreamedImages)
    assert (len(part), tuple(part.shape)) == (3, (3, 3, 16, 16))
    assert torch.equal(part[torch.tensor([2, 0])], whole[[8, 2]])
    # A crop is of the image, whatever the slice.
    crop = Crop(0, 0, 0.1)
    assert torch.equal(next(part.batches([torch.tensor([1])], crop)), next(images.batches([torch.tensor([5])], crop)))


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_named_when_they_are_found(photos: Path, workers: int) -> None:
    path = photos / "train" / "bee" / "2.jpg"
    whole = path.read_bytes()
    batches = torch.split(torch.arange(12), 3)
    for content, message in (
        (b"no image", "cannot read .*: it is no image"),
        (whole[: len(whole) // 2], "is damaged: "),
    ):
        path.write_bytes(content)
        found = read(opened(photos, workers), batches)
        assert len(next(found)) == 3
        next(found)
        with pytest.raises(FileError, match=message) as caught:
            next(found)
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.hint
    found = read(opened(photos, workers), batches)
    path.unlink()
    with pytest.raises(FileError, match="No such file"):
        list(found)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from rapa_cli import app
from rapa_cli.data.catalog import open_data

found = open_data(sys.argv[1], workers=1).train.images.batches([torch.arange(12)] * 200)
try:
    next(found)
    # Torch's handler would raise a second time, somewhere below.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    (worker,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    list(found)
except RuntimeError as error:
    shown = app._from_system(error)
    print(shown.message, shown.exit_code, shown.hint, flush=True)
    os._exit(0)
"""


def test_a_process_that_was_killed(photos: Path) -> None:
    words = [sys.executable, "-c", KILLED, f"folder:{photos}@16"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("a process that decodes images was killed 3 is there memory enough")
    assert "--workers 0" in shown


def test_fingerprints_tell_folders_apart(photos: Path) -> None:
    first = opened(photos).fingerprint()
    assert first == opened(photos, workers=2).fingerprint()
    assert first != opened(photos, size=8).fingerprint() != opened(photos)[:5].fingerprint()
    (photos / "train" / "ant" / "0.jpg").rename(photos / "train" / "ant" / "00.jpg")
    assert opened(photos).fingerprint() != first


@pytest.mark.parametrize(
    ("name", "message"),
    [("folder:", "got no folder"), ("folder:x@3", "images of 3 pixels"), ("folder:x@99999", "of 99999 pixels")],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_data(name)


def test_folders_that_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no folder"):
        open_data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(FileError, match="has no folder of images"):
        open_data(f"folder:{tmp_path}")
    (tmp_path / "train").mkdir()
    with pytest.raises(FileError, match="no folder test or val"):
        open_data(f"folder:{tmp_path}")


def test_names_take_little_memory() -> None:
    files = Files()
    names = [f"ILSVRC2012_val_{index:08d}.JPEG" for index in range(1000)]
    files.add(Path("/a"), names, 7)
    files.add(Path("/b"), ["\udcff.png"], 2)
    assert [path.name for path in files][:1000] == names
    assert files.path(1000) == Path("/b/\udcff.png")
    assert files.labels.tolist() == [7] * 1000 + [2]
    size = sum(len(part) * part.itemsize for part in (files._ends, files._labels)) + len(files._names)
    assert size == sum(len(name) + 12 for name in names) + 5 + 12 + 8


def resident() -> int:
    """Bytes of memory of this process that are its own."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_Dirty"))


def sizes_while_decoding(photos: Path) -> list[int]:
    """What is resident after every tenth batch of 50 images."""
    images = opened(photos, workers=2, size=64)
    digest = hashlib.sha256()
    sizes = []
    for number, batch in enumerate(images.batches(torch.split(torch.arange(len(images)), 50))):
        digest.update(batch.numpy().tobytes())
        if number % 10 == 9:
            sizes.append(resident())
    return sizes


@pytest.mark.slow  # Decodes thousands of images.
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", each=4)
    source = (photos / "train" / "ant" / "0.jpg").read_bytes()
    for name in CLASSES:
        for index in range(4, 1000):
            (photos / "train" / name / f"{index}.jpg").write_bytes(source)
    # In a process of its own, without the memory that other tests have freed.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        sizes = alone.submit(sizes_while_decoding, photos).result()
    assert len(sizes) == 6
    # In memory the images would be 37 MB, and 31 MB of them come after the first measurement.
    assert max(sizes) - sizes[0] < 8e6
