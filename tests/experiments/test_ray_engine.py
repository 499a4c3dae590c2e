"""Sweeps on real Ray clusters on this machine; the engine without Ray."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rapa_cli.errors import ConfigError, Interrupted
from rapa_cli.experiments import ray_engine, running
from rapa_cli.experiments.jobs import Ended, Folder, Job
from rapa_cli.experiments.local import LocalEngine
from rapa_cli.experiments.ray_engine import RayEngine
from rapa_cli.runs import read_metrics
from rapa_cli.training.stopping import StopRequest
from tests.experiments import tiny

_JOB = "rapa_cli.experiments.child"


def on_a_cluster(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that starts a real Ray, which leaves files of its own open when it ends."""
    for mark in (
        pytest.mark.ray,
        pytest.mark.slow,
        pytest.mark.filterwarnings("ignore::ResourceWarning"),
        pytest.mark.filterwarnings("ignore::DeprecationWarning"),
        pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    ):
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def few_shapes(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with _short_folder() as short, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", short)
        # Killed workers leave their folders.
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("workers")))
        # A token of its own, or Ray would write one into the user's home.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        pytest.importorskip("ray", reason="needs the extra ray")
        tiny.write_data(data_dir)
        yield


def _short_folder() -> tempfile.TemporaryDirectory[str]:
    """The paths of Ray's sockets must be short, which those of pytest's folders are not."""
    return tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)


@dataclass
class Cluster:
    """Two nodes of one CPU each on loopback; the first is that of the driver."""

    address: str
    nodes: list[subprocess.Popen[bytes]]

    def jobs(self, node: int) -> dict[int, str]:
        """The command lines of the jobs that run on a node, by their processes."""
        lines = {pid: tiny.command_line(pid) for pid in tiny.descendants(self.nodes[node].pid)}
        return {pid: line for pid, line in lines.items() if _JOB in line}

    def kill(self, node: int) -> None:
        """Kills all processes of Ray on a node at once; the jobs that they have started are left to themselves."""
        jobs, pid = self.jobs(node), self.nodes[node].pid
        for each in (pid, *tiny.descendants(pid)):
            if each not in jobs:
                os.kill(each, signal.SIGKILL)


@pytest.fixture
def cluster(few_shapes: None) -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    nodes: list[subprocess.Popen[bytes]] = []
    with _short_folder() as folder:
        head = ["--head", "--port", address.partition(":")[2], "--include-dashboard", "false", "--temp-dir", folder]
        try:
            for words in (head, ["--address", address]):
                nodes.append(_started(*words))
                _wait_for(nodes[-1])
            yield Cluster(address, nodes)
        finally:
            for pid in [pid for node in nodes for pid in (*tiny.descendants(node.pid), node.pid)]:
                # Some have ended with those before them.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for node in nodes:
                node.communicate()


def _started(*words: str) -> subprocess.Popen[bytes]:
    common = ["--node-ip-address", "127.0.0.1", "--num-cpus", "1", "--object-store-memory", "100000000"]
    return subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words, *common],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _wait_for(node: subprocess.Popen[bytes]) -> None:
    assert node.stdout is not None
    said = b""
    while b"Ray runtime started" not in said:
        line = node.stdout.readline()
        assert line, said.decode()
        said += line


@dataclass
class Watcher:
    """Does something while jobs run."""

    on_tick: Callable[[Sequence[Job]], None] = lambda running: None
    failed: dict[str, Ended] = field(default_factory=dict)

    def begun(self, job: Job) -> None:
        pass

    def ended(self, job: Job, ended: Ended) -> None:
        if ended.code:
            self.failed[job.name] = ended

    def skipped(self, jobs: Sequence[Job]) -> None:
        pass

    def tick(self, running: Sequence[Job]) -> None:
        self.on_tick(running)


