"""`rapa vote`."""

from __future__ import annotations

from typing import Annotated

import typer

from rapa_cli import console
from rapa_cli.commands import options


def vote(
    checkpoint: options.Checkpoint = None,
    n: Annotated[int, typer.Option("-n", "--draws", metavar="N", min=1, help="Draws that vote.")] = 5,
    best: options.Best = False,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    images: options.Images = None,
    seed: options.Seed = 0,
    noise: options.Noise = True,
    batch_size: options.BatchSize = 200,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure the error of a majority vote over random assignments.

    Example: rapa vote runs/my-run -n 5
    """
    from rapa_cli.analysis.voting import vote_error
    from rapa_cli.commands.session import arrays_line, counting, labelled, subject

    chosen = subject(
        checkpoint, best=best, data=data, data_dir=data_dir, images=images, device=device, threads=threads, noise=noise
    )
    with counting(f"{n} draws", len(chosen.images)) as count:
        result = vote_error(
            chosen.network, chosen.images, chosen.labels, n, seed=seed, batch_size=batch_size, on_batch=count
        )
    if json:
        console.print_json(
            {
                "checkpoint": chosen.path,
                "chosen": chosen.chosen or None,
                "data": chosen.data,
                "images": result.images,
                "n": n,
                "single_error": result.single_error,
                "single_errors": [100 * wrong / result.images for wrong in result.single_wrong],
                "vote_error": result.vote_error,
                "ci95": result.vote_ci95,
                "gain": result.gain,
                "gain_se": result.gain_se,
                "seed": seed,
                **chosen.arrays,
            }
        )
        return
    low, high = result.vote_ci95
    console.show(
        f"single draw  {result.single_error:.2f} %  (mean of {n})\n"
        f"vote of {n:<4} {result.vote_error:.2f} %  (95 % interval {low:.2f} to {high:.2f})\n"
        f"{result.images} images of {chosen.data}, seed {seed}\n"
        f"checkpoint {labelled(chosen.path)}{arrays_line(chosen.arrays)}"
    )
    if not _random(chosen.network) and not chosen.arrays["noise"]:
        console.note("this network makes no random choices in test, so that all draws are the same")


def _random(network: object) -> bool:
    from torch import nn

    from rapa_cli.tiling.conv import TiledConv2d

    assert isinstance(network, nn.Module)
    return any(
        isinstance(layer, TiledConv2d) and layer.scheme == "random" and layer.tiles > 1 for layer in network.modules()
    )
