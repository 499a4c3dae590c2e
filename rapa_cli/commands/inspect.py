"""`rapa inspect`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.commands.array_presets import list_presets, preset_meant, show_preset
from rapa_cli.commands.tables import that_fit
from rapa_cli.errors import ConfigError, one_line

if TYPE_CHECKING:
    from torch import nn

    from rapa_cli.layers.network import Network


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "layer": lambda row: str(row["name"]),
    "tiles": lambda row: str(row["tiles"]),
    "n_p": lambda row: str(row["n_p"]),
    "per tile": lambda row: str(row["patches_per_tile"]),
    "k": lambda row: str(row["k"]),
    "c_out": lambda row: str(row["c_out"]),
    "parameters": lambda row: f"{row['parameters']:,}",
    "S": lambda row: "" if row["similarity"] is None else f"{row['similarity']:.3f}",
}
_AT_BOUNDS = "at bounds"
_ON_ARRAYS: dict[str, Callable[[dict[str, Any]], str]] = {
    _AT_BOUNDS: lambda row: "" if row["at_bounds"] is None else f"{100 * row['at_bounds']['fraction']:.1f} %",
}
# What a narrow screen does without, in this order.
_DISPENSABLE = ("per tile", "k", "c_out")


def inspect(
    name: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.inspected,
            metavar="CHECKPOINT|PRESET",
            show_default=False,
            help="A file, a run folder or a zoo name, or an array preset such as ReRamES; the newest run under ./runs "
            "when left out.",
        ),
    ] = None,
    best: options.Best = False,
    presets: Annotated[bool, typer.Option("--presets", help="List the array presets.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="Folder for a preset's NAME-response.png and .svg."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=options.MAX_SEED,
            show_default=False,
            help="Seed of a preset's devices; 0 when left out.",
        ),
    ] = None,
    code: options.Code = None,
    json: options.Json = False,
) -> None:
    """Show what a checkpoint holds, or how an array preset behaves.

    Of a checkpoint: network, tiles, counts, similarity of the tiles, provenance. Of a preset: its parameters, weights
    after trains of pulses, and how many devices sit at their bounds; with --out also a figure.

    Example: rapa inspect runs/my-run, rapa inspect ReRamES --out figures
    """
    if presets:
        unsuitable = {"a name": name is not None, "--best": best, "--out": out is not None, "--seed": seed is not None}
        _refuse("--presets", unsuitable, "to see one preset: rapa inspect ReRamES")
        list_presets(json=json)
        return
    preset = preset_meant(name, best=best) if name is not None else None
    if preset is not None:
        _refuse(f"the preset {preset}", {"--best": best}, "--best chooses among the checkpoints of a run")
        show_preset(preset, out, seed or 0, json=json)
        return
    unsuitable = {"--out": out is not None, "--seed": seed is not None}
    _refuse("a checkpoint", unsuitable, "these are for array presets: rapa inspect ReRamES --out figures")
    _inspect_checkpoint(name, best=best, code=code, json=json)


def _refuse(subject: str, unsuitable: dict[str, bool], hint: str) -> None:
    given = [option for option, is_given in unsuitable.items() if is_given]
    if given:
        raise ConfigError(f"{subject} cannot go with {' and '.join(given)}", hint=hint)


def _inspect_checkpoint(checkpoint: str | None, *, best: bool, code: list[Path] | None, json: bool) -> None:
    from rapa_cli.checkpoint import read
    from rapa_cli.commands.session import checkpoint_path, chosen, reading, restored
    from rapa_cli.layers.network import parameter_count

    path = checkpoint_path(checkpoint, best=best)
    saved = read(path)
    network = restored(saved, path, code)
    description, progress = saved.description, saved.description.progress
    document = {
        "checkpoint": path,
        "chosen": chosen(path),
        "network": description.network.name,
        "scheme": description.network.scheme,
        "tiles": description.network.tiles,
        "pool": description.network.pool if description.network.module is None else None,
        "shape": description.shape,
        "classes": description.classes,
        "data": description.data,
        "seed": description.seed,
        "parameters": parameter_count(network),
        "parameters_conv": parameter_count(network, convolutions_only=True),
        "arrays": reading(network, noise=True)["arrays"],
        "layers": convolution_rows(network),
        "linear": _linear_rows(network),
        "recipe": description.recipe.model_dump() if description.recipe else None,
        "progress": progress.model_dump() if progress else None,
        "provenance": description.provenance,
    }
    if json:
        console.print_json(document)
        return
    _show(document)


def convolution_rows(network: Network) -> list[dict[str, Any]]:
    """A row for each convolution: name, tiles, n_p, k, c_out, patches of a tile, parameters, similarity S."""
    from torch import nn

    from rapa_cli.analysis.modules import layers_of_network
    from rapa_cli.analysis.similarity import similarity
    from rapa_cli.layers.network import parameter_count
    from rapa_cli.tiling.conv import TiledConv2d

    rows = []
    for found in layers_of_network(network).convolutions:
        layer = network.get_submodule(found.name)
        if isinstance(layer, nn.Linear):
            # One that sees each pixel by itself has no tiles.
            continue
        name, n_p, tiles = found.name, found.n_p, getattr(layer, "tiles", 1)
        weight = layer.weight
        kernels = weight if isinstance(layer, TiledConv2d) else weight[None]  # type: ignore[index]
        rows.append(
            {
                "name": name,
                "tiles": tiles,
                "n_p": n_p,
                "patches_per_tile": -(-n_p // tiles),
                "k": kernels[0, 0].numel(),  # type: ignore[index]
                "c_out": kernels.shape[1],  # type: ignore[index]
                "parameters": parameter_count(layer),
                "similarity": similarity(kernels),  # type: ignore[arg-type]
                "at_bounds": _at_bounds(layer),
            }
        )
    return rows


def _linear_rows(network: Network) -> list[dict[str, Any]]:
    """A row for each linear layer: name, parameters, and what part of its devices sits at their bounds."""
    from torch import nn

    from rapa_cli.layers.linear import AnalogLinear
    from rapa_cli.layers.network import parameter_count

    return [
        {"name": name, "parameters": parameter_count(layer), "at_bounds": _at_bounds(layer)}
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | AnalogLinear)
    ]


def _at_bounds(layer: nn.Module) -> dict[str, float] | None:
    """What part of a layer's devices sits at their bounds, or None where it has no such devices."""
    from rapa_cli.analysis.response import at_bounds

    found = at_bounds(layer.state_dict())
    return None if found is None else asdict(found)


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    from rapa_cli.config import tiling

    shape = " x ".join(str(size) for size in document["shape"])
    console.show(f"checkpoint  {document['checkpoint']}")
    if document["chosen"]:
        console.show(f"            ({document['chosen']})")
    pooling = f"{document['pool']} pooling, " if document["pool"] else ""
    console.show(f"network     {one_line(document['network'])}, {pooling}images {shape}")
    console.show(f"tiling      {tiling(document['scheme'], document['tiles'])}")
    if document["arrays"] != "ideal":
        console.show(f"arrays      {document['arrays']}")
    console.show(f"data        {one_line(document['data'])}, {len(document['classes'])} classes")
    console.show(f"parameters  {document['parameters']:,} ({document['parameters_conv']:,} in convolutions)")
    if document["progress"]:
        progress = document["progress"]
        steps = f" and {progress['step']} steps" if progress["step"] else ""
        console.show(
            f"training    {progress['epoch']} epochs{steps} in {progress['seconds']:.0f} s, seed {document['seed']}"
        )
        if progress["test_error"] is not None:
            console.show(
                f"test error  {progress['test_error']:.2f} %, "
                f"lowest {progress['best_test_error']:.2f} % in epoch {progress['best_epoch']} (chosen on the test set)"
            )
    screen = console.out()
    bounded = any(row["at_bounds"] for row in document["layers"])
    headings = _COLUMNS | (_ON_ARRAYS if bounded else {})
    cells_of = {name: [show(row) for row in document["layers"]] for name, show in headings.items()}
    # A rule and two spaces belong to each column, and one rule to the table.
    columns = that_fit(cells_of, _DISPENSABLE, screen.width, between=3, around=1)
    table = Table()
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    screen.print(table)
    console.show("n_p: patches of an image; k: weights of a filter\nS: mean correlation of filters between tiles")
    if bounded:
        console.show("at bounds: devices within a step of a bound; in the linear layers:")
        for row in document["linear"]:
            console.show(f"  {row['name']}  {_ON_ARRAYS[_AT_BOUNDS](row)}")
    for key, value in document["provenance"].items():
        console.show(one_line(f"{key.replace('_', ' ')}: {value}"))
