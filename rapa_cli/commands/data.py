"""`rapa data`: getting data sets, listing them, looking at them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rapa_cli import console
from rapa_cli.commands.options import DataDir, Json
from rapa_cli.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from rapa_cli.data.images import DataSet, Progress

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Get, list and look at data sets.")

_FILE_WIDTH = 160
_MIB = 2**20
_MANY_BYTES = 4 * _MIB

Name = Annotated[str, typer.Argument(metavar="NAME", help="shapes, cifar10, cifar100, svhn, or a name of your own.")]


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
    """Put a data set into the store, where --data NAME finds it."""
    from rapa_cli.data import catalog

    with reporting() as progress:
        data, new = catalog.get(name, source, data_dir=data_dir, force=force, progress=progress)
    folder = catalog.data_dir(data_dir) / name
    if json:
        console.print_json({"name": name, "new": new, "path": str(folder), **_described(data)})
        return
    _, height, width = data.shape
    size = f"{len(data.train):,} + {len(data.test):,} images of {width} x {height}, {len(data.classes)} classes"
    console.out().print(f"{name}: {size}, in {folder}{'' if new else ' (was there already)'}", markup=False)


@app.command("list")
def list_(data_dir: DataDir = None, json: Json = False) -> None:
    """List the data sets that are here, and those that can be fetched."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from rapa_cli.data import catalog

    home, entries = catalog.data_dir(data_dir), catalog.listing(data_dir)
    if json:
        console.print_json({"data_dir": str(home), "data": [vars(entry) for entry in entries]})
        return
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("name", "state", "classes", "train", "test", "size", "MB", "source"):
        justify: Literal["left", "right"] = "left" if title in ("name", "state", "source") else "right"
        table.add_column(title, justify=justify, no_wrap=title != "source")
    for entry in entries:
        channels, height, width = entry.shape or (0, 0, 0)
        row = (
            entry.name,
            entry.state,
            *(f"{count:,}" if count else "" for count in (entry.classes, entry.train, entry.test)),
            f"{width} x {height} {'RGB' if channels == 3 else 'grey'}" if channels else "",
            f"{entry.size / 1e6:.0f}" if entry.size else "",
            entry.source,
        )
        table.add_row(*(Text(cell) for cell in row))
    screen = console.out()
    if not screen.is_terminal:
        screen.width = _FILE_WIDTH
    screen.print(table)
    console.note(f"data folder: {home}")


@app.command("show")
def show(
    name: Name,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture to write, a PNG file.")],
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="train or test.")] = "train",
    columns: Annotated[int, typer.Option("--columns", metavar="N", min=1, max=100, help="Images of each class.")] = 12,
    data_dir: DataDir = None,
) -> None:
    """Write a contact sheet: the first images of each class, a class for each row."""
    from rapa_cli.data.catalog import open_data
    from rapa_cli.data.sheet import contact_sheet
    from rapa_cli.files import atomic

    if split not in ("train", "test"):
        hint = suggestion(split, ("train", "test"))
        raise ConfigError(f"--split: got '{split}', allowed are train and test", hint=hint)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out: got '{out}', which does not end in .png", hint="the contact sheet is a PNG file")
    with reporting() as progress:
        data = open_data(name, data_dir, progress=progress)
    with atomic(out) as temporary:
        contact_sheet(data, split=split, columns=columns).save(temporary, format="png")
    console.out().print(str(out), markup=False)


@contextlib.contextmanager
def reporting() -> Iterator[Progress]:
    """Shows what getting or opening a data set is doing: a bar on a terminal, else a line for each long step."""
    with console.progress() as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if total > _MANY_BYTES:
                what, done, total = f"{what} (MiB)", done // _MIB, -(-total // _MIB)
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
                if bar.disable:
                    console.note(f"{what} ...")
            bar.update(tasks[what], completed=done, total=total or None)

        yield report


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
