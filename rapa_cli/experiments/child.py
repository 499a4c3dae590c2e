"""The process of a job: `rapa`, which saves and ends when the process that started it is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading

from rapa_cli import app


def _end_with_parent() -> None:
    """Waits for the end of standard input, whose other end the parent holds as long as it lives."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    app.main()
