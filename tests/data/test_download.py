"""Downloads against a server of our own that breaks off, lies and sends elsewhere."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rapa_cli.data import catalog, download
from rapa_cli.data.download import Remote, transfer
from rapa_cli.errors import ConfigError, FileError

CONTENT = bytes(range(256)) * 4000


@dataclass
class Site:
    """What the server does, and what it was asked.

    Attributes:
        url: its address.
        answers: called one after the other, the last one again and again.
        ranges: the Range header of each request.
    """

    url: str = ""
    answers: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)

    def remote(self, content: bytes = CONTENT) -> Remote:
        return Remote(f"{self.url}/file.bin", "file.bin", hashlib.md5(content, usedforsecurity=False).hexdigest())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.ranges.append(self.headers["Range"])
            answer = site.answers[min(len(site.ranges), len(site.answers)) - 1]
            answer(self)

        def log_message(self, *_arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_arguments: Any) -> None:
            """A client that hangs up is what the tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def send(
    content: bytes = CONTENT, *, ranges: bool = True, upto: int | None = None, claim: int | None = None
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Sends the content, from where it was asked for if `ranges`, but no more than `upto` bytes of it."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers["Range"]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and ranges else 0
        if start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(claim if claim is not None else len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start:][:upto])
        handler.close_connection = True

    return answer


