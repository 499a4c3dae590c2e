"""Jobs on the nodes of a Ray cluster; what they leave is streamed back, so that a lost node costs an epoch at most."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import rapa_cli
from rapa_cli.errors import ConfigError, RapaError
from rapa_cli.experiments import node
from rapa_cli.experiments.jobs import Ended, Folder, Job
from rapa_cli.files import append_to, explained

# A job is given up when it has lost so many workers without an epoch done between.
_LOSSES = 4
_LOOK_SECONDS = 0.5
# Of a Ray of our own: what is in it are states of networks, a few MB each.
_STORE_BYTES = 256 * 2**20
_KILLED = {128 + signal.SIGTERM, 128 + signal.SIGKILL}
_STOPPED = Ended(128 + signal.SIGTERM, 0.0, message="stopped")


class _Lost(Exception):
    """The worker of a job is gone."""


class RayEngine:
    """Runs jobs on the nodes of a Ray cluster.

    Each job is an actor with declared CPUs and GPUs, since a training has a state and is asked for it: the actor runs
    the command in a temporary folder of its node, and answers with the files that have changed. They are written here
    as they come. A job whose worker is lost is sent again with the newest of them.

    The nodes need the same version of rapa, and the data sets under the same names: in their own data folders, or in
    a shared one.

    Args:
        folder: of the experiments, on this machine.
        address: `auto` or HOST:PORT of a cluster that this machine belongs to; None starts a Ray of our own here.
        cpus: of each job, and its threads.
        gpus: of each job; parts are allowed. Without any it computes on its CPUs.
        slots: jobs at a time; None for as many as the cluster has room for now.
        data_dir: folder of the data sets on all nodes, or None for what is usual on each.

    Attributes:
        slots: as above.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, no node has room for a job, or one has another
            version of rapa.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        address: str | None = None,
        cpus: int = 1,
        gpus: float = 0,
        slots: int | None = None,
        data_dir: Path | None = None,
    ) -> None:
        self._folder, self._cpus, self._gpus = folder, cpus, gpus
        self._data_dir = None if data_dir is None else data_dir.expanduser().absolute()
        self._stopping = threading.Event()
        if address is not None and "://" in address:
            raise ConfigError(
                f"--address: got '{address}', allowed are auto and HOST:PORT",
                hint="start rapa on a node of the cluster, with --address auto",
            )
        with _own_signals():
            self._ray = _imported()
            _connect(self._ray, address)
        try:
            nodes = [each for each in self._ray.nodes() if each["Alive"]]
            room = _room([each["Resources"] for each in nodes], cpus, gpus)
            self.slots = slots or room
            _check_versions(self._ray, nodes)
        except BaseException:
            self.close()
            raise
        self._workplaces = self._ray.remote(node.Workplace).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )

    def execute(self, job: Job) -> Ended:
        """Does a job and waits for it; called in a thread of its own.

        Raises:
            FileError: what the job leaves cannot be written here.
        """
        started, losses = time.monotonic(), 0
        while not self._stopping.is_set():
            done = self._folder.share_done(job)
            try:
                return replace(self._attempt(job), seconds=time.monotonic() - started)
            except _Lost as lost:
                self._say(job, f"lost its worker: {lost}")
                losses = 1 if self._folder.share_done(job) > done else losses + 1
                if losses == _LOSSES:
                    message = f"lost {losses} workers one after the other; the last: {lost}"
                    return Ended(1, time.monotonic() - started, message=message)
        return _STOPPED

    def stop(self) -> None:
        """Asks all jobs that run to save and end; no other begins."""
        self._stopping.set()

    def close(self) -> None:
        """Leaves the cluster, or ends the Ray of our own; the end of the program does so as well."""
        self._ray.shutdown()

    def _attempt(self, job: Job) -> Ended:
        """Sends a job to the cluster and writes what comes back.

        Raises:
            _Lost: its worker is gone.
            FileError: something cannot be written here.
        """
        errors, runs = self._ray.exceptions, node.runs_of(job)
        inputs = node.read(self._folder.path, node.stamps(self._folder.path, runs))
        self._say(job, f"waits for a node with {self._cpus} CPUs and {self._gpus:g} GPUs")
        workplace = self._workplaces.remote()
        try:
            begun = workplace.begin.remote(
                job,
                inputs,
                version=rapa_cli.__version__,
                threads=self._cpus,
                # Ray lets it see the GPUs that are its own.
                device="cuda" if self._gpus else "cpu",
                data_dir=self._data_dir,
            )
            while not self._ray.wait([begun], timeout=_LOOK_SECONDS)[0]:
                if self._stopping.is_set():
                    return _STOPPED
            self._say(job, f"runs on node {self._ray.get(begun)}")
            while True:
                report: node.Report = self._ray.get(workplace.report.remote(self._stopping.is_set()))
                node.write(self._folder.path, report.files, runs)
                self._append(job, report.log)
                if report.ended is None:
                    continue
                if report.ended.code in _KILLED and not self._stopping.is_set():
                    # By its node, which is going down or out of memory.
                    raise _Lost(report.ended.message)
                return report.ended
        except errors.RayTaskError as error:
            cause = error.cause
            code = cause.exit_code if isinstance(cause, RapaError) else 1
            return Ended(code, 0.0, message=_line(cause))
        except errors.RayError as error:
            raise _Lost(_line(error)) from error
        finally:
            with suppress(errors.RayError):
                self._ray.kill(workplace)

    def _say(self, job: Job, text: str) -> None:
        self._append(job, f"ray: {text}\n".encode())

    def _append(self, job: Job, text: bytes) -> None:
        path = self._folder.log(job)
        with explained(path), append_to(path) as log:
            log.write(text)


