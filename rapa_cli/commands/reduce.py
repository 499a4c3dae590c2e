"""`rapa reduce`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rapa_cli import console
from rapa_cli.commands import options
from rapa_cli.errors import ConfigError, suggestion


def reduce(
    checkpoint: options.Checkpoint = None,
    by: Annotated[
        str, typer.Option(metavar="WAY", help="norm: each channel takes the tile's filter of the largest L2 norm.")
    ] = "norm",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="File to write; beside the checkpoint when left out."),
    ] = None,
    best: options.Best = False,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    images: options.Images = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 200,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Make an ordinary network from a tiled one, and measure both.

    Example: rapa reduce runs/my-run --by norm
    """
    from rapa_cli import checkpoint as checkpoints
    from rapa_cli.analysis.evaluation import evaluate
    from rapa_cli.analysis.reduction import WAYS
    from rapa_cli.analysis.reduction import reduce as make_ordinary
    from rapa_cli.commands.session import arrays_line, counting, labelled, subject
    from rapa_cli.files import make_folder
    from rapa_cli.layers.network import Network

    if by not in WAYS:
        raise ConfigError(f"--by: there is no way '{by}' to reduce", hint=suggestion(by, WAYS))
    chosen = subject(checkpoint, best=best, data=data, data_dir=data_dir, images=images, device=device, threads=threads)
    target = out or chosen.path.with_name(f"{chosen.path.stem}-reduced-{by}.safetensors")
    if target.exists() and target.samefile(chosen.path):
        raise ConfigError(f"--out {target} is the checkpoint itself", hint="choose another file")
    reduced = make_ordinary(chosen.network, by)
    assert isinstance(reduced, Network)
    with counting("before and after", 2 * len(chosen.images)) as count:
        before, after = (
            evaluate(network, chosen.images, chosen.labels, seed=seed, batch_size=batch_size, on_batch=count)
            for network in (chosen.network, reduced)
        )
    description = chosen.description.model_copy(
        update={
            "network": reduced.definition,
            "progress": None,
            "provenance": {
                **chosen.description.provenance,
                "made_from": os.path.relpath(chosen.path.resolve(), target.parent.resolve()),
                "made_by": f"rapa reduce --by {by}",
            },
        }
    )
    make_folder(target.parent)
    checkpoints.save(target, description, reduced.state_dict(), {})
    if json:
        console.print_json(
            {
                "checkpoint": chosen.path,
                "chosen": chosen.chosen or None,
                "data": chosen.data,
                "images": before.images,
                "by": by,
                "test_error_before": before.error,
                "test_error_after": after.error,
                "ci95_before": before.ci95,
                "ci95_after": after.ci95,
                "output": target,
                "seed": seed,
                **chosen.arrays,
            }
        )
        return
    console.show(
        f"test error tiled    {before.error:.2f} %  (one draw, seed {seed})\n"
        f"test error reduced  {after.error:.2f} %  (by {by})\n"
        f"{before.images} images of {chosen.data}\n"
        f"checkpoint {labelled(chosen.path)}{arrays_line(chosen.arrays)}\n"
        f"wrote {target}"
    )
