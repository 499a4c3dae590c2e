"""Runs as a report reads them, and the words and numbers that its sections share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rapa_cli import checkpoint, config, runs
from rapa_cli.analog.specification import IDEAL
from rapa_cli.files import digest
from rapa_cli.layers.network import Network
from rapa_cli.report.measured import AttackCurve, AttackPoint, Errors, Measured
from rapa_cli.tiling.conv import TiledConv2d

NONE = "-"
NOT_MEASURED = "Not measured: leave out --no-measure where the data is, or name recorded attacks by --attacks."

Named = Sequence[tuple[str, "Run"]]
"""Runs with the names that tables and figures call them by."""


@dataclass
class Run:
    """A run folder that was read, and what is known of its checkpoint.

    Attributes:
        folder: of the run.
        path: of the checkpoint.
        chosen: whether it is the one with the lowest test error, chosen on the test set.
        sha256: of the checkpoint's file.
        manifest: what was asked for.
        description: what the checkpoint says of itself.
        network: in evaluation mode on the CPU.
        rows: of metrics, one for each epoch.
        timing: likewise.
        measured: errors and attack, where they were measured.
        recorded: curves of attacks that were recorded.
    """

    folder: Path
    path: Path
    chosen: bool
    sha256: str
    manifest: runs.Manifest
    description: checkpoint.Description
    network: Network
    rows: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    measured: Measured | None = None
    recorded: list[AttackCurve] = field(default_factory=list)

    @property
    def definition(self) -> config.Network:
        """Of the network."""
        return self.description.network

    @property
    def progress(self) -> checkpoint.Progress:
        """How far the checkpoint's training is."""
        return self.description.progress or checkpoint.Progress()

    @property
    def curves(self) -> list[AttackCurve]:
        """Recorded attacks, or else the measured one."""
        return self.recorded or ([self.measured.attack] if self.measured and self.measured.attack else [])

    @property
    def tiling(self) -> str:
        """Scheme and tiles."""
        if self.definition.scheme != "none":
            return config.tiling(self.definition.scheme, self.definition.tiles)
        # A network written in Python may have tiles of its own.
        own = [layer for layer in self.network.modules() if isinstance(layer, TiledConv2d) and layer.tiles > 1]
        names = ", ".join(dict.fromkeys(layer.scheme for layer in own))
        return config.tiling(names, [layer.tiles for layer in own]) if own else "none"


def read(folder: Path, *, best: bool = False, code: Sequence[Path] = ()) -> Run:
    """Reads a run folder.

    Args:
        folder: of the run.
        best: whether its checkpoint with the lowest test error is meant instead of the last.
        code: Python files whose code may be run, for a network that is written in one.

    Raises:
        FileError: there is no run in it, it has no checkpoint yet, or a file is damaged.
    """
    manifest = runs.read_manifest(folder)
    path = runs.find_checkpoint(str(folder), best=best)
    saved = checkpoint.read(path)
    return Run(
        folder,
        path,
        best,
        digest(path),
        manifest,
        saved.description,
        checkpoint.restore(saved, path, code).eval(),
        runs.read_metrics(folder),
        runs.read_timing(folder),
    )


def names_of(found: Sequence[Run]) -> list[str]:
    """Runs by scheme and tiles, and where these are not enough by folder."""
    tilings = [run.tiling for run in found]
    if len(set(tilings)) == len(found):
        return tilings
    folders = [run.folder.resolve().name for run in found]
    if len(set(folders)) < len(found):
        folders = [str(run.folder) for run in found]
    return [f"{tiling}, {folder}" for tiling, folder in zip(tilings, folders, strict=True)]


def measured_notes(named: Named) -> list[str]:
    """What measured figures rest on, and where there are none."""
    notes = []
    measured = [run.measured for _, run in named if run.measured]
    for data, images, asked, seed in dict.fromkeys(
        (one.settings.data, one.single.images, one.settings.images, one.settings.seed) for one in measured
    ):
        which = f"the first {images:,} test images" if asked else f"all {images:,} test images"
        notes.append(f"One draw, vote and reduction were measured on {which} of {data}, seed {seed}.")
    if any(run.definition.arrays != IDEAL for _, run in named if run.measured):
        notes.append("Arrays that are not ideal were read with their noise.")
    missing = [name for name, run in named if not run.measured]
    if missing:
        notes.append(f"Not measured: {', '.join(missing)}.")
    return notes


def with_interval(errors: Errors | None) -> str:
    """Percent, with the 95 % interval."""
    return NONE if errors is None else f"{errors.error:.2f} ({interval(errors.ci95)})"


def accuracy(point: AttackPoint) -> str:
    """Percent of the images right without noise, with the 95 % interval."""
    return NONE if point.accuracy is None else f"{point.accuracy:.1f} ({interval(point.ci95)})"


def interval(ends: tuple[float, float]) -> str:
    """The ends of an interval."""
    return f"{ends[0]:.1f} to {ends[1]:.1f}"


def percent(value: float | None) -> str:
    """A percentage, or a dash."""
    return NONE if value is None else f"{value:.2f}"


def fixed(value: float | None, digits: int) -> str:
    """A number with so many decimals, or a dash."""
    return NONE if value is None else f"{value:.{digits}f}"


def number_or_nan(value: float | None) -> float:
    """NaN for None, as figures leave out points."""
    return float("nan") if value is None else value


def plain_value(value: Any) -> str:
    """A value of a configuration, in short."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
