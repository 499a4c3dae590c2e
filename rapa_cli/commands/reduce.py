"""`rapa reduce`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapa_cli import console
from rapa_cli.commands import completion, options
from rapa_cli.errors import ConfigError, Interrupted, suggestion

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from torch import Tensor

    from rapa_cli.analysis.evaluation import Evaluation
    from rapa_cli.checkpoint import Progress
    from rapa_cli.commands.session import Subject
    from rapa_cli.config import Recipe
    from rapa_cli.layers.network import Network
    from rapa_cli.training.loop import Sums


def reduce(
    checkpoint: options.Checkpoint = None,
    by: Annotated[
        str,
        typer.Option(
            autocompletion=completion.ways,
            metavar="WAY",
            help="What each channel takes: norm, the tile's filter of the largest L2 norm; winner, the one that most "
            "often wins the pooling of training images; mean, their mean; first, that of the first tile.",
        ),
    ] = "norm",
    compare: Annotated[bool, typer.Option("--compare", help="Also measure all other ways, side by side.")] = False,
    train_images: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, show_default=False, help="For winner: count on the first N training images only."
        ),
    ] = None,
    finetune: Annotated[
        int, typer.Option(metavar="N", min=0, help="Then train the reduced network for N epochs, in a run of its own.")
    ] = 0,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            show_default=False,
            help="With --finetune: its rate; that of the run's last epoch if left out.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="With --finetune: its run folder; a new one below ./runs if left out.",
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
    best: options.Best = False,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    images: options.Images = None,
    seed: options.Seed = 0,
    code: options.Code = None,
    batch_size: options.BatchSize = 200,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Make an ordinary network from a tiled one, and measure both.

    Example: rapa reduce runs/my-run --by norm, rapa reduce runs/my-run --by winner --compare
    """
    from rapa_cli import checkpoint as checkpoints
    from rapa_cli.analysis.evaluation import evaluate
    from rapa_cli.analysis.reduction import WAYS
    from rapa_cli.commands.session import beside, made_from, open_data, subject
    from rapa_cli.files import make_folder
    from rapa_cli.runs import MANIFEST

    if by not in WAYS:
        raise ConfigError(f"--by: there is no way '{by}' to reduce", hint=suggestion(by, WAYS))
    if not finetune and (lr is not None or run is not None):
        given = "--lr" if lr is not None else "--run"
        raise ConfigError(f"{given} cannot go without --finetune", hint="give epochs too: --finetune 1")
    if run is not None and (run / MANIFEST).exists():
        raise ConfigError(f"--run {run}: there is a run in this folder already", hint="choose another folder")
    chosen = subject(
        checkpoint,
        best=best,
        data=data,
        data_dir=data_dir,
        images=images,
        device=device,
        threads=threads,
        code=code,
    )
    target = out or beside(chosen.path, f"{chosen.path.stem}-reduced-{by}.safetensors")
    if target.exists() and target.samefile(chosen.path):
        raise ConfigError(f"--out {target} is the checkpoint itself", hint="choose another file")
    recipe = _recipe(chosen, finetune, lr) if finetune else None
    # The way that is asked for first, so that what forbids it is known at once.
    ways = (by, *(way for way in WAYS if way != by)) if compare else (by,)
    counted = open_data(chosen.data, data_dir).train.images[:train_images] if "winner" in ways else None
    unpooled: list[str] = []
    before, made = _measured(chosen, ways, counted, seed, batch_size, unpooled.extend)
    reduced, after = made[by]
    description = chosen.description.model_copy(
        update={
            "network": reduced.definition,
            "progress": None,
            "provenance": {
                **chosen.description.provenance,
                "made_from": made_from(chosen.path, target.parent),
                "made_by": f"rapa reduce --by {by}",
            },
        }
    )
    make_folder(target.parent)
    checkpoints.save(target, description, reduced.state_dict(), {})
    document: dict[str, Any] = {
        "checkpoint": chosen.path,
        "chosen": chosen.chosen,
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
    if counted is not None:
        document |= {"train_images": len(counted), "by_norm": unpooled}
    if compare:
        document["compared"] = _compared(chosen.network, made, WAYS)
    if recipe is not None:
        document["finetuned"] = _finetuned(chosen, reduced, recipe, seed, run, data_dir, code or ())
        tuned = evaluate(reduced, chosen.images, chosen.labels, seed=seed, batch_size=batch_size)
        document |= {"test_error_finetuned": tuned.error, "ci95_finetuned": tuned.ci95}
    if unpooled:
        many = f" and {len(unpooled) - 1} more" if len(unpooled) > 1 else ""
        console.note(f"no pooling follows '{unpooled[0]}'{many}: by 'winner' these go by norm")
    if json:
        console.print_json(document)
    else:
        _show(document, chosen)


def _measured(
    chosen: Subject,
    ways: Sequence[str],
    counted: Tensor | None,
    seed: int,
    batch_size: int,
    on_unpooled: Callable[[list[str]], None],
) -> tuple[Evaluation, dict[str, tuple[Network, Evaluation]]]:
    """The error before, and for each way the reduced network with its error.

    The first way must be possible; others that are not are left out, with a note.
    """
    from rapa_cli.analysis.evaluation import evaluate
    from rapa_cli.analysis.reduction import reduce as make_ordinary
    from rapa_cli.commands.session import counting
    from rapa_cli.layers.network import Network

    made: dict[str, tuple[Network, Evaluation]] = {}
    images, labels = chosen.images, chosen.labels
    passes = (1 + len(ways)) * len(images) + (0 if counted is None else len(counted))
    with counting("before and after", passes) as count:
        for way in ways:
            try:
                network = make_ordinary(
                    chosen.network,
                    way,
                    images=counted,
                    seed=seed,
                    batch_size=batch_size,
                    on_batch=count,
                    on_unpooled=on_unpooled,
                )
            except ConfigError as error:
                if way == ways[0]:
                    raise
                console.note(error.message)
                continue
            assert isinstance(network, Network)
            found = evaluate(network, images, labels, seed=seed, batch_size=batch_size, on_batch=count)
            made[way] = network, found
        before = evaluate(chosen.network, images, labels, seed=seed, batch_size=batch_size, on_batch=count)
    return before, made


def _compared(
    tiled: Network, made: Mapping[str, tuple[Network, Evaluation]], ways: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each way; one that is not possible has no error."""
    from rapa_cli.analysis.reduction import same_filters

    rows: list[dict[str, Any]] = []
    for way in ways:
        network, found = made.get(way, (None, None))
        rows.append(
            {
                "by": way,
                "test_error": found.error if found else None,
                "ci95": found.ci95 if found else None,
                "filters_as_by_norm": same_filters(tiled, network, made["norm"][0]) if network else None,
            }
        )
    return rows


def _show(document: Mapping[str, Any], chosen: Subject) -> None:
    from rapa_cli.commands.session import arrays_line, labelled

    lines = [
        f"test error tiled    {document['test_error_before']:.2f} %  (one draw, seed {document['seed']})",
        f"test error reduced  {document['test_error_after']:.2f} %  (by {document['by']})",
    ]
    tuned = document.get("finetuned")
    if tuned:
        how = f"{tuned['epochs']} {console.plural('epoch', tuned['epochs'])}, rate {tuned['lr']:g}"
        lines.append(f"test error tuned    {document['test_error_finetuned']:.2f} %  ({how})")
    lines += [
        f"{document['images']} images of {document['data']}",
        f"checkpoint {labelled(chosen.path)}{arrays_line(chosen.arrays)}",
        f"wrote {document['output']}",
    ]
    if tuned:
        lines.append(f"wrote {tuned['checkpoint']}")
    if "compared" in document:
        lines += [
            f"\n{'way':<10}{'test error, %':>15}{'95 % interval':>20}{'filters as by norm, %':>25}",
            _row("tiled", document["test_error_before"], document["ci95_before"], None),
            *(
                _row(row["by"], row["test_error"], row["ci95"], row["filters_as_by_norm"])
                for row in document["compared"]
            ),
        ]
    console.show("\n".join(lines))


def _row(way: str, error: float | None, interval: tuple[float, float] | None, share: float | None) -> str:
    if error is None or interval is None:
        return f"{way:<10}{'-':>15}"
    same = "" if share is None else f"{100 * share:>25.0f}"
    return f"{way:<10}{error:>15.2f}{f'{interval[0]:.2f} to {interval[1]:.2f}':>20}{same}"


def _recipe(chosen: Subject, epochs: int, lr: float | None) -> Recipe:
    """The run's own recipe, for some epochs at one rate."""
    from rapa_cli import config
    from rapa_cli.training.schedule import rate

    recipe = chosen.description.recipe
    if recipe is None:
        raise ConfigError(
            f"--finetune: {chosen.path} does not say how it was trained",
            hint="take a checkpoint that `rapa train` has written",
        )
    if lr is None:
        lr = rate(recipe, max(recipe.epochs - 1, 0))
    values = {"epochs": epochs, "lr": lr, "warmup_epochs": 0, "step_factor": 1.0}
    hint = "leave --lr out for the rate of the run's last epoch"
    return config.validate(config.Recipe, {**recipe.model_dump(), **values}, "--finetune", hint=hint)


def _finetuned(
    chosen: Subject,
    network: Network,
    recipe: Recipe,
    seed: int,
    out: Path | None,
    data_dir: Path | None,
    code: Sequence[Path],
) -> dict[str, Any]:
    """Trains the reduced network in place, as a run of its own; gives what the document says of it."""
    from rapa_cli import runs
    from rapa_cli.commands.session import command_line, command_to_resume, made_from, open_data
    from rapa_cli.files import held
    from rapa_cli.training import loop
    from rapa_cli.training.stopping import StopRequest

    folder = runs.new_folder(network.definition.name, network.definition.scheme, chosen.data, out)
    provenance = {
        **chosen.description.provenance,
        "made_from": made_from(chosen.path, folder),
        "command": command_line(),
    }
    manifest = runs.Manifest(
        network=network.definition, recipe=recipe, data=chosen.data, seed=seed, provenance=provenance
    )
    with held(folder):
        training = loop.begin(folder, manifest, open_data(chosen.data, data_dir), network, code=code)
        # A run that is stopped goes on from these weights, and not from new ones.
        training.save()
        epochs = console.plural("epoch", recipe.epochs)
        console.note(f"fine-tuning for {recipe.epochs} {epochs} at rate {recipe.lr:g} in {folder}")
        try:
            with StopRequest() as stop, _Watcher(recipe.epochs) as watcher:
                training.run(watcher, stop)
        except Interrupted:
            console.note(f"saved; go on with: rapa {command_to_resume(folder, data_dir, code)}")
            raise
    return {
        "run": folder,
        "checkpoint": folder / runs.LAST,
        "epochs": recipe.epochs,
        "lr": recipe.lr,
        "best_test_error": training.progress.best_test_error,
    }


class _Watcher:
    """A bar over the steps of all epochs, and a line for each epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._bar: Bar = console.progress()
        self._task: Any = None

    def __enter__(self) -> _Watcher:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, epoch: int, step: int, steps: int, sums: Sums) -> None:
        """Advances the bar."""
        if self._task is None:
            self._task = self._bar.add_task("fine-tuning", total=self._epochs * steps)
        self._bar.update(self._task, completed=epoch * steps + step)

    def testing(self, epoch: int) -> None:
        """Nothing: the test is short."""

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        """Says how the epoch went."""
        console.note(
            f"epoch {row['epoch']}/{self._epochs}  train {row['train_error']:.2f} %  test {row['test_error']:.2f} %"
        )
