"""Training runs from Python: what is asked for, checked against the images, and what came of it."""

from __future__ import annotations

import contextlib
import platform
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from rapa_cli import __version__, config, runs
from rapa_cli.analog.specification import named_arrays
from rapa_cli.checkpoint import Progress
from rapa_cli.data.catalog import open_data
from rapa_cli.data.images import DataSet
from rapa_cli.errors import ConfigError, commas
from rapa_cli.files import digest, held
from rapa_cli.kernels import compiled
from rapa_cli.layers.modules import load_weights
from rapa_cli.layers.network import Network, patches_per_layer, resolve
from rapa_cli.shown import Shown
from rapa_cli.training import loop
from rapa_cli.training.stopping import StopRequest

# What stands for balanced tiles.
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True, repr=False)
class Trained(Shown):
    """A training run; errors in percent.

    Attributes:
        folder: the run folder.
        model: the network after the last epoch, in evaluation mode, on the device it was trained on.
        metrics: a row for each epoch: rate, losses, errors, and what else the run measures.
        seconds: time of all epochs.
    """

    shown: ClassVar = ("folder", "epochs", "test_error", "train_error", "best_test_error", "seconds")

    folder: Path
    model: Network
    metrics: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.metrics)

    @property
    def test_error(self) -> float | None:
        """Of the last epoch; None before the first."""
        return self.metrics[-1]["test_error"] if self.metrics else None

    @property
    def train_error(self) -> float | None:
        """Of the last epoch, while it trained."""
        return self.metrics[-1]["train_error"] if self.metrics else None

    @property
    def best_test_error(self) -> float | None:
        """The lowest of all epochs; it is chosen on the test set."""
        return min((row["test_error"] for row in self.metrics), default=None)


