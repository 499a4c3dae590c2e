"""A tiny data set in the store, a run trained on it, and a way to call `rapa`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rapa_cli import app
from tests.training import tiny

TRAIN = ["train", "--network", "tiny.toml", "--data", "mini", "--batch-size", "10"]


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What `--json` printed: one document and nothing else."""
        assert self.code == 0, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found


Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `mini`, the network `tiny.toml` and the finished run `runs/done`."""
    folder = tmp_path_factory.mktemp("workshop")
    tiny.write_arrays(folder / "arrays", train=60, test=30)
    (folder / "tiny.toml").write_text(tiny.TOML, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RAPA_DATA_DIR", str(folder / "data"))
        assert app.run(["data", "get", "mini", "--from", "arrays"]) == 0
        scheme = ["--scheme", "random", "--tiles", "4"]
        assert app.run([*TRAIN, *scheme, "--epochs", "3", "--lr", "0.02", "--out", "runs/done"]) == 0
    return folder


@pytest.fixture
def here(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh folder to work in, with the same network, data and finished run."""
    for name in ("tiny.toml", "runs/done/run.json", "runs/done/last.safetensors", "runs/done/best.safetensors"):
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((workshop / name).read_bytes())
    monkeypatch.setenv("RAPA_DATA_DIR", str(workshop / "data"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.fixture
def rapa(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in `here`."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = app.run(arguments)
        return Outcome(code, *capsys.readouterr())

    return run


def refused(outcome: Outcome, code: int, message: str, hint: str | None) -> None:
    """The command ended with one line that says what is wrong, and one with a hint; nothing else was printed."""
    lines = outcome.err.splitlines()
    wrong = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert len(wrong) == 1, outcome.err
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert message in lines[wrong[0]]
    if hint is None:
        assert lines[wrong[0] + 1 :] == []
    else:
        (last,) = lines[wrong[0] + 1 :]
        assert last.startswith("hint: ")
        assert hint in last
