"""What README shows works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rapa_cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ rapa (.+)$", README, re.MULTILINE)
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

# What keeps a command quick; an untrained network serves as well as a trained one.
QUICK = {"train": ["--epochs", "0"]} | {name: ["--images", "20"] for name in ("evaluate", "vote", "attack", "reduce")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_commands_work(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    assert len(COMMANDS) >= 6
    for line in COMMANDS:
        words = shlex.split(line)
        code = app.run([*words, *QUICK.get(words[0], [])])
        assert code == 0, capsys.readouterr().err
    assert (folder / "runs" / "mine" / "last.safetensors").is_file()


def test_the_examples_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not (folder / "runs" / "mine").exists():
        assert app.run(["train", "--tiles", "16,4,1", "--scheme", "random", "--epochs", "0", "--out", "runs/mine"]) == 0
    assert EXAMPLES
    for example in EXAMPLES:
        names: dict[str, object] = {}
        exec(example, names)
        assert tuple(getattr(names["classes"], "shape", ())) == (8,)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
