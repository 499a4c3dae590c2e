"""What README and the guides show works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import rapa_cli
from rapa_cli import app
from rapa_cli.analog.bank import Arrays
from rapa_cli.analog.specification import arrays_of, named_arrays
from tests.tolerances import assert_near

ROOT = Path(__file__).parent.parent
GUIDES = ("analog.md", "attacks.md", "reduce.md", "report.md", "vote.md")
# Their examples go on from what stands above them on the page.
TUTORIALS = ("export.md", "python.md")
PATHS = (ROOT / "README.md", *(ROOT / "docs" / name for name in (*GUIDES, *TUTORIALS)))
PAGES = {path.name: path.read_text(encoding="utf-8") for path in PATHS}
ALONE = [name for name in PAGES if name not in TUTORIALS]
EXAMPLES = [
    pytest.param(example, id=f"{name}-{number}")
    for name in ALONE
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL))
]

# What keeps a command quick; an untrained network serves as well as a trained one.
QUICK = {"train": ["--epochs", "0"], "attack": ["--images", "6"]}
QUICK |= {name: ["--images", "20"] for name in ("evaluate", "vote", "reduce", "report")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("page", ALONE)
def test_the_commands_work(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    commands = re.findall(r"^\$ rapa (.+)$", PAGES[page], re.MULTILINE)
    assert len(commands) >= 6
    for line in commands:
        words = shlex.split(line)
        code = app.run([*words, *QUICK.get(words[0], [])])
        assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_work(example: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if not (folder / "runs" / "mine").exists():
        assert app.run(["train", "--tiles", "16,4,1", "--scheme", "random", "--epochs", "0", "--out", "runs/mine"]) == 0
    names: dict[str, object] = {}
    exec(example, names)
    assert "classes" not in names or tuple(getattr(names["classes"], "shape", ())) == (8,)


# Four ONNX models are made on the page of exports; the tests of `exporting` make smaller ones.
@pytest.mark.parametrize("page", [pytest.param("export.md", marks=pytest.mark.slow), "python.md"])
def test_the_page_works_from_its_beginning(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    steps = re.findall(r"^\$ rapa ([^\n]+)$|^```python\n(.*?)```", PAGES[page], re.MULTILINE | re.DOTALL)
    assert len(steps) >= 8
    for line, example in steps:
        if example:
            exec(example, names)
            continue
        words = shlex.split(line)
        assert app.run([*words, *QUICK.get(words[0], [])]) == 0, capsys.readouterr().err


def test_plain_torch_loads_what_was_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGES["export.md"]
    train, *exports = re.findall(r"^\$ rapa (.+)$", page, re.MULTILINE)
    (state,) = (line for line in exports if "state-dict" in line)
    assert app.run([*shlex.split(train), *QUICK["train"]]) == 0
    assert app.run(shlex.split(state)) == 0
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]:
        assert "rapa" not in example
        exec(example, names)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = names["network"]((images - names["shift"]) / names["scale"])
        assert_near(found, rapa_cli.reduce(rapa_cli.load("runs/exported"))(images))


def test_the_arrays_of_the_guide_are_arrays(tmp_path: Path) -> None:
    (table,) = re.findall(r"```toml\n(.*?)```", PAGES["analog.md"], re.DOTALL)
    path = tmp_path / "own.toml"
    path.write_text(table, encoding="utf-8")
    arrays = arrays_of(named_arrays(str(path)))
    assert isinstance(arrays, Arrays)
    assert (arrays.update.desired_bl, arrays.mapping.max_input_size, arrays.forward.out_noise) == (10, 512, 0.05)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGES[page]):
        assert (folder / target).exists(), target
