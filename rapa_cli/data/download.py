"""Downloads of the official archives: resumed where they were cut off, and checked against torchvision's checksums."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from io import FileIO
from pathlib import Path
from typing import IO, Any

from rapa_cli.data import cifar
from rapa_cli.data.images import Progress, silent
from rapa_cli.data.sources import Source
from rapa_cli.errors import ConfigError, FileError
from rapa_cli.files import explained, make_folder

STALL_SECONDS = 30.0
LEAST_SPEED = 1024
"""Bytes per second over `STALL_SECONDS`; a slower connection counts as a silent one."""
IDLE_ATTEMPTS = 4
"""How many attempts in a row may bring less than `LEAST_SPEED` asks for before the download is given up."""
MAX_ATTEMPTS = 100
MAX_BYTES = 2 * 2**30
_BLOCK = 2**18
_SCHEMES = ("http", "https")


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        url: http or https.
        name: what it is called here.
        md5: of its content, 32 hexadecimal digits.
    """

    url: str
    name: str
    md5: str


def remotes(name: str) -> tuple[Remote, ...]:
    """The files of "cifar10", "cifar100" or "svhn", with the addresses and checksums that torchvision knows.

    Raises:
        FileError: torchvision cannot be imported.
    """
    try:
        from torchvision import datasets
    except Exception as error:  # A torchvision of another build raises RuntimeError, a missing one ImportError.
        reason = " ".join(str(error).split())
        hint = (
            "install torch and torchvision from the same place, or fetch the archive yourself and use "
            f"rapa data get {name} --from PATH"
        )
        raise FileError(f"torchvision cannot be imported: {reason}", hint=hint) from error
    if name == "svhn":
        return tuple(Remote(*datasets.SVHN.split_list[split]) for split in ("train", "test"))
    chosen = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return (Remote(chosen.url, chosen.filename, chosen.tgz_md5),)


def fetch(name: str, home: Path, progress: Progress = silent) -> Source:
    """Downloads a known data set into a folder; its archive stays there.

    Args:
        name: "cifar10", "cifar100" or "svhn".
        home: the folder.
        progress: called with the bytes fetched so far.

    Returns:
        What was downloaded, ready to be read.

    Raises:
        FileError: no connection, a wrong checksum, or the folder cannot be written.
    """
    files = remotes(name)
    make_folder(home)
    for remote in files:
        transfer(remote, home, progress=progress)
    archives = {"cifar10": cifar.CIFAR10.archive, "cifar100": cifar.CIFAR100.archive}
    return Source(name, home / archives[name] if name in archives else home)


