"""`rapa` in processes of its own that begin within milliseconds, and can be killed at a moment of one's choice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; minus the number of the signal that killed it.
        lingered: seconds from the signal at the end of its time to its own end; None where its time was not over.
        spent: CPU time of that, seconds; likewise.
        kib: the most memory that it held, KiB.
        messages: what it said on standard error.
    """

    code: int
    lingered: float | None
    spent: float | None
    kib: int
    messages: str


class Launcher:
    """Runs command lines of `rapa` in a folder.

    Args:
        folder: where.
        data_dir: the folder of data sets.
    """

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self._folder, self._messages = folder, folder / "messages.txt"
        self._environment = {"RAPA_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.soak.server"],
            env={**os.environ, **self._environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()

    def run(
        self,
        words: Sequence[str],
        *,
        seconds: float | None = None,
        number: int = signal.SIGKILL,
        rename: int | None = None,
        leak: str | None = None,
    ) -> Ended:
        """Runs a command line.

        Args:
            words: what stands after `rapa`.
            seconds: after which it gets a signal; None for never.
            number: of that signal.
            rename: the number of the renaming in place of which it is killed; None for none.
            leak: a function of `tests.soak.leaks` that is called first; None for none.
        """
        asked = {
            "words": list(words),
            "folder": str(self._folder),
            "environment": self._environment,
            "messages": str(self._messages),
            "seconds": seconds,
            "number": int(number),
            "rename": rename,
            "leak": leak,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        messages = self._messages.read_text(encoding="utf-8") if self._messages.exists() else ""
        return Ended(**answer, messages=messages)
