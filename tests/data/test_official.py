"""CIFAR-10, CIFAR-100 and SVHN from small files in the official formats, and from the real CIFAR-10."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from rapa_cli.data import catalog, cifar, pickles, sources, svhn
from rapa_cli.data.images import silent
from rapa_cli.errors import FileError
from tests.data.files import NAMES10, batch, pack, write_cifar10, write_cifar100, write_svhn


def load(path: Path) -> sources.Contents:
    return sources.load(sources.recognise(path), silent)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(tmp_path: Path, packed: bool) -> None:
    folder = write_cifar10(tmp_path)
    found = load(pack(folder, tmp_path / "mine.tar.gz") if packed else folder)
    assert found.kind == "cifar10"
    assert found.classes == tuple(name.decode() for name in NAMES10)
    assert found.train.images.shape == (20, 3, 32, 32)
    assert found.train.labels.tolist() == [label for number in range(5) for label in (number, 1, 2, 9)]
    assert found.test.labels.tolist() == [5, 1, 2, 9]
    assert torch.equal(found.train.images[4:8].reshape(4, -1), torch.from_numpy(batch(4, 1)))
    assert torch.equal(found.test.images.reshape(4, -1), torch.from_numpy(batch(4, 5)))


@pytest.mark.parametrize("packed", [False, True])
def test_cifar100(tmp_path: Path, packed: bool) -> None:
    folder = write_cifar100(tmp_path)
    found = load(pack(folder, tmp_path / "mine.tgz") if packed else folder)
    assert found.kind == "cifar100"
    assert len(found.classes) == 100
    assert found.classes[99] == "fine99"
    assert found.train.labels.tolist() == [0, 99, 5, 7]
    assert torch.equal(found.test.images.reshape(4, -1), torch.from_numpy(batch(4, 1)))


def test_svhn(tmp_path: Path) -> None:
    found = load(write_svhn(tmp_path))
    assert found.kind == "svhn"
    assert found.classes == tuple("0123456789")
    assert found.train.labels.tolist() == [0, 1, 9, 0, 2]
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    assert found.test.images[3, 2, 7, 8] == pixels[7, 8, 2, 3]
    assert found.test.images.is_contiguous()


def test_the_folder_around_is_enough(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    assert sources.recognise(tmp_path).kind == "cifar100"


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "data_batch_3").unlink()
    (folder / "batches.meta").unlink()
    with pytest.raises(FileError, match=r"lacks data_batch_3, batches\.meta"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_2", {b"data": batch(4, 0), b"labels": [0, 1, 2]}, "not a list of 4 whole numbers"),
        ("data_batch_2", {b"data": batch(4, 0), b"labels": [0, 1, 2, 10]}, "labels go from 0 to 10"),
        ("data_batch_2", {b"data": batch(4, 0), b"labels": [0, 1, 2, b"3"]}, "whole numbers"),
        ("data_batch_2", {b"data": batch(4, 0)[:, :99], b"labels": [0, 1, 2, 3]}, "not uint8"),
        ("data_batch_2", {b"labels": [0]}, "'data' is NoneType"),
        ("batches.meta", {b"label_names": NAMES10[:9]}, "not a list of 10 names"),
        ("batches.meta", {b"label_names": [1] * 10}, "no name"),
    ],
)
def test_wrong_content_is_refused(tmp_path: Path, name: str, content: dict[bytes, Any], message: str) -> None:
    folder = write_cifar10(tmp_path)
    (folder / name).write_bytes(pickle.dumps(content, 2))
    with pytest.raises(FileError, match=message):
        load(folder)


@pytest.mark.parametrize("size", [0, 10, 300, -20])
def test_a_truncated_archive_is_refused(tmp_path: Path, size: int) -> None:
    archive = pack(write_cifar10(tmp_path), tmp_path / "cifar-10-python.tar.gz")
    archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(FileError) as caught:
        load(archive)
    assert "\n" not in caught.value.message


def test_a_foreign_archive_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "data_batch_1").write_bytes(b"")
    with pytest.raises(FileError, match="neither"):
        load(pack(other, tmp_path / "other.tar.gz"))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo("filler")
    member.size = 2 * 2**30
    archive.write_bytes(gzip.compress(member.tobuf() + bytes(30 * 2**20)))
    with pytest.raises(FileError, match="unpacks to more than"):
        load(archive)


def test_an_archive_may_not_call_anything(tmp_path: Path) -> None:
    attack = b"cos\nsystem\n(S'touch " + str(tmp_path / "trace").encode() + b"'\ntR."
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = len(attack)
        tar.addfile(member, io.BytesIO(attack))
    with pytest.raises(FileError, match=r"asks for os\.system"):
        load(archive)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 5))}, "X is float64"),
        ({"X": np.zeros((30, 32, 3, 5), np.uint8)}, "not uint8"),
        ({"y": np.zeros((5, 1), np.uint8)}, "labels go from 0 to 0"),
        ({"y": np.full((5, 1), 11, np.uint8)}, "labels go from 11 to 11"),
        ({"y": np.ones((4, 1), np.uint8)}, "y is uint8"),
    ],
)
def test_wrong_svhn_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message):
        load(write_svhn(tmp_path, **change))


@pytest.mark.parametrize("size", [0, 50, 200, -100])
def test_truncated_svhn_is_refused(tmp_path: Path, size: int) -> None:
    path = write_svhn(tmp_path) / svhn.FILES[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FileError, match="is damaged") as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("stored", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 5), (0, 1), (4, 3, 3, 2)])
def test_variables_are_what_scipy_reads(tmp_path: Path, compressed: bool, stored: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "variables.mat"
    values = np.random.default_rng(3).integers(-100, 100, shape).astype(stored)
    others = {"a": np.array([["cell", 1]], object), "a_long_name": {"of": "fields"}, "s": "text", "c": np.array([[1j]])}
    savemat(path, {**others, "X": values, "y": values.reshape(-1, 1), "zeros": values}, do_compression=compressed)
    expected = loadmat(path, variable_names=["X", "y"])
    found = svhn.variables(path)
    assert found.keys() == {"X", "y"}
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name], strict=True)


@pytest.mark.parametrize("value", [np.array([[1j]]), "text", np.array([["cell"]], object), {"field": 1}])
def test_variables_that_are_no_numbers_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(FileError, match=r"something other than real numbers|shorter than it says"):
        load(write_svhn(tmp_path, X=value))


def test_svhn_of_a_size_beyond_all_measure_is_refused(tmp_path: Path) -> None:
    with (write_svhn(tmp_path) / svhn.FILES[1]).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match="more than 1073741824 bytes"):
        load(tmp_path)


def test_svhn_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="unpacks to more than"):
        load(write_svhn(tmp_path, X=np.zeros((32, 32, 3, 6000), np.uint8)))


def test_svhn_without_its_variables_is_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    savemat(tmp_path / svhn.FILES[1], {"Z": np.zeros(3)})
    with pytest.raises(FileError, match="not X and y"):
        load(tmp_path)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(FileError, match="holds nothing"):
        load(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(FileError, match="not a file that rapa reads"):
        load(tmp_path / "a.zip")


def test_the_layouts_are_torchvisions() -> None:
    from torchvision import datasets

    for layout, theirs in ((cifar.CIFAR10, datasets.CIFAR10), (cifar.CIFAR100, datasets.CIFAR100)):
        assert layout.archive == theirs.filename
        assert layout.folder == theirs.base_folder
        assert layout.train == tuple(name for name, _ in theirs.train_list)
        assert (layout.test,) == tuple(name for name, _ in theirs.test_list)
        assert (layout.meta, layout.names) == (theirs.meta["filename"], theirs.meta["key"])
    assert tuple(datasets.SVHN.split_list[split][1] for split in ("train", "test")) == svhn.FILES


def test_the_files_of_a_data_set_share_their_steps(tmp_path: Path) -> None:
    """Each of them alone would be read, all together take longer than a reader may."""
    folder = write_cifar10(tmp_path)
    for path in folder.glob("*_batch*"):
        content = path.read_bytes()
        # A list is made and thrown away, again and again.
        path.write_bytes(content[:2] + b"]0" * 200_000 + content[2:])
        pickles.load(path.read_bytes(), path)
    with pytest.raises(FileError, match="data_batch_5 is refused: it takes more than 2000000 steps, with the other"):
        sources.load(sources.recognise(folder), lambda *_: None)


@pytest.mark.cifar10
def test_the_real_cifar10(cifar10_dir: Path, tmp_path: Path) -> None:
    data, new = catalog.get("cifar10", cifar10_dir / "cifar-10-batches-py", data_dir=tmp_path)
    assert new
    assert data.classes == tuple(name.decode() for name in NAMES10)
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [5_000] * 10
    assert data.test.labels.bincount().tolist() == [1_000] * 10
    known = torch.tensor([125.30691805, 122.95039414, 113.86538318]) / 255
    torch.testing.assert_close(data.mean, known, rtol=1e-6, atol=0)
    deviations = torch.tensor([62.99321928, 62.08870764, 66.70489964]) / 255
    torch.testing.assert_close(data.std, deviations, rtol=1e-6, atol=0)
    torch.testing.assert_close(data.mean_image.mean((1, 2)), known)
