"""What a command shows: results on standard output, progress and messages on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def out() -> Console:
    """The console of results."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def err() -> Console:
    """The console of progress and messages."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=not sys.stderr.isatty())


def note(message: str) -> None:
    """Shows one line on standard error."""
    err().print(message, markup=False, soft_wrap=True)


def show(text: str) -> None:
    """Shows lines of a result as they are: brackets are no markup, and long paths stay whole."""
    out().print(text, markup=False, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """Prints one JSON document on standard output; numbers that JSON does not know become null."""
    sys.stdout.write(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def progress(*, transient: bool = True) -> Progress:
    """A progress bar on standard error; it shows nothing where that is no terminal."""
    console = err()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        # The bar takes what the texts leave, so that nothing is cut off on a narrow terminal.
        expand=True,
        disable=not console.is_terminal,
    )


def track(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    """Goes through `items` with a progress bar."""
    with progress() as bar:
        yield from bar.track(items, total=total, description=description)


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
