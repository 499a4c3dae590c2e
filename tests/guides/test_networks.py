"""What the guide to networks shows works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from rapa_cli import app

GUIDE = Path(__file__).parent.parent.parent / "docs" / "guides" / "networks.md"
TEXT = GUIDE.read_text(encoding="utf-8")
# What keeps a command quick; an untrained network serves as well as a trained one.
QUICK = {"train": ["--epochs", "0"], "attack": ["--images", "6"]}
QUICK |= {name: ["--images", "10"] for name in ("evaluate", "vote", "reduce", "report")}


def pythons() -> tuple[str, str]:
    """The user's file, and the example."""
    file, example = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert file.startswith("# mynet.py\n")
    return file, example


def test_the_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "mynet.py").write_text(pythons()[0], encoding="utf-8")
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    (program,) = re.findall(r'```bash\npython -c "(.*?)"\n```', TEXT, re.DOTALL)
    # As the shell joins lines.
    exec(program.replace("\\\n", ""), {"save_file": save_file})
    for number in range(24):
        picture = tmp_path / "leaves" / "ab"[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (200 * (number % 2), number, 0)).save(picture)
    commands = re.findall(r"^\$ rapa (.+)$", TEXT, re.MULTILINE)
    assert len(commands) >= 16
    for line in commands:
        words = shlex.split(line)
        code = app.run([*words, *QUICK.get(words[0], [])])
        assert code == 0, f"{line}\n{capsys.readouterr().err}"


def test_the_example_works() -> None:
    exec(pythons()[1], {})
