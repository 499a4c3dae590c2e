"""`rapa config`: the configuration that a training would have and where it comes from, and checks of files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion
from rapa_cli.commands.options import Json
from rapa_cli.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from rapa_cli.config import Network, Recipe

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show where settings come from, and check files.\n\nExample: rapa config show --recipe short",
)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="As for `rapa train`."),
]


@app.command("show")
def show(
    network: Annotated[
        str,
        typer.Option(autocompletion=completion.networks, metavar="NAME", help="A definition, or a TOML file."),
    ] = "full",
    recipe: Annotated[
        str, typer.Option(autocompletion=completion.recipes, metavar="NAME", help="A recipe, or a TOML file.")
    ] = "short",
    scheme: Annotated[
        str | None,
        typer.Option(autocompletion=completion.schemes, metavar="NAME", show_default=False, help="Tiling scheme."),
    ] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Show the configuration that `rapa train` would have, and where each value comes from.

    A value is a default, or stands in a file, in the environment or on the command line. What `rapa train` has other
    options for are settings here: --set epochs=40, --set network.arrays=ReRamES.

    Example: rapa config show --network full --recipe short --scheme random --set lr=0.01
    """
    from rapa_cli import config
    from rapa_cli.analog.specification import arrays_of

    changed = [*([f"network.scheme={scheme}"] if scheme is not None else []), *(settings or [])]
    before = config.load_network(network)
    chosen, _ = config.override(before, config.load_recipe(recipe, before.scheme), changed)
    chosen, plan = config.override(before, config.load_recipe(recipe, chosen.scheme), changed)
    arrays_of(chosen.arrays)
    origins = _origins(network, recipe, chosen.scheme) | _set(changed)
    if scheme is not None:
        origins["network", "scheme"] = "--scheme"
    tables: list[tuple[str, Network | Recipe]] = [("network", chosen), ("recipe", plan)]
    rows = [
        {"key": f"{table}.{key}", "value": value, "from": origins.get((table, key), "default")}
        for table, values in tables
        for key, value in values.model_dump(mode="json").items()
    ]
    rows += _environment()
    if json:
        console.print_json({"settings": rows})
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for row in rows:
        table.add_row(row["key"], _shown(row["value"]), row["from"])
    console.out().print(table)


@app.command("validate")
def validate(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", show_default=False, help="TOML files.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.kinds,
            metavar="KIND",
            show_default=False,
            help="network, recipe or arrays; by what stands in the file when left out.",
        ),
    ] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Check network definitions, recipes, array presets and settings: a line for each error, and exit code 2.

    Example: rapa config validate mine.toml, or rapa config validate --set lr=0.1 --set network.pool=max
    """
    if kind is not None and kind not in completion.KINDS:
        raise ConfigError(f"--kind: there is no kind '{kind}'", hint=suggestion(kind, completion.KINDS))
    if not files and not settings:
        raise ConfigError("there is nothing to check", hint="name a file: rapa config validate mine.toml")
    found = [_checked(file, kind) for file in files or []]
    if settings:
        found.append({"file": None, "kind": "settings", "errors": _errors(lambda: _override(settings))})
    if json:
        console.print_json({"valid": not any(each["errors"] for each in found), "checked": found})
    else:
        for each in found:
            # An error names its file itself.
            for error in each["errors"] or [f"{each['file'] or each['kind']}: {_fine(each)}"]:
                console.show(error)
    if any(each["errors"] for each in found):
        raise typer.Exit(ConfigError.exit_code)


def _fine(each: dict[str, Any]) -> str:
    return "in order" if each["file"] is None else f"{each['kind']}, in order"


def _origins(network: str, recipe: str, scheme: str) -> dict[tuple[str, str], str]:
    """The file of each key that stands in one."""
    from rapa_cli import config
    from rapa_cli.resources import definition

    found: dict[tuple[str, str], str] = {}
    if network.startswith(config.TORCHVISION) or config.is_code(network):
        found |= {("network", key): network for key in ("name", "module")} | {("network", "scheme"): "tiled by default"}
    else:
        path = definition("networks", network)
        found |= {("network", key): _name(path) for key in ("name", *config.read_toml(path))}
    path = definition("recipes", recipe)
    table = config.read_toml(path)
    own = table.pop("scheme", {}).get(scheme, {})
    found |= {("recipe", key): _name(path) for key in table}
    return found | {("recipe", key): f"{_name(path)} [scheme.{scheme}]" for key in own}


def _name(path: Path) -> str:
    """A file, briefly where it is one of the package."""
    from rapa_cli.resources import models_root

    root = models_root()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _set(settings: list[str]) -> dict[tuple[str, str], str]:
    """The keys that settings change, which are known to be right."""
    from rapa_cli.config import Recipe

    found = {}
    for setting in settings:
        table, _, key = setting.partition("=")[0].strip().rpartition(".")
        found[table or ("recipe" if key in Recipe.model_fields else "network"), key] = "--set"
    return found


def _environment() -> list[dict[str, Any]]:
    """What the environment decides."""
    from rapa_cli.data.places import data_dir

    named = next((name for name in ("RAPA_DATA_DIR", "XDG_DATA_HOME") if os.environ.get(name)), None)
    switches = {name: os.environ.get(name) for name in ("RAPA_KERNEL", "RAPA_CUDA_GRAPH")}
    return [
        {"key": "data_dir", "value": str(data_dir()), "from": named or "default"},
        *(
            {"key": name.removeprefix("RAPA_").lower(), "value": value or "auto", "from": name if value else "default"}
            for name, value in switches.items()
        ),
    ]


def _shown(value: Any) -> str:
    """A value as TOML has it; of tables only how many there are."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"{len(value)} tables"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 30 else f"{text[:27]}..."


