"""Jobs as processes on this machine, which share its cores or its GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from rapa_cli.experiments.jobs import Ended, Folder, Job
from rapa_cli.files import append_to

# Commands that compute, and so take threads and data; the regularizer's networks are too small for a device.
_ON_DEVICES = ("train", "evaluate", "vote", "reduce", "attack")
_COMPUTING = (*_ON_DEVICES, "regularizer")


class LocalEngine:
    """Runs jobs as processes of their own, some at a time.

    Each job has its part of the cores, or a GPU of its own where there are several jobs and GPUs.

    Args:
        folder: of the experiments.
        slots: jobs at a time.
        threads: of each.
        devices: of the slots, as `--device` takes them; each is used by one job at a time.
        data_dir: folder of the data sets, or None for the usual one.

    Attributes:
        slots: as above.
    """

    def __init__(
        self, folder: Folder, *, slots: int, threads: int, devices: list[str], data_dir: Path | None = None
    ) -> None:
        self.slots, self._folder, self._threads, self._data_dir = slots, folder, threads, data_dir
        self._devices: queue.SimpleQueue[str] = queue.SimpleQueue()
        for number in range(slots):
            self._devices.put(devices[number % len(devices)])
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def execute(self, job: Job) -> Ended:
        """Does a job and waits for it; called in a thread of its own."""
        device, started = self._devices.get(), time.monotonic()
        try:
            words = self.words(job, device)
            with append_to(self._folder.log(job)) as log:
                # In a session of its own it gets signals from here alone, and not the terminal's as well.
                with self._lock:
                    if self._stopping:
                        return Ended(128 + signal.SIGTERM, 0.0, message="stopped")
                    process = subprocess.Popen(
                        [sys.executable, "-m", "rapa_cli.experiments.child", *words],
                        cwd=self._folder.path,
                        env=_environment(),
                        # Its end tells the job that this process is gone.
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        start_new_session=True,
                    )
                    self._running.add(process)
                assert process.stdout is not None
                # Not by communicate, which would close the standard input.
                with process:
                    output = process.stdout.read()
                    process.wait()
        finally:
            self._devices.put(device)
        with self._lock:
            self._running.discard(process)
        return ended(process.returncode, time.monotonic() - started, output, self._folder.log(job))

    def words(self, job: Job, device: str) -> list[str]:
        """The words of a job with what depends on this machine."""
        words = [*self._folder.command(job), "--json"]
        if job.words[0] in _COMPUTING:
            words += ["--threads", str(self._threads)]
            words += ["--device", device] if job.words[0] in _ON_DEVICES else []
            words += [] if self._data_dir is None else ["--data-dir", str(self._data_dir.absolute())]
        return words

    def stop(self) -> None:
        """Asks all jobs that run to save and end; no other begins."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()

    def close(self) -> None:
        """Nothing is left to end."""


def _environment() -> dict[str, str]:
    """The variables of a job: the folder of data sets may be given from where this process is."""
    own = dict(os.environ)
    if own.get("RAPA_DATA_DIR"):
        own["RAPA_DATA_DIR"] = str(Path(own["RAPA_DATA_DIR"]).expanduser().absolute())
    return own


def ended(code: int, seconds: float, output: bytes, log: Path) -> Ended:
    """What the exit code, the output and the log of a process say of its job."""
    if code == 0:
        try:
            return Ended(0, seconds, json.loads(output))
        except ValueError:
            return Ended(1, seconds, message="it printed no JSON document")
    if code < 0:
        return Ended(128 - code, seconds, message=f"killed by signal {-code}")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    return Ended(code, seconds, message=said[-1].removeprefix("error: ") if said else f"ended with code {code}")
