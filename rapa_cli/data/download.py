"""Downloads of the official archives: resumed where they were cut off, and checked against torchvision's checksums."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from rapa_cli.data import cifar
from rapa_cli.data.images import Progress, silent
from rapa_cli.data.sources import Source
from rapa_cli.errors import FileError
from rapa_cli.files import explained, make_folder

STALL_SECONDS = 30.0
IDLE_ATTEMPTS = 4
"""How many attempts in a row may bring nothing new before the download is given up."""
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
) -> Path:
    """Fetches one file; a part that an earlier call left behind is gone on with.

    Args:
        remote: what to fetch.
        home: the folder it goes to, under its name; until it is whole it is called NAME.part.
        progress: called with the bytes fetched so far.
        stall_seconds: how long a connection may be silent.
        pause: waits a number of seconds between two attempts.

    Returns:
        The file, whole and with the right checksum.

    Raises:
        FileError: no connection, a wrong checksum, a redirection to something other than http or https, or the folder
            cannot be written.
    """
    target, part = home / remote.name, home / f"{remote.name}.part"
    if target.is_file() and _md5(target) == remote.md5:
        return target
    left_behind = _size(part) > 0
    if not (left_behind and _md5(part) == remote.md5):
        _persist(remote, part, progress, stall_seconds, pause)
        if left_behind and _md5(part) != remote.md5:
            # What an earlier call left behind may be of another version of the file.
            _delete(part)
            _persist(remote, part, progress, stall_seconds, pause)
    got = _md5(part)
    if got != remote.md5:
        _delete(part)
        hint = "try again; if it stays so, fetch the archive elsewhere and use --from PATH"
        raise FileError(f"{remote.url} is refused: its md5 is {got}, not {remote.md5}", hint=hint)
    with explained(target):
        part.replace(target)
    return target


def _persist(
    remote: Remote, part: Path, progress: Progress, stall_seconds: float, pause: Callable[[float], None]
) -> None:
    """Makes attempts until the file is whole or nothing comes any more."""
    idle = 0
    for attempt in range(1, MAX_ATTEMPTS + 1):
        before = _size(part)
        try:
            _attempt(remote, part, progress, stall_seconds)
            return
        except _BrokenOffError as error:
            idle = 0 if _size(part) > before else idle + 1
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


def _attempt(remote: Remote, part: Path, progress: Progress, stall_seconds: float) -> None:
    """Fetches what is still missing; returns when all of it is there."""
    _check_scheme(remote.url)
    start = _size(part)
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={start}-"} if start else {})
    with _translated(remote, part, start), _opener().open(request, timeout=stall_seconds) as answer:
        if answer.status == 206:
            start, total = _range(answer.headers.get("Content-Range", ""), start, remote)
        else:
            # The server does not know ranges: it sends everything again.
            start, total = 0, _whole(answer.headers.get("Content-Length"))
        if total is not None and total > MAX_BYTES:
            raise FileError(f"{remote.url} is refused: it has {total} bytes, allowed are {MAX_BYTES}")
        size = _receive(answer, part, start, total, remote, progress)
    if total is not None and size != total:
        raise _BrokenOffError(f"it broke off after {size} of {total} bytes")


def _receive(
    answer: http.client.HTTPResponse, part: Path, start: int, total: int | None, remote: Remote, progress: Progress
) -> int:
    size = start
    with explained(part):
        file = part.open("ab", buffering=0)
    with file:
        with explained(part):
            file.truncate(start)
        while block := answer.read(_BLOCK):
            size += len(block)
            if size > MAX_BYTES:
                raise FileError(f"{remote.url} is refused: it has more than {MAX_BYTES} bytes")
            with explained(part):
                file.write(block)
            progress(f"fetching {remote.name}", size, total or 0)
    return size


@contextlib.contextmanager
def _translated(remote: Remote, part: Path, start: int) -> Iterator[None]:
    """Turns what a connection can raise into `_BrokenOffError`, or into FileError where no attempt would help."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:
            _delete(part)
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


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with explained(path, "read"), path.open("rb") as file:
        while block := file.read(_BLOCK * 8):
            digest.update(block)
    return digest.hexdigest()


def _delete(path: Path) -> None:
    with explained(path, "delete"):
        path.unlink(missing_ok=True)
