"""`rapa attack`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from rapa_cli import console
from rapa_cli.commands import options
from rapa_cli.errors import ConfigError

if TYPE_CHECKING:
    from rapa_cli.attacks.evaluation import Level, Point

_DEFAULT_SNR = "60,50,45,40,36,33,30,25,20"


def attack(
    checkpoint: options.Checkpoint = None,
    eps: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", show_default=False, help="Strengths on the [0, 1] scale: 1/255,4/255 or start:stop:count."
        ),
    ] = None,
    snr: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            show_default=False,
            help=f"Signal-to-noise ratios in dB, as 33 or 60:20:9; {_DEFAULT_SNR} when neither is given.",
        ),
    ] = None,
    best: options.Best = False,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    images: options.Images = None,
    seed: options.Seed = 0,
    noise: options.Noise = True,
    batch_size: options.BatchSize = 100,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Measure accuracy under FGSM noise, over the images that are right without it.

    The gradient is taken on one draw of the random assignments and the result scored on another.

    Example: rapa attack runs/my-run --eps 1/255,2/255,4/255,8/255
    """
    levels = attack_levels(eps, snr)
    from rapa_cli.attacks.evaluation import attack as run
    from rapa_cli.commands.session import arrays_line, counting, labelled, subject

    chosen = subject(
        checkpoint, best=best, data=data, data_dir=data_dir, images=images, device=device, threads=threads, noise=noise
    )
    with counting(f"FGSM at {len(levels)} levels", len(chosen.images)) as count:
        points = run(
            chosen.network, chosen.images, chosen.labels, levels, seed=seed, batch_size=batch_size, on_batch=count
        )
    if not points[0].counted:
        console.note("no image is classified correctly without noise, so that there is nothing to attack")
    if json:
        console.print_json(
            {
                "checkpoint": chosen.path,
                "chosen": chosen.chosen or None,
                "data": chosen.data,
                "method": "fgsm",
                "images": len(chosen.images),
                "counted": points[0].counted,
                "seed": seed,
                **chosen.arrays,
                "points": [_document(point) for point in points],
            }
        )
        return
    from rich.table import Table

    table = Table()
    for heading in ("eps x 255", "SNR (dB)", "accuracy (%)", "95 % interval"):
        table.add_column(heading, justify="right")
    for point in points:
        low, high = point.ci95
        table.add_row(
            _number(255 * point.eps, 2),
            _number(point.snr_db, 1),
            _number(point.accuracy, 1),
            f"{low:.1f} to {high:.1f}",
        )
    console.show(f"FGSM on {labelled(chosen.path)}")
    console.out().print(table)
    console.show(
        f"{points[0].counted} of {len(chosen.images)} images of {chosen.data} are right without noise and count\n"
        f"gradient on one draw, score on another, seed {seed}\n"
        f"SNR of [0, 1] pixels after cutting{arrays_line(chosen.arrays)}"
    )


def attack_levels(eps: str | None, snr: str | None) -> list[Level]:
    """The levels that `--eps` or `--snr` name.

    Raises:
        ConfigError: both, or a value outside its range.
    """
    from rapa_cli.attacks.evaluation import Level

    if eps is not None and snr is not None:
        raise ConfigError("--eps and --snr are two ways to say the same", hint="give one of them")
    if eps is None:
        return [Level(snr_db=value) for value in _snr_values(_DEFAULT_SNR if snr is None else snr)]
    values = options.parse_levels(eps, "--eps")
    for value in values:
        if not 0 <= value <= 1:
            hint = f"pixels go from 0 to 1; did you mean {value:g}/255?" if value > 1 else "pixels go from 0 to 1"
            raise ConfigError(f"--eps: got {value:g}, allowed are numbers from 0 to 1", hint=hint)
    if 1 in values:
        console.note("--eps 1 is the whole range of a pixel; one step of 255 is written 1/255")
    return [Level(eps=value) for value in values]


def _snr_values(text: str) -> list[float]:
    values = options.parse_levels(text, "--snr")
    for value in values:
        if not -100 <= value <= 200:
            raise ConfigError(
                f"--snr: got {value:g}, allowed are -100 to 200 dB",
                hint="the paper attacks with about 60 to 20 dB; 33 dB is its threshold of human perception",
            )
    return values


def _document(point: Point) -> dict[str, object]:
    return {
        "eps": point.eps,
        "snr_db": point.snr_db,
        "accuracy": point.accuracy,
        "ci95": point.ci95,
        "correct": point.correct,
        "counted": point.counted,
        "asked": {"eps": point.level.eps} if point.level.eps is not None else {"snr_db": point.level.snr_db},
    }


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
