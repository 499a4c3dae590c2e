"""`rapa vote`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import options

if TYPE_CHECKING:
    from rapa_cli.analysis.calibration import Outcomes
    from rapa_cli.analysis.voting import VoteResult
    from rapa_cli.layers.network import Network

# As many draws have their own error in the document, and their own line in the curve that is shown.
_LISTED = 100
_SHOWN = (1, 2, 3, 4, 5, 7, 9, 15, 25, 50)


def vote(
    checkpoint: options.Checkpoint = None,
    n: Annotated[
        int, typer.Option("-n", "--draws", metavar="N", min=1, max=1_000_000, help="Draws that vote, odd or even.")
    ] = 5,
    best: options.Best = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Also show the error of votes of the first 1, 2, ... N draws.")
    ] = False,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Also show how confidence and accuracy agree, draws beside votes.")
    ] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also show the errors of each class, and what it is taken for.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="Folder for figures and tables: curve, reliability, confusion."
        ),
    ] = None,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    images: options.Images = None,
    seed: options.Seed = 0,
    noise: options.Noise = True,
    code: options.Code = None,
    batch_size: options.BatchSize = 200,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    json: options.Json = False,
) -> None:
    """Measure the error of votes over random assignments.

    Votes of the majority, and by the mean probability (soft).

    Example: rapa vote runs/my-run -n 5, rapa vote runs/my-run -n 25 --curve --calibration --out figures
    """
    from rapa_cli.analysis.voting import vote_error
    from rapa_cli.commands.session import arrays_line, counting, labelled, subject

    chosen = subject(
        checkpoint,
        best=best,
        data=data,
        data_dir=data_dir,
        images=images,
        device=device,
        threads=threads,
        workers=workers,
        noise=noise,
        code=code,
    )
    with counting(f"{n} draws", n * len(chosen.images)) as count:
        result = vote_error(
            chosen.network, chosen.images, chosen.labels, n, seed=seed, batch_size=batch_size, on_draw=count
        )
    classes = chosen.description.classes
    document = {
        "checkpoint": chosen.path,
        "chosen": chosen.chosen,
        "data": chosen.data,
        "images": result.images,
        "n": n,
        "single_error": result.single_error,
        "single_sd": result.single_sd,
        "single_errors": ([100 * wrong / result.images for wrong in result.single_wrong] if n <= _LISTED else None),
        "vote_error": result.vote_error,
        "ci95": result.vote_ci95,
        "gain": result.gain,
        "gain_se": result.gain_se,
        "ties": result.ties,
        "soft_error": result.soft_error,
        "soft_ci95": result.soft_ci95,
        "ece": {name: outcome.calibration.ece for name, outcome in _three(result).items()},
        "seed": seed,
        **chosen.arrays,
    }
    if curve:
        document["curve"] = _curve(result)
    if calibration:
        document["calibration"] = {
            name: {
                "ece": outcome.calibration.ece,
                "confidence": outcome.calibration.mean_confidence,
                "accuracy": outcome.calibration.accuracy,
                "bins": outcome.calibration.rows(),
            }
            for name, outcome in _three(result).items()
        }
    if per_class:
        document["per_class"] = _per_class(result, classes)
        # Single draws share their images, so that their counts are means over draws.
        document["confusion"] = {
            name: (outcome.confusion / (n if name == "single" else 1)).tolist()
            for name, outcome in _three(result).items()
        }
    if out is not None:
        document["files"] = _write(result, classes, f"{chosen.network.definition.name} on {chosen.data}", out)
    if json:
        console.print_json(document)
        return
    low, high = result.vote_ci95
    soft_low, soft_high = result.soft_ci95
    spread = "" if n == 1 else f", standard deviation {result.single_sd:.2f}"
    console.show(
        f"single draw  {result.single_error:.2f} %  (mean of {n}{spread})\n"
        f"vote of {n:<4} {result.vote_error:.2f} %  (95 % interval {low:.2f} to {high:.2f})\n"
        f"soft vote    {result.soft_error:.2f} %  (95 % interval {soft_low:.2f} to {soft_high:.2f})\n"
        f"{_ties(result)}{result.images} images of {chosen.data}, seed {seed}\n"
        f"checkpoint {labelled(chosen.path)}{arrays_line(chosen.arrays)}"
    )
    if curve:
        _show_curve(result)
    if calibration:
        _show_calibration(result)
    if per_class:
        _show_classes(_per_class(result, classes))
    for path in document.get("files", []):
        console.show(f"wrote {path}")
    if not _random(chosen.network) and not chosen.arrays["noise"]:
        console.note("this network makes no random choices in test, so that all draws are the same")


def _ties(result: VoteResult) -> str:
    if not result.ties:
        return ""
    return f"ties         {result.ties}, which go to the highest mean probability\n"


def _three(result: VoteResult) -> dict[str, Outcomes]:
    return {"single": result.single, "vote": result.vote, "soft": result.soft}


def _curve(result: VoteResult) -> list[dict[str, Any]]:
    return [
        {
            "n": point.n,
            "vote_error": point.vote_error,
            "ci95": point.ci95,
            "soft_error": point.soft_error,
            "soft_ci95": point.soft_ci95,
        }
        for point in result.curve
    ]


def _per_class(result: VoteResult, classes: Sequence[str]) -> list[dict[str, Any]]:
    """For each class its errors in percent, and what the vote takes its images for most often when it is wrong."""
    rows = []
    errors = zip(*(outcome.class_errors for outcome in _three(result).values()), strict=True)
    for number, (name, (single, vote, soft)) in enumerate(zip(classes, errors, strict=True)):
        confused = result.vote.confusion[number].clone()
        images = int(confused.sum())
        confused[number] = 0
        most = int(confused.argmax())
        rows.append(
            {
                "class": name,
                "images": images,
                "single_error": single,
                "vote_error": vote,
                "soft_error": soft,
                "taken_for": classes[most] if confused[most] else None,
                "taken_for_percent": 100 * int(confused[most]) / images if images else math.nan,
            }
        )
    return rows


def _write(result: VoteResult, classes: Sequence[str], title: str, out: Path) -> list[Path]:
    """Writes the three figures, and tables with all that they show."""
    from rapa_cli.report import figures, vote_figures
    from rapa_cli.runs import write_rows

    n = len(result.single_wrong)
    panels = {
        "single draw": result.single.calibration,
        f"vote of {n}, share of draws": result.vote.calibration,
        f"soft vote of {n}": result.soft.calibration,
    }
    heading = f"{title}, {result.images:,} images"
    paths = [
        *figures.write(vote_figures.error_against_draws(result, title), out, "curve"),
        *figures.write(vote_figures.reliability(panels, heading), out, "reliability"),
        *figures.write(
            vote_figures.confusion(result.single, result.vote, classes, f"{heading}, vote of {n}"), out, "confusion"
        ),
    ]
    three = _three(result)
    tables = {
        "curve": [
            {
                "n": point.n,
                "single_error": point.single_error,
                "vote_error": point.vote_error,
                "vote_low": point.ci95[0],
                "vote_high": point.ci95[1],
                "soft_error": point.soft_error,
                "soft_low": point.soft_ci95[0],
                "soft_high": point.soft_ci95[1],
            }
            for point in result.curve
        ],
        "reliability": [{"of": name, **row} for name, outcome in three.items() for row in outcome.calibration.rows()],
        "confusion": [
            {
                "class": label,
                "taken_for": chosen,
                "single": int(result.single.confusion[row, column]) / n,
                "vote": int(result.vote.confusion[row, column]),
                "soft": int(result.soft.confusion[row, column]),
            }
            for row, label in enumerate(classes)
            for column, chosen in enumerate(classes)
        ],
        "per-class": _per_class(result, classes),
    }
    for name, rows in tables.items():
        write_rows(out, name, rows)
        paths.append(out / f"{name}.csv")
    return paths


def _show_curve(result: VoteResult) -> None:
    points = result.curve
    # Of many draws those are shown that stand about evenly on a logarithmic axis.
    shown = {*_SHOWN, *(step * 10**power for step in (1, 2, 5) for power in range(2, 7)), len(points)}
    rows = [f"\n{'draws':<10}{'vote, %':>9}{'95 % interval':>18}{'soft, %':>11}{'95 % interval':>18}"]
    for point in points:
        if point.n in shown:
            vote, soft = (f"{low:.2f} to {high:.2f}" for low, high in (point.ci95, point.soft_ci95))
            rows.append(f"{point.n:<10}{point.vote_error:>9.2f}{vote:>18}{point.soft_error:>11.2f}{soft:>18}")
    console.show("\n".join([*rows, "votes of the first draws of all; intervals over images"]))


def _show_calibration(result: VoteResult) -> None:
    n = len(result.single_wrong)
    rows = [f"\n{'':<22}{'ECE':>8}{'confidence, %':>18}{'accuracy, %':>16}"]
    for name, outcome in (
        ("single draw", result.single),
        (f"vote of {n}", result.vote),
        (f"soft vote of {n}", result.soft),
    ):
        found = outcome.calibration
        rows.append(f"{name:<22}{found.ece:>8.2f}{found.mean_confidence:>18.2f}{found.accuracy:>16.2f}")
    bins = len(result.single.calibration.count)
    rows.append(f"ECE: |accuracy - confidence| over {bins} bins, points; confidence of a draw is its")
    rows.append("softmax, of a vote the share of the draws, of a soft vote the mean softmax")
    console.show("\n".join(rows))


def _show_classes(rows: list[dict[str, Any]]) -> None:
    # Long names are cut, so that a line fits a terminal.
    width = min(max(len("class"), *(len(row["class"]) for row in rows)), 16)
    lines = [f"\n{'class':<{width}}{'images':>8}{'single, %':>11}{'vote, %':>9}{'soft, %':>9}  most often taken for"]
    for row in rows:
        taken = row["taken_for"]
        share = "" if taken is None else f"{taken[:16]} ({row['taken_for_percent']:.1f} %)"
        errors = [
            "" if math.isnan(row[key]) else f"{row[key]:.2f}" for key in ("single_error", "vote_error", "soft_error")
        ]
        lines.append(
            f"{row['class'][:width]:<{width}}{row['images']:>8}{errors[0]:>11}{errors[1]:>9}{errors[2]:>9}  {share}"
        )
    console.show("\n".join(lines))


def _random(network: Network) -> bool:
    from rapa_cli.tiling.conv import TiledConv2d

    return any(isinstance(layer, TiledConv2d) and layer.random_in_test for layer in network.modules())
