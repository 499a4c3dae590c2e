"""Stopping a training well: the signal is remembered, and the loop saves before it ends."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from rapa_cli.errors import Interrupted


class StopRequest:
    """Inside the block SIGINT and SIGTERM do not end the process; `exit_code` says whether one came.

    A second SIGINT raises KeyboardInterrupt at once, for those who do not want to wait; nothing is saved then.

    Attributes:
        exit_code: 130 after SIGINT, 143 after SIGTERM, None before.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.exit_code is not None:
            raise interruption(self.exit_code)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code == 130 and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = 128 + number


def interruption(exit_code: int) -> Interrupted:
    """The error for a signal, by its exit code: 130 or 143."""
    return Interrupted("interrupted" if exit_code == 130 else "terminated", exit_code=exit_code)
