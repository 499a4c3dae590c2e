"""`rapa data`: getting data sets, listing them, looking at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion
from rapa_cli.commands.options import DataDir, Json, Split
from rapa_cli.commands.session import data_progress
from rapa_cli.errors import ConfigError

if TYPE_CHECKING:
    from rapa_cli.data.catalog import Entry
    from rapa_cli.data.images import DataSet

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Get, list and look at data sets.\n\nExample: rapa data list"
)

Name = Annotated[
    str,
    typer.Argument(
        autocompletion=completion.data, metavar="NAME", help="shapes, cifar10, cifar100, svhn, or a name of your own."
    ),
]


@app.command("get")
def get(
    name: Name,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="The official archive or folder, a folder with train.npz and test.npz, or a folder of images "
            "for each class; a download when left out.",
        ),
    ] = None,
    data_dir: DataDir = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a data set of that name.")] = False,
    json: Json = False,
) -> None:
    """Put a data set into the store, where --data NAME finds it.

    Example: rapa data get cifar10, or rapa data get mine --from my-images
    """
    from rapa_cli.data import catalog, places

    with data_progress() as progress:
        data, new = catalog.get(name, source, data_dir=data_dir, force=force, progress=progress)
    folder = places.data_dir(data_dir) / name
    if json:
        console.print_json({"name": name, "new": new, "path": str(folder), **_described(data)})
        return
    size = _size(data.shape, len(data.train), len(data.test), len(data.classes))
    console.show(f"{name}: {size}{'' if new else ' (was there already)'}\n  from {data.source}\n  in {folder}")


@app.command("list")
def list_(data_dir: DataDir = None, json: Json = False) -> None:
    """List the data sets that are here, and those that can be fetched.

    Example: rapa data list --json
    """
    from rapa_cli.data import catalog, places

    home, entries = places.data_dir(data_dir), catalog.listing(data_dir)
    if json:
        console.print_json({"data_dir": str(home), "data": [vars(entry) for entry in entries]})
        return
    for entry in entries:
        console.show("\n  ".join(_lines(entry)))
    console.note(f"data folder: {home}")


@app.command("show")
def show(
    name: Name,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture to write, a PNG file.")],
    split: Split = "train",
    columns: Annotated[int, typer.Option("--columns", metavar="N", min=1, max=100, help="Images of each class.")] = 12,
    data_dir: DataDir = None,
) -> None:
    """Write a contact sheet: the first images of each class, a class for each row.

    Example: rapa data show shapes --out shapes.png
    """
    from rapa_cli.data.catalog import open_data
    from rapa_cli.data.sheet import contact_sheet
    from rapa_cli.files import atomic

    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out: got '{out}', which does not end in .png", hint="the contact sheet is a PNG file")
    with data_progress() as progress:
        data = open_data(name, data_dir, progress=progress)
    with atomic(out) as temporary:
        contact_sheet(data, split=split, columns=columns).save(temporary, format="png")
    console.show(str(out))


def _lines(entry: Entry) -> list[str]:
    """What the list says of a data set: its name whole, and lines that fit a narrow terminal."""
    size = f", {entry.size / 1e6:.0f} MB" if entry.size else ""
    lines = [f"{entry.name}  {entry.state}{size}"]
    if entry.shape:
        lines.append(_size(entry.shape, entry.train, entry.test, entry.classes))
    return [*lines, entry.source]


def _size(shape: tuple[int, int, int], train: int, test: int, classes: int) -> str:
    channels, height, width = shape
    return f"{train:,} + {test:,} images, {width} x {height} {'RGB' if channels == 3 else 'grey'}, {classes} classes"


def _described(data: DataSet) -> dict[str, Any]:
    return {
        "classes": list(data.classes),
        "shape": list(data.shape),
        "train": len(data.train),
        "test": len(data.test),
        "mean": data.mean.tolist(),
        "std": data.std.tolist(),
        "source": data.source,
    }
