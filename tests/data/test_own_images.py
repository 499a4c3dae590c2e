"""Images of the user's own: numpy files, and a folder for each class."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rapa_cli.data import arrays, folder, sources
from rapa_cli.data.images import silent
from rapa_cli.errors import FileError
from tests.data.files import pixels, write_arrays, write_images


def load(path: Path) -> sources.Contents:
    return sources.load(sources.recognise(path), silent)


@pytest.mark.parametrize(("shape", "channels"), [((6, 5), 1), ((6, 5, 1), 1), ((6, 5, 3), 3)])
def test_arrays_are_read(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    found = load(write_arrays(tmp_path, shape))
    assert found.classes == tuple("012345")
    assert found.train.images.shape == (4, channels, 6, 5)
    assert found.test.labels.tolist() == [0, 2, 5, 0]
    expected = pixels(4, *shape, seed=1).reshape(4, 6, 5, channels)
    assert np.array_equal(found.test.images.permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "no array 'images'"),
        ({"labels": None}, "no array 'labels'"),
        ({"images": np.zeros((4, 6, 5))}, "images are float64, not uint8"),
        ({"images": np.zeros((4, 6), np.uint8)}, r"the shape \(4, 6\)"),
        ({"images": np.zeros((4, 6, 5, 2), np.uint8)}, r"the shape \(4, 6, 5, 2\)"),
        ({"images": np.zeros((0, 6, 5), np.uint8), "labels": np.zeros(0, int)}, r"the shape \(0, 6, 5, 1\)"),
        ({"labels": np.zeros(3, int)}, "for 4 images"),
        ({"labels": np.zeros(4)}, "labels are float64"),
        ({"labels": np.array([0, 1, 2, -1])}, "from -1 to 2"),
        ({"labels": np.array([0, 1, 2, 2**60])}, "allowed are 0 to 65535"),
        ({"labels": np.array([0, 1, 2, None])}, "Python objects"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message):
        load(write_arrays(tmp_path, **change))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_arrays(tmp_path)
    (tmp_path / "test.npz").unlink()
    with pytest.raises(FileError, match=r"test\.npz is missing"):
        load(tmp_path)


@pytest.mark.parametrize("size", [0, 30, 200, -10])
def test_truncated_arrays_are_refused(tmp_path: Path, size: int) -> None:
    path = write_arrays(tmp_path) / "train.npz"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FileError, match="damaged") as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    path = write_arrays(tmp_path) / "train.npz"
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(FileError, match="damaged"):
        load(tmp_path)


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "RATIO_FROM", 2**20)
    write_arrays(tmp_path)
    np.savez_compressed(tmp_path / "train.npz", images=np.zeros((2000, 32, 32), np.uint8), labels=np.zeros(2000, int))
    with pytest.raises(FileError, match="refused: 'images' unpacks from"):
        load(tmp_path)
    monkeypatch.setattr(arrays, "MAX_RATIO", 10**6)
    assert len(load(tmp_path).train) == 2000
    monkeypatch.setattr(arrays, "MAX_BYTES", 10**6)
    with pytest.raises(FileError, match="refused: 'images' unpacks from"):
        load(tmp_path)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 32, 32), }"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)
    with zipfile.ZipFile(tmp_path / "train.npz", "w") as archive:
        archive.writestr("images.npy", member)
    with pytest.raises(FileError, match="claims the shape"):
        load(tmp_path)


def test_an_image_folder_with_both_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"dog": 3, "cat": 2})
    write_images(tmp_path / "test", {"cat": 1, "dog": 2})
    (tmp_path / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "cat" / "notes.txt").write_bytes(b"x")
    found = load(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.test.labels.tolist() == [0, 1, 1]
    assert found.train.images.shape == (5, 3, 4, 5)
    assert np.array_equal(found.train.images[3].permute(1, 2, 0), pixels(4, 5, 3, seed=1))


def test_a_sixth_of_each_class_is_kept_for_testing(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 24, "b": 12, "c": 2})
    found = load(tmp_path)
    assert found.train.labels.bincount().tolist() == [20, 10, 1]
    assert found.test.labels.bincount().tolist() == [4, 2, 1]
    again = load(tmp_path)
    assert torch.equal(found.test.images, again.test.images)
    both = torch.cat([found.train.images, found.test.images])
    assert len({bytes(image.numpy().data) for image in both}) == 38


def test_the_kept_images_do_not_depend_on_the_other_classes(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 24})
    before = load(tmp_path).test.images
    write_images(tmp_path, {"a": 24, "b": 6})
    after = load(tmp_path).test
    assert torch.equal(after.images[after.labels == 0], before)


@pytest.mark.parametrize(
    ("modes", "channels"), [(("L", "L"), 1), (("1", "L"), 1), (("L", "RGB"), 3), (("RGBA", "P"), 3)]
)
def test_grey_and_colour(tmp_path: Path, modes: tuple[str, str], channels: int) -> None:
    for name, mode in zip("ab", modes, strict=True):
        write_images(tmp_path, {name: 3}, mode=mode)
    assert load(tmp_path).train.images.shape == (4, channels, 4, 5)


def test_images_of_two_sizes_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 3})
    write_images(tmp_path, {"b": 3}, size=(5, 5))
    with pytest.raises(FileError, match=r"00\d\.png has 5 x 4 pixels, .*b.00\d\.png has 5 x 5"):
        load(tmp_path)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 4})
    path = tmp_path / "a" / "002.png"
    whole = path.read_bytes()
    for content, message in ((b"no image", "cannot read"), (whole[:60], "damaged")):
        path.write_bytes(content)
        with pytest.raises(FileError, match=rf"({message} .*002\.png|002\.png is {message})"):
            load(tmp_path)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 3})
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "a" / "000.png")
    with pytest.raises(FileError, match="pixels of the kind I;16"):
        load(tmp_path)


def test_incomplete_folders_are_explained(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 2, "b": 2})
    with pytest.raises(FileError, match="no folder test"):
        load(tmp_path)
    write_images(tmp_path / "test", {"a": 2, "c": 2})
    with pytest.raises(FileError, match="has the class 'c'"):
        load(tmp_path)
    write_images(tmp_path / "train", {"c": 0})
    with pytest.raises(FileError, match="c has no images"):
        load(tmp_path)


def test_a_class_with_one_image_cannot_be_split(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 4, "b": 1})
    with pytest.raises(FileError, match="b has 1 images"):
        load(tmp_path)


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, {"a": 4})
    monkeypatch.setattr(folder, "MAX_BYTES", 200)
    with pytest.raises(FileError, match="more than 200 bytes"):
        load(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    with pytest.raises(FileError, match="too many pixels"):
        load(tmp_path)