def refer(location: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def fail(code: int) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: handler.send_error(code)


def get(site: Site, home: Path, remote: Remote | None = None, **options: Any) -> Path:
    return transfer(remote or site.remote(), home, pause=lambda _seconds: None, **options)


def test_a_file_is_fetched_once(site: Site, tmp_path: Path) -> None:
    site.answers = [send()]
    seen: list[tuple[str, int, int]] = []
    path = get(site, tmp_path, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("fetching file.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    get(site, tmp_path)
    assert site.ranges == [None]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_broken_connection_is_resumed(site: Site, tmp_path: Path) -> None:
    site.answers = [send(upto=700_000), send(upto=200_000), send()]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=700000-", "bytes=900000-"]


def test_two_downloads_at_once_spoil_nothing(site: Site, tmp_path: Path) -> None:
    """The first stalls in the middle; the second is refused, and the first goes on."""
    stalled, go_on = threading.Event(), threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        send(upto=300_000, claim=len(CONTENT))(handler)
        handler.wfile.flush()
        stalled.set()
        assert go_on.wait(20)

    site.answers = [stall, send()]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(get, site, tmp_path)
        try:
            assert stalled.wait(20)
            with pytest.raises(ConfigError, match=r"file.bin.part is being fetched by another process"):
                get(site, tmp_path)
        finally:
            go_on.set()
        assert first.result(20).read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=300000-"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_file_that_another_process_has_finished_is_taken(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there after this process had looked for it, and before it had the part for itself."""
    part, lock = tmp_path / "file.bin.part", fcntl.flock

    def late(*arguments: Any) -> None:
        if not (tmp_path / "file.bin").exists():
            part.write_bytes(CONTENT)
            part.rename(tmp_path / "file.bin")
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.ranges == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_what_came_before_a_stall_is_kept(site: Site, tmp_path: Path) -> None:
    done = threading.Event()

    def stall(handler: BaseHTTPRequestHandler) -> None:
        send(upto=400_000)(handler)
        handler.wfile.flush()
        done.wait(20)

    site.answers = [stall]
    try:
        assert get(site, tmp_path, stall_seconds=0.3).read_bytes() == CONTENT
    finally:
        done.set()
    assert site.ranges == [None, "bytes=400000-", "bytes=800000-"]


def test_a_trickle_is_given_up(site: Site, tmp_path: Path) -> None:
    """A byte at a time is never silent; of the time that it takes only a clock of the test's own knows."""
    done = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        send(upto=0)(handler)
        while not done.wait(0.001):
            handler.wfile.write(b"x")

    site.answers = [trickle]
    times = itertools.count()
    try:
        with pytest.raises(FileError, match="it sends less than 1024 bytes per second"):
            get(site, tmp_path, clock=lambda: float(next(times)))
    finally:
        done.set()
    assert len(site.ranges) == download.IDLE_ATTEMPTS


def test_a_part_of_an_earlier_call_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    site.answers = [send()]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.ranges == ["bytes=1000-"]


def test_a_whole_part_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.ranges == []


@pytest.mark.parametrize("part", [b"something else", CONTENT + b"too long"])
def test_a_part_that_does_not_fit_is_thrown_away(site: Site, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "file.bin.part").write_bytes(part)
    site.answers = [send()]
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(site: Site, tmp_path: Path) -> None:
    site.answers = [send(upto=500_000, ranges=False), send(ranges=False)]
    assert get(site, tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_refused(site: Site, tmp_path: Path) -> None:
    site.answers = [send(CONTENT[:-1] + b"x")]
    with pytest.raises(FileError, match="refused: its md5 is"):
        get(site, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_is_too_long_is_found_out(site: Site, tmp_path: Path) -> None:
    site.answers = [send(claim=len(CONTENT) + 10), fail(503)]
    with pytest.raises(FileError, match="could not be fetched: the server answered 503") as caught:
        get(site, tmp_path)
    assert caught.value.hint is not None
    assert not (tmp_path / "file.bin").exists()
    assert len(site.ranges) == 1 + download.IDLE_ATTEMPTS


def test_a_length_that_is_too_short_is_found_out(site: Site, tmp_path: Path) -> None:
    site.answers = [send(claim=1000)]
    with pytest.raises(FileError, match="refused: its md5 is"):
        get(site, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_length_beyond_all_measure_is_refused(site: Site, tmp_path: Path) -> None:
    site.answers = [send(claim=10**12)]
    with pytest.raises(FileError, match="has 1000000000000 bytes"):
        get(site, tmp_path)


def test_a_body_beyond_all_measure_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    monkeypatch.setattr(download, "MAX_BYTES", 500_000)
    site.answers = [endless]
    with pytest.raises(FileError, match="more than 500000 bytes"):
        get(site, tmp_path)


def test_redirections_on_the_web_are_followed(site: Site, tmp_path: Path) -> None:
    site.answers = [refer("/elsewhere"), send()]
    assert get(site, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_other_redirections_are_refused(site: Site, tmp_path: Path, scheme: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    site.answers = [refer(f"{scheme}://{secret}")]
    with pytest.raises(FileError, match=rf"{scheme}://.* is refused: allowed are http and https"):
        get(site, tmp_path)
    assert not (tmp_path / "file.bin").exists()


def test_other_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="allowed are http and https"):
        transfer(Remote(f"file://{tmp_path}/a", "b", "0" * 32), tmp_path)


def test_endless_redirections_are_given_up(site: Site, tmp_path: Path) -> None:
    site.answers = [refer("/again")]
    with pytest.raises(FileError, match="answered 302"):
        get(site, tmp_path)


def test_a_missing_file_is_reported_at_once(site: Site, tmp_path: Path) -> None:
    site.answers = [fail(404)]
    with pytest.raises(FileError, match="the server answered 404"):
        get(site, tmp_path)
    assert len(site.ranges) == 1


def test_a_wrong_range_is_refused(site: Site, tmp_path: Path) -> None:
    def wrong(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-9/10")
        handler.send_header("Content-Length", "10")
        handler.end_headers()

    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    site.answers = [wrong]
    with pytest.raises(FileError, match="wrong range"):
        get(site, tmp_path)


def test_a_silent_server_is_given_up(site: Site, tmp_path: Path) -> None:
    done = threading.Event()
    site.answers = [lambda _handler: done.wait(20)]  # type: ignore[list-item]
    waits: list[float] = []
    try:
        with pytest.raises(FileError, match=r"the connection failed \(.*timed out"):
            transfer(site.remote(), tmp_path, stall_seconds=0.05, pause=waits.append)
    finally:
        done.set()
    assert waits == [1.0, 2.0, 4.0]


def test_no_server_is_reported(site: Site, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="the connection failed"):
        get(site, tmp_path, Remote("http://127.0.0.1:1/x", "x", "0" * 32))


def test_a_folder_that_cannot_be_written_is_reported(site: Site, tmp_path: Path) -> None:
    site.answers = [send()]
    with pytest.raises(FileError, match="cannot write"):
        get(site, tmp_path / "missing")


def test_the_addresses_are_torchvisions() -> None:
    (cifar10,) = download.remotes("cifar10")
    assert cifar10.name == "cifar-10-python.tar.gz"
    assert cifar10.md5 == "c58f30108f718f92721af3b95e74349a"
    assert [remote.name for remote in download.remotes("svhn")] == ["train_32x32.mat", "test_32x32.mat"]
    assert len(download.remotes("cifar100")) == 1


def test_a_torchvision_of_another_build_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "torchvision", Broken())
    with pytest.raises(FileError, match="operator torchvision::nms does not exist") as caught:
        catalog.get("cifar10", data_dir=tmp_path)
    assert caught.value.hint is not None
    assert "from the same place" in caught.value.hint
    assert "rapa data get cifar10 --from PATH" in caught.value.hint
