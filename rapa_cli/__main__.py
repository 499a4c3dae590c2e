"""What `rapa` and `python -m rapa_cli` run, also in the processes that torchrun starts."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def _leave(_signal: int, _frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(130)


def main() -> NoReturn:
    """The entry point: an interrupt while the modules are imported, when there is nothing to save, is told as later."""
    before = signal.getsignal(signal.SIGINT)
    # Where it is ignored, as for programs in the background, it stays so.
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from rapa_cli import app
    from rapa_cli.commands.train import hush

    signal.signal(signal.SIGINT, before)
    if sys.argv[1:2] == ["train"]:
        # All processes of a training notice wrong usage, and one of them tells.
        hush()
    app.main()


if __name__ == "__main__":
    main()