def _imported() -> Any:
    # Read when Ray is imported or started: nothing is reported to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(f"Ray cannot be used: {error}", hint="pip install 'rapa-cli[ray]'") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"logging_level": "CRITICAL", "log_to_driver": False}
    own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        # A variable of the environment would take the place of an address that is not given.
        ray.init(address=address or "local", **quiet, **(own if address is None else {}))
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        hint = "start Ray on this machine first (ray start), or leave --address out" if address else None
        raise ConfigError(f"Ray at {address or 'this machine'}: {_line(error)}", hint=hint) from error


def _room(nodes: list[dict[str, float]], cpus: int, gpus: float) -> int:
    """How many jobs fit on the nodes, given the resources of each."""
    room = sum(
        int(min(each.get("CPU", 0) // cpus, each.get("GPU", 0) // gpus if gpus else float("inf"))) for each in nodes
    )
    if not room:
        most = max((each.get("CPU", 0), each.get("GPU", 0)) for each in nodes)
        raise ConfigError(
            f"no node has room for a job with {cpus} CPUs and {gpus:g} GPUs; the largest has {most[0]:g} "
            f"and {most[1]:g}",
            hint="choose fewer with --cpus and --gpus, or add a node with that many first",
        )
    return room


def _check_versions(ray: Any, nodes: list[dict[str, Any]]) -> None:
    """Raises ConfigError where a node has another version of rapa: it would fail one job after the other."""

    # Inside a function it travels with its code, and needs no rapa where it runs.
    def version() -> str | None:
        try:
            import rapa_cli
        except ImportError:
            return None
        return rapa_cli.__version__

    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    ask = ray.remote(version)
    answers = [
        ask.options(num_cpus=0, scheduling_strategy=affinity(each["NodeID"], soft=False)).remote() for each in nodes
    ]
    for each, answer in zip(nodes, answers, strict=True):
        # A node that has gone by now says nothing, and gets no jobs.
        with suppress(ray.exceptions.RayError):
            node.check_version(ray.get(answer), rapa_cli.__version__, each["NodeManagerAddress"])


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps our handlers of signals: Ray takes SIGTERM for itself, and nothing would be saved."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _line(error: BaseException) -> str:
    """The first line of an error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
