"""`rapa export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from rapa_cli.checkpoint import Checkpoint
    from rapa_cli.exporting.files import Exported
    from rapa_cli.layers.network import Network

_WEIGHTS_ALONE = ("state-dict", "aihwkit")


def export(
    checkpoint: options.Checkpoint = None,
    to: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.forms,
            metavar="FORM",
            show_default=False,
            help="onnx, torch-export, state-dict or aihwkit [default: onnx].",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="File to write; beside the checkpoint when left out, or here for one of the zoo.",
        ),
    ] = None,
    reduced: Annotated[
        bool,
        typer.Option(
            "--reduced/--tiled",
            help="An ordinary network, by `reduce --by norm`, or the network as it is, assignments as inputs.",
        ),
    ] = False,
    from_aihwkit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="The other way round: a checkpoint like this one with the weights of a file in aihwkit's layout.",
        ),
    ] = None,
    best: options.Best = False,
    code: options.Code = None,
    json: options.Json = False,
) -> None:
    """Write a network for other programs.

    As ONNX, torch.export, a state dictionary, or aihwkit's weights. What computes is checked against the network before
    it is written. See docs/export.md.

    Example: rapa export runs/my-run --reduced --out net.onnx
    """
    from rapa_cli.checkpoint import read
    from rapa_cli.commands.session import beside, checkpoint_path, restored
    from rapa_cli.exporting.files import SUFFIXES

    if to is not None and to not in SUFFIXES:
        raise ConfigError(f"--to: there is no form '{to}'", hint=suggestion(to, SUFFIXES))
    if from_aihwkit is not None and (to is not None or reduced):
        given = "--to" if to is not None else "--reduced"
        raise ConfigError(
            f"--from-aihwkit writes a checkpoint, so {given} cannot go with it",
            hint="export that checkpoint afterwards",
        )
    path = checkpoint_path(checkpoint, best=best)
    form = to or "onnx"
    ending = "-from-aihwkit.safetensors" if from_aihwkit else f"{'-reduced' if reduced else ''}{SUFFIXES[form]}"
    target = out or beside(path, f"{path.stem}{ending}")
    for source in (path, from_aihwkit):
        if source is not None and target.exists() and source.exists() and target.samefile(source):
            raise ConfigError(f"--out {target} is the file that is read", hint="choose another file")
    saved = read(path)
    network = restored(saved, path, code)
    if from_aihwkit is not None:
        _take_over(saved, network, path, from_aihwkit, target, json=json)
        return
    exported = _export(saved, network, path, target, form, reduced=reduced)
    document = _document(exported, network, path, reduced=reduced)
    if json:
        console.print_json(document)
    else:
        _show(document)


def _export(saved: Checkpoint, network: Network, path: Path, target: Path, form: str, *, reduced: bool) -> Exported:
    from rapa_cli.commands.session import made_from
    from rapa_cli.exporting.files import export as write
    from rapa_cli.files import make_folder

    make_folder(target.parent)
    description = saved.description
    about = {
        "network": description.network.name,
        "classes": description.classes,
        "data": description.data,
        "made_from": made_from(path, target.parent),
    }
    with console.progress() as bar:
        bar.add_task(
            f"writing {form}" if form in _WEIGHTS_ALONE else f"tracing, writing and checking {form}", total=None
        )
        return write(network, target, to=form, reduced=reduced, about=about)


def _take_over(saved: Checkpoint, network: Network, path: Path, weights: Path, target: Path, *, json: bool) -> None:
    """Writes a checkpoint like this one, with other weights."""
    from rapa_cli import checkpoint as checkpoints
    from rapa_cli.commands.session import made_from
    from rapa_cli.exporting.files import read_aihwkit
    from rapa_cli.files import make_folder

    found = read_aihwkit(network, weights)
    make_folder(target.parent)
    provenance = {
        **saved.description.provenance,
        "made_from": made_from(path, target.parent),
        "made_by": f"rapa export --from-aihwkit {weights.name}",
    }
    description = saved.description.model_copy(update={"progress": None, "provenance": provenance})
    checkpoints.save(target, description, found.state_dict(), {})
    document = {"checkpoint": path, "from_aihwkit": weights, "output": target, "bytes": target.stat().st_size}
    if json:
        console.print_json(document)
    else:
        console.show(f"checkpoint with these weights  {target}")


def _document(exported: Exported, network: Network, path: Path, *, reduced: bool) -> dict[str, Any]:
    from rapa_cli.commands.session import chosen
    from rapa_cli.exporting.files import TOLERANCE

    inputs = [{"name": "images", "type": "float32", "shape": ["B", *network.shape]}] + [
        {"name": each.name, "type": "int64", "shape": ["B", each.patches], "tiles": each.tiles}
        for each in exported.assignments
    ]
    computes = exported.form not in _WEIGHTS_ALONE
    return {
        "checkpoint": path,
        "chosen": chosen(path),
        "to": exported.form,
        "reduced": reduced,
        "output": exported.path,
        "bytes": exported.size,
        "inputs": inputs if computes else None,
        "logits": ["B", network.classes] if computes else None,
        "difference": exported.difference,
        "tolerance": TOLERANCE if computes else None,
    }


def _show(document: dict[str, Any]) -> None:
    kind = ", reduced" if document["reduced"] else ""
    console.show(f"written  {document['output']} ({document['to']}{kind}, {document['bytes'] / 2**20:.2f} MiB)")
    if document["chosen"]:
        console.show(f"         ({document['chosen']})")
    for number, each in enumerate(document["inputs"] or ()):
        values = f"0 to {each['tiles'] - 1}" if "tiles" in each else "0 to 1"
        shape = ", ".join(map(str, each["shape"]))
        console.show(f"{'takes' if not number else '':<9}{each['name']}: {each['type']} ({shape}), {values}")
    if document["logits"]:
        console.show(f"gives    logits: float32 (B, {document['logits'][1]})")
        console.show(f"checked  against the network on random images: they differ by {document['difference']:.1g}")
