"""What the guide to schemes of one's own shows works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rapa_cli import app

GUIDE = Path(__file__).parent.parent.parent / "docs" / "guides" / "schemes.md"
TEXT = GUIDE.read_text(encoding="utf-8")
QUICK = {"train": ["--epochs", "0"], "attack": ["--images", "4"]}
QUICK |= {name: ["--images", "4"] for name in ("evaluate", "vote", "reduce", "report")}


def pythons() -> tuple[str, str]:
    """The user's file, and the example."""
    file, example = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    return file, example


@pytest.mark.slow
def test_the_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shifted.py").write_text(pythons()[0], encoding="utf-8")
    commands = re.findall(r"^\$ rapa (.+)$", TEXT, re.MULTILINE)
    assert len(commands) >= 8
    for line in commands:
        words = shlex.split(line)
        code = app.run([*words, *QUICK.get(words[0], [])])
        out, err = capsys.readouterr()
        assert code == 0, f"{line}\n{err}"
        assert "draws are the same" not in out + err, "this scheme draws"
    page = (tmp_path / "runs" / "shifted" / "report.html").read_text(encoding="utf-8")
    assert "shifted (16)" in page
    assert "Each image and draw may have its own assignment." in page


def test_the_example_works() -> None:
    exec("\n".join(pythons()), {"__name__": "shifted"})
