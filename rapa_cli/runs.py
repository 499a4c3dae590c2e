"""Run folders: everything that one training leaves, and how commands find a checkpoint.

*.py            a copy of the Python file that the network is written in, where it is
run.json        what was asked for: network, recipe, data, seed, versions
metrics.*       a row for each epoch, as CSV and as JSON lines; the same for the same seed
timing.csv      seconds for each epoch
last.*          weights, optimizer and progress at the end of the last epoch or where the run was stopped
best.*          weights at the lowest test error
figures/        the learning curve
tensorboard/    metrics for TensorBoard, where they were asked for
measured.json   what reports on the run have measured
.lock           held by the process that writes here
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from rapa_cli import config
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.files import atomic, explained, make_folder, read_text, write_text
from rapa_cli.philox import MAX_SEED
from rapa_cli.resources import in_zoo, zoo_names

LAST = "last.safetensors"
BEST = "best.safetensors"
MANIFEST = "run.json"
METRICS = ("epoch", "rate", "train_loss", "train_error", "test_loss", "test_error")
# What a run's provenance calls the file of the weights that it began with.
WEIGHTS = "weights"
# And what computed its convolutions on a CPU.
KERNELS = "kernels"
# Columns that only some runs have: the error of a vote, and S of each convolution with several tiles.
VOTE_ERROR, SIMILARITY = "vote_error", "similarity_"


class Manifest(config.Frozen):
    """What a run was asked to do."""

    format: int = Field(1, ge=1, le=1)
    network: config.Network
    recipe: config.Recipe
    data: str
    seed: int = Field(ge=0, le=MAX_SEED)
    provenance: dict[str, str] = Field(default_factory=dict)


def new_folder(network: str, scheme: str, data: str, out: Path | None) -> Path:
    """Makes the folder of a new run.

    Args:
        network: for the name of the folder, as are scheme and data.
        scheme: likewise.
        data: likewise.
        out: the folder itself, or None for a new one below ./runs.

    Raises:
        ConfigError: the folder holds a run already.
        FileError: it cannot be made.
    """
    if out is not None:
        if (out / MANIFEST).exists():
            raise ConfigError(
                f"--out {out}: there is a run in this folder already",
                hint=f"go on with it by --resume {out}, or choose another folder",
            )
        return make_folder(out)
    make_folder(Path("runs"))
    stem = re.sub(r"[^\w.-]+", "-", f"{datetime.now():%Y%m%d-%H%M%S}-{network}-{scheme}-{data}")
    # The name of a data set may be a long path.
    stem = stem[:150]
    folder, number = Path("runs") / stem, 1
    while True:
        # Another run may begin in the same second: the folder is ours only if we made it.
        with explained(folder, "make the folder"), contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
        number += 1
        folder = Path("runs") / f"{stem}-{number}"


def read_manifest(folder: Path) -> Manifest:
    """Reads what a run was asked to do.

    Raises:
        FileError: there is no run in the folder, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        inside = (folder.parent / MANIFEST).is_file()
        hint = f"did you mean the folder '{folder.parent}'?" if inside else _other_runs(str(folder))
        if in_zoo(str(folder)):
            hint = f"a network of the zoo is no run; `rapa models show {folder}` says how it was trained"
        raise FileError(f"there is no run folder {folder}", hint=hint)
    try:
        document = config.read_json(read_text(path))
    except FileNotFoundError:
        raise FileError(f"there is no run in {folder} ({MANIFEST} is missing)", hint=_other_runs()) from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}", hint="is the file damaged?") from None
    try:
        return config.validate(
            Manifest, document, str(path), hint=f"was it edited? Compare with {MANIFEST} of another run"
        )
    except ConfigError as error:
        raise FileError(error.message, hint=error.hint) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes what a run is asked to do."""
    write_text(folder / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")


def keep_code(folder: Path, code: Iterable[Path]) -> None:
    """Copies the Python files that a run's network is written in."""
    for file in code:
        content = config.read_code(file)
        with atomic(folder / file.name, len(content)) as temporary:
            temporary.write_bytes(content)


def write_rows(folder: Path, name: str, rows: list[dict[str, Any]], *, lines: bool = False) -> None:
    """Writes rows as `name.csv`, and on request also as `name.jsonl`; a cell is empty where a row lacks its key."""
    text = io.StringIO()
    # A run begun by an earlier version has fewer keys in its first rows.
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{name}.csv", text.getvalue())
    if lines:
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, of one epoch after the other; an empty list where there is none.

    Raises:
        FileError: the file is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        rows = [config.read_json(line) for line in read_text(path).splitlines()]
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not _is_metrics(row):
                raise ValueError(f"line {number} is no row of metrics")
            if row["epoch"] != rows[0]["epoch"] + number - 1:
                raise ValueError(f"line {number} is of epoch {row['epoch']}, and line 1 of epoch {rows[0]['epoch']}")
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}", hint="is the file damaged?") from None
    return rows


def read_timing(folder: Path) -> list[dict[str, Any]]:
    """The rows of timing.csv; an empty list where there is none or it cannot be read, since times prove nothing."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(folder / "timing.csv"), newline="")))
        return [{**{key: float(value) for key, value in row.items()}, "epoch": int(row["epoch"])} for row in rows]
    except (OSError, ValueError, TypeError, KeyError, csv.Error):
        return []


def find_checkpoint(name: str | None, *, best: bool = False) -> Path:
    """The checkpoint that a command's argument means.

    Args:
        name: a file, a run folder, a name in the zoo, or None for the newest run below ./runs.
        best: whether the one with the lowest test error is meant instead of the last.

    Raises:
        FileError: there is none.
    """
    wanted = BEST if best else LAST
    if name is None:
        newest = _newest_run()
        if newest is None:
            raise FileError("there is no run with a checkpoint below ./runs", hint="train one: rapa train")
        name = str(newest)
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / wanted).is_file():
            raise FileError(f"there is no checkpoint {path / wanted}", hint="has the run finished an epoch?")
        return path / wanted
    trained = in_zoo(name)
    if trained is not None:
        return trained
    raise FileError(f"there is no checkpoint {name}", hint=_other_runs(name, zoo_names()))


def _is_metrics(row: dict[str, Any]) -> bool:
    always, sometimes = list(row.items())[: len(METRICS)], list(row.items())[len(METRICS) :]
    return (
        tuple(name for name, _ in always) == METRICS
        and type(row["epoch"]) is int
        and row["epoch"] >= 1
        and all(_is_number(value) for _, value in always)
        and all(name == VOTE_ERROR or name.startswith(SIMILARITY) for name, _ in sometimes)
        and all(value is None or _is_number(value) for _, value in sometimes)
    )


def _is_number(value: object) -> bool:
    # A whole number may be too large for a float.
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _newest_run() -> Path | None:
    """The run below ./runs whose last checkpoint is the youngest."""
    found = sorted(Path("runs").glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def _other_runs(name: str = "", zoo: Iterable[str] = ()) -> str:
    """A hint that names the run, or model of the zoo, nearest to `name`, or the newest run with a checkpoint."""
    known = {word: word for word in zoo}
    for path in Path("runs").glob(f"*/{MANIFEST}"):
        # Both the folder and its name alone are taken for it.
        known |= dict.fromkeys((str(path.parent), path.parent.name), str(path.parent))
    near = difflib.get_close_matches(name, sorted(known), n=1)
    if near:
        return f"did you mean '{known[near[0]]}'?"
    newest = _newest_run()
    return (
        f"newest run: {newest}" if newest else "there is no run with a checkpoint below ./runs; train one: rapa train"
    )
