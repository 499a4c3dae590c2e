"""Every error that a user can cause: one line that says what is wrong, a hint, and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RapaError(Exception):
    """An error with a one-line message, an optional hint and the process's exit code."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(RapaError, ValueError):
    """Wrong usage or a configuration that cannot work (exit code 2)."""

    exit_code = 2


class FileError(RapaError):
    """Data, a checkpoint or a folder is missing, damaged or cannot be written (exit code 3)."""

    exit_code = 3


class CheckFailed(RapaError):
    """A check that was asked for did not hold (exit code 4)."""

    exit_code = 4


class Interrupted(RapaError):
    """The user or the system stopped the command (exit code 130 or 143)."""

    def __init__(self, message: str, *, exit_code: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def commas(numbers: Iterable[int]) -> str:
    """Numbers as the command line takes them and messages show them: 16,4,1."""
    return ",".join(map(str, numbers))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the known word nearest to `name`, or all known words where none is near."""
    words = sorted(known)
    near = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(words)}"
