"""Where the definitions, recipes and small checkpoints that come with the package lie."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from rapa_cli.errors import FileError, suggestion

ZOO = "zoo"


def models_root() -> Path:
    """The folder `models`: inside an installed package, or at the top of a checkout."""
    packaged = Path(str(importlib.resources.files("rapa_cli"))) / "_models"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "models"


def definition(kind: str, name: str) -> Path:
    """The TOML file of a named definition, or the user's own file.

    Args:
        kind: "networks" or "recipes".
        name: a name without ending, such as "full", or the path of a TOML file.

    Raises:
        FileError: there is no such file or name.
    """
    if is_path(name):
        path = Path(name)
        if not path.is_file():
            raise FileError(f"there is no file {path}", hint=f"{kind} of the package: {', '.join(names(kind))}")
        return path
    path = models_root() / kind / f"{name}.toml"
    if not path.is_file():
        raise FileError(f"there is no {kind[:-1]} '{name}'", hint=suggestion(name, names(kind)))
    return path


def is_path(name: str) -> bool:
    """Whether the name of a definition means the user's own file."""
    return name.endswith(".toml") or "/" in name


def names(kind: str) -> list[str]:
    """Names of the definitions of one kind ("networks" or "recipes") that come with the package."""
    return sorted(path.stem for path in (models_root() / kind).glob("*.toml"))


def zoo_names() -> list[str]:
    """Names of the trained networks that come with the package."""
    return sorted(path.stem for path in (models_root() / ZOO).glob("*/*.safetensors") if path.stem == path.parent.name)


def in_zoo(name: str) -> Path | None:
    """The checkpoint of a trained network that comes with the package, or None where there is none of that name."""
    return models_root() / ZOO / name / f"{name}.safetensors" if name in zoo_names() else None


def zoo_name(path: Path) -> str | None:
    """The name of the network of the zoo whose checkpoint this is, or None."""
    return path.stem if path.resolve().parent.parent == (models_root() / ZOO).resolve() else None
