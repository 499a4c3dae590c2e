"""`rapa demo`: the whole chain on the embedded images, as the commands that anyone could type."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rapa_cli.commands.options import DataDir, Json, Seed

NETWORK, DATA, SCHEME, TILES, RECIPE = "full", "shapes", "random", "16,4,1", "demo"
VOTES = 5
EPS = "0,1/255,2/255,4/255,8/255"


def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", show_default=False, help="The run folder; a new one when left out."),
    ] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train, evaluate, vote, attack and reduce, on drawn images.

    Takes less than three minutes on two cores, and shows each command it runs.

    Example: rapa demo --out runs/demo
    """
    from rapa_cli.console import print_json
    from rapa_cli.files import LOCK

    started = time.perf_counter()
    folder = out or _free_folder(Path("runs"))
    common = [] if data_dir is None else ["--data-dir", str(data_dir)]
    seeded = [*common, "--seed", str(seed)]
    checkpoint = str(folder)
    recipe = ["--network", NETWORK, "--data", DATA, "--scheme", SCHEME, "--tiles", TILES, "--recipe", RECIPE]
    results: dict[str, Any] = {
        "train": _step("train", *recipe, "--out", checkpoint, *seeded),
        "evaluate": _step("evaluate", checkpoint, *seeded),
        "vote": _step("vote", checkpoint, "-n", str(VOTES), *seeded),
        "attack": _step("attack", checkpoint, "--eps", EPS, *seeded),
        "reduce": _step("reduce", checkpoint, "--by", "norm", *seeded),
    }
    results["evaluate_reduced"] = _step("evaluate", results["reduce"]["output"], *seeded)
    seconds = time.perf_counter() - started
    # The lock is nothing that was asked for.
    written = sorted(str(path) for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    if as_json:
        print_json({**results, "seconds": seconds, "written": written})
    else:
        _show(results, seconds, written)


def _free_folder(runs: Path) -> Path:
    """runs/demo, or where it exists the first free of runs/demo-2, runs/demo-3, ..."""
    folder, number = runs / "demo", 1
    while folder.exists():
        number += 1
        folder = runs / f"demo-{number}"
    return folder


def _step(*words: str) -> dict[str, Any]:
    """Runs one command and gives its JSON document.

    Raises:
        typer.Exit: the command failed, and has said why.
    """
    from rapa_cli.app import run
    from rapa_cli.console import note

    note(f"$ rapa {shlex.join(words)}")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = run([*words, "--json"])
    if code:
        raise typer.Exit(code)
    document: dict[str, Any] = json.loads(output.getvalue())
    return document


def _show(results: dict[str, Any], seconds: float, written: list[str]) -> None:
    from rich.table import Table

    from rapa_cli.console import out

    single, vote, reduced = results["evaluate"], results["vote"], results["evaluate_reduced"]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_edge=False)
    table.add_column("what", overflow="fold")
    table.add_column("test error", justify="right")
    table.add_row("one draw", _percent(single["test_error"]))
    table.add_row(f"mean of {vote['n']} draws", _percent(vote["single_error"]))
    table.add_row(f"vote of {vote['n']} draws", _percent(vote["vote_error"]))
    table.add_row("reduced to one tile (norm)", _percent(reduced["test_error"]))
    points = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_edge=False)
    for heading in ("FGSM eps", "SNR", "still right"):
        points.add_column(heading, justify="right")
    for point in results["attack"]["points"]:
        snr = "no noise" if point["snr_db"] is None else f"{point['snr_db']:.1f} dB"
        points.add_row(f"{point['eps'] * 255:g}/255", snr, _percent(point["accuracy"]))
    console = out()
    console.print()
    console.print(f"Network '{NETWORK}', tiles {TILES}, scheme {SCHEME}, {single['images']} test images of '{DATA}'.")
    for each in (table, points):
        console.print()
        console.print(each)
    console.print()
    console.print(f"Took {seconds:.0f} s and wrote:")
    for path in written:
        console.print(f"  {path}", markup=False, soft_wrap=True)


def _percent(value: float) -> str:
    return f"{value:.2f} %"
