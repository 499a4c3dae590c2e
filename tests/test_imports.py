"""Imports between rooms run one way, as docs/architecture.md has it."""

from __future__ import annotations

import ast
from pathlib import Path

import rapa_cli

_ROOT = Path(rapa_cli.__file__).parent
# From above to below; rooms of one line may import each other.
_ORDER = (
    ("commands",),
    ("report",),
    ("experiments",),
    ("training", "attacks", "exporting", "analysis"),
    ("layers",),
    ("tiling",),
    ("analog",),
    ("kernels",),
    ("data",),
)
_LEVEL = {room: level for level, rooms in enumerate(_ORDER) for room in rooms}


def _imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere in it, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{name.name}" for name in node.names)}
    return {name.removeprefix("rapa_cli.") for name in found if name.startswith("rapa_cli.")}


def _level(module: str) -> int:
    return _LEVEL[module.partition(".")[0]]


def test_every_room_has_a_level() -> None:
    assert {path.parent.name for path in _ROOT.glob("*/__init__.py")} == set(_LEVEL)


def test_imports_run_one_way() -> None:
    modules = {".".join(path.relative_to(_ROOT).with_suffix("").parts): path for path in _ROOT.glob("*/*.py")}
    imports = {(module, other) for module, path in modules.items() for other in _imported(path) & modules.keys()}
    against = {pair for pair in imports if _level(pair[1]) < _level(pair[0])}
    assert not against