def _checked(file: Path, kind: str | None) -> dict[str, Any]:
    """What is wrong with a file."""
    from rapa_cli import config

    try:
        table = config.read_toml(file)
    except ConfigError as error:
        return {"file": str(file), "kind": kind, "errors": [error.message]}
    kind = kind or _kind(table)
    return {"file": str(file), "kind": kind, "errors": _errors(*_checks(file, kind, table))}


def _kind(table: dict[str, Any]) -> str:
    """Of what kind a file seems to be."""
    from rapa_cli.config import Network, Recipe

    own = {kind: set(model.model_fields) for kind, model in (("network", Network), ("recipe", Recipe))}
    if "layers" in table:
        return "network"
    if isinstance(table.get("scheme"), dict):
        return "recipe"
    known = {kind: len(keys & table.keys()) for kind, keys in own.items()}
    best = max(known, key=lambda kind: known[kind])
    return best if known[best] else "arrays"


def _checks(file: Path, kind: str, table: dict[str, Any]) -> list[Callable[[], object]]:
    """What has to succeed for a file to be in order."""
    from rapa_cli import config

    if kind == "network":
        return [lambda: _network(file)]
    if kind == "arrays":
        return [lambda: _arrays(file, table)]
    # A scheme's own keys can hide what is wrong in the others.
    return [lambda scheme=scheme: config.load_recipe(str(file), scheme) for scheme in completion.SCHEMES]  # type: ignore[misc]


def _network(file: Path) -> None:
    from rapa_cli import config

    network = config.load_network(str(file))
    if network.arrays != "ideal":
        _arrays(file, network.arrays)


def _arrays(file: Path, specification: Any) -> None:
    from rapa_cli.analog.specification import arrays_of

    try:
        arrays_of(specification)
    except ConfigError as error:
        error.problems = tuple(f"{file}: {line}" for line in error.lines())
        raise


def _override(settings: list[str]) -> None:
    from rapa_cli import config
    from rapa_cli.analog.specification import arrays_of

    network = config.load_network("full")
    changed, _ = config.override(network, config.load_recipe("short", network.scheme), settings)
    arrays_of(changed.arrays)


def _errors(*checks: Callable[[], object]) -> list[str]:
    found: list[str] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            found += error.lines()
    return list(dict.fromkeys(found))
