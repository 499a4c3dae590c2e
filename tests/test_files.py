"""Atomic writing: a reader sees the old content or the new, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rapa_cli import files
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.files import held


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    files.write_text(path, "")
    assert path.read_bytes() == b""
    assert only(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failure_keeps_the_old_content_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail() -> None:
        with files.atomic(path) as temporary:
            temporary.write_text("half of the new", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert only(tmp_path) == ["a.txt"]


def test_a_reader_sees_the_old_content_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with files.atomic(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        assert temporary.parent == path.parent
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EIO, "")],
)
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_the_system_refusing_is_a_file_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, step: str
) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(os, "fsync", refuse)
        else:
            patch.setattr(Path, "write_text" if step == "write" else "replace", refuse)
        with pytest.raises(FileError) as caught:
            files.write_text(path, "new")
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 3
    assert path.read_text(encoding="utf-8") == "old"
    assert only(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, which is a full disk")
def test_a_really_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def fill() -> None:
        with files.atomic(path), Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(FileError, match="the disk is full"):
        fill()
    assert only(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "a.txt"
    before = os.umask(mask)
    try:
        files.write_text(path, "x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_missing_and_impossible_folders(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        files.write_text(tmp_path / "none" / "a.txt", "x")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(FileError, match="a file stands where a folder should be") as caught:
        files.write_text(tmp_path / "file" / "a.txt", "x")
    assert caught.value.hint
    with pytest.raises(FileError, match="a file stands where a folder should be"):
        files.make_folder(tmp_path / "file")
    with pytest.raises(FileError, match="a file stands where a folder should be"):
        files.make_folder(tmp_path / "file" / "below")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="a folder stands where a file should be"):
        files.write_text(tmp_path / "folder", "x")
    assert only(tmp_path) == ["file", "folder"]


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert files.make_folder(folder) == folder
    assert files.make_folder(folder).is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to the superuser")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileError, match="no permission to write"):
            files.write_text(tmp_path / "a.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_no_permission_as_the_system_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(FileError, match="no permission to write"):
        files.write_text(tmp_path / "a.txt", "x")


@pytest.mark.parametrize(
    ("text", "number"),
    [("I/O error: No space left on device (os error 28)", errno.ENOSPC), ("something else", None)],
)
def test_the_systems_error_in_a_text(text: str, number: int | None) -> None:
    assert files.system_error(ValueError(text)).errno == number


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from rapa_cli.files import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = rf"{tmp_path} is in use by process {other.pid} on \S+, since 20"
        with pytest.raises(ConfigError, match=message), held(tmp_path):
            pass
        other.kill()
    with held(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} on"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="the folder does not exist any more"), held(tmp_path / "gone"):
        pass


def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from rapa_cli.files import write_text\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_text(Path(sys.argv[1]), 'new')"
    )
    (tmp_path / "figures").mkdir()
    for path in (tmp_path / "a.txt", tmp_path / "figures" / "b.svg"):
        path.write_text("old", encoding="utf-8")
        done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.read_text(encoding="utf-8") == "old"
        assert len(only(path.parent)) == (3 if path.parent == tmp_path else 2)
    (tmp_path / ".mine.tmp").write_text("of the user", encoding="utf-8")
    with files.atomic(tmp_path / "c.txt") as writing, held(tmp_path):
        assert writing.exists(), "somebody still writes it"
    assert only(tmp_path) == [".lock", ".mine.tmp", "a.txt", "c.txt", "figures"]
    assert only(tmp_path / "figures") == ["b.svg"]


def test_what_was_taken_for_left_behind_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, made = tempfile.mkstemp, list[str]()

    def swept_at_once(**options: Any) -> tuple[int, str]:
        handle, name = original(**options)
        if not made:
            Path(name).unlink()
        made.append(name)
        return handle, name

    monkeypatch.setattr("tempfile.mkstemp", swept_at_once)
    files.write_text(tmp_path / "a.txt", "x")
    assert len(made) == 2
    assert only(tmp_path) == ["a.txt"]
