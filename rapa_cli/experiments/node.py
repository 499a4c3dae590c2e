"""What a node of a cluster does for a job: it runs it in a temporary folder and tells what has changed there.

Nothing here knows which kind of cluster it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import rapa_cli
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.experiments.jobs import Ended, Folder, Job, with_needs
from rapa_cli.experiments.local import LocalEngine
from rapa_cli.files import atomic, inside
from rapa_cli.runs import LAST

# How long one look at a job that goes on may take.
_LOOK_SECONDS = 1.0

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Report:
    """What has changed since the report before.

    Attributes:
        files: of run folders, by their names in the folder of experiments, in the order of `read`.
        log: what the job said.
        ended: how it has ended; None while it goes on.
    """

    files: dict[str, bytes]
    log: bytes
    ended: Ended | None


class Workplace:
    """Runs one job in a folder of experiments of its own, as it runs on a single machine."""

    def begin(
        self,
        job: Job,
        files: Mapping[str, bytes],
        *,
        version: str,
        threads: int,
        device: str,
        data_dir: Path | None = None,
    ) -> str:
        """Starts the job.

        Args:
            job: what is done; a training whose run folder is among the files goes on.
            files: of the run folders that it needs, by their names in the folder of experiments.
            version: of rapa on the machine that asks.
            threads: of the job.
            device: as `--device` takes it.
            data_dir: folder of the data sets on this node, or None for its usual one.

        Returns:
            The name of this machine.

        Raises:
            ConfigError: rapa has another version here.
            FileError: a file does not belong to the job, or nothing can be written here.
        """
        check_version(rapa_cli.__version__, version)
        self._job, self._runs, self._said, self._stopped = job, runs_of(job), 0, False
        self._folder = Folder(Path(tempfile.mkdtemp(prefix="rapa-job-")))
        try:
            self._folder.make()
            self._folder.log(job).touch()
            write(self._folder.path, files, self._runs)
        except BaseException:
            self._clear()
            raise
        self._stamps = stamps(self._folder.path, self._runs)
        self._engine = LocalEngine(self._folder, slots=1, threads=threads, devices=[device], data_dir=data_dir)
        self._thread = ThreadPoolExecutor(1)
        self._ended = self._thread.submit(self._engine.execute, job)
        return socket.gethostname()

    def report(self, stop: bool = False) -> Report:
        """Looks what has changed, at once where the job has ended, else after a while.

        Args:
            stop: asks the job to save and end.

        Raises:
            OSError: the job could not be started.
        """
        if stop and not self._stopped:
            self._stopped = True
            self._engine.stop()
        # Asked before the files are read: what has ended by now has written all of them.
        ended = bool(wait([self._ended], _LOOK_SECONDS).done)
        before, self._stamps = self._stamps, stamps(self._folder.path, self._runs)
        files = read(self._folder.path, (name for name, its in self._stamps.items() if its != before.get(name)))
        with self._folder.log(self._job).open("rb") as file:
            file.seek(self._said)
            log = file.read()
        self._said += len(log)
        if not ended:
            return Report(files, log, None)
        self._thread.shutdown()
        self._clear()
        return Report(files, log, self._ended.result())

    def _clear(self) -> None:
        shutil.rmtree(self._folder.path, ignore_errors=True)


def check_version(here: str | None, there: str, node: str | None = None) -> None:
    """Raises ConfigError unless a node has the version of rapa of the machine that asks."""
    if here != there:
        found = f"rapa {here}" if here else "no rapa"
        raise ConfigError(
            f"node {node or socket.gethostname()} has {found}, the machine that sends jobs has rapa {there}",
            hint="install the same version on all of them",
        )


def runs_of(job: Job) -> tuple[str, ...]:
    """The run folders that a job may read and write: its own, and those of what it needs."""
    return tuple(each.run for each in with_needs([job]) if each.trains)


def stamps(folder: Path, runs: Iterable[str]) -> dict[str, Stamp]:
    """The files of run folders, with what is another after a file was written; links and temporary files are none."""
    found = {}
    for run in runs:
        for place, _, names in os.walk(folder / run):
            for path in (Path(place, name) for name in names if not name.startswith(".")):
                # A file may go while we look.
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        name = path.relative_to(folder).as_posix()
                        found[name] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def read(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Reads files while their run goes on.

    A run that goes on from a checkpoint needs the metrics up to it, and drops later ones: checkpoints are read first.
    """
    files = {}
    for name in sorted(names, key=lambda name: PurePosixPath(name).name != LAST):
        with contextlib.suppress(FileNotFoundError):
            files[name] = (folder / name).read_bytes()
    return files


def write(folder: Path, files: Mapping[str, bytes], runs: Iterable[str]) -> None:
    """Writes files that came from another machine, each atomically, and checkpoints last.

    Args:
        folder: of the experiments.
        files: by their names in it, in the order of `read`.
        runs: folders in it that they may lie in.

    Raises:
        FileError: a name leads elsewhere, and nothing is written; or a file cannot be written.
    """
    places = [PurePosixPath(run) for run in runs]
    for name in files:
        path = PurePosixPath(name)
        belongs = any(place in path.parents for place in places)
        if not belongs or ".." in path.parts or str(path) != name or "\0" in name:
            raise FileError(f"{name!r} is no file of the job's run folders", hint="is another job's folder meant?")
    for name, content in reversed(list(files.items())):
        target = folder / name
        inside(folder, *PurePosixPath(name).parent.parts)
        with atomic(target) as temporary:
            temporary.write_bytes(content)
