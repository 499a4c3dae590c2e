"""`rapa report`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.errors import ConfigError, FileError

if TYPE_CHECKING:
    import torch

    from rapa_cli.report.measured import AttackCurve, Measured, Settings
    from rapa_cli.report.reported import Run

_IMAGES = 1000
_PAGE = "report.html"


def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            autocompletion=completion.runs,
            metavar="RUN",
            show_default=False,
            help="Run folders; the newest run under ./runs when left out.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help=f"File to write; {_PAGE} in the run folder when left out, for several runs in this folder.",
        ),
    ] = None,
    attacks: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Folder of `rapa attack --out` whose curves are shown; may be given repeatedly.",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=0, help="Measure on the first N test images; 0 for all.")
    ] = _IMAGES,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Whether what was not measured before is measured now.")
    ] = True,
    best: options.Best = False,
    code: options.Code = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Write a report on runs: one HTML file that needs no network.

    Learning curves, votes, reduction, attack curves, schemes, filters and their similarity, analog time, the recipe,
    and how to repeat it. What is measured is kept in RUN/measured.json, so that a second report is quick.

    Example: rapa report runs/my-run, or rapa report runs/none runs/random --out compared.html
    """
    from rapa_cli.commands.session import checkpoint_path, command_line, compute_device, note_code
    from rapa_cli.files import make_folder
    from rapa_cli.report import measured, page, run_report
    from rapa_cli.report.reported import read

    place = compute_device(device, threads)
    named = folders or [checkpoint_path(None, best=best).parent]
    if code:
        note_code(code)
    # The same run under two names is one.
    unique = {folder.resolve(): folder for folder in named}.values()
    runs = [read(folder, best=best, code=code or ()) for folder in unique]
    for folder in attacks or []:
        _take(runs, folder, measured.recorded(folder))
    settings = [measured.Settings(checkpoint=run.sha256, data=run.manifest.data, images=images) for run in runs]
    for run, wanted in zip(runs, settings, strict=True):
        run.measured = _measured(run, wanted, data_dir, place) if measure else measured.find(run.folder, wanted)
    target = out or (runs[0].folder / _PAGE if len(runs) == 1 else Path(_PAGE))
    make_folder(target.parent)
    page.write(target, run_report.page(runs, _again(runs, command_line())))
    if json:
        console.print_json({"report": target, "runs": [_entry(run) for run in runs]})
        return
    for run in runs:
        console.show(f"{run.path}: {_line(run)}")
    console.show(f"wrote {target} ({-(-target.stat().st_size // 1000)} kB)")


def _take(runs: list[Run], folder: Path, curves: dict[str, list[AttackCurve]]) -> None:
    """Gives runs the curves that were recorded of their checkpoints."""
    known = [run for run in runs if run.sha256 in curves]
    if not known:
        shown = ", ".join(str(run.path) for run in runs)
        raise ConfigError(
            f"--attacks {folder}: these records are of other checkpoints than {shown}",
            hint="an attack on the last checkpoint does not go with --best, nor one from before the run went on",
        )
    for run in known:
        run.recorded += curves[run.sha256]


def _measured(run: Run, wanted: Settings, data_dir: Path | None, place: torch.device) -> Measured:
    """What is known of a checkpoint under these settings, measured where it is not known yet."""
    from rapa_cli.attacks.records import digest_images
    from rapa_cli.commands.session import open_data
    from rapa_cli.report import measured

    try:
        opened = open_data(run.manifest.data, data_dir)
    except FileError as error:
        known = measured.find(run.folder, wanted)
        if known is None:
            raise FileError(error.message, hint=f"{error.hint}; or leave out what needs it: --no-measure") from error
        console.note(f"{run.folder}: as measured before; {error.message}")
        return known
    if opened.shape != run.network.shape or len(opened.classes) != run.network.classes:
        raise ConfigError(
            f"{run.folder}: the images of '{run.manifest.data}' do not fit its network any more",
            hint="--data-dir names the folder with those it was trained on; --no-measure does without",
        )
    count = min(wanted.images or len(opened.test), len(opened.test))
    images, labels = opened.test.images[:count], opened.test.labels[:count]
    wanted = wanted.model_copy(update={"data_sha256": digest_images(images, labels)})
    known = measured.find(run.folder, wanted)
    attacked = not run.recorded
    if known is not None and (known.attack or not attacked):
        return known
    with console.progress() as bar:
        network = run.network.to(place)
        task = bar.add_task("", total=measured.cost(network, count, wanted, attacked=attacked))
        found = measured.measure(
            network,
            images,
            labels,
            wanted,
            attacked=attacked,
            on_part=lambda text: bar.update(task, description=f"{run.folder.name}: {text}"),
            on_cost=lambda cost: bar.advance(task, cost),
        )
        run.network.to("cpu")
    try:
        measured.keep(run.folder, found)
    except FileError as error:
        # The report may lie elsewhere.
        console.note(f"what was measured is not kept: {error.message}")
    return found


def _again(runs: list[Run], command: str) -> list[str]:
    """The command line that makes the page again, with the runs that were left out of it."""
    words = shlex.split(command)
    named = any(str(run.folder) in words for run in runs)
    return [command] if named else [shlex.join([*words, *(str(run.folder) for run in runs)])]


def _entry(run: Run) -> dict[str, Any]:
    found = run.measured
    return {
        "run": run.folder,
        "checkpoint": run.path,
        "data": run.manifest.data,
        "network": run.definition.name,
        "scheme": run.definition.scheme,
        "tiles": run.definition.tiles,
        "images": found.single.images if found else None,
        "test_error": found.single.error if found else None,
        "vote_error": found.votes.error if found and found.votes else None,
        "reduced_error": found.reduced.error if found and found.reduced else None,
        "attacks": [curve.model_dump() for curve in run.curves],
    }


def _line(run: Run) -> str:
    found = run.measured
    if found is None:
        return "not measured"
    kinds = {"one draw": found.single, f"vote of {found.settings.votes}": found.votes, "reduced": found.reduced}
    errors = ", ".join(f"{kind} {count.error:.2f} %" for kind, count in kinds.items() if count)
    return f"{errors} on {found.single.images:,} images"
