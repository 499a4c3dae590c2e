"""What a command shows: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import json
import math
import re
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

from rapa_cli.errors import printable

# Loaded when something is shown: shells ask for completions at every key, and help needs none of it.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.text import Text

# Columns of a terminal from which a bar has room beside its texts.
_WIDE = 72


# Whether progress and messages are left out; errors never are.
quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def out() -> Console:
    """The console of results."""
    return _console(sys.stdout)


def err(*, always: bool = False) -> Console:
    """The console of progress and messages, which says nothing where these are not wanted; unless `always`."""
    return _console(sys.stderr, quiet=quiet.get() and not always)


def _console(file: TextIO, *, quiet: bool = False) -> Console:
    """A console on which no text, as files may hold it, can do more than be read."""
    from rich.console import Console

    class Harmless(Console):
        # What all texts go through, those in tables too.
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    return Harmless(file=file, highlight=False, soft_wrap=not file.isatty(), quiet=quiet)


def note(message: str) -> None:
    """Shows one line on standard error."""
    err().print(message, markup=False, soft_wrap=True)


def show(text: str) -> None:
    """Shows lines of a result as they are: brackets are no markup, and long paths stay whole."""
    out().print(text, markup=False, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """Prints one JSON document on standard output; numbers that JSON does not know become null."""
    text = json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(re.sub(r"[^\n -~]", lambda found: _escaped(found[0]), text) + "\n")


def duration(seconds: float) -> str:
    """A time for people, of two units at most."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    units = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)]
    # Rounded to the smaller of its two units first, so that 59.6 min do not become 60 min.
    unit = next(number for number, (_, size) in enumerate(units) if seconds >= size)
    small = units[unit + 1][1]
    whole = round(seconds / small) * small
    unit = next(number for number, (_, size) in enumerate(units) if whole >= size)
    (large, size), (less, small) = units[unit], units[unit + 1]
    rest = whole % size // small
    return f"{whole // size} {large}" + (f" {rest} {less}" if rest else "")


def size(count: int) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1023.5:
            return f"{amount:.3g} {unit}" if amount < 100 else f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.3g} GiB" if amount < 100 else f"{amount:.0f} GiB"


def plural(word: str, count: int) -> str:
    """The word for so many."""
    return word if count == 1 else f"{word}s"


def progress(*, counted: bool = True) -> Progress:
    """A progress bar on standard error; where that is no terminal, a line now and then.

    On a narrow terminal the bar itself and the count are left out, so that the texts stay whole.

    Args:
        counted: whether a count and the time left by the speed of the last half minute stand beside it; else who asks
            for the bar says what there is to say, in its description, and in a log in lines of its own.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from rapa_cli.log_lines import Lines

    console = err()
    if not console.is_terminal and counted:
        return Lines(console=console, disable=True)
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), TimeRemainingColumn()]
    if console.width >= _WIDE:
        columns = [SpinnerColumn(), columns[0], BarColumn(bar_width=None), MofNCompleteColumn(), columns[1]]
    if not counted:
        columns = [column for column in columns if not isinstance(column, (MofNCompleteColumn, TimeRemainingColumn))]
    return Progress(
        *columns,
        console=console,
        transient=True,
        # The bar takes the room that the texts leave.
        expand=True,
        disable=not console.is_terminal or console.quiet,
    )


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
