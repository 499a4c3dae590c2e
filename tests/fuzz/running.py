"""Many cases: in processes of their own, so that one that ends its process is a finding and not the end."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import torch

from tests.fuzz.judging import Case, Outcome, Watch, judged, prepared

_BATCH = 100
_HANGS = 30
"""CPU seconds after which a case is ended."""
_ROOM = 6 * 2**30
"""Bytes of address space over what the process has, so that a bomb does not take the machine with it."""


def outcomes(seed: int, numbers: Sequence[int]) -> Iterator[Outcome]:
    """Judges cases, in processes that end after some of them."""
    waiting = list(numbers)
    while waiting:
        batch = waiting[:_BATCH]
        done = 0
        for found in _in_child(seed, batch):
            done += isinstance(found, Outcome)
            if isinstance(found, Outcome):
                yield found
            else:
                yield Outcome(batch[done], None, 0, 0.0, 0, f"the process ended: {found}")
                done += 1
        waiting = waiting[done:]


def _in_child(seed: int, batch: Sequence[int]) -> Iterator[Outcome | str]:
    """What came of the cases of a batch, and how the process ended where it did so too early."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                _child(seed, batch, pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    count = 0
    with os.fdopen(reading, encoding="utf-8") as pipe:
        for line in pipe:
            count += 1
            yield Outcome(**json.loads(line))
    _, status = os.waitpid(child, 0)
    if count < len(batch):
        code = os.waitstatus_to_exitcode(status)
        yield f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _child(seed: int, batch: Sequence[int], pipe: TextIO) -> None:
    torch.set_num_threads(1)
    (size,) = (int(line.split()[1]) * 1024 for line in _status() if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, size + _ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # As the program itself does.
    warnings.simplefilter("ignore")
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="rapa-fuzz-") as name:
        root = Path(name).resolve()
        for variable in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "RAPA_DATA_DIR"):
            os.environ[variable] = str(root / "home")
        for number in batch:
            signal.setitimer(signal.ITIMER_PROF, _HANGS)
            outcome = judged(Case(seed, number), root, watch)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.write(json.dumps(asdict(outcome)) + "\n")
            pipe.flush()
        os.chdir("/")


def _status() -> list[str]:
    return Path("/proc/self/status").read_text(encoding="ascii").splitlines()


def through_the_command_line(case: Case) -> str | None:
    """Runs `rapa` on the files of a case that is refused; says what should not have been, if anything."""
    assert case.kind.command is not None
    with tempfile.TemporaryDirectory(prefix="rapa-fuzz-") as name:
        root = Path(name).resolve()
        here = Path.cwd()
        try:
            folder = prepared(case, root)
        finally:
            os.chdir(here)
        before = {path for path in root.rglob("*") if "chosen" not in path.parts and "home" not in path.parts}
        places = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "RAPA_DATA_DIR"), str(root / "home"))
        done = subprocess.run(
            [sys.executable, "-m", "rapa_cli", *case.kind.command(folder)],
            cwd=root,
            env={**os.environ, **places, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here)},
            capture_output=True,
            check=False,
            timeout=600,
        )
        after = {path for path in root.rglob("*") if "chosen" not in path.parts and "home" not in path.parts}
        shutil.rmtree(root / "case")
        said = done.stderr.decode("utf-8", "replace").splitlines()
        errors = [line for line in said if line.startswith("error: ")]
        if after != before:
            return f"it changed {sorted(map(str, after ^ before))[:5]}"
        if done.returncode not in (2, 3) or len(errors) != 1 or not errors[0].isprintable() or done.stdout:
            return f"exit code {done.returncode}, and said {' | '.join(said)[-600:]!r}"
        return None
