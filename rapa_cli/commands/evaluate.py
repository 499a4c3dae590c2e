"""`rapa evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from rapa_cli import console
from rapa_cli.commands import options


def evaluate(
    checkpoint: options.Checkpoint = None,
    best: options.Best = False,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="train or test.")] = "test",
    images: options.Images = None,
    seed: options.Seed = 0,
    noise: options.Noise = True,
    batch_size: options.BatchSize = 200,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure the error of a checkpoint with one draw.

    Example: rapa evaluate runs/my-run --best
    """
    from rapa_cli.analysis.evaluation import evaluate as measure
    from rapa_cli.commands.session import arrays_line, counting, labelled, subject

    chosen = subject(
        checkpoint,
        best=best,
        data=data,
        data_dir=data_dir,
        images=images,
        device=device,
        threads=threads,
        split=split,
        noise=noise,
    )
    with counting("evaluating", len(chosen.images)) as count:
        result = measure(chosen.network, chosen.images, chosen.labels, seed=seed, batch_size=batch_size, on_batch=count)
    if json:
        console.print_json(
            {
                "checkpoint": chosen.path,
                "chosen": chosen.chosen or None,
                "data": chosen.data,
                "split": split,
                "images": result.images,
                "error": result.error,
                # The contract's name for the error on test images; those of the training images are none.
                f"{split}_error": result.error,
                "ci95": result.ci95,
                "loss": result.loss,
                "seed": seed,
                **chosen.arrays,
            }
        )
        return
    low, high = result.ci95
    console.show(
        f"{split} error {result.error:.2f} %  (95 % interval {low:.2f} to {high:.2f})\n"
        f"{result.wrong} of {result.images} images of {chosen.data} wrong, one draw, seed {seed}\n"
        f"checkpoint {labelled(chosen.path)}{arrays_line(chosen.arrays)}"
    )
