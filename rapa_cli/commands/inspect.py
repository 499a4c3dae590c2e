"""`rapa inspect`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rapa_cli import console
from rapa_cli.commands import options

if TYPE_CHECKING:
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
_DISPENSABLE = ("per tile", "k", "c_out")
_WIDE = 72


def inspect(
    checkpoint: options.Checkpoint = None,
    best: options.Best = False,
    json: options.Json = False,
) -> None:
    """Show what a checkpoint holds: network, tiles, counts, similarity of the tiles, provenance.

    Example: rapa inspect runs/my-run
    """
    from rapa_cli.checkpoint import read, restore
    from rapa_cli.commands.session import checkpoint_path, chosen
    from rapa_cli.layers.network import parameter_count

    path = checkpoint_path(checkpoint, best=best)
    saved = read(path)
    network = restore(saved, path)
    description, progress = saved.description, saved.description.progress
    document = {
        "checkpoint": path,
        "chosen": chosen(path) or None,
        "network": description.network.name,
        "scheme": description.network.scheme,
        "tiles": description.network.tiles,
        "pool": description.network.pool,
        "shape": description.shape,
        "classes": description.classes,
        "data": description.data,
        "seed": description.seed,
        "parameters": parameter_count(network),
        "parameters_conv": parameter_count(network, convolutions_only=True),
        "layers": convolution_rows(network),
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
    from rapa_cli.analysis.similarity import similarity
    from rapa_cli.layers.network import patches_per_layer
    from rapa_cli.tiling.conv import TiledConv2d

    layers = [(name, layer) for name, layer in network.named_children() if name.startswith("conv")]
    patches = patches_per_layer(network.definition, network.shape)
    rows = []
    for (name, layer), n_p, tiles in zip(layers, patches, network.definition.tiles or (), strict=True):
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
                "parameters": sum(parameter.numel() for parameter in layer.parameters()),
                "similarity": similarity(kernels),  # type: ignore[arg-type]
            }
        )
    return rows


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    tiles = ", ".join(str(count) for count in document["tiles"])
    shape = " x ".join(str(size) for size in document["shape"])
    console.show(f"checkpoint  {document['checkpoint']}")
    if document["chosen"]:
        console.show(f"            ({document['chosen']})")
    console.show(f"network     {document['network']}, {document['pool']} pooling, images {shape}")
    console.show(f"tiling      {document['scheme']} ({tiles})")
    console.show(f"data        {document['data']}, {len(document['classes'])} classes")
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
    # A narrow terminal shows fewer columns instead of cut numbers.
    narrow = screen.is_terminal and screen.width < _WIDE
    columns = {heading: show for heading, show in _COLUMNS.items() if not (narrow and heading in _DISPENSABLE)}
    table = Table()
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=True)
    for row in document["layers"]:
        table.add_row(*(show(row) for show in columns.values()))
    screen.print(table)
    console.show("n_p: patches of an image; k: weights of a filter\nS: mean correlation of filters between tiles")
    for key, value in document["provenance"].items():
        console.show(f"{key.replace('_', ' ')}: {value}")
