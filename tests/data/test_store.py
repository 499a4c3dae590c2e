"""The store gives back what was put in, maps it into memory, and finds every damage."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rapa_cli.data import store
from rapa_cli.data.images import DataSet, Split
from rapa_cli.errors import FileError

CLASSES = ("ant", "bee", "cat", "döner")


def _write(folder: Path, train: Split, test: Split) -> DataSet:
    return store.write(folder, folder.name, CLASSES, train, test, "made up")


def _rewrite(path: Path, change: dict[str, Any], document: dict[str, Any] | None = None) -> None:
    """Writes a file of the store again with some arrays changed (None: left out) or fields of its document."""
    with safe_open(path, framework="pt") as file:
        arrays = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        found = json.loads(file.metadata()["rapa"])
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    save_file(arrays, path, metadata={"rapa": json.dumps(found | (document or {}))})


def test_what_is_written_is_read(tmp_path: Path, train: Split, test: Split) -> None:
    data = _write(tmp_path / "mine", train, test)
    again = store.read(tmp_path / "mine")
    for found in (data, again):
        assert found.name == "mine"
        assert found.classes == CLASSES
        assert found.shape == (3, 6, 5)
        assert found.source == "made up"
        assert len(found.train) == 23
        assert torch.equal(found.train.images, train.images)
        assert torch.equal(found.train.labels, train.labels)
        assert torch.equal(found.test.images, test.images)
        assert torch.equal(found.test.labels, test.labels)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["test.safetensors", "train.safetensors"]


def test_images_stay_in_the_file(tmp_path: Path, train: Split, test: Split) -> None:
    images = _write(tmp_path / "mine", train, test).train.images
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux shows which files are mapped into memory")
    address = images.data_ptr()
    for line in maps.read_text(encoding="utf-8").splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            assert line.endswith("train.safetensors")
            return
    pytest.fail("the images lie in no mapping")


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 4)))
)
def test_constants_agree_with_numpy(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    mean, std, mean_image = store.constants(torch.from_numpy(pixels))
    scaled = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(std, np.maximum(scaled.std((0, 2, 3)), 1 / 255), rtol=1e-5)
    np.testing.assert_allclose(mean_image, scaled.mean(0), rtol=1e-6, atol=1e-7)


def test_constants_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch, train: Split) -> None:
    whole = store.constants(train.images)
    monkeypatch.setattr(store, "_CHUNK_BYTES", 1)
    assert all(torch.equal(one, other) for one, other in zip(whole, store.constants(train.images), strict=True))


def test_strided_images_are_stored_in_order(tmp_path: Path, train: Split, test: Split) -> None:
    turned = Split(train.images.permute(0, 1, 3, 2), train.labels)
    data = _write(tmp_path / "mine", turned, Split(test.images.permute(0, 1, 3, 2), test.labels))
    assert torch.equal(data.train.images, turned.images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: Split(s.images.float(), s.labels), "not uint8"),
        (lambda s: Split(s.images[0], s.labels), "not uint8"),
        (lambda s: Split(s.images[:0], s.labels[:0]), "no images"),
        (lambda s: Split(s.images[:, :2], s.labels), "2 channels"),
        (lambda s: Split(s.images, s.labels[:-1]), "labels are"),
        (lambda s: Split(s.images, s.labels.int()), "labels are"),
        (lambda s: Split(s.images, s.labels - 1), "from -1 to 2"),
        (lambda s: Split(s.images, s.labels + 1), "from 1 to 4"),
    ],
)
def test_wrong_arrays_are_not_written(tmp_path: Path, train: Split, test: Split, change: Any, message: str) -> None:
    with pytest.raises(FileError, match=message):
        _write(tmp_path / "mine", change(train), test)
    assert not (tmp_path / "mine").exists()


def test_splits_of_two_sizes_are_not_written(tmp_path: Path, train: Split, test: Split) -> None:
    with pytest.raises(FileError, match=r"3 x 6 x 5 and 3 x 5 x 5"):
        _write(tmp_path / "mine", train, Split(test.images[:, :, :5], test.labels))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_found_out(tmp_path: Path, train: Split, test: Split, split: str, size: int) -> None:
    folder = tmp_path / "mine"
    _write(folder, train, test)
    path = folder / f"{split}.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FileError, match=r"is damaged") as caught:
        store.read(folder)
    assert "\n" not in caught.value.message
    assert caught.value.hint is not None
    assert "rapa data get mine --force" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "no 'images'"),
        ({"labels": None}, "no 'labels'"),
        ({"mean": None}, "no 'mean'"),
        ({"mean_image": torch.zeros(3, 5, 5)}, "mean_image is"),
        ({"mean": torch.full((3,), float("nan"))}, "mean has values outside"),
        ({"std": torch.zeros(3)}, "std has values outside"),
        ({"std": torch.ones(3, dtype=torch.float64)}, "std is"),
        ({"mean": torch.full((3,), 0.5)}, "mean are not those written"),
        ({"std": torch.full((3,), 0.5)}, "std are not those written"),
        ({"mean_image": torch.full((3, 6, 5), 0.5)}, "mean_image are not those written"),
        ({"labels": torch.full((23,), 4)}, "from 4 to 4"),
        ({"images": torch.zeros(23, 3, 6, 5)}, "not uint8"),
        ({"images": torch.zeros(23, 3, 6, 4, dtype=torch.uint8)}, "differ in shape"),
    ],
)
def test_damaged_arrays_are_found_out(
    tmp_path: Path, train: Split, test: Split, change: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "mine"
    _write(folder, train, test)
    _rewrite(folder / "train.safetensors", change)
    with pytest.raises(FileError, match=message):
        store.read(folder)


def test_a_data_set_of_an_earlier_version_has_no_digests_of_its_constants(
    tmp_path: Path, train: Split, test: Split
) -> None:
    data = _write(tmp_path / "mine", train, test)
    earlier = {"provenance": {"source": data.source, "sha256": store.fingerprints(train, test)}}
    for split in ("train", "test"):
        _rewrite(tmp_path / "mine" / f"{split}.safetensors", {}, earlier)
    assert torch.equal(store.read(tmp_path / "mine").mean_image, store.constants(train.images)[2])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format": 2}, "has format 2"),
        ({"classes": []}, "lacks"),
        ({"classes": ["a", 1]}, "lacks"),
        ({"provenance": {}}, "lacks"),
        ({"split": "test"}, "lacks"),
        ({"name": "other"}, "not written together"),
    ],
)
def test_damaged_documents_are_found_out(
    tmp_path: Path, train: Split, test: Split, document: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "mine"
    _write(folder, train, test)
    _rewrite(folder / "train.safetensors", {}, document)
    with pytest.raises(FileError, match=message):
        store.read(folder)


@pytest.mark.parametrize(
    ("metadata", "message"), [(None, "not a data set"), ({"rapa": "{"}, "not JSON"), ({"rapa": "[]"}, "not a JSON obj")]
)
def test_foreign_metadata_is_found_out(
    tmp_path: Path, train: Split, test: Split, metadata: dict[str, str] | None, message: str
) -> None:
    folder = tmp_path / "mine"
    _write(folder, train, test)
    save_file({"images": train.images, "labels": train.labels}, folder / "train.safetensors", metadata=metadata)
    with pytest.raises(FileError, match=message):
        store.read(folder)


def test_a_missing_half_is_found_out(tmp_path: Path, train: Split, test: Split) -> None:
    folder = tmp_path / "mine"
    _write(folder, train, test)
    (folder / "test.safetensors").unlink()
    assert store.exists(folder)
    with pytest.raises(FileError, match=r"test\.safetensors is missing"):
        store.read(folder)


def test_halves_of_two_imports_are_found_out(tmp_path: Path, train: Split, test: Split) -> None:
    first, second = tmp_path / "a" / "mine", tmp_path / "b" / "mine"
    _write(first, train, test)
    _write(second, test, train)
    (first / "test.safetensors").write_bytes((second / "test.safetensors").read_bytes())
    with pytest.raises(FileError, match="not written together"):
        store.read(first)


def test_a_full_disk_is_explained(tmp_path: Path, train: Split, test: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise SafetensorError(f"Error while serializing: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(FileError, match="the disk is full") as caught:
        _write(tmp_path / "mine", train, test)
    assert caught.value.hint == "free some space, or choose another folder with --data-dir"
    assert list((tmp_path / "mine").iterdir()) == []
