"""Every page of documentation: its commands and examples work, its links lead somewhere, nothing generated is missing.

Pages are found, not listed. A page works from its beginning to its end in a folder of its own, unless another test runs
it in its own way, or what it shows needs other machines.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import rapa_cli
from rapa_cli import app, config
from tests import test_readme
from tests.commands import test_plan
from tests.guides import test_networks

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
}
ELSEWHERE = {str(path.relative_to(ROOT)) for path in (*test_readme.PATHS, test_networks.GUIDE, test_plan.GUIDE)}
# Their commands need the real CIFAR-10, hours, several GPUs or hosts; they are only parsed.
BEYOND = {"docs/guides/cifar10.md", "docs/guides/cluster.md", "docs/reproduce.md", "docs/results.md"}
HERE = [name for name in PAGES if name not in ELSEWHERE | BEYOND]
# What keeps a command quick; an untrained network serves as well as a trained one.
QUICK = {"train": ["--epochs", "0"], "attack": ["--images", "4"]}
QUICK |= {name: ["--images", "10"] for name in ("evaluate", "vote", "reduce", "report")}
QUICK |= {"regularizer": ["--epochs", "2", "--images", "20"]}
COMPARED = ["--train-images", "20"]
_LARGEST_PICTURE = 100_000

_path = DOCS / "generated.py"
_spec = importlib.util.spec_from_file_location("generated", _path)
assert _spec is not None
assert _spec.loader is not None
generated = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generated)


def console_lines(text: str) -> Iterator[str]:
    """What follows the prompts in a page's blocks; lines that end in a backslash go on."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield from line.removeprefix("$ ").split("; ")


def words_for_rapa(line: str) -> list[str] | None:
    """The words after `rapa`, or after `-m rapa_cli` of another program; None where the line runs something else."""
    words = shlex.split(line)
    if words[0] == "rapa":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "rapa_cli":
        return words[words.index("-m") + 2 :]
    assert words[0] in {"make", "export", "pip", "torchrun"}, f"unknown program: {line}"
    return None


def addressed(words: list[str]) -> tuple[str, Any, list[str]]:
    """The path and object of the command that words speak to, and the words that are left for it."""
    path, command = "rapa", typer.main.get_command(app.app)
    while words and words[0] in getattr(command, "commands", {}):
        path, command, words = f"{path} {words[0]}", command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    return path, command, words


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str) -> None:
    for line in console_lines(PAGES[page]):
        words = words_for_rapa(line)
        if words is not None:
            path, command, rest = addressed(words)
            command.make_context(path, rest)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    """Of what stands in running text, in scripts and in tables the commands and the names of options."""
    text = re.sub(r"```console\n.*?```", "", PAGES[page], flags=re.DOTALL).replace("\\\n", " ")
    text = re.sub(r"\s*\n\s*", " ", text)
    for found in re.findall(r"(?:`|\s-m )rapa(?:_cli)? ([a-z][^`]*?)(?:`| - \|| resources:)", text):
        first = re.split(r" \| |; ", found)[0]
        path, command, rest = addressed(re.findall(r"[^\s,]+", first))
        assert path != "rapa" or not rest, f"{page}: rapa {found}"
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        options = set(re.findall(r"(?<!\S)--?[a-zA-Z][a-z-]*", " ".join(rest)))
        assert options <= known | {"-h", "--help"}, f"{page}: rapa {found}"


def leaves(folder: Path) -> None:
    """Images in folders, for those who read about images of their own."""
    for number in range(24):
        picture = folder / "leaves" / ("train" if number % 3 else "test") / ("oak", "elm")[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (200 * (number % 2), number, 0)).save(picture)


@pytest.mark.parametrize("page", HERE)
def test_the_page_works_from_its_beginning(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare: dict[str, Callable[[Path], None]] = {"docs/guides/images.md": leaves}
    if page in prepare:
        monkeypatch.setenv("RAPA_DATA_DIR", str(tmp_path / "data"))
        prepare[page](tmp_path)
    names: dict[str, object] = {}
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL):
        file = re.match(r"# (\w+\.(?:py|toml))\n", block)
        if file:
            Path(file[1]).write_text(block, encoding="utf-8")
        if kind == "python":
            exec(compile(block, page, "exec"), names)
        elif kind == "console":
            for line in console_lines(f"```{kind}\n{block}```"):
                words = words_for_rapa(line)
                assert words is not None
                few = COMPARED if "--compare" in words else []
                code = app.run([*words, *QUICK.get(words[0], []), *few])
                assert code == 0, f"{line}\n{capsys.readouterr().err}"
        else:
            assert kind == "toml", f"{page}: nothing tests a block of {kind}"


