"""Writing files so that a reader sees the old content or the new, never a half."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rapa_cli.errors import FileError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another folder with --out"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another folder with --out"),
    errno.EACCES: ("no permission to write", "choose a folder that you own"),
    errno.EPERM: ("no permission to write", "choose a folder that you own"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.ENOTDIR: ("a file stands where a folder should be", "move that file away, or choose another folder"),
    errno.EEXIST: ("a file stands where a folder should be", "move that file away, or choose another folder"),
    errno.ENOENT: ("the folder does not exist any more", "was it moved or deleted while the command ran?"),
    errno.EISDIR: ("a folder stands where a file should be", "move that folder away, or choose another name"),
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


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path`; when the block ends well it is synced and renamed to `path`.

    Raises:
        FileError: the file cannot be written; `path` then is as it was.
    """
    with explained(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def system_error(error: Exception) -> OSError:
    """The operating system's error that safetensors reports as a text only."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), str(error)) if number else OSError(str(error))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
