"""One case: its files, what reading them came to, what it cost, and what it tried to do."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rapa_cli.errors import RapaError
from tests.fuzz.kinds import KINDS, Files, Kind, accident, put, stopped_clock

MAX_SECONDS = 2.0
"""CPU time of a case; wall time says nothing on a machine that others use too."""
MAX_GROWTH = 2**30
"""Bytes by which the process may grow over what it held before the case."""
MAX_MESSAGE = 4000
_EXIT_CODES = (2, 3)


@dataclass(frozen=True)
class Case:
    """A case: everything in it follows from the seed and the number."""

    seed: int
    number: int

    @property
    def _rng(self) -> Random:
        return Random(f"{self.seed}/{self.number}")

    @property
    def kind(self) -> Kind:
        """What is read: each kind in its turn."""
        return KINDS[self.number % len(KINDS)]

    @property
    def aware(self) -> bool:
        """Whether it is a lie of someone who knows the format: every third of a kind."""
        return self.number // len(KINDS) % 3 == 0

    def files(self) -> Files:
        """The hostile or damaged files."""
        rng = self._rng
        with stopped_clock():
            seed = rng.choice(self.kind.seeds())
            return self.kind.lie(rng, seed) if self.aware else accident(rng, seed)


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        number: of the case.
        refused: the message; None where it was read.
        exit_code: of the refusal.
        seconds: CPU time.
        growth: bytes.
        finding: what should not have been; None where all is well.
    """

    number: int
    refused: str | None
    exit_code: int
    seconds: float
    growth: int
    finding: str | None


def unfit(error: RapaError) -> str | None:
    """What is wrong with a refusal itself, if anything is."""
    for what, said in (("message", error.message), ("hint", error.hint or "")):
        if not said.isprintable():
            return f"its {what} is not one printable line: {said[:300]!r}"
        if len(said) > MAX_MESSAGE:
            return f"its {what} has {len(said)} characters: {said[:300]!r}"
    if error.exit_code not in _EXIT_CODES:
        return f"exit code {error.exit_code}"
    if re.search(r"out of memory|can't allocate|unable to allocate|std::bad_alloc", error.message, re.IGNORECASE):
        return f"it was refused only for lack of memory: {error.message}"
    return None


class Watch:
    """Notes what hostile content must never do: start programs, reach the network, write outside a folder."""

    _ALWAYS = (
        "os.system",
        "os.exec",
        "os.spawn",
        "os.posix_spawn",
        "os.fork",
        "subprocess.Popen",
        "socket.",
        "pty.spawn",
    )
    _WRITES = (
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.truncate",
        "os.putenv",
    )

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._allowed: str | None = None
        sys.addaudithook(self._hear)

    @contextmanager
    def over(self, allowed: Path) -> Iterator[list[str]]:
        """Watches a block; what it writes below `allowed` is its own affair."""
        self.seen, self._allowed = [], str(allowed)
        try:
            yield self.seen
        finally:
            self._allowed = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._allowed is None:
            return
        if event.startswith(self._ALWAYS) or event == "pickle.find_class":
            self.seen.append(f"{event} {arguments!r}")
        elif event in self._WRITES or (event == "open" and self._writes(arguments)):
            path = (
                os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes, os.PathLike)) else str(arguments[0])
            )
            if not os.path.abspath(path).startswith(self._allowed + os.sep):  # noqa: PTH100 - a Path would be slower
                self.seen.append(f"{event} {arguments!r}")

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        _path, mode, flags = arguments
        opens = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        return opens or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))


def judged(case: Case, root: Path, watch: Watch) -> Outcome:
    """Reads the files of a case.

    Args:
        case: the case.
        root: a folder for it, which is the working folder; nothing but `root/chosen` may change.
        watch: what notes what the reading does.
    """
    folder = prepared(case, root)
    before = _tree(root)
    refused, exit_code, finding = None, 0, None
    grown_from = _start_of_growth()
    started = time_used()
    try:
        with watch.over(root / "chosen") as seen:
            value = case.kind.read(folder)
        seconds = time_used() - started
        growth = _growth(grown_from)
    except RapaError as error:
        seconds, growth = time_used() - started, _growth(grown_from)
        refused, exit_code, finding = error.message, error.exit_code, unfit(error)
        seen = watch.seen
    except BaseException:
        if sys.exc_info()[0] is KeyboardInterrupt:
            raise
        seconds, growth = time_used() - started, _growth(grown_from)
        finding, seen = f"an error that is none of ours: {_end(traceback.format_exc())}", watch.seen
    else:
        try:
            case.kind.check(folder, value)
        except Exception:
            finding = f"it was not read as it is written: {_end(traceback.format_exc())}"
    after = _tree(root)
    if seen:
        finding = f"it did {'; '.join(seen)[:500]}"
    elif after != before:
        finding = f"it changed {sorted(set(after) ^ set(before))[:5]}"
    elif growth > MAX_GROWTH:
        finding = finding or f"the process grew by {growth / 2**20:.0f} MiB"
    elif seconds > MAX_SECONDS:
        finding = finding or f"it took {seconds:.1f} s of CPU time"
    return Outcome(case.number, refused, exit_code, seconds, growth, finding)


def prepared(case: Case, root: Path) -> Path:
    """Clears a folder and puts the files of a case into it."""
    for entry in root.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for name in ("case", "chosen", "outside", "home"):
        (root / name).mkdir()
    folder = root / "case"
    put(folder, case.files())
    os.chdir(root)
    return folder


def time_used() -> float:
    """CPU time of this process, seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _tree(root: Path) -> dict[str, int]:
    """Everything outside `chosen`, with its size."""
    found = {}
    for place, folders, names in os.walk(root):
        if place == str(root):
            folders.remove("chosen")
        for name in (*folders, *names):
            path = Path(place, name)
            found[str(path)] = path.lstat().st_size if name in names else 0
    return found


def _start_of_growth() -> int:
    """Bytes that the process holds now; its highest level is counted from here on, where the system can do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _highest()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _growth(before: int) -> int:
    return max(0, _highest() - before)


def _highest() -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        found = None
    # ru_maxrss is in KiB on Linux and never falls, so that one large case would hide the next.
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _end(trace: str) -> str:
    """The last lines of a trace, with the place of the error."""
    lines = [line.strip() for line in trace.strip().splitlines()]
    places = [line.partition(", in ")[0].replace("File ", "") for line in lines if line.startswith("File ")]
    return f"{lines[-1][:300]} at {' <- '.join(reversed(places[-3:]))}"
