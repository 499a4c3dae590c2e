"""`rapa regularizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.errors import ConfigError


def regularizer(
    data: Annotated[str, typer.Option(autocompletion=completion.data, metavar="NAME", help="Data set.")] = "shapes",
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", show_default="first two", help="Two of its classes.")
    ] = None,
    tiles: Annotated[str, typer.Option(metavar="LIST", help="Numbers of tiles.")] = "1,2,4,8,16,32,64",
    images: Annotated[int, typer.Option(metavar="N", min=2, help="Training images, half of each class.")] = 200,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Epochs of each training.")] = 200,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Trainings, each on other images.")] = 5,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default=False, help="Folder for the figure and the rows.")
    ] = None,
    data_dir: options.DataDir = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Show the paper's implicit regularizer (section 4).

    Logistic regressions with ever more tiles: the loss over random draws is that of the weights averaged over tiles
    plus R, which depends on no label.

    Example: rapa regularizer --data cifar10 --classes cat,dog --out regularizer
    """
    from rapa_cli.analysis.regularizer import run_regularizer
    from rapa_cli.commands.session import compute_device, open_data
    from rapa_cli.report import figures
    from rapa_cli.report.regularizer_figure import regularizer_against_tiles
    from rapa_cli.runs import write_rows

    # Networks this small are computed faster than a GPU starts.
    compute_device("cpu", threads)
    counts = options.parse_tiles(tiles)
    chosen = None if classes is None else tuple(name.strip() for name in classes.split(","))
    if chosen is not None and len(chosen) != 2:
        raise ConfigError(f"--classes: got '{classes}'", hint="name two, as in --classes cat,dog")
    opened = open_data(data, data_dir)
    with console.progress() as bar:
        task = bar.add_task("logistic regressions", total=None)
        rows = run_regularizer(
            opened,
            tiles=counts,
            images=images,
            epochs=epochs,
            seeds=range(seeds),
            classes=None if chosen is None else (chosen[0], chosen[1]),
            on_step=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    files: list[Path] = []
    if out is not None:
        figure = regularizer_against_tiles(rows, f"{data}, {images} training images of two classes, {seeds} seeds")
        files = figures.write(figure, out, "regularizer")
        write_rows(out, "regularizer", _flat(rows))
        files.append(out / "regularizer.csv")
    if json:
        names = chosen or opened.classes[:2]
        console.print_json({"data": data, "classes": names, "images": images, "rows": rows, "files": files})
        return
    _show(rows)
    for path in files:
        console.show(f"wrote {path}")


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each seed."""
    return [
        {key: value[place] if isinstance(value, list) else value for key, value in row.items()}
        for row in rows
        for place in range(len(row["seed"]))
    ]


def _show(rows: list[dict[str, Any]]) -> None:
    from statistics import fmean

    columns = {
        "R": "regularizer",
        "2nd order": "approximation",
        "variance": "variance",
        "train loss": "train_loss",
        "test loss": "test_loss",
        "test error": "test_error",
    }
    lines = [f"{'training':<24}{'tiles':>6}" + "".join(f"{heading:>11}" for heading in columns)]
    for row in rows:
        figures = "".join(f"{fmean(row[key]):>11.4g}" for key in columns.values())
        lines.append(f"{row['training']:<24}{row['tiles']:>6}{figures}")
    lines.append("means over seeds; losses in nats and errors in percent, mean over draws")
    console.show("\n".join(lines))
