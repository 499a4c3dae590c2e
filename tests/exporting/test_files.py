"""Files of exported networks: what is in them, and that nothing wrong is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import rapa_cli
from rapa_cli.errors import CheckFailed, ConfigError, FileError
from rapa_cli.exporting import files, onnx
from rapa_cli.exporting.aihwkit import to_aihwkit
from rapa_cli.exporting.files import export, read_aihwkit
from tests.exporting.networks import SHAPE, branches, pixels
from tests.tolerances import assert_near
from tests.training import tiny


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
@pytest.mark.parametrize("reduced", [True, False])
def test_what_computes_is_checked(to: str, reduced: bool, tmp_path: Path) -> None:
    found = export(branches(), tmp_path / "net", to=to, reduced=reduced, shape=SHAPE)
    assert (found.path, found.form, found.size) == (tmp_path / "net", to, (tmp_path / "net").stat().st_size)
    assert len(found.assignments) == (0 if reduced else 3)
    assert found.difference is not None
    assert found.difference < 1e-5


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_nothing_wrong_is_written(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net"
    path.write_text("older", encoding="utf-8")
    model, right = tiny.network(), files._run

    def off(content: bytes, to: str, images: Tensor, given: dict[str, Tensor]) -> Tensor:
        return right(content, to, images, given) + 2 * files.TOLERANCE

    monkeypatch.setattr(files, "_run", off)
    with pytest.raises(CheckFailed, match=f"logits of the {to} file differ by 0.0002 from the network's"):
        export(model, path, to=to)
    monkeypatch.setattr(files, "_run", lambda *_: torch.full((3, 3), torch.nan))
    with pytest.raises(CheckFailed, match="differ by nan"):
        export(model, path, to=to)
    assert path.read_text(encoding="utf-8") == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reduced_program_needs_torch_alone(tmp_path: Path) -> None:
    model, path = tiny.network(scheme="random", tiles=(4, 1)), tmp_path / "net.pt2"
    export(model, path, to="torch-export", reduced=True)
    images = pixels(2, tiny.SHAPE)
    torch.save(images, tmp_path / "images")
    script = (
        "import sys, torch, warnings; warnings.simplefilter('ignore');"
        f"logits = torch.export.load({str(path)!r}).module()(torch.load({str(tmp_path / 'images')!r}));"
        "assert 'rapa_cli' not in sys.modules; print(logits.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    with torch.no_grad():
        assert_near(torch.tensor(json.loads(done.stdout)), rapa_cli.reduce(model)(images))


def test_weights_alone(tmp_path: Path) -> None:
    model = branches()
    for to, expected in (("state-dict", dict(rapa_cli.reduce(model).state_dict())), ("aihwkit", to_aihwkit(model))):
        found = export(model, tmp_path / "weights", to=to, reduced=to == "state-dict", about={"data": "shapes"})
        assert (found.assignments, found.difference) == ((), None)
        with safe_open(found.path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads(file.metadata()["rapa"])
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[name], tensor) for name, tensor in expected.items())
        assert (about["form"], about["data"]) == (to, "shapes")
    back = read_aihwkit(branches(), tmp_path / "weights")
    assert all(torch.equal(matrix, to_aihwkit(model)[name]) for name, matrix in to_aihwkit(back).items())


def test_weights_from_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with pytest.raises(FileError, match="there is no file"):
        read_aihwkit(branches(), path)
    path.write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(FileError, match="cannot be read"):
        read_aihwkit(branches(), path)
    export(tiny.network(), path, to="aihwkit")
    with pytest.raises(ConfigError, match=r"weights: weights of aihwkit: matrix 'stem.0.tile_0' is missing"):
        read_aihwkit(branches(), path)


def test_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="to: there is no form 'onxn'; did you mean 'onnx'"):
        export(tiny.network(), tmp_path / "net", to="onxn")
    with pytest.raises(ValueError, match="shape: it cannot be told from the network"):
        export(branches(), tmp_path / "net")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="ONNX needs packages"):
        export(tiny.network(), tmp_path / "net")
    assert onnx.NEEDED[-1] == "onnxruntime"


@pytest.mark.parametrize("to", ["onnx", "torch-export", "state-dict", "aihwkit"])
def test_a_folder_that_is_not_there(to: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"^there is no folder .*/such to write x\.bin to$"):
        rapa_cli.export(tiny.network(), tmp_path / "no" / "such" / "x.bin", to=to)
    assert list(tmp_path.iterdir()) == []
