"""`rapa plan`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.commands.tables import open_table, that_fit
from rapa_cli.errors import ConfigError, commas, suggestion

if TYPE_CHECKING:
    from rich.table import Table

    from rapa_cli.analysis.hardware import Hardware
    from rapa_cli.analysis.planning import Plan, Subject

# Of more layers only the first ones' tiles are shown in a line.
_FEW = 8
# A share of the weights that lies in none of the layers is worth a line from here.
_NOTED = 0.005
# What a narrow screen does without, in this order.
_DISPENSABLE = ("c_out", "k", "time", "groups", "busy", "MACs")


def plan(
    network: Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.planned,
            metavar="NETWORK|CHECKPOINT",
            show_default=False,
            help="A definition (full, alexnet), a TOML file, torchvision:NAME (torchvision:resnet18), FILE.py:NAME "
            "(its code is run), a checkpoint, a run folder or a zoo name; the newest run under ./runs when left out.",
        ),
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            show_default=False,
            help="Tiles of each convolution; the checkpoint's own, or n_p divided by the smallest n_p, when left out.",
        ),
    ] = None,
    acceleration: Annotated[
        float | None,
        typer.Option(metavar="X", show_default=False, help="The fewest arrays that are X times as fast as untiled."),
    ] = None,
    arrays_budget: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="The best acceleration with at most N arrays."),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.schemes,
            metavar="NAME",
            show_default=False,
            help="Tiling scheme; the network's own, or random, when left out.",
        ),
    ] = None,
    channels: Annotated[int, typer.Option(metavar="F", min=1, max=1024, help="Plan it with F times the channels.")] = 1,
    kernel: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=1,
            max=1024,
            show_default=False,
            help="Plan it with kernels of K x K, padded to keep image sizes.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65_536,
            show_default=False,
            help="Height and width of the images, pixels; a checkpoint's own, 224 for torchvision, and for definitions "
            "32, or 224 where that is too small, when left out.",
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=65_536,
            show_default=False,
            help="Classes of a definition; 10, or 1000 for the larger images, when left out.",
        ),
    ] = None,
    integration_ns: Annotated[
        float | None,
        typer.Option(metavar="T", show_default=False, help="Time of an array operation, ns; by default 80."),
    ] = None,
    dac_pj: Annotated[
        float | None, typer.Option(metavar="E", show_default=False, help="Energy to convert an input, pJ; 1.95.")
    ] = None,
    adc_pj: Annotated[
        float | None, typer.Option(metavar="E", show_default=False, help="Energy to convert an output, pJ; 23.")
    ] = None,
    device_fj: Annotated[
        float | None, typer.Option(metavar="E", show_default=False, help="Energy of a device in an operation, fJ; 3.3.")
    ] = None,
    array_rows: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="Inputs of the largest array; any number."),
    ] = None,
    array_columns: Annotated[
        int | None, typer.Option(metavar="N", min=1, show_default=False, help="Its outputs; any number.")
    ] = None,
    best: options.Best = False,
    code: options.Code = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", show_default=False, help="Folder for plan.png and plan.svg.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what replicated arrays would give for a network.

    Array operations, acceleration, time and energy. Nothing is trained or computed, and no weights are needed.
    Accelerations count convolutions, against one array for each; docs/plan.md says what else is counted, and where the
    figures of the hardware come from.

    Example: rapa plan full, rapa plan torchvision:resnet18 --arrays-budget 200
    """
    given = {"--tiles": tiles, "--acceleration": acceleration, "--arrays-budget": arrays_budget}
    chosen = [option for option, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ConfigError(
            f"{' and '.join(chosen)} cannot go together", hint="each of them says how many tiles there are"
        )
    counts = options.parse_tiles(tiles) if tiles is not None else None
    from rapa_cli.analysis import balancing, planning
    from rapa_cli.analysis.analog_time import widened, widened_linear
    from rapa_cli.commands.session import note_code
    from rapa_cli.config import code_named, is_code
    from rapa_cli.tiling.schemes import SCHEMES

    if scheme is not None and scheme not in SCHEMES:
        raise ConfigError(f"--scheme: there is no '{scheme}'", hint=suggestion(scheme, SCHEMES))
    figures = _hardware(integration_ns, dac_pj, adc_pj, device_fj, array_rows, array_columns)
    if code or (network is not None and is_code(network)):
        note_code(code or [code_named(network or "")[0]])
    subject = planning.find(network, best=best, size=image_size, classes=classes, code=code or ())
    if network is None:
        console.note(f"using {subject.checkpoint}")
    own = scheme is None and subject.scheme != "none"
    rule = scheme or (subject.scheme if own else "random")
    if acceleration is not None:
        counts = balancing.for_acceleration(subject.convolutions, acceleration, rule)
    layers = widened(subject.convolutions, channels, kernel)
    linear = widened_linear(subject.linear, channels)
    if arrays_budget is not None:
        counts = planning.tiles_for_arrays(layers, arrays_budget, rule, figures)
    if counts is None and own:
        counts = subject.tiles
    found = planning.plan(layers, linear, counts, rule, figures)
    untiled = planning.plan(layers, linear, None, "none", figures)
    before = planning.plan(subject.convolutions, subject.linear, counts, rule, figures)
    document = _document(subject, found, untiled)
    if channels > 1 or kernel is not None:
        document["free_width"] = {"channels": channels, "kernel": kernel, **_width(before), **_width(found, "_wider")}
    if out is not None:
        from rapa_cli.report import figures as drawing
        from rapa_cli.report.plan_figure import time_and_compute

        title = f"{subject.name}, images {_size(subject)}"
        document["figures"] = drawing.write(time_and_compute(found, title), out, "plan")
    if json:
        console.print_json(document)
        return
    _show(document, subject, found, untiled, before)


def _hardware(
    integration_ns: float | None,
    dac_pj: float | None,
    adc_pj: float | None,
    device_fj: float | None,
    rows: int | None,
    columns: int | None,
) -> Hardware:
    from rapa_cli.analysis.hardware import Hardware

    figures = {"integration_ns": integration_ns, "dac_pj": dac_pj, "adc_pj": adc_pj, "device_fj": device_fj}
    given = {name: value for name, value in figures.items() if value is not None}
    for name, value in given.items():
        if not math.isfinite(value) or value < 0 or (name == "integration_ns" and not value):
            allowed = "numbers above 0" if name == "integration_ns" else "numbers from 0"
            raise ConfigError(
                f"--{name.replace('_', '-')}: got {value:g}, allowed are {allowed}",
                hint="leave it out to take the default",
            )
    return Hardware(**given, rows=rows, columns=columns)


def _document(subject: Subject, found: Plan, untiled: Plan) -> dict[str, Any]:
    from rapa_cli.analysis.analog_time import balanced
    from rapa_cli.analysis.hardware import SOURCES, Hardware, arrays_per_tile

    default = Hardware()
    figures = {
        name: {
            "value": value,
            "source": SOURCES[name] if name in SOURCES and value == getattr(default, name) else "given",
        }
        for name, value in asdict(found.hardware).items()
        if value is not None
    }
    return {
        "network": subject.name,
        "checkpoint": subject.checkpoint,
        "shape": subject.shape,
        "scheme": found.scheme,
        "tiles": [layer.tiles for layer in found.layers],
        "balanced_tiles": balanced(subject.convolutions, found.scheme),
        "layers": [
            {
                "name": layer.name,
                "n_p": layer.n_p,
                "k": layer.k,
                "c_out": layer.c_out,
                "groups": layer.groups,
                "macs": layer.macs,
                "tiles": layer.tiles,
                "array_cycles": layer.array_cycles,
                "array_rows": layer.k + layer.bias,
                "array_columns": layer.c_out // layer.groups,
                "arrays": layer.matrices * arrays_per_tile(layer, found.hardware),
                "weights": layer.weights,
                "utilisation": found.utilisation(layer),
                "time_us": layer.array_cycles * found.hardware.integration_ns * 1e-3,
                "one_tile_because": layer.whole,
            }
            for layer in found.layers
        ],
        "linear": [
            {"name": layer.name, "k": layer.k, "c_out": layer.c_out, "macs": layer.macs, "weights": layer.weights}
            for layer in found.linear
        ],
        "acceleration": found.acceleration,
        "acceleration_sequential": found.acceleration_sequential,
        "bottleneck": found.bottleneck.name,
        "bottleneck_untiled": untiled.bottleneck.name,
        "arrays": found.arrays,
        "idle_arrays": found.idle_arrays,
        "macs": found.macs,
        "weights": found.weights,
        "interval_us": found.interval,
        "interval_untiled_us": untiled.interval,
        "latency_us": found.latency,
        "latency_untiled_us": untiled.latency,
        "images_per_second": 1e6 / found.interval,
        "energy_nj": {**asdict(found.energy), "total": found.energy.total},
        "hardware": figures,
        "weights_elsewhere": subject.elsewhere,
    }


def _width(plan: Plan, suffix: str = "") -> dict[str, Any]:
    cycles = [layer.array_cycles for layer in plan.layers]
    return {f"array_cycles{suffix}": cycles, f"macs{suffix}": plan.macs, f"weights{suffix}": plan.weights}


def _show(document: dict[str, Any], subject: Subject, found: Plan, untiled: Plan, before: Plan) -> None:
    counts = [layer.tiles for layer in found.layers]
    tiling = commas(counts) if len(counts) <= _FEW else f"{len(counts)} layers"
    if subject.checkpoint is not None:
        console.show(f"checkpoint    {subject.checkpoint}")
    console.show(f"network       {subject.name}, images {_size(subject)}")
    console.show(
        f"tiling        {found.scheme} ({tiling}), {found.arrays:,} {console.plural('array', found.arrays)}, "
        f"{found.weights:,} weights"
    )
    console.show("")
    table, without = _table(document)
    console.out().print(table)
    lines = [
        "cycles: operations one after the other; busy: their share of the slowest layer's",
        "array: rows x columns of one matrix, its bias a row, k and c_out without it",
    ]
    if without:
        lines.append(f"no room for {', '.join(without)}; wider screens and --json have them")
    console.show("\n" + "\n".join(lines) + "\n")
    faster, slower = found.acceleration, found.acceleration_sequential
    console.show(
        f"acceleration  {faster:.1f} times with layers pipelined, {slower:.1f} times one after the other\n"
        f"bottleneck    {_operations(found)}\n"
        f"              untiled {_operations(untiled)}\n"
        f"idle          {document['idle_arrays']:.1f} of {found.arrays:,} arrays on average while pipelined\n"
        f"time          {_time(found.interval)} from image to image, {_time(found.latency)} through all layers\n"
        f"              untiled {_time(untiled.interval)} and {_time(untiled.latency)}\n"
        f"energy        {_energy(found.energy.total)} for an image: ADC {_share(found, 'adc')}, "
        f"DAC {_share(found, 'dac')}, devices {_share(found, 'devices')}"
    )
    if "free_width" in document:
        same = [layer.array_cycles for layer in found.layers] == [layer.array_cycles for layer in before.layers]
        console.show(
            f"free width    {'as many operations' if same else 'other operations'} as without; "
            f"{found.macs / before.macs:.1f} times the multiply-adds,\n"
            f"              {found.weights / before.weights:.1f} times the weights"
        )
    figures = found.hardware
    console.show(
        f"hardware      {figures.integration_ns:g} ns each, ADC {figures.adc_pj:g} pJ, DAC {figures.dac_pj:g} pJ, "
        f"device {figures.device_fj:g} fJ\n"
        "              sources of the defaults: --json, docs/plan.md"
    )
    whole = [layer for layer in found.layers if layer.whole is not None]
    if whole and found.scheme != "none":
        such = ", such as" if len(whole) > 1 else ":"
        layers = console.plural("layer", len(whole))
        console.show(
            f"note          {len(whole)} {layers} can have one tile only, in training too{such}\n"
            f"              {whole[0].name}, which {whole[0].whole}"
        )
    if found.scheme == "perforated":
        console.show("note          operations of training; in test one array computes all patches of a layer")
    if subject.elsewhere >= _NOTED:
        console.show(
            f"note          {100 * subject.elsewhere:.0f} % of the weights lie in no such layer: attention, parts for "
            "training"
        )
    for path in document.get("figures", []):
        console.show(f"wrote {path}")


def _table(document: dict[str, Any]) -> tuple[Table, list[str]]:
    """The table of the layers, and the columns for which the screen has no room."""
    rows = document["layers"]
    columns = {
        "layer": [row["name"] for row in rows],
        "n_p": [str(row["n_p"]) for row in rows],
        "k": [str(row["k"]) for row in rows],
        "c_out": [str(row["c_out"]) for row in rows],
        "array": [f"{row['array_rows']} x {row['array_columns']}" for row in rows],
        "groups": [str(row["groups"]) for row in rows],
        "MACs": [_count(row["macs"]) for row in rows],
        "tiles": [str(row["tiles"]) for row in rows],
        "arrays": [str(row["arrays"]) for row in rows],
        "cycles": [str(row["array_cycles"]) for row in rows],
        "busy": [f"{100 * row['utilisation']:.0f} %" for row in rows],
        "time": [_time(row["time_us"]) for row in rows],
    }
    if all(row["groups"] == 1 for row in rows):
        del columns["groups"]
    if columns["arrays"] == columns["tiles"]:
        del columns["arrays"]
    shown = that_fit(columns, _DISPENSABLE, console.out().width)
    without = [heading for heading in _DISPENSABLE if heading in columns and heading not in shown]
    return open_table(shown, ("layer",)), without


def _operations(plan: Plan) -> str:
    most = plan.bottleneck.array_cycles
    alike = len(plan.layers) > 1 and all(layer.array_cycles == most for layer in plan.layers)
    who = "none, each layer" if alike else plan.bottleneck.name
    return f"{who} with {most:,} {console.plural('operation', most)}"


def _size(subject: Subject) -> str:
    return " x ".join(map(str, subject.shape))


def _share(plan: Plan, part: str) -> str:
    total = plan.energy.total
    return f"{100 * getattr(plan.energy, part) / total:.0f} %" if total else "0 %"


def _count(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def _time(microseconds: float) -> str:
    return f"{microseconds / 1e3:.2f} ms" if microseconds >= 1e3 else f"{microseconds:.2f} us"


def _energy(nanojoules: float) -> str:
    for unit, size in (("mJ", 1e6), ("uJ", 1e3)):
        if nanojoules >= size:
            return f"{nanojoules / size:.2f} {unit}"
    return f"{nanojoules:.2f} nJ"
