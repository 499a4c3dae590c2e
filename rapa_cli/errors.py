"""Every error that a user can cause: one line that says what is wrong, a hint, and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Of a message; what is left out stands in its middle, since its end says what is allowed.
_LONGEST = 2000
_END = 300


class RapaError(Exception):
    """An error with a one-line message, an optional hint and the process's exit code.

    Message and hint are made one printable line, whatever the files or names hold that they quote.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = one_line(message)
        self.hint = None if hint is None else one_line(hint)
        super().__init__(self.message)


class ConfigError(RapaError, ValueError):
    """Wrong usage or a configuration that cannot work (exit code 2).

    Attributes:
        problems: where a table was checked, a line for each wrong key and value, with the nearest known word.
    """

    exit_code = 2
    problems: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """A line for each problem, or the message, with the nearest known word."""
        return self.problems or (with_suggestion(self.message, self.hint),)


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


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an exception of Python or torch says that there is not enough memory.

    Also where a process that reads ahead was killed, which systems do for want of it.
    """
    return (
        is_loss_of_worker(error)
        or isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def is_loss_of_worker(error: Exception) -> bool:
    """Whether torch says that a process of a DataLoader was killed."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def one_line(text: str) -> str:
    """The text with everything that would break or hide the line written as an escape, and not too long."""
    return _shortened(printable(" ".join(_shortened(text).splitlines())))


def printable(text: str) -> str:
    """The text with everything but ends of lines that a terminal would obey, or hide, written as an escape."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - _END]} ... {text[-_END:]}"


def commas(numbers: Iterable[int]) -> str:
    """Numbers as the command line takes them and messages show them: 16,4,1."""
    return ",".join(map(str, numbers))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the known word nearest to `name`, or all known words where none is near."""
    words = sorted(known)
    near = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(words)}"


def with_suggestion(line: str, hint: str | None) -> str:
    """Returns the line of a list of problems, with the hint where that is a known word."""
    return f"{line} ({hint})" if hint and hint.startswith("did you mean") else line
