"""`rapa bench`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import options
from rapa_cli.errors import ConfigError, commas

if TYPE_CHECKING:
    import torch

    from rapa_cli.analysis.benchmark import Row

_TILES_ON_ARRAYS = ("1,1,1", "16,4,1", "128,32,8")
_TILES = ("1,1,1", "4,1,1", "16,4,1", "64,16,4", "128,32,8", "256,64,16", "1024,256,64")
_BATCHES = {"cpu": "10,100", "cuda": "10,128,1024"}


def bench(
    tiles: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,N,...", show_default=False, help="Tiles of the three layers of `full`; may be given repeatedly."
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch-size", metavar="LIST", show_default="10,100; on a GPU 10,128,1024", help="Images of a step."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How often each contender has its turn.")] = 15,
    arrays: Annotated[
        bool, typer.Option("--arrays", help="Measure layers on analog arrays instead, their updates counted in.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default=False, help="Folder for bench.png and bench.svg.")
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure what tiled convolutions cost beside ordinary ones.

    In turn in one run: forward and backward of the three layers of `full` alone, and its whole training step. Ratios
    are medians over the rounds; those of the layers are to `nn.Conv2d` in its faster memory format.

    On a GPU cuDNN looks for its fastest algorithms, and ordinary layers and ours are measured as CUDA graphs too, whose
    ratios are to each other: there the device never waits for launches.

    With --arrays the three layers are trained on arrays: ideal ones, Idealized (constant steps) and ReRamES (steps that
    depend on the state) with small and with large gradients, and inference arrays in hardware-aware training.

    Example: rapa bench --tiles 16,4,1 --tiles 1024,256,64 --out figures
    """
    settings = [options.parse_tiles(text) for text in tiles or (_TILES_ON_ARRAYS if arrays else _TILES)]
    asked = None if batch is None else options.parse_tiles(batch, "--batch-size")
    # The profiler that measures the memory would otherwise talk on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from rapa_cli.analysis import benchmark
    from rapa_cli.commands.session import compute_device
    from rapa_cli.kernels.cuda import convolution_precision
    from rapa_cli.layers.network import resolve

    place = compute_device(device, threads)
    if place.type not in _BATCHES:
        hint = "take --device cpu; `rapa doctor` shows what this machine has"
        raise ConfigError(f"--device {device}: bench measures on cpu and cuda", hint=hint)
    batches = asked or options.parse_tiles(_BATCHES[place.type])
    for counts in settings:
        resolve(benchmark.definition(), benchmark.SHAPE, scheme="random", tiles=counts)
    measures = (benchmark.arrays,) if arrays else (benchmark.layers, benchmark.training_step)
    rows: list[Row] = []
    traffic: dict[str, float] = {}
    with console.progress() as bar:
        task = bar.add_task("measuring", total=len(measures) * len(settings) * len(batches))
        for counts in settings:
            traffic[commas(counts)] = benchmark.weight_traffic(counts, rounds=rounds, device=place)
            for images in batches:
                for measure in measures:
                    rows += measure(counts, images, rounds=rounds, device=place)
                    bar.advance(task)
    import torch

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        "kernel": _kernel(place),
        "precision": convolution_precision() if place.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load": load,
        "rounds": rounds,
        "weight_traffic_ms": traffic,
        "rows": [
            {
                "what": row.what,
                "tiles": row.tiles,
                "batch": row.batch,
                "contender": row.contender,
                "milliseconds": row.milliseconds,
                "ratio": row.ratio,
                "megabytes": row.megabytes,
            }
            for row in rows
        ],
    }
    if out is not None:
        from rapa_cli.report import figures

        document["figures"] = figures.write(figures.cost_against_tiles(rows, document["device"]), out, "bench")
    if place.type == "cuda" and not arrays:
        wanted = len(settings) * len(batches) * len(benchmark.REPLAYED)
        found = sum(row.contender.endswith(benchmark.CAPTURED) for row in rows)
        if found < wanted:
            left = wanted - found
            console.note(f"{left} of {wanted} CUDA graphs are left out: not all of a setting could be captured")
    if json:
        console.print_json(document)
        return
    _show(document, rows)


def _kernel(device: torch.device) -> str:
    """What computes tiled convolutions."""
    from importlib.util import find_spec

    from rapa_cli.kernels.compiled import kernels
    from rapa_cli.kernels.cuda import triton_serves

    if device.type == "cpu":
        return kernels().reason
    if triton_serves(device):
        return "Triton"
    return "torch" if find_spec("triton") else "torch (triton is not installed)"


def _load(document: dict[str, Any]) -> str:
    load = document["load"]
    return "" if load is None else f"load of the machine over the last minute {load:.1f}\n"


def _show(document: dict[str, Any], rows: list[Row]) -> None:
    from rich.table import Table

    for what in dict.fromkeys(row.what for row in rows):
        table = Table(title=what, title_justify="left")
        for heading in ("tiles", "batch", "contender", "ms", "ratio", "MB"):
            table.add_column(heading, justify="left" if heading in ("tiles", "contender") else "right")
        before = None
        for row in (row for row in rows if row.what == what):
            setting = (row.tiles, row.batch)
            first = setting != before
            before = setting
            table.add_row(
                commas(row.tiles) if first else "",
                str(row.batch) if first else "",
                row.contender,
                f"{row.milliseconds:.2f}",
                f"{row.ratio:.2f}",
                "" if row.megabytes is None else f"{row.megabytes:.1f}",
            )
        console.out().print(table)
    precision = document["precision"]
    where = f"{document['threads']} threads" if precision is None else document["device"]
    console.out().print(
        f"medians of {document['rounds']} rounds on {where}; ratios to the faster nn.Conv2d of "
        "each round, or to scheme none, a graph's to that one's graph; MB in use at most during a step beyond what was "
        "before it\n"
        f"{_load(document)}"
        f"kernel: {document['kernel']}" + (f", in {precision}" if precision else ""),
        markup=False,
    )
    for path in document.get("figures", []):
        console.show(f"wrote {path}")
