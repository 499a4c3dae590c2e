"""Options that several subcommands share, and the parsing of lists written on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from rapa_cli.commands import completion
from rapa_cli.errors import ConfigError, suggestion

MAX_LEVELS = 10_000

MAX_SEED = 2**32 - 1
"""The largest seed that `--seed` takes."""
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]+)?")
# An exponent of at most three digits keeps the exact fractions below small.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.ASCII | re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_LONGEST = 1000 * _SECONDS["y"]
_TIME = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?\s*([a-z]*)", re.ASCII | re.IGNORECASE)
_TIMES_HINT = "write times with commas, in seconds or with a unit s, m, h, d, w or y: 0,1h,1d,1y"
_LEVELS_HINT = "write numbers or fractions with commas (0,1/255,4/255) or a range start:stop:count (0:30:7)"


def _device(text: str | None) -> str | None:
    if text is not None and not _DEVICE.fullmatch(text):
        hint = "leave --device out to take a GPU where there is one; `rapa doctor` shows what this machine has"
        raise ConfigError(f"--device: got '{text}', allowed are auto, cpu, cuda, cuda:N and mps", hint=hint)
    return text


def _split(text: str) -> str:
    if text not in completion.SPLITS:
        hint = suggestion(text, completion.SPLITS)
        raise ConfigError(f"--split: got '{text}', allowed are train and test", hint=hint)
    return text


Checkpoint = Annotated[
    str | None,
    typer.Argument(
        autocompletion=completion.checkpoints,
        metavar="CHECKPOINT",
        show_default=False,
        help="A file, a run folder or a zoo name; the newest run under ./runs when left out.",
    ),
]
Best = Annotated[
    bool,
    typer.Option(
        "--best",
        help="Take the run's checkpoint with the lowest test error (chosen on the test set), not its last.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        autocompletion=completion.data,
        metavar="NAME",
        show_default=False,
        help="Data set, or folder:PATH; the one that the network was trained on when left out.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        show_default=False,
        help="Folder of the data sets; RAPA_DATA_DIR or ~/.local/share/rapa when left out.",
    ),
]
Split = Annotated[
    str,
    typer.Option("--split", autocompletion=completion.splits, metavar="NAME", callback=_split, help="train or test."),
]
Seed = Annotated[
    int,
    typer.Option("--seed", metavar="N", min=0, max=MAX_SEED, help="Seed of every random choice."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        autocompletion=completion.devices,
        metavar="NAME",
        callback=_device,
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", metavar="N", min=1, help="Images computed at a time."),
]
Code = Annotated[
    list[Path] | None,
    typer.Option(
        "--code",
        metavar="FILE.py",
        show_default=False,
        help="The Python file that the network is written in; its code is run, so name only what you trust.",
    ),
]
Images = Annotated[
    int | None,
    typer.Option("--images", metavar="N", min=1, show_default=False, help="Only the first N images of the split."),
]
Noise = Annotated[
    bool,
    typer.Option("--noise/--no-noise", help="Whether arrays that are not ideal are read with their noise."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        max=1024,
        show_default=False,
        help="Processes that decode the images of folder:PATH; one for each core, up to 8, when left out.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, show_default=False, help="CPU threads; torch's choice when left out."
    ),
]


def parse_levels(text: str, name: str) -> list[float]:
    """Reads a list of levels such as the values of `--eps` or `--snr`.

    Args:
        text: pieces with commas between them; a piece is a number, a fraction (`4/255`), or a range
            `start:stop:count` of evenly spaced levels with both ends in it.
        name: the option, for messages.

    Returns:
        The levels in the order written, each the float nearest to what was written.

    Raises:
        ConfigError: nothing was written, or a piece is none of these.
    """
    levels: list[float] = []
    for piece in text.split(","):
        levels += _piece(piece.strip(), name)
        if len(levels) > MAX_LEVELS:
            raise ConfigError(f"{name}: got more than {MAX_LEVELS} levels in '{_short(text)}'", hint=_LEVELS_HINT)
    return levels


def parse_times(text: str, name: str) -> list[float]:
    """Reads a list of times such as `0,90,1h,1d,1y`.

    Args:
        text: numbers from 0 with commas between them, each in seconds or with a unit: s, m or min, h, d, w, and y of
            365 days.
        name: the option, for messages.

    Returns:
        Seconds in the order written, each time once.

    Raises:
        ConfigError: nothing was written, or a piece is no time or longer than 1,000 years.
    """
    times = []
    for piece in (piece.strip() for piece in text.split(",")):
        if not piece:
            raise ConfigError(f"{name}: got an empty time", hint=_TIMES_HINT)
        where = f"'{_short(piece)}'" if piece == text else f"'{_short(piece)}' in '{_short(text)}'"
        found = _TIME.fullmatch(piece)
        if found is None or found[3].lower() not in _SECONDS or len(piece) > 100:
            raise ConfigError(f"{name}: got {where}, which is no time from 0", hint=_TIMES_HINT)
        seconds = float(found[1] + (found[2] or "")) * _SECONDS[found[3].lower()]
        if seconds > _LONGEST:
            raise ConfigError(f"{name}: got {where}, allowed are times up to 1000y", hint=_TIMES_HINT)
        times.append(seconds)
    return list(dict.fromkeys(times))


def parse_tiles(text: str, name: str = "--tiles") -> tuple[int, ...]:
    """Reads tile counts such as `16,4,1`, one for each convolution or one for all.

    Raises:
        ConfigError: a piece is not a whole number of at least 1.
    """
    counts: list[int] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if not re.fullmatch(r"[0-9]{1,9}", piece, re.ASCII) or int(piece) < 1:
            got = f"'{_short(piece)}' in '{_short(text)}'" if piece != text else f"'{_short(text)}'"
            raise ConfigError(
                f"{name}: got {got}, allowed are whole numbers from 1 up",
                hint="write one number for each convolution, with commas (16,4,1), or one for all",
            )
        counts.append(int(piece))
    return tuple(counts)


def parse_names(text: str, name: str, allowed: Sequence[str] | None = None) -> tuple[str, ...]:
    """Reads names with commas between them, each once.

    Args:
        text: as it is written.
        name: the option, for messages.
        allowed: the names there are; any when left out.

    Raises:
        ConfigError: one is empty, or not allowed.
    """
    words = tuple(dict.fromkeys(piece.strip() for piece in text.split(",")))
    if not all(words):
        raise ConfigError(f"{name}: got an empty name", hint=f"write names with commas between them: {name} this,that")
    for word in words:
        if allowed is not None and word not in allowed:
            raise ConfigError(f"{name}: got '{_short(word)}'", hint=suggestion(word, allowed))
    return words


def _piece(piece: str, name: str) -> list[float]:
    if not piece:
        raise ConfigError(f"{name}: got an empty level", hint=_LEVELS_HINT)
    parts = piece.split(":")
    if len(parts) == 1:
        return [float(_exact(piece, piece, name))]
    if len(parts) != 3:
        raise ConfigError(f"{name}: got '{_short(piece)}', a range is start:stop:count", hint=_LEVELS_HINT)
    start, stop = (_exact(part.strip(), piece, name) for part in parts[:2])
    count_text = parts[2].strip()
    if not re.fullmatch(r"[0-9]{1,9}", count_text, re.ASCII) or not 2 <= int(count_text) <= MAX_LEVELS:
        raise ConfigError(
            f"{name}: got the count '{_short(count_text)}' in '{_short(piece)}', "
            f"allowed are whole numbers from 2 to {MAX_LEVELS}",
            hint=_LEVELS_HINT,
        )
    count = int(count_text)
    return [float(start + (stop - start) * step / (count - 1)) for step in range(count)]


def _exact(text: str, piece: str, name: str) -> Fraction:
    where = f"'{_short(text)}'" if text == piece else f"'{_short(text)}' in '{_short(piece)}'"
    parts = [part.strip() for part in text.split("/")]
    if len(parts) > 2 or len(text) > 100 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise ConfigError(f"{name}: got {where}, which is not a finite number or fraction", hint=_LEVELS_HINT)
    numbers = [Fraction(part) for part in parts]
    if len(numbers) == 2 and not numbers[1]:
        raise ConfigError(f"{name}: got {where}, which divides by zero", hint=_LEVELS_HINT)
    number = numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0]
    try:
        float(number)
    except OverflowError:
        raise ConfigError(f"{name}: got {where}, which is too large", hint=_LEVELS_HINT) from None
    return number


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