@pytest.mark.cifar10
def test_trained_networks_do_what_the_page_says(
    cifar10_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAPA_DATA_DIR", str(cifar10_dir))
    lines = [line for line in console_lines(PAGES["docs/guides/cifar10.md"]) if "full-" in line or "list" in line]
    assert len(lines) >= 6
    for line in lines:
        words = words_for_rapa(line)
        assert words is not None
        assert app.run([*words, *QUICK.get(words[0], [])]) == 0, f"{line}\n{capsys.readouterr().err}"


def test_tables_of_keys_are_such_tables() -> None:
    (network,) = re.findall(r"```toml\n(.*?)```", PAGES["docs/reference/configuration.md"], re.DOTALL)
    path = Path("own.toml")
    assert config.validate(config.Network, {"name": "own", **tomllib.loads(network)}, str(path)).pool == "mixed"


def anchors(text: str) -> set[str]:
    """What headings can be linked by, as MkDocs and GitHub make it."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    slugs = (re.sub(r"[^\w\s-]", "", title.lower().replace("`", "")).strip() for title in titles)
    return {re.sub(r"[\s]+", "-", slug) for slug in slugs}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = generated.page(PAGES[page])
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{target} on {page}"
        assert page == "README.md" or path.resolve().is_relative_to(DOCS), f"{target} on {page} is not on the site"
        if anchor:
            assert anchor in anchors(generated.page(path.read_text(encoding="utf-8"))), f"{target}#{anchor} on {page}"


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(f"docs/{name}" for name in listed) == sorted(name for name in PAGES if name != "README.md")


def test_pictures_are_shown_and_small() -> None:
    shown = {Path(target).name for text in PAGES.values() for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)}
    pictures = list((DOCS / "pictures").iterdir())
    assert {path.name for path in pictures} == shown
    assert all(path.stat().st_size < _LARGEST_PICTURE for path in pictures)


def test_the_reference_names_every_command_and_option() -> None:
    text = generated.page(PAGES["docs/reference/commands.md"])
    sections = dict(re.findall(r"^## (rapa[a-z -]*)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    program: Any = typer.main.get_command(app.app)
    commands = dict(generated.walk("rapa", program))
    assert {"rapa train", "rapa data get"} <= commands.keys() == sections.keys()
    for path, command in commands.items():
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                name = option if option.startswith("-") else ""
                assert parameter.hidden or f"{name}" in sections[path], f"{path} {option}"


def test_the_reference_names_every_key_and_every_public_name() -> None:
    text = generated.page(PAGES["docs/reference/configuration.md"])
    for model in (config.Network, config.Recipe, config.Conv):
        rows = re.search(rf"^### {model.__name__}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
        assert rows is not None
        assert re.findall(r"^\| `(\w+)` \|", rows[1], re.MULTILINE) == list(model.model_fields)
    assert "| `epochs` | whole number ≥ 0 | required | passes over the training images. |" in text
    assert "| `momentum` | number ≥ 0, &lt; 1 | `0` | of SGD; 0 is plain SGD. |" in text
    names = re.findall(r"^::: rapa_cli\.(\w+)$", generated.page(PAGES["docs/reference/python.md"]), re.MULTILINE)
    assert set(names) == {name for name in rapa_cli.__all__ if not name.startswith("_")}
    returned = re.findall(
        r"^::: rapa_cli\.\S+\.(\w+)$", generated.page(PAGES["docs/reference/python.md"]), re.MULTILINE
    )
    assert {"DataSet", "Evaluation", "Plan", "Point", "Trained", "VoteResult"} <= set(returned)
    assert all("<!-- generated" not in generated.page(page) for page in PAGES.values())


def test_the_environment_is_documented() -> None:
    read = {
        name
        for path in (ROOT / "rapa_cli").rglob("*.py")
        for name in re.findall(r"environ[^\n]*?\"(RAPA_[A-Z_]+|XDG_[A-Z_]+)\"", path.read_text(encoding="utf-8"))
    }
    assert {"RAPA_DATA_DIR", "RAPA_KERNEL", "RAPA_TRACEBACK"} <= read
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", PAGES["docs/reference/configuration.md"]))
    assert read <= named


def rows_of(text: str) -> set[tuple[str, ...]]:
    """Rows of tables, their cells without spaces at the ends."""
    return {
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in text.splitlines()
        if line.startswith("| ") and "---" not in line
    }


def test_the_results_in_readme_are_those_of_the_page() -> None:
    shown = rows_of(PAGES["README.md"].partition("## Results")[2].partition("\n## ")[0])
    assert len(shown) >= 5
    assert shown <= rows_of(PAGES["docs/results.md"])


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    reason = "needs the dependency group docs"
    build = pytest.importorskip("mkdocs.commands.build", reason=reason)
    settings = pytest.importorskip("mkdocs.config", reason=reason).load_config(
        str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True
    )
    build.build(settings)
    built = list(tmp_path.rglob("*.html"))
    assert len(built) > len(PAGES) - 1
    for path in built:
        loaded = re.findall(
            r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)|<link\b[^>]*\bhref=\"([^\"]+)",
            path.read_text(encoding="utf-8"),
        )
        assert not [one for pair in loaded for one in pair if re.match(r"(https?:)?//", one)], path
