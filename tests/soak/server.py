"""Imports torch once, then forks a process for each command line: `python -m tests.soak.server`.

A line of JSON on standard input is a command; a line on standard output says how it ended. A command whose `rename` is
n is killed by SIGKILL in place of its n-th renaming, when a temporary file is whole and not yet in its place; one with
`seconds` gets the signal `number` when that time is over; one with `leak` keeps what that function of `leaks` says.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch._dynamo  # what an optimizer imports

import rapa_cli.commands.session
import rapa_cli.experiments.child
import rapa_cli.report.figures
import rapa_cli.training.loop
import rapa_cli.training.parallel  # noqa: F401 - imported once, for all of them
from rapa_cli import app
from tests.soak import leaks


def main() -> None:
    """Serves until standard input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(asked)
        signalled = _wait(child, asked["seconds"], asked["number"])
        _, status, usage = os.wait4(child, 0)
        ended, used = time.monotonic(), usage.ru_utime + usage.ru_stime
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "lingered": None if signalled is None else ended - signalled[0],
            "spent": None if signalled is None else used - signalled[1],
            "kib": usage.ru_maxrss,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(child: int, seconds: float | None, number: int) -> tuple[float, float] | None:
    """Sends a process a signal when its time is over; says when that was, and the CPU time used, if it was."""
    handle = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([handle], [], [], seconds)
        if ended:
            return None
        # Fields 14 and 15: clock ticks in user mode and in the kernel; names in brackets may hold blanks.
        fields = Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        os.kill(child, number)
        return time.monotonic(), used
    finally:
        os.close(handle)


def _become(asked: dict[str, Any]) -> NoReturn:
    """Runs `rapa` as its own process would, and ends as it does, which is part of the time that a signal takes."""
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    nothing = os.open(os.devnull, os.O_RDWR)
    messages = os.open(asked["messages"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number, handle in enumerate((nothing, nothing, messages)):
        os.dup2(handle, number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 - until the end
    torch.set_num_threads(1)
    if asked["rename"] is not None:
        _killed_in_place_of_renaming(asked["rename"])
    if asked["leak"] is not None:
        getattr(leaks, asked["leak"])()
    sys.argv = ["rapa", *asked["words"]]
    app.main()


def _killed_in_place_of_renaming(number: int) -> None:
    renamed, count = os.replace, itertools.count(1)

    def replace(*arguments: Any, **options: Any) -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed(*arguments, **options)

    os.replace = replace


if __name__ == "__main__":
    main()
