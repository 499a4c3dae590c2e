"""The judge sees: readers that do each thing that none may do, and readings that are not what the files say."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rapa_cli import config
from rapa_cli.attacks.records import Records
from rapa_cli.checkpoint import Checkpoint
from rapa_cli.data.images import DataSet, Split
from rapa_cli.data.sources import Contents
from rapa_cli.errors import ConfigError, FileError, RapaError
from rapa_cli.runs import Manifest
from tests.fuzz import judging, running
from tests.fuzz.judging import Outcome
from tests.fuzz.kinds import KINDS, Kind, put
from tests.fuzz.running import outcomes

Read = Callable[[Path], Any]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[[Read], Outcome]:
    """Judges a reader of ours, in a process of its own as any case."""

    def judge(read: Read) -> Outcome:
        def check(_folder: Path, value: Any) -> None:
            assert value == "content"

        kind = Kind("ours", lambda: ({"file": b"content"},), lambda _rng, files: files, read, check, None)
        monkeypatch.setattr(judging, "KINDS", (kind,))
        (outcome,) = outcomes(0, [0])
        return outcome

    return judge


def _raising(error: BaseException, **said: str) -> Read:
    """Raises an error; `said` gets round what makes its message and hint fit to be shown."""

    def read(_folder: Path) -> None:
        vars(error).update(said)
        raise error

    return read


def _spinning(_folder: Path) -> str:
    started = judging.time_used()
    while judging.time_used() - started < 2.1:
        pass
    return "content"


def _endless(_folder: Path) -> None:
    while True:
        pass


def _doing(act: Callable[[], object]) -> Read:
    """Reads rightly, and does something beside."""

    def read(folder: Path) -> str:
        act()
        return (folder / "file").read_text(encoding="utf-8")

    return read


DEEDS: dict[str, tuple[Read, str]] = {
    "a command": (_doing(lambda: os.system("true")), "it did os.system"),
    "a program": (_doing(lambda: subprocess.run(["true"], check=True)), "it did subprocess.Popen"),
    "a socket": (_doing(lambda: socket.socket().close()), "it did socket.__new__"),
    "a pickle's import": (_doing(lambda: pickle.loads(b"cos\nsystem\n.")), "it did pickle.find_class"),
    "a file": (_doing(lambda: Path("outside/file").write_text("x", encoding="utf-8")), "it did open"),
    "a folder": (_doing(lambda: Path("outside/folder").mkdir()), "it did os.mkdir"),
    "a loss": (_doing(lambda: Path("home").rmdir()), "it did os.rmdir"),
    "a link": (_doing(lambda: Path("outside/link").symlink_to("/")), "it did os.symlink"),
    # Written by Rust, which Python does not hear of.
    "a file past the hook": (_doing(lambda: save_file({"x": torch.ones(1)}, "outside/file")), "it changed"),
    "memory": (_doing(lambda: b"x" * (11 * 2**30 // 10)), "the process grew by"),
    "time": (_spinning, "s of CPU time"),
    "another error": (_raising(KeyError("x")), "an error that is none of ours: KeyError"),
    "another content": (lambda _folder: "contents", "it was not read as it is written"),
    "a signal": (lambda _folder: os.kill(os.getpid(), signal.SIGKILL), "the process ended: signal SIGKILL"),
    "an end": (lambda _folder: os._exit(7), "the process ended: exit code 7"),
    "two lines": (_raising(FileError("one"), message="one\ntwo"), "its message is not one printable line"),
    "a hint of two lines": (_raising(FileError("one"), hint="one\ntwo"), "its hint is not one printable line"),
    "a long message": (_raising(FileError("x"), message="x" * 5000), "5000 characters"),
    "exit code 1": (_raising(RapaError("one")), "exit code 1"),
    "no memory": (_raising(FileError("std::bad_alloc")), "only for lack of memory"),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_must_not_be_is_found(judge: Callable[[Read], Outcome], deed: str) -> None:
    read, finding = DEEDS[deed]
    found = judge(read).finding
    assert found is not None
    assert finding in found


def test_a_reader_that_never_ends_is_ended(judge: Callable[[Read], Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_HANGS", 0.5)
    assert judge(_endless).finding == "the process ended: signal SIGPROF"


@pytest.mark.parametrize(
    "read",
    [
        _doing(lambda: None),
        _doing(lambda: Path("chosen/file").write_text("x", encoding="utf-8")),
        _raising(FileError("it is refused", hint="do so")),
        _raising(ConfigError("it is refused")),
    ],
    ids=["read", "written where it may", "refused", "refused as a setting"],
)
def test_what_may_be_is_no_finding(judge: Callable[[Read], Outcome], read: Read) -> None:
    assert judge(read).finding is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_wrong_reading_is_found(kind: Kind, tmp_path: Path) -> None:
    for number, files in enumerate(kind.seeds()):
        folder = tmp_path / str(number)
        folder.mkdir()
        put(folder, files)
        value = kind.read(folder)
        kind.check(folder, value)
        with pytest.raises(AssertionError):
            kind.check(folder, _changed(value))


def _changed(value: Any) -> Any:
    """A reading that is wrong in one place."""
    if isinstance(value, Checkpoint):
        (name, tensor), *_ = value.state.items()
        return replace(value, state={**value.state, name: tensor + 1})
    if isinstance(value, Contents | DataSet):
        train, test = (Split(255 - part.images, part.labels) for part in (value.train, value.test))
        return replace(value, train=train, test=test)
    if isinstance(value, Records):
        value.tensors["label"] += 1
        return value
    if isinstance(value, config.Network | config.Recipe):
        return value.model_copy(update={"description": "another"})
    if isinstance(value, Manifest):
        return value.model_copy(update={"seed": value.seed + 1})
    if isinstance(value, tuple):
        network, recipe = value
        return (
            network.model_copy(update={"pool": "max", "scheme": "none"}),
            recipe.model_copy(update={"batch_size": 7}),
        )
    if isinstance(value, list):
        return [*value[:-1], {**value[-1], "epoch": 9}]
    return {**value, "n": 4}
