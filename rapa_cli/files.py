"""Writing files so that a reader sees the old content or the new, never a half."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from rapa_cli.errors import ConfigError, FileError

MAX_TEXT = 2**25
"""Bytes of the longest text file that is read."""
LOCK = ".lock"
_HOLDER_BYTES = 200
# As `tempfile` makes them for `atomic`.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another folder"),
    errno.EACCES: ("no permission to write", "choose a folder that you own"),
    errno.EPERM: ("no permission to write", "choose a folder that you own"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.ENOTDIR: ("a file stands where a folder should be", "move that file away, or choose another folder"),
    errno.EEXIST: ("a file stands where a folder should be", "move that file away, or choose another folder"),
    errno.ENOENT: ("the folder does not exist any more", "was it moved or deleted while the command ran?"),
    errno.EISDIR: ("a folder stands where a file should be", "move that folder away, or choose another name"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("it is a link, or leads over too many", "take it away, or choose another folder"),
}


@contextlib.contextmanager
def explained(path: Path, action: str = "write") -> Iterator[None]:
    """Turns an OSError inside the block into a FileError that names the path, the cause and a way out."""
    try:
        yield
    except OSError as error:
        reason, hint = _REASONS.get(error.errno or 0, (os.strerror(error.errno) if error.errno else str(error), None))
        raise FileError(f"cannot {action} {path}: {reason}", hint=hint) from error


def make_folder(path: Path) -> Path:
    """Creates a folder and its parents.

    Raises:
        FileError: the folder cannot be made.
    """
    with explained(path, "make the folder"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            # Parents are made too, so that only a place which takes no folders is left, such as /proc.
            reason = "no folder can be made at this place"
            raise FileError(f"cannot make the folder {path}: {reason}", hint="choose another folder") from error
    return path


def inside(folder: Path, *names: str) -> Path:
    """Makes a folder in one that was chosen, and may come from a stranger: a link in it is refused, not followed.

    Args:
        folder: the chosen one, which may itself be a link.
        names: of the folder in it, and of that in that one.

    Raises:
        FileError: the folder cannot be made, or a link stands in its place.
    """
    for name in names:
        folder = folder / name
        no_link(folder)
        make_folder(folder)
    return folder


def no_link(path: Path) -> None:
    """Raises FileError where a link stands."""
    with explained(path):
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def append_to(path: Path) -> BinaryIO:
    """Opens a file to write at its end; it is made where there is none, and a link is not followed.

    Raises:
        FileError: it cannot be written, or is no ordinary file.
    """
    return os.fdopen(_opened_in_place(path, os.O_WRONLY | os.O_APPEND), "ab")


def _opened_in_place(path: Path, flags: int) -> int:
    """The handle of a file that is not written anew, which a stranger may have made a link or a device."""
    with explained(path):
        # A pipe that nobody reads would be waited for.
        handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileError(f"cannot write {path}: it is no ordinary file", hint="take it away, or choose another folder")
    return handle


@contextlib.contextmanager
def atomic(path: Path, size: int | None = None) -> Iterator[Path]:
    """Gives a temporary file beside `path`; when the block ends well it is synced and renamed to `path`.

    Args:
        path: the file.
        size: bytes that it will have, as far as they are known: what a full disk lacks follows from them.

    Raises:
        FileError: the file cannot be written; `path` then is as it was.
    """
    with explained(path), _room_told(path, size):
        handle, temporary = _temporary(path)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, locked as long as the handle that comes with it is open."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        # Some network file systems cannot lock.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Before it was locked another process may have taken it for one that was left behind.
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Deletes what killed processes left half-written in a folder, and in those in it."""
    below = (path for path in folder.glob("*/.*.tmp") if not path.parent.is_symlink())
    for path in (*folder.glob(".*.tmp"), *below):
        # What cannot be locked is still being written.
        with contextlib.suppress(OSError):
            if not _TEMPORARY.fullmatch(path.name):
                continue
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def _room_told(path: Path, size: int | None) -> Iterator[None]:
    """Says how many bytes a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        lack = f"{free} bytes are free"
        if size is not None and size > free:
            lack = f"{size - free} of its {size} bytes are missing"
        reason, hint = _REASONS[errno.ENOSPC]
        raise FileError(f"cannot write {path}: {reason} ({lack})", hint=hint) from error


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process alone as long as the block lasts.

    The operating system lets go of it when the process ends, in whatever way. What a killed one left half-written, in
    the folder or in those in it, is deleted.

    Raises:
        ConfigError: another process holds it; the message says which.
        FileError: the folder cannot be written, or something else than a file stands where the lock should be.
    """
    path = folder / LOCK
    handle = _opened_in_place(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, _HOLDER_BYTES, 0).decode("utf-8", "replace").strip() or "another process"
            raise ConfigError(
                f"{folder} is in use by {holder}", hint="wait for it, stop it, or choose another folder"
            ) from None
        except OSError as error:
            # Some network file systems cannot lock; a run there is on its own.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
        started = datetime.now(UTC).isoformat(timespec="seconds")
        line = f"process {os.getpid()} on {socket.gethostname()}, since {started}\n".encode()
        with explained(path), _room_told(path, len(line)):
            os.ftruncate(handle, 0)
            os.pwrite(handle, line, 0)
        _sweep(folder)
        yield
    finally:
        os.close(handle)


def system_error(error: Exception) -> OSError:
    """The operating system's error that safetensors reports as a text only."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), str(error)) if number else OSError(str(error))


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        FileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}", hint="is the file still there?") from None


def ordinary(path: Path) -> BinaryIO:
    """Opens a file for reading, but neither a device nor a pipe, which may never end.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no ordinary file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no ordinary file")
    return file


def read_text(path: Path, errors: str = "strict") -> str:
    """Reads a text file, line ends as they are.

    Args:
        path: the file.
        errors: what becomes of bytes that are no UTF-8, as in `bytes.decode`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ordinary file, has more than `MAX_TEXT` bytes, or is no UTF-8.
    """
    with ordinary(path) as file:
        content = file.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise ValueError(f"it has more than {MAX_TEXT} bytes")
    return content.decode(errors=errors)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic(path, len(text.encode())) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