def train(
    network: str = "full",
    data: str | DataSet = "shapes",
    *,
    scheme: str | None = None,
    tiles: int | Sequence[int] | Literal["auto"] | None = None,
    pool: str | None = None,
    arrays: str | None = None,
    weights: str | Path | None = None,
    recipe: str = "short",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Trained:
    """Trains a network into a run folder, as `rapa train` does; every command takes that folder.

    An interruption saves the run first, and `resume` goes on with it. Draws no figure.

    Args:
        network: a definition of the package, a TOML file, `torchvision:NAME`, or `FILE.py:NAME`, whose code is run.
        data: the name of a data set, or one that is open.
        scheme: the tiling scheme; the definition's own if left out.
        tiles: of each convolution, or one number for all; balanced ones by "auto", or if left out.
        pool: max, average, mixed or stochastic.
        arrays: what the arrays are made of: a preset's name or a TOML file.
        weights: a safetensors file that a network written in Python begins with.
        recipe: a recipe of the package, or a TOML file.
        epochs: in all; the recipe's if left out.
        batch_size: images of a step; likewise.
        lr: learning rate; likewise.
        settings: other keys of the recipe, or as `network.KEY` of the network.
        seed: of the run, in [0, 2^32).
        out: the run folder; a new one below ./runs if left out.
        data_dir: where data sets lie.
        device: torch's name of a device; `auto` is a GPU where there is one.
        on_epoch: called with the row of metrics after each epoch.

    Raises:
        ConfigError: what is asked for does not fit together, or the folder holds a run.
        FileError: something is missing or cannot be written.
        CheckFailed: the training diverged.
        Interrupted: it was stopped, and saved.
    """
    images = _opened(data, data_dir)
    counts = (tiles,) if isinstance(tiles, int) else tiles
    own = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    changes = {**{key: value for key, value in own.items() if value is not None}, **(settings or {})}
    changed = [f"{key}={_written(value)}" for key, value in changes.items()]
    options: dict[str, object] = {
        "network": network,
        "data": images.name,
        "scheme": scheme,
        "tiles": AUTO if counts == AUTO else counts and commas(counts),
    }
    options |= {"pool": pool, "arrays": arrays, "weights": weights, "recipe": recipe, "seed": seed}
    code = code_of(network)
    first = None if weights is None else Path(weights)
    given = None if first is None else load_weights(first)
    manifest = requested(
        network,
        recipe,
        images,
        seed,
        scheme=scheme,
        tiles=counts,
        pool=pool,
        arrays=arrays,
        settings=changed,
        provenance=provenance(recipe, _command(options, changed)),
        code=code,
        weights=first,
    )
    # Built first, so that a network that cannot be built leaves no folder behind.
    untrained = loop.untrained(manifest, images, _place(device), code=code, weights=given)
    kind = manifest.network.name, manifest.network.scheme, images.name
    folder = runs.new_folder(*kind, None if out is None else Path(out))
    with held(folder):
        return _run(loop.begin(folder, manifest, images, untrained, code=code), on_epoch)


def resume(
    folder: str | Path,
    *,
    epochs: int | None = None,
    data: DataSet | None = None,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    code: Sequence[str | Path] = (),
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Trained:
    """Goes on with a run from its last checkpoint, as `rapa train --resume` does.

    Args:
        folder: the run folder.
        epochs: in all; what the run was begun with if left out.
        data: its data set, where that is open.
        data_dir: where data sets lie.
        device: torch's name of a device.
        code: Python files that you trust, for a network that is written in one of them: its code is run.
        on_epoch: called with the row of metrics after each epoch.

    Raises:
        ConfigError: the data set is another one, or the run has more epochs already.
        FileError: there is no such run, or it is damaged.
    """
    folder = Path(folder)
    manifest = runs.read_manifest(folder)
    manifest = resumed(manifest, epochs, "rapa_cli.resume")
    images = _opened(manifest.data, data_dir) if data is None else data
    with held(folder):
        trusted = [Path(file) for file in code]
        return _run(loop.resume(folder, manifest, images, _place(device), code=trusted), on_epoch)


def requested(
    network: str,
    recipe: str,
    data: DataSet,
    seed: int,
    *,
    scheme: str | None,
    tiles: Sequence[int] | Literal["auto"] | None,
    pool: str | None,
    arrays: str | None,
    settings: Sequence[str],
    provenance: Mapping[str, str],
    code: Sequence[Path] = (),
    weights: Path | None = None,
) -> runs.Manifest:
    """The run that is asked for, its names looked up and its network checked against the images.

    Args:
        network: name or file.
        recipe: name or file.
        data: the images.
        seed: of the run.
        scheme: as for `resolve`.
        tiles: likewise; a single number is meant for all convolutions, "auto" are balanced ones.
        pool: likewise.
        arrays: name or file.
        settings: KEY=VALUE of the recipe or, as network.KEY, of the network.
        provenance: where the run comes from.
        code: Python files whose code may be run, for a network that is written in one.
        weights: a file of weights that the network begins with.

    Raises:
        ConfigError: it does not fit together.
        FileError: a file is missing.
    """
    definition = config.load_network(network)
    needed: dict[str, Any] = {"classes": len(data.classes), "code": code}
    if definition.module is not None and pool is not None:
        raise ConfigError(
            f"network '{definition.name}' has pooling layers of its own, so that there is none to choose",
            hint="leave --pool out",
        )
    if tiles == AUTO:
        tiles, scheme = None, scheme or ("random" if definition.scheme == "none" else definition.scheme)
    assert not isinstance(tiles, str)
    if tiles is not None and len(tiles) == 1:
        tiles = tuple(tiles) * len(patches_per_layer(definition, data.shape, **needed))
    if weights is not None:
        provenance = {**provenance, runs.WEIGHTS: f"{weights.name}, SHA-256 {digest(weights)}"}
        if definition.module is not None and definition.module.file is None:
            # Those of torchvision were trained on images normalised so.
            settings = ["network.normalization=imagenet", *settings]
    # Which tiles are balanced and which recipe is meant depend on the scheme, which may be set as well.
    definition, _ = config.override(definition, config.load_recipe(recipe, definition.scheme), settings)
    made_of = None if arrays is None else named_arrays(arrays)
    definition = resolve(definition, data.shape, scheme=scheme, tiles=tiles, pool=pool, arrays=made_of, **needed)
    definition, plan = config.override(definition, config.load_recipe(recipe, definition.scheme), settings)
    definition = resolve(definition, data.shape, **needed)
    return runs.Manifest(network=definition, recipe=plan, data=data.name, seed=seed, provenance=dict(provenance))


def provenance(recipe: str, command: str, processes: int = 1) -> dict[str, str]:
    """Where a run comes from: versions, machine, kernels, and the command that begins it, now.

    Args:
        recipe: name or file.
        command: a command line that does the same.
        processes: that train together.
    """
    return {
        "rapa": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        runs.KERNELS: compiled.kernels().name,
        **({"processes": str(processes)} if processes > 1 else {}),
        "recipe": recipe,
        "command": command,
        "started": _now(),
    }


def resumed(manifest: runs.Manifest, epochs: int | None, how: str) -> runs.Manifest:
    """A run that goes on now: with the epochs asked for, and a note of it beside the command that began it.

    Args:
        manifest: what was asked for so far.
        epochs: in all; as before if None.
        how: the command that resumes it.
    """
    begun, now, before = (
        manifest.provenance.get(runs.KERNELS),
        compiled.kernels().name,
        manifest.provenance.get("resumed"),
    )
    note = f"{_now()} {how}" + (f" with {now} kernels" if begun not in (None, now) else "")
    return manifest.model_copy(
        update={
            "recipe": manifest.recipe.model_copy(update={} if epochs is None else {"epochs": epochs}),
            "provenance": {**manifest.provenance, "resumed": f"{before}; {note}" if before else note},
        }
    )


def code_of(network: str) -> tuple[Path, ...]:
    """The Python file that a network's name means, which may then be run; none for other names."""
    return (config.code_named(network)[0],) if config.is_code(network) else ()


class _Watcher:
    """Passes the rows of metrics on."""

    def __init__(self, on_epoch: Callable[[Mapping[str, Any]], None] | None) -> None:
        self._on_epoch = on_epoch

    def step(self, epoch: int, step: int, steps: int, sums: loop.Sums) -> None:
        """Nothing."""

    def testing(self, epoch: int) -> None:
        """Nothing."""

    def epoch(self, row: Mapping[str, Any], progress: Progress, images_per_second: float) -> None:
        """The row."""
        if self._on_epoch is not None:
            self._on_epoch(row)


def _run(training: loop.Training, on_epoch: Callable[[Mapping[str, Any]], None] | None) -> Trained:
    with contextlib.ExitStack() as stack:
        stop = StopRequest()
        if threading.current_thread() is threading.main_thread():
            # Python hands signals to no other thread.
            stack.enter_context(stop)
        training.run(_Watcher(on_epoch), stop)
    if not (training.folder / runs.LAST).exists():
        training.save()
    return Trained(training.folder, training.network.eval(), training.rows, training.progress.seconds)


def _opened(data: str | DataSet, data_dir: str | Path | None) -> DataSet:
    return data if isinstance(data, DataSet) else open_data(data, None if data_dir is None else Path(data_dir))


def _place(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.suppress(RuntimeError):
        return torch.device(device)
    raise ConfigError(f"device: got '{device}', which torch does not know", hint="take cpu, cuda or mps")


def _written(value: Any) -> str:
    """A value as settings have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, (tuple, list)) else str(value)


def _command(options: Mapping[str, object], settings: Sequence[str]) -> str:
    """The command line that asks for the same."""
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    words += [word for setting in settings for word in ("--set", setting)]
    return shlex.join(["rapa", "train", *words])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