@on_a_cluster
def test_a_sweep_ends_complete_although_a_node_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    trainings = [tiny.training(seed, epochs=10) for seed in range(2)]
    plan = [tiny.vote(training) for training in trainings]
    folder, orphans, lost = Folder(tmp_path / "ray"), dict[int, str](), list[Job]()

    def kill_the_second(_: Sequence[Job]) -> None:
        """Once a training on the second node has sent an epoch."""
        for line in cluster.jobs(1).values() if not lost else ():
            lost.extend(job for job in trainings if job.name in line and folder.share_done(job))
        if lost and not orphans:
            orphans.update(cluster.jobs(1))
            cluster.kill(1)

    with closing(RayEngine(folder, address=cluster.address)) as engine:
        assert engine.slots == 2
        outcome = running.run(folder, plan, engine, Watcher(kill_the_second), StopRequest())
    assert len(lost) == 1, "the second node was killed while a training ran on it"
    assert outcome.failed == {}
    assert len(outcome.done) == 4
    log = folder.log(lost[0]).read_text()
    assert "ray: lost its worker" in log
    assert "going on after epoch" in log
    assert not any(_JOB in tiny.command_line(pid) for pid in orphans), "a job ends with its worker"

    here = Folder(tmp_path / "local")
    local = LocalEngine(here, slots=2, threads=1, devices=["cpu"])
    running.run(here, plan, local, Watcher(), StopRequest())
    for job in trainings:
        assert read_metrics(folder.path / job.run) == read_metrics(here.path / job.run)
    assert [folder.result(job) for job in plan] == [here.result(job) for job in plan]


@on_a_cluster
def test_a_job_that_fails_a_worker_that_is_lost_and_a_stop(few_shapes: None, tmp_path: Path) -> None:
    """On a Ray of the engine's own."""
    folder, stop = Folder(tmp_path / "ray"), StopRequest()
    wrong, endless = Job(("train", "--sead", "1"), "misspelt"), tiny.training(0, epochs=1000)
    killed: list[float] = []

    def tick(_: Sequence[Job]) -> None:
        done = folder.share_done(endless)
        if not killed and done:
            for pid in tiny.descendants(os.getpid()):
                if "Workplace" in tiny.command_line(pid):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(done)
        elif killed and done > killed[0]:
            stop.exit_code = 143

    handler = signal.getsignal(signal.SIGTERM)
    watcher = Watcher(tick)
    with closing(RayEngine(folder, slots=2)) as engine:
        assert signal.getsignal(signal.SIGTERM) == handler
        with pytest.raises(Interrupted):
            running.run(folder, [wrong, endless], engine, watcher, stop)
    assert {name: (ended.code, ended.message) for name, ended in watcher.failed.items()} == {
        wrong.name: (2, "no such option: --sead")
    }
    log = folder.log(endless).read_text()
    assert len(killed) == 1
    assert log.count("ray: lost its worker") == 1
    assert "going on after epoch" in log
    # It has saved in the middle of its last epoch, and what it saved has come here.
    assert log.splitlines()[-1] == "terminated"
    resumed = LocalEngine(folder, slots=1, threads=1, devices=["cpu"])
    assert resumed.words(endless, "cpu")[:2] == ["train", "--resume"]


@on_a_cluster
def test_a_job_that_is_always_killed_is_given_up(few_shapes: None, tmp_path: Path) -> None:
    folder, job = Folder(tmp_path / "ray"), tiny.training(0, epochs=1000)

    def kill_jobs(_: Sequence[Job]) -> None:
        for pid in tiny.descendants(os.getpid()):
            if _JOB in tiny.command_line(pid):
                os.kill(pid, signal.SIGKILL)

    with closing(RayEngine(folder, slots=1)) as engine:
        outcome = running.run(folder, [job], engine, Watcher(kill_jobs), StopRequest())
    assert outcome.failed[job].message == "lost 4 workers one after the other; the last: killed by signal 9"
    assert folder.log(job).read_text().count("runs on node") == 4


@on_a_cluster
def test_no_node_has_room_and_no_cluster_is_there(few_shapes: None, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(ConfigError, match="no node has room for a job with 1 CPUs and 64 GPUs"):
        RayEngine(folder, gpus=64)
    with pytest.raises(ConfigError, match="Ray at auto"):
        RayEngine(folder, address="auto")


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray cannot be used") as caught:
        RayEngine(Folder(tmp_path))
    assert caught.value.hint == "pip install 'rapa-cli[ray]'"


def test_addresses_of_clients(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 'ray://there:10001', allowed are auto and HOST:PORT"):
        RayEngine(Folder(tmp_path), address="ray://there:10001")


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([{"CPU": 4.0}, {"CPU": 3.0}], 2, 0, 3),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], 2, 1, 2),
        ([{"CPU": 8.0, "GPU": 1.0}], 1, 0.25, 4),
        ([{"CPU": 2.0, "GPU": 1.0}], 1, 0.25, 2),
    ],
)
def test_room(nodes: list[dict[str, Any]], cpus: int, gpus: float, room: int) -> None:
    assert ray_engine._room(nodes, cpus, gpus) == room


def test_jobs_are_not_split_over_nodes() -> None:
    with pytest.raises(ConfigError, match="the largest has 2 and 0"):
        ray_engine._room([{"CPU": 2.0}, {"CPU": 2.0}], 3, 0)