def transfer(
    remote: Remote,
    home: Path,
    *,
    progress: Progress = silent,
    stall_seconds: float = STALL_SECONDS,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Fetches one file; a part that an earlier call left behind is gone on with.

    Args:
        remote: what to fetch.
        home: the folder it goes to, under its name; until it is whole it is called NAME.part.
        progress: called with the bytes fetched so far.
        stall_seconds: how long a connection may be silent, or slower than `LEAST_SPEED`.
        pause: waits a number of seconds between two attempts.
        clock: says the time, seconds.

    Returns:
        The file, whole and with the right checksum.

    Raises:
        ConfigError: another process is fetching it.
        FileError: no connection, a wrong checksum, a redirection to something other than http or https, or the folder
            cannot be written.
    """
    target, part = home / remote.name, home / f"{remote.name}.part"
    if _is_whole(target, remote):
        return target
    with _held(part) as file:
        if _is_whole(target, remote):
            # Another process had it while this one came.
            _delete(part)
            return target
        left_behind = _size(file) > 0
        if not (left_behind and _md5(file) == remote.md5):
            _persist(remote, file, progress, stall_seconds, pause, clock)
            if left_behind and _md5(file) != remote.md5:
                # What an earlier call left behind may be of another version of the file.
                _cut(file, 0)
                _persist(remote, file, progress, stall_seconds, pause, clock)
        got = _md5(file)
        if got != remote.md5:
            _delete(part)
            hint = "try again; if it stays so, fetch the archive elsewhere and use --from PATH"
            raise FileError(f"{remote.url} is refused: its md5 is {got}, not {remote.md5}", hint=hint)
        with explained(target):
            part.replace(target)
    return target


@contextlib.contextmanager
def _held(part: Path) -> Iterator[FileIO]:
    """The part, open, and for this process alone from its first byte until it has its name."""
    while True:
        with explained(part):
            file = FileIO(part, "a+")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                hint = "wait until it is done, or stop it"
                raise ConfigError(f"{part} is being fetched by another process", hint=hint) from None
            except OSError as error:
                # Some network file systems cannot lock; a download there is on its own.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                    raise
            # Before it was locked another process may have renamed it, or deleted it.
            with explained(part):
                current = part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())
            if current:
                yield file
                return


def _persist(
    remote: Remote,
    file: FileIO,
    progress: Progress,
    stall_seconds: float,
    pause: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    """Makes attempts until the file is whole or next to nothing comes any more."""
    idle = 0
    for attempt in range(1, MAX_ATTEMPTS + 1):
        before = _size(file)
        try:
            _attempt(remote, file, progress, stall_seconds, clock)
            return
        except _BrokenOffError as error:
            idle = 0 if _size(file) - before >= LEAST_SPEED * stall_seconds else idle + 1
            if idle >= IDLE_ATTEMPTS or attempt == MAX_ATTEMPTS:
                hint = "run the command again to go on where it stopped, or fetch it elsewhere and use --from PATH"
                raise FileError(f"{remote.url} could not be fetched: {error}", hint=hint) from error
            pause(0.5 * 2.0**idle)


class _BrokenOffError(Exception):
    """The connection failed in a way that another attempt may cure."""


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https alone; the library's own handler admits ftp too."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        _check_scheme(urllib.parse.urljoin(req.full_url, headers.get("Location", "")))
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _WebOnly(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "rapa"), ("Accept-Encoding", "identity")]
    return opener


def _attempt(
    remote: Remote, file: FileIO, progress: Progress, stall_seconds: float, clock: Callable[[], float]
) -> None:
    """Fetches what is still missing; returns when all of it is there."""
    _check_scheme(remote.url)
    start = _size(file)
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={start}-"} if start else {})
    with _translated(remote, file, start), _opener().open(request, timeout=stall_seconds) as answer:
        if answer.status == 206:
            start, total = _range(answer.headers.get("Content-Range", ""), start, remote)
        else:
            # The server does not know ranges: it sends everything again.
            start, total = 0, _whole(answer.headers.get("Content-Length"))
        if total is not None and total > MAX_BYTES:
            raise FileError(f"{remote.url} is refused: it has {total} bytes, allowed are {MAX_BYTES}")
        _cut(file, start)
        size = start
        for block in _blocks(answer, stall_seconds, clock):
            size += len(block)
            if size > MAX_BYTES:
                raise FileError(f"{remote.url} is refused: it has more than {MAX_BYTES} bytes")
            _write(file, block)
            progress(f"fetching {remote.name}", size, total or 0)
    if total is not None and size != total:
        raise _BrokenOffError(f"it broke off after {size} of {total} bytes")


def _blocks(answer: http.client.HTTPResponse, stall_seconds: float, clock: Callable[[], float]) -> Iterator[bytes]:
    """What comes, as it comes, so that nothing of it is lost when no more does."""
    since, got = clock(), 0
    while block := answer.read1(_BLOCK):
        yield block
        got += len(block)
        if clock() - since >= stall_seconds:
            if got < LEAST_SPEED * stall_seconds:
                raise _BrokenOffError(f"it sends less than {LEAST_SPEED} bytes per second")
            since, got = clock(), 0


@contextlib.contextmanager
def _translated(remote: Remote, file: FileIO, start: int) -> Iterator[None]:
    """Turns what a connection can raise into `_BrokenOffError`, or into FileError where no attempt would help."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            _cut(file, 0)
            raise _BrokenOffError("the part fetched earlier does not fit") from error
        if error.code >= 500 or error.code in (408, 429):
            raise _BrokenOffError(f"the server answered {error.code} {error.reason}") from error
        hint = "fetch the archive elsewhere and use --from PATH"
        raise FileError(f"{remote.url}: the server answered {error.code} {error.reason}", hint=hint) from error
    except (OSError, http.client.HTTPException) as error:
        # Files are written under `explained`, so an OSError here comes from the connection.
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise _BrokenOffError(f"the connection failed ({reason})") from error


def _check_scheme(url: str) -> None:
    scheme = url.partition(":")[0].lower()
    if scheme not in _SCHEMES:
        raise FileError(f"the address {url} is refused: allowed are http and https")


def _range(header: str, start: int, remote: Remote) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header.strip())
    if not match or int(match[1]) != start:
        raise FileError(f"{remote.url}: the server answered with the wrong range '{header}' for byte {start}")
    return start, None if match[3] == "*" else int(match[3])


def _whole(header: str | None) -> int | None:
    return int(header) if header is not None and header.isdecimal() else None


def _is_whole(target: Path, remote: Remote) -> bool:
    if not target.is_file():
        return False
    with explained(target, "read"):
        file = FileIO(target)
    with file:
        return _md5(file) == remote.md5


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _md5(file: FileIO) -> str:
    with explained(_path(file), "read"):
        file.seek(0)
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _cut(file: FileIO, size: int) -> None:
    with explained(_path(file)):
        file.truncate(size)


def _write(file: FileIO, block: bytes) -> None:
    """Appends a block, whole."""
    with explained(_path(file)):
        left = memoryview(block)
        while left:
            left = left[file.write(left) :]


def _delete(part: Path) -> None:
    with explained(part, "delete"):
        part.unlink(missing_ok=True)


def _path(file: FileIO) -> Path:
    return Path(os.fsdecode(file.name))
