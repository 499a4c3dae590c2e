"""What a wheel and a source archive hold, and that the definitions are found wherever the package lies."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import rapa_cli
from rapa_cli import resources
from rapa_cli.errors import FileError

ROOT = Path(__file__).parent.parent
PUBLIC = [
    "AnalogLinear",
    "AnalogSGD",
    "KeyedLayer",
    "Level",
    "Purpose",
    "Scheme",
    "TiledConv2d",
    "__version__",
    "assignments",
    "attack",
    "convert",
    "draws",
    "evaluate",
    "export",
    "load",
    "open_data",
    "plan",
    "preset",
    "reduce",
    "resume",
    "similarity",
    "train",
    "vote",
    "vote_error",
]


def build(source: Path, target: Path, kind: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    outcome = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (made,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive."""
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(build(ROOT, folder, "sdist")) as packed:
        packed.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as packed:
        return set(packed.namelist())


def definitions(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*.toml")}


def test_the_wheel_holds_the_package_and_its_definitions_only(wheel: Path) -> None:
    held = names(wheel)
    information = f"rapa_cli-{rapa_cli.__version__}.dist-info"
    assert {name.partition("/")[0] for name in held} == {"rapa_cli", information}
    assert {f"rapa_cli/_models/{name}" for name in definitions(ROOT / "models")} <= held
    assert "rapa_cli/_models/networks/full.toml" in held
    assert "rapa_cli/_models/zoo/full-random-cifar10/full-random-cifar10.safetensors" in held
    assert "rapa_cli/py.typed" in held
    assert f"{information}/licenses/LICENSE" in held
    assert not [name for name in held if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        folder = f"rapa_cli-{rapa_cli.__version__}.dist-info"
        assert "rapa = rapa_cli.__main__:main" in packed.read(f"{folder}/entry_points.txt").decode()
        metadata = packed.read(f"{folder}/METADATA").decode()
    assert f"\nVersion: {rapa_cli.__version__}\n" in metadata
    assert "\nName: rapa-cli\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata


def test_the_source_archive_is_complete(archive: Path, wheel: Path, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "models/networks/full.toml"):
        assert (archive / name).is_file(), name
    assert (archive / "tests" / Path(__file__).name).is_file()
    assert not (archive / "rapa_cli" / "_models").exists()
    assert names(build(archive, tmp_path, "wheel")) == names(wheel)


def test_the_definitions_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
    outcome = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rapa_cli import resources\n"
            "print(resources.models_root(), resources.definition('networks', 'full'), sep='\\n')\n",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    root = tmp_path / "rapa_cli" / "_models"
    assert [Path(line) for line in outcome.stdout.splitlines()] == [root, root / "networks" / "full.toml"]


@pytest.mark.slow  # the demonstration takes a minute
def test_the_demonstration_runs_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-index", "--no-deps", wheel], check=True, capture_output=True)
    (own,) = environment.glob("lib/python*/site-packages")
    # What rapa needs comes from here; its own modules do not, since those that are installed stand first.
    (own / "needed.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str | Path) -> str:
        return subprocess.run(words, cwd="/", env=clean, capture_output=True, text=True, check=True).stdout

    assert Path(run(python, "-c", "import rapa_cli; print(rapa_cli.__file__)").strip()).is_relative_to(own)
    rapa = environment / "bin" / "rapa"
    assert run(rapa, "--version").split() == ["rapa", rapa_cli.__version__]
    assert "full-random-cifar10" in run(rapa, "models", "list")
    shown = run(rapa, "demo", "--out", tmp_path / "demo")
    assert "reduced to one tile (norm)" in shown
    assert (tmp_path / "demo" / "last.safetensors").is_file()


def test_the_definitions_are_found_in_a_checkout() -> None:
    assert resources.models_root() == ROOT / "models"
    assert resources.definition("networks", "full") == ROOT / "models" / "networks" / "full.toml"
    assert resources.names("networks") == sorted(path.stem for path in (ROOT / "models" / "networks").glob("*.toml"))


def test_a_definition_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no network 'ful'") as caught:
        resources.definition("networks", "ful")
    assert caught.value.hint == "did you mean 'full'?"
    with pytest.raises(FileError, match=re.escape(f"there is no file {tmp_path / 'a.toml'}")):
        resources.definition("networks", str(tmp_path / "a.toml"))
    mine = tmp_path / "mine.toml"
    mine.write_text("", encoding="utf-8")
    assert resources.definition("networks", str(mine)) == mine


def test_the_public_names_are_pinned() -> None:
    assert rapa_cli.__all__ == PUBLIC
    assert dir(rapa_cli) == PUBLIC
    for name in PUBLIC:
        assert getattr(rapa_cli, name) is not None
    with pytest.raises(AttributeError, match="module 'rapa_cli' has no attribute 'nothing'"):
        rapa_cli.nothing  # noqa: B018 - the access is what is tested


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", rapa_cli.__version__)
    assert f"\nversion: {rapa_cli.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{rapa_cli.__version__}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
