"""`rapa train`."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.errors import ConfigError, FileError, Interrupted, RapaError
from rapa_cli.training.world import world

if TYPE_CHECKING:
    from rapa_cli.checkpoint import Progress
    from rapa_cli.runs import Manifest
    from rapa_cli.training.loop import Sums, Training, Watcher

# Seconds that a process which says nothing leaves to the first, which may be slow to start, for its message.
_PATIENCE = 10.0


def train(
    network: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.networks,
            metavar="NAME",
            show_default=False,
            help="Network, a TOML file, torchvision:NAME, or FILE.py:NAME, whose code is run [default: full].",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.data,
            metavar="NAME",
            show_default=False,
            help="Data set, or folder:PATH for images that are decoded as they are needed [default: shapes].",
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.schemes,
            metavar="NAME",
            show_default=False,
            help="none, random, random-fixed, image-overlap, image-pad, alternate or perforated.",
        ),
    ] = None,
    tiles: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            show_default=False,
            help="Tiles of each convolution, or one number for all; balanced ones by auto, or when left out.",
        ),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.pools,
            metavar="NAME",
            show_default=False,
            help="max, average, mixed or stochastic.",
        ),
    ] = None,
    arrays: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.arrays,
            metavar="NAME",
            show_default=False,
            help="What the arrays are made of: ideal, a preset such as ReRamES (see `rapa inspect --presets`), "
            "or a TOML file [default: ideal].",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Weights that a network of torchvision or of your own begins with, a safetensors file.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.recipes,
            metavar="NAME",
            show_default=False,
            help="Recipe or a TOML file [default: short].",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", min=0, show_default=False, help="Epochs in all.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, show_default=False, help="Images of one step.")
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, show_default=False, help="Compute a step's images in N parts, which takes less memory."
        ),
    ] = None,
    amp: Annotated[
        bool | None,
        typer.Option(
            "--amp", show_default=False, help="Mixed precision: train the digital layers in bfloat16 where that fits."
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(metavar="RATE", show_default=False, help="Learning rate.")] = None,
    lr_scaling: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.scalings,
            metavar="NAME",
            show_default=False,
            help="What the rate of a layer is multiplied by: none, sqrt or linear in its tiles.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            show_default=False,
            help="Override any key of the recipe or, as network.KEY, of the network.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=options.MAX_SEED, show_default=False, help="Seed of the run [default: 0]."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", show_default=False, help="Run folder; a new one below ./runs when left out."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            autocompletion=completion.runs,
            metavar="RUN",
            show_default=False,
            help="Go on with this run; only --epochs may be changed.",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write metrics for TensorBoard, into RUN/tensorboard.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing: show recipe, shapes, counts, analog time, and what ten steps say of time and memory.",
        ),
    ] = False,
    code: options.Code = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    json: options.Json = False,
) -> None:
    """Train a network.

    Example: rapa train --data cifar10 --scheme random --tiles 16,4,1 --recipe short, or
    rapa train --network torchvision:resnet18 --weights resnet18.safetensors --tiles auto
    """
    from rapa_cli import runs
    from rapa_cli.commands.dry_run import dry_run as rehearse
    from rapa_cli.commands.session import command_line, command_to_resume, compute_device, open_data
    from rapa_cli.files import held
    from rapa_cli.layers.modules import load_weights
    from rapa_cli.training import loop, parallel
    from rapa_cli.training.board import check_installed
    from rapa_cli.training.request import provenance, requested

    fixed = {
        "--network": network,
        "--data": data,
        "--scheme": scheme,
        "--tiles": tiles,
        "--pool": pool,
        "--arrays": arrays,
        "--weights": weights,
        "--recipe": recipe,
        "--batch-size": batch_size,
        "--accumulate": accumulate,
        "--amp": amp,
        "--lr": lr,
        "--lr-scaling": lr_scaling,
        "--set": settings,
        "--seed": seed,
        "--out": out,
    }
    given = [name for name, value in fixed.items() if value is not None]
    with _one_voice(), contextlib.ExitStack() as stack, parallel.joined() as team:

        def hold(chosen: Path) -> Path:
            stack.enter_context(held(chosen))
            return chosen

        if tensorboard:
            check_installed()
        if dry_run and (resume is not None or team.size > 1):
            raise ConfigError("--dry-run is of a new run by one process", hint="leave out what goes with others")
        trusted = _trusted(network, code, resuming=resume is not None)
        team.same_options({**fixed, "--epochs": epochs, "--resume": resume})
        place = team.device(lambda: compute_device(device, threads))
        if resume is not None:
            if given:
                raise ConfigError(
                    f"--resume goes on with the run as it was begun, so {given[0]} cannot be given with it",
                    hint="only --epochs may be changed",
                )
            folder = resume.parent if resume.name == runs.LAST else resume
            manifest = team.from_first(lambda: _going_on(runs.read_manifest(folder), epochs, team.size))
            team.from_first(lambda: hold(folder))
            images = team.by_host(lambda: open_data(manifest.data, data_dir, workers))
            training = loop.resume(folder, manifest, images, place, team, code=trusted)
        else:
            name = data or "shapes"
            images = team.by_host(lambda: open_data(name, data_dir, workers))
            given_weights = None if weights is None else load_weights(weights)
            manifest = team.from_first(
                lambda: requested(
                    network or "full", recipe or "short", images, seed or 0,
                    scheme=scheme, tiles=_tiles(tiles), pool=pool, arrays=arrays,
                    settings=_settings(
                        settings, epochs=epochs, batch_size=batch_size, accumulate=accumulate,
                        amp=None if amp is None else "true", lr=lr, lr_scaling=lr_scaling,
                    ),
                    provenance=provenance(recipe or "short", command_line(), team.size),
                    code=trusted, weights=weights,
                )
            )  # fmt: skip
            # Built first, so that a network that cannot be built leaves no folder behind.
            untrained = loop.untrained(manifest, images, place, team, code=trusted, weights=given_weights)
            if dry_run:
                rehearse(manifest, images, untrained, json=json)
                return
            kind = manifest.network.name, manifest.network.scheme, name
            folder = team.from_first(lambda: hold(runs.new_folder(*kind, out)))
            training = loop.begin(folder, manifest, images, untrained, team, code=trusted)
        again = command_to_resume(folder, data_dir, trusted)
        _run(
            training,
            f"rapa {again}" if team.size == 1 else f"torchrun ... -m rapa_cli {again}",
            tensorboard=tensorboard,
            json=json,
        )


def _run(training: Training, again: str, *, tensorboard: bool, json: bool) -> None:
    """Trains, and tells how it goes and what came of it; `again` is the command that goes on with the run."""
    from rapa_cli import runs
    from rapa_cli.commands.live import View
    from rapa_cli.config import tiling
    from rapa_cli.training.board import Board
    from rapa_cli.training.parallel import PeerLost
    from rapa_cli.training.stopping import StopRequest

    manifest, folder, team = training.manifest, training.folder, training.team
    definition, plan = manifest.network, manifest.recipe
    pooling = f", {definition.pool} pooling" if definition.module is None else ""
    console.note(
        f"{definition.name} on {manifest.data} ({len(training.data.train)} images): "
        f"{tiling(definition.scheme, definition.tiles)}{pooling}"
    )
    if training.network.anew:
        console.note(f"new weights for other classes: {', '.join(training.network.anew)}")
    _note_tiles(training)
    _note_arrays(training)
    together = f" by {team.size} processes" if team.size > 1 else ""
    console.note(f"{plan.epochs} epochs, batch {plan.batch_size}{together}, rate {plan.lr:g}, seed {manifest.seed}")
    console.note(f"run folder {folder}")
    if training.progress.epoch or training.progress.step:
        console.note(f"going on after epoch {training.progress.epoch}, step {training.progress.step}")
    lost = training.progress.epoch - len(training.rows)
    if lost:
        console.note(f"metrics.jsonl says nothing of the first {lost} epochs")
    in_vain = False
    try:
        with StopRequest() as stop, contextlib.ExitStack() as stack:
            watchers: list[Watcher] = [stack.enter_context(View(plan, training.rows))]
            if tensorboard and team.first:
                watchers.append(stack.enter_context(Board(folder, training.progress.epoch)))
            training.run(_Told(watchers), stop)
    except Interrupted:
        console.note(f"saved; go on with: {again}")
        raise
    except KeyboardInterrupt:
        console.note(f"not saved after epoch {training.progress.epoch}; go on from there with: {again}")
        raise
    except (PeerLost, FileError):
        in_vain = True
        raise
    finally:
        # What there is to see is drawn also when the run was stopped, unless torchrun is ending this process too, or a
        # file could not be written, of which the message must speak.
        if training.rows and team.first and not in_vain:
            _draw_curve(training.rows, manifest, folder)
    if not team.from_first((folder / runs.LAST).exists):
        training.save()
    _summary(training, folder, json=json)


def hush() -> None:
    """Of the processes that torchrun starts only the first speaks: from here on the others say nothing."""
    if world(os.environ)[0]:
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end


def wait_to_be_ended() -> None:
    """Lets the first process speak of an error of all: torchrun ends the others as soon as one has failed."""
    if world(os.environ)[0] and sys.stderr is not sys.__stderr__:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_PATIENCE)


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """As `hush`, but a process tells of what befell itself alone."""
    from rapa_cli.training.parallel import Unreachable

    hush()
    try:
        yield
    except Exception as error:
        rank, size = world(os.environ)
        # The other errors of ours are raised in all processes.
        if rank and (isinstance(error, Unreachable) or not isinstance(error, RapaError)):
            assert sys.__stdout__ is not None
            assert sys.__stderr__ is not None
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            console.note(f"process {rank} of {size} on {platform.node()}:")
        raise


def _note_tiles(training: Training) -> None:
    """Says which layers have one tile only, and where given weights do not compute what they did."""
    from rapa_cli import runs
    from rapa_cli.layers.conversion import kept_whole

    definition = training.manifest.network
    if definition.module is None or definition.scheme == "none":
        return
    if runs.WEIGHTS in training.manifest.provenance and definition.scheme == "image-pad":
        console.note("image-pad: regions end in zeros, so that these weights compute something else at first")
    whole = kept_whole(training.network, definition.scheme)
    if whole:
        first, *others = whole
        more = f" and {len(others)} more" if others else ""
        console.note(f"with one tile only: '{first}', which {whole[first]}{more}")


def _note_arrays(training: Training) -> None:
    from rapa_cli.analog.specification import IDEAL, label

    arrays, recipe = training.manifest.network.arrays, training.manifest.recipe
    if arrays != IDEAL:
        console.note(f"arrays {label(arrays)}")
    if training.sgd.without:
        settings = {"momentum": recipe.momentum, "weight decay": recipe.weight_decay}
        asked = " and ".join(f"{name} {value:g}" for name, value in settings.items() if value)
        console.note(f"{asked}: 0 on the arrays, which learn by pulses")


def _tiles(text: str | None) -> tuple[int, ...] | Literal["auto"] | None:
    return "auto" if text == "auto" else None if text is None else options.parse_tiles(text)


def _settings(settings: list[str] | None, **given: object) -> list[str]:
    """What `--set` and the options for single keys ask for."""
    return [*(f"recipe.{key}={value}" for key, value in given.items() if value is not None), *(settings or [])]


def _trusted(network: str | None, code: list[Path] | None, *, resuming: bool) -> tuple[Path, ...]:
    """The Python files whose code may be run: those that the command line names. Says so."""
    from rapa_cli.commands.session import note_code
    from rapa_cli.training.request import code_of

    if code and not resuming:
        raise ConfigError("--code names the file of a run that goes on", hint=f"to begin one: --network {code[0]}:NAME")
    found = tuple(code or ()) or code_of(network or "")
    if found:
        note_code(found)
    return found


def _going_on(manifest: Manifest, epochs: int | None, processes: int) -> Manifest:
    """The run as it goes on; says so where it does by other kernels."""
    from rapa_cli.commands.session import command_line
    from rapa_cli.kernels.compiled import kernels
    from rapa_cli.runs import KERNELS
    from rapa_cli.training.request import resumed

    begun, now = manifest.provenance.get(KERNELS), kernels()
    if begun not in (None, now.name):
        console.note(
            f"the run was begun with {begun} kernels and goes on with {now.name} ones ({now.reason}): "
            "it will not be the same to the last bit"
        )
    together = f" by {processes} processes" if processes > 1 else ""
    return resumed(manifest, epochs, f"{command_line()}{together}")


def _draw_curve(rows: list[dict[str, Any]], manifest: Manifest, folder: Path) -> None:
    from rapa_cli.config import tiling
    from rapa_cli.files import inside
    from rapa_cli.report import figures

    definition = manifest.network
    pooling = f", {definition.pool}" if definition.module is None else ""
    title = f"{definition.name} on {manifest.data}: {tiling(definition.scheme, definition.tiles)}{pooling}"
    figures.write(figures.learning_curve(rows, title), inside(folder, "figures"), "learning-curve")


def _summary(training: Training, folder: Path, *, json: bool) -> None:
    from rapa_cli import runs

    progress = training.progress
    document = {
        "run": folder,
        "checkpoint": folder / runs.LAST,
        "epochs": progress.epoch,
        "test_error": progress.test_error,
        "train_error": progress.train_error,
        "best_test_error": progress.best_test_error,
        "best_epoch": progress.best_epoch,
        "seconds": progress.seconds,
        "images_per_second": progress.images / progress.seconds if progress.seconds else None,
        "test_errors": [row["test_error"] for row in training.rows],
        "vote_errors": [row[runs.VOTE_ERROR] for row in training.rows if runs.VOTE_ERROR in row] or None,
        "test_images": len(training.data.test),
        "seed": training.manifest.seed,
    }
    if json:
        console.print_json(document)
        return
    if progress.test_error is None:
        console.show(f"no epoch was trained; the untrained network is in {folder / runs.LAST}")
        return
    epoch, train_error = progress.epoch, progress.train_error
    console.show(
        f"test error      {progress.test_error:.2f} %  (epoch {epoch}, train error {train_error:.2f} %)\n"
        f"lowest          {progress.best_test_error:.2f} %  (epoch {progress.best_epoch}, chosen on the test set)\n"
        f"time            {console.duration(progress.seconds)}, {document['images_per_second']:.0f} images/s with "
        "testing\n"
        f"checkpoint      {document['checkpoint']}\n"
        f"learning curve  {folder / 'figures' / 'learning-curve.png'}"
    )


class _Told:
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.step(epoch, step, steps, sums)

    def testing(self, epoch: int) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.testing(epoch)

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        """Tells all."""
        for watcher in self._watchers:
            watcher.epoch(row, progress, images_per_second)
