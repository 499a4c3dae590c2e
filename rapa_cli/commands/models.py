"""`rapa models`: the definitions and the trained networks that come with the package."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion
from rapa_cli.commands.options import Json
from rapa_cli.errors import FileError, suggestion

if TYPE_CHECKING:
    from pathlib import Path

    from rapa_cli.config import Network
    from rapa_cli.zoo import Card

# Columns of what a row is called.
_LABEL = 12

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List and show the networks that come with the package.\n\nDefinitions, and trained ones.\n\n"
    "Example: rapa models list",
)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the definitions of networks, and the zoo: networks that are trained.

    A definition is what --network takes; a name of the zoo stands wherever a command takes a checkpoint.

    Example: rapa models list
    """
    from rapa_cli import config, resources, zoo

    definitions = [config.load_network(name) for name in resources.names("networks")]
    cards = {name: zoo.card(name) for name in resources.zoo_names()}
    if json:
        networks = [{"name": each.name, "description": each.description} for each in definitions]
        trained = [_document(name, card) for name, card in cards.items()]
        console.print_json({"networks": networks, "zoo": trained})
        return
    console.show("networks, for --network")
    for each in definitions:
        _entry(each.name, each.description)
    if not cards:
        console.show("\nno trained networks are in this installation")
        return
    console.show("\nzoo, for wherever a checkpoint is taken")
    for name, card in cards.items():
        figures = f"test error {card.test_error:.2f} %, {card.accuracy_33db:.1f} % right at 33 dB, {_size(name)}"
        _entry(name, card.description, figures)


@app.command("show")
def show(
    name: Annotated[
        str,
        typer.Argument(
            autocompletion=completion.models, metavar="NAME", help="A network as `rapa models list` has it."
        ),
    ],
    json: Json = False,
) -> None:
    """Show a network: the layers of a definition, or the card of a trained one.

    Example: rapa models show full
    """
    from rapa_cli import config, resources, zoo

    known = [*resources.names("networks"), *resources.zoo_names()]
    if name not in known:
        raise FileError(f"there is no network '{name}' in the package", hint=suggestion(name, known))
    if name in resources.names("networks"):
        definition = config.load_network(name)
        path = resources.definition("networks", name)
        if json:
            console.print_json({**definition.model_dump(mode="json"), "file": path})
        else:
            _show_definition(definition, path)
        return
    card = zoo.card(name)
    if json:
        console.print_json(_document(name, card))
    else:
        _show_card(name, card)


def _document(name: str, card: Card) -> dict[str, Any]:
    checkpoint = _checkpoint(name)
    size = checkpoint.stat().st_size
    return {"name": name, **card.model_dump(mode="json"), "checkpoint": checkpoint, "bytes": size}


def _checkpoint(name: str) -> Path:
    from rapa_cli import resources

    found = resources.in_zoo(name)
    assert found is not None
    return found


def _size(name: str) -> str:
    return console.size(_checkpoint(name).stat().st_size)


def _entry(name: str, *sentences: str) -> None:
    """A name, and below it what is to say of it."""
    from rich.text import Text

    screen = console.out()
    screen.print(Text(f"  {name}", style="bold"), soft_wrap=True)
    for sentence in sentences:
        console.show(textwrap.fill(sentence, screen.width, initial_indent=" " * 4, subsequent_indent=" " * 4))


def _show_card(name: str, card: Card) -> None:
    from rapa_cli.config import tiling

    low, high = card.test_error_ci95
    several = card.scheme != "none"
    rows = {
        "network": card.network,
        "tiling": tiling(card.scheme, card.tiles) if several else "none: one array for each layer",
        "data": f"{card.data}; images: {card.data_licence}",
        "training": f"{card.epochs} epochs, recipe {card.recipe}, seed {card.seed}",
        "": f"{console.duration(card.seconds)} on {card.machine}, {card.date}",
        " ": f"rapa {card.rapa_version}, torch {card.torch_version}",
        "test error": f"{card.test_error:.2f} %  (95 %: {low:.2f} to {high:.2f}{'; one draw' if several else ''})",
        "vote of 5": None if card.vote5_error is None else f"{card.vote5_error:.2f} %",
        "reduced": None if card.reduced_error is None else f"{card.reduced_error:.2f} %  (by norm)",
        "at 33 dB": f"{card.accuracy_33db:.1f} % right under FGSM  (of the images right without it)",
        "checkpoint": f"{_checkpoint(name)}, {_size(name)}",
    }
    _rows(name, card.description, rows)
    console.show(f"\ntrain it again\n  {card.command}\ntry it\n  rapa attack {name} --images 1000")


def _show_definition(definition: Network, path: Path) -> None:
    from rapa_cli.config import tiling

    rows = {
        "pooling": definition.pool,
        "tiling": tiling(definition.scheme, definition.tiles),
        "normalise": definition.normalization,
        "layers": "\n".join(_layer(layer.model_dump(exclude_defaults=True)) for layer in definition.layers),
        "file": str(path),
    }
    _rows(definition.name, definition.description, rows)
    console.show(f"\nits tiles and analog time\n  rapa plan {definition.name}")


def _layer(keys: dict[str, Any]) -> str:
    """A layer in a line: its kind, and the keys that are not as usual."""
    kind = keys.pop("kind")
    return " ".join([f"{kind:<7}", ", ".join(f"{key} {value}" for key, value in keys.items())]).rstrip()


def _rows(name: str, description: str, rows: Mapping[str, str | None]) -> None:
    """A title, and a table of labels and texts, wrapped to the screen."""
    from rich.text import Text

    screen = console.out()
    screen.print(Text(name, style="bold"), soft_wrap=True)
    console.show(textwrap.fill(description, screen.width))
    for label, text in rows.items():
        lines = [] if text is None else text.splitlines()
        for number, line in enumerate(lines):
            first = Text(f"{'' if number else label.strip():<{_LABEL}}", style="dim")
            # Only between words: a path is worth something whole.
            wrapped = textwrap.wrap(
                line,
                max(screen.width - _LABEL, 20),
                break_long_words=False,
                break_on_hyphens=False,
                drop_whitespace=True,
            )
            screen.print(Text.assemble(first, f"\n{' ' * _LABEL}".join(wrapped)), soft_wrap=True)
