"""Names find their data sets: stored, official, drawn or unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rapa_cli.commands import data as command
from rapa_cli.data import catalog, places, shapes, store
from rapa_cli.data.catalog import get, listing, open_data
from rapa_cli.errors import ConfigError, FileError
from tests.data.files import pack, write_arrays, write_cifar10, write_cifar100, write_images, write_svhn


@pytest.fixture
def home(tmp_path: Path, own_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder; `shapes` is small here."""
    monkeypatch.setattr(shapes, "TRAIN", 40)
    original = shapes.draw_splits
    monkeypatch.setattr(shapes, "draw_splits", lambda **options: original(train=40, test=20, **options))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAPA_DATA_DIR", "/a")
    monkeypatch.setenv("XDG_DATA_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert places.data_dir(Path("/explicit")) == Path("/explicit")
    assert places.data_dir() == Path("/a")
    monkeypatch.delenv("RAPA_DATA_DIR")
    assert places.data_dir() == Path("/b/rapa")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert places.data_dir() == Path("/c/.local/share/rapa")
    assert places.data_dir(Path("~/x")) == Path("/c/x")


def test_shapes_are_drawn_once(home: Path) -> None:
    seen: list[str] = []
    first = open_data("shapes", home, progress=lambda what, _done, _total: seen.append(what))
    assert set(seen) == {"drawing shapes"}
    seen.clear()
    second = open_data("shapes", home, progress=lambda what, _done, _total: seen.append(what))
    assert seen == []
    assert torch.equal(first.train.images, second.train.images)
    assert second.classes == shapes.CLASSES
    assert get("shapes", data_dir=home)[1] is False
    assert get("shapes", data_dir=home, force=True)[1] is True


def test_damaged_or_old_shapes_are_drawn_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_data("shapes", home)
    path = home / "shapes" / "test.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert len(open_data("shapes", home).test) == 20
    assert len(store.read(home / "shapes").test) == 20
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    assert open_data("shapes", home).source == shapes.source()


def test_shapes_need_no_folder_that_can_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> None:
        raise FileError("the disk is full")

    monkeypatch.setattr(store, "write", full)
    data = open_data("shapes", home)
    assert data.shape == (3, 32, 32)
    assert data.mean.shape == (3,)
    with pytest.raises(FileError, match="the disk is full"):
        get("shapes", data_dir=home)


def test_shapes_of_the_users_own_folder_count_where_the_other_cannot_be_written(
    home: Path, own_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store.write

    def elsewhere(folder: Path, *arguments: Any) -> Any:
        if folder.parent == home:
            raise FileError("no permission")
        return original(folder, *arguments)

    monkeypatch.setattr(store, "write", elsewhere)
    monkeypatch.setattr(catalog, "_writable", lambda folder: folder != home)
    open_data("shapes", home)
    assert store.exists(own_data / "shapes")
    monkeypatch.setattr(shapes, "draw_splits", None)
    assert len(open_data("shapes", home).train) == 40


def test_shapes_take_no_source(home: Path) -> None:
    with pytest.raises(ConfigError, match="takes no --from"):
        get("shapes", home, data_dir=home)


@pytest.mark.parametrize("layout", ["folder", "archive", "inner"])
def test_official_files_are_imported_by_themselves(home: Path, tmp_path: Path, layout: str) -> None:
    folder = write_cifar10(tmp_path if layout == "archive" else home / "cifar10" if layout == "inner" else home)
    if layout == "archive":
        pack(folder, home / "cifar-10-python.tar.gz")
    data = open_data("cifar10", home)
    assert len(data.train) == 20
    assert store.exists(home / "cifar10")
    assert torch.equal(open_data("cifar10", home).train.images, data.train.images)


def test_svhn_and_cifar100_are_imported_by_themselves(home: Path) -> None:
    write_cifar100(home)
    write_svhn(home)
    assert len(open_data("cifar100", home).classes) == 100
    assert len(open_data("svhn", home).train) == 5


def test_a_folder_that_cannot_be_written_is_read(home: Path, own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(home)
    monkeypatch.setattr(catalog, "_writable", lambda folder: folder != home)
    first = open_data("cifar10", home)
    assert store.exists(own_data / "cifar10")
    assert not store.exists(home / "cifar10")
    assert torch.equal(open_data("cifar10", home).train.images, first.train.images)


def test_a_known_name_that_is_not_there(home: Path) -> None:
    with pytest.raises(FileError, match="'cifar10' is not in") as caught:
        open_data("cifar10", home)
    assert caught.value.hint == f"rapa data get cifar10 --data-dir {home}"


def test_an_unknown_name_gets_the_nearest(home: Path, tmp_path: Path) -> None:
    get("flowers", write_arrays(tmp_path), data_dir=home)
    for wrong, near in (("cifar11", "cifar10"), ("shape", "shapes"), ("flower", "flowers")):
        with pytest.raises(FileError, match=f"no data set '{wrong}'") as caught:
            open_data(wrong, home)
        assert f"did you mean '{near}'?" in str(caught.value.hint)
    with pytest.raises(FileError, match="no place is known") as caught:
        get("flowers2", data_dir=home)
    assert "--from FOLDER" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "a b", ".hidden", "-x", "ä", "a\n", "x" * 65])
def test_names_that_are_no_names(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        open_data(name, home)
    with pytest.raises(ConfigError, match="cannot be the name"):
        get(name, home, data_dir=home)


def test_a_folder_as_a_name_is_explained(home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_data(str(home), home)
    named = f"give the folder a name first: rapa data get NAME --from {home}"
    assert caught.value.hint == f"{named}; or stream it: --data folder:{home}"


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="is a file"):
        open_data("shapes", tmp_path / "file")


def test_own_images_are_stored_under_any_name(home: Path, tmp_path: Path) -> None:
    source = write_arrays(tmp_path)
    data, new = get("my-data_1.0", source, data_dir=home)
    assert new
    assert data.source == f"train.npz and test.npz ({tmp_path.name})"
    assert len(open_data("my-data_1.0", home).classes) == 6
    assert get("my-data_1.0", source, data_dir=home)[1] is False
    write_arrays(tmp_path, labels=np.zeros(4, int))
    with pytest.raises(FileError, match="holds other images already") as caught:
        get("my-data_1.0", source, data_dir=home)
    assert "--force" in str(caught.value.hint)
    assert len(get("my-data_1.0", source, data_dir=home, force=True)[0].classes) == 1


def test_the_wrong_official_files_are_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds cifar10, not cifar100"):
        get("cifar100", write_cifar10(tmp_path), data_dir=home)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_known_names_are_kept_for_the_official_images(home: Path, tmp_path: Path, name: str) -> None:
    source = write_arrays(tmp_path)
    with pytest.raises(FileError, match=f"holds images of your own, not {name}") as caught:
        get(name, source, data_dir=home)
    assert f"choose another: rapa data get my-{name} --from {source}" in str(caught.value.hint)
    assert not store.exists(home / name)


def test_images_kept_for_testing_are_mentioned(home: Path, tmp_path: Path) -> None:
    source = write_images(tmp_path / "birds", {"tit": 6, "owl": 6})
    shown = _run("get", "birds", "--from", str(source), "--data-dir", str(home))
    assert "from a folder of images (birds), a sixth of each class kept for testing" in shown
    assert open_data("birds", home).source.endswith(", a sixth of each class kept for testing")
    for split in ("train", "test"):
        write_images(tmp_path / "both" / split, {"tit": 6, "owl": 6})
    assert get("both", tmp_path / "both", data_dir=home)[0].source == "a folder of images (both)"


def test_the_list_fits_a_narrow_terminal(home: Path, tmp_path: Path) -> None:
    name = "a-name-that-is-as-long-as-the-names-of-data-sets-can-well-become"
    get(name, write_arrays(tmp_path), data_dir=home)
    open_data("shapes", home)
    lines = _run("list", "--data-dir", str(home)).splitlines()
    assert lines[0].split() == [name, "stored,", "0", "MB"]
    assert lines[1] == "  4 + 4 images, 5 x 6 RGB, 6 classes"
    assert lines[2] == f"  train.npz and test.npz ({tmp_path.name})"
    assert "  rapa data get cifar10" in lines
    assert all(len(line) <= 50 for line in lines[1:] if tmp_path.name not in line)


def test_the_listing(home: Path, tmp_path: Path) -> None:
    assert [(entry.name, entry.state) for entry in listing(home)] == [
        ("cifar10", "absent"),
        ("cifar100", "absent"),
        ("shapes", "embedded"),
        ("svhn", "absent"),
    ]
    write_cifar100(home)
    get("birds", write_images(tmp_path / "images", {"tit": 6, "owl": 6}, mode="L"), data_dir=home)
    get("apes", write_arrays(tmp_path), data_dir=home)
    (home / "apes" / "test.safetensors").unlink()
    entries = {entry.name: entry for entry in listing(home)}
    assert list(entries) == ["apes", "birds", "cifar10", "cifar100", "shapes", "svhn"]
    assert entries["apes"].state == "damaged"
    assert entries["cifar100"].state == "official files"
    birds = entries["birds"]
    assert (birds.state, birds.classes, birds.train, birds.test, birds.shape) == ("stored", 2, 10, 2, (1, 4, 5))
    assert birds.size > 0
    assert listing(tmp_path / "nowhere")[0].state == "absent"


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(command.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_get_and_list_as_commands(home: Path, tmp_path: Path) -> None:
    source = write_arrays(tmp_path)
    document: dict[str, Any] = json.loads(_run("get", "mine", "--from", str(source), "--data-dir", str(home), "--json"))
    assert document["new"] is True
    assert document["shape"] == [3, 6, 5]
    assert document["path"] == str(home / "mine")
    assert "was there already" in _run("get", "mine", "--from", str(source), "--data-dir", str(home))
    listed = json.loads(_run("list", "--data-dir", str(home), "--json"))
    assert [entry["name"] for entry in listed["data"]] == ["cifar10", "cifar100", "mine", "shapes", "svhn"]
    assert "train.npz and test.npz" in _run("list", "--data-dir", str(home))


def test_show_as_a_command(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert _run("show", "shapes", "--out", str(out), "--data-dir", str(home)).strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"does not end in \.png"):
        _run("show", "shapes", "--out", "sheet.jpg", "--data-dir", str(home))
    with pytest.raises(ConfigError, match="allowed are train and test"):
        _run("show", "shapes", "--out", str(out), "--split", "all", "--data-dir", str(home))
