"""What the pages of reference take from the program: its commands, its tables of keys, its public names.

A line `<!-- generated: WHAT WORDS -->` on a page stands for what the function of that name below makes of the words.
MkDocs runs this file as a hook; `page` does the same without it.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import rapa_cli
from rapa_cli import config
from rapa_cli.app import app

MARKER = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this for each page."""
    return page(markdown)


def page(markdown: str) -> str:
    """A page with what is generated in the place of its markers."""
    shown: dict[type[BaseModel], None] = {}
    makers: dict[str, Callable[..., str]] = {
        "commands": commands,
        "keys": partial(keys, shown),
        "names": names,
        "results": results,
        "docstring": docstring,
    }

    def made(marker: re.Match[str]) -> str:
        what, *words = marker[1].split()
        return makers[what](*words)

    return MARKER.sub(made, markdown)


def commands() -> str:
    """Every command of the program with its arguments and options."""
    program: Any = typer.main.get_command(app)
    return "\n\n".join(_command(path, command) for path, command in walk("rapa", program))


def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and all below it, with their paths (`rapa data get`)."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(f"{path} {name}", below)


def _command(path: str, command: Any) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## {path}", _prose(command.help or ""), f"```\n{path} {usage}\n```"]
    records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    rows = [f"| {_code(name)} | {_cell(' '.join(meaning.split()))} |" for name, meaning in records]
    return "\n\n".join([*filter(None, parts), "\n".join(["| | |", "| --- | --- |", *rows])])


def keys(shown: dict[type[BaseModel], None], path: str, level: str = "2", elsewhere: str = "") -> str:
    """The keys of a configuration table, given by the path of its class, and of all tables inside it.

    Args:
        shown: tables that the page has already; those of this call join them.
        path: of the class.
        level: of the headings.
        elsewhere: the page that has the tables of `rapa_cli.config`, where this one only points to them.
    """
    module, _, name = path.rpartition(".")
    before = len(shown)
    _collect(getattr(importlib.import_module(module), name), shown)
    new = list(shown)[before:]
    there = [model for model in shown if elsewhere and model.__module__ == config.__name__]
    text = "\n\n".join(_table(model, int(level)) for model in new if model not in there)
    for model in there:
        anchor = f"(#{model.__name__.lower()})"
        text = text.replace(anchor, f"({elsewhere}{anchor[1:]}")
    return text


def _collect(model: type[BaseModel], found: dict[type[BaseModel], None]) -> None:
    if model in found:
        return
    for base in _bases(model):
        _collect(base, found)
    found[model] = None
    for field in model.model_fields.values():
        for inside in _models(field.annotation):
            _collect(inside, found)


def _bases(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The tables whose keys a table has besides its own."""
    found: list[type[BaseModel]] = []
    for base in model.__bases__:
        if issubclass(base, BaseModel) and base.model_fields:
            found += _bases(base) if base.__name__.startswith("_") else [base]
    return found


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inside in get_args(kind):
        yield from _models(inside)


def _table(model: type[BaseModel], level: int) -> str:
    summary = inspect.getdoc(model) or ""
    text = _prose(re.split(r"\n(?:Attributes|Args|Raises):\n", summary)[0].strip())
    bases, meanings, rows = _bases(model), _meanings(model), []
    for name, field in model.model_fields.items():
        if any(repr(base.model_fields.get(name)) == repr(field) for base in bases):
            continue
        rows.append(
            f"| `{name}` | {_allowed(field.annotation, field.metadata)} | {_default(field)} "
            f"| {_cell(meanings.get(name, ''))} |"
        )
    table = "\n".join(["| key | allowed | default | |", "| --- | --- | --- | --- |", *rows]) if rows else ""
    more = "".join(f"Also the keys of [{base.__name__}](#{base.__name__.lower()})." for base in bases)
    return "\n\n".join(filter(None, [f"{'#' * level} {model.__name__}", text, table, more]))


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """What the section `Attributes` of a class and of those it is derived from says of each key."""
    meanings: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        text = inspect.cleandoc(owner.__dict__.get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?: +.*\n?|\n)+)", text, re.MULTILINE)
        for name, meaning in re.findall(r"^ {4}(\w+): (.+(?:\n {5,}.+)*)", section[1] if section else "", re.MULTILINE):
            meanings[name] = " ".join(meaning.split())
    return meanings


def _allowed(kind: Any, limits: Any = ()) -> str:
    """What values a key takes, in words."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _allowed(inside[0], inside[1:])
    if origin in (Union, UnionType):
        return " or ".join(_allowed(one) for one in inside if one is not type(None))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inside)
    if origin is tuple:
        length = "" if inside[-1] is Ellipsis else f" of {len(inside)}"
        return f"list{length}, each {_allowed(inside[0])}"
    if origin is dict or kind is dict:
        return "table"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    word = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}.get(kind, kind.__name__)
    bounds = [
        f"{sign} {getattr(one, attribute)}"
        for limit in limits
        for one in (limit, *getattr(limit, "metadata", ()))
        for attribute, sign in _BOUNDS.items()
        if getattr(one, attribute, None) is not None
    ]
    return _cell(" ".join([word, ", ".join(dict.fromkeys(bounds))]).strip())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:.6g}`" if isinstance(value, float) else f"`{value}`" if value not in ("", (), {}) else ""


def names() -> str:
    """The public names, for mkdocstrings to describe."""
    found = sorted((name for name in rapa_cli.__all__ if not name.startswith("_")), key=str.lower)
    return "\n\n".join(f"::: rapa_cli.{name}" for name in found)


def results() -> str:
    """The classes of what the public functions return, for mkdocstrings likewise."""
    public = {getattr(rapa_cli, name) for name in rapa_cli.__all__}
    functions = [each for each in public if inspect.isfunction(each)]
    kinds = {
        getattr(inspect.getmodule(function), word, None)
        for function in functions
        for word in re.findall(r"\w+", str(function.__annotations__["return"]))
    }
    ours = (kind for kind in kinds - public if isinstance(kind, type) and kind.__module__.startswith("rapa_cli."))
    return "\n\n".join(
        f"::: {kind.__module__}.{kind.__name__}" for kind in sorted(ours, key=lambda kind: kind.__name__)
    )


def docstring(module: str) -> str:
    """What stands at the top of a module, as it stands there, without its first paragraph."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    return f"```\n{text.partition(chr(10) * 2)[2]}\n```"


def _prose(text: str) -> str:
    """Text of a help page or docstring as Markdown; indented lines are formulas."""
    return re.sub(r"(?<!`)<(?=\w)", "&lt;", inspect.cleandoc(text))


def _cell(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _code(text: str) -> str:
    return f"`{text.strip()}`".replace("|", "\\|")


if __name__ == "__main__":
    import sys

    sys.stdout.write(page(Path(sys.argv[1]).read_text(encoding="utf-8")))
