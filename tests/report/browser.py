"""Pages in a real browser that reaches nothing but a server of the test's own.

All that the browser asks for, of any host, goes to that server, which notes it: a page that loads something is seen.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
REASON = "there is no `chromium` on PATH; Debian's package of that name has it"
HOST = "http://report.test"
_SECONDS = 60
# What the browser itself would ask for is none of the page's doing.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-features=OptimizationHints,MediaRouter,Translate",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--log-level=0",
    "--hide-scrollbars",
)
# It asks for the time and for its own updates even so; nothing that a page could want lies on these hosts.
_ITS_OWN = re.compile(r"(clients2\.google\.com|update\.googleapis\.com|accounts\.google\.com|www\.google\.com)(:|/)")
_DARK = "--blink-settings=preferredColorScheme=0"

# The page in frames of given widths, and what there is to say of each, written where `--dump-dom` shows it.
_PROBE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><title>probe</title>%s<pre></pre>
<script>addEventListener("load", () => {
  const said = [...document.querySelectorAll("iframe")].map(frame => {
    const view = frame.contentWindow, page = view.document, style = view.getComputedStyle(page.body);
    const text = page.querySelector("svg text");
    return {
      title: page.title,
      width: view.innerWidth,
      content: page.documentElement.scrollWidth,
      colour: style.color,
      background: style.backgroundColor,
      drawings: [...page.querySelectorAll("svg")].map(drawing => drawing.getBoundingClientRect().width),
      text: text && view.getComputedStyle(text).fill,
      size: text && text.getBoundingClientRect().height,
      loaded: view.performance.getEntriesByType("resource").map(entry => entry.name),
      stuck: [...page.querySelectorAll("*")].filter(element => !element.closest(".scroll, .drawing, pre")
        && element.getBoundingClientRect().right > view.innerWidth + 1).map(element => element.outerHTML.slice(0, 80)),
    };
  });
  document.querySelector("pre").textContent = JSON.stringify(said);
});</script>"""
_FRAME = '<iframe src="/page.html" style="width: %dpx; height: 2000px; border: 0"></iframe>'


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page.

    Attributes:
        asked: every request, as method and address.
        logged: lines that reached the console.
        pages: what the probe says of it at each width.
    """

    asked: set[str]
    logged: list[str]
    pages: list[dict[str, Any]]


def look(html: str, folder: Path, *, widths: Sequence[int] = (390, 1280), dark: bool = False) -> Seen:
    """Opens a page in frames of these widths in pixels."""
    frames = "".join(_FRAME % width for width in widths)
    with _server({"/page.html": html, "/probe.html": _PROBE % frames}) as (port, asked):
        outcome = _chromium(
            folder,
            f"--proxy-server=127.0.0.1:{port}",
            *([_DARK] if dark else []),
            "--dump-dom",
            f"{HOST}/probe.html",
        )
    found = re.search(r"<pre>(.*?)</pre>", outcome.stdout, re.DOTALL)
    assert found and found[1], f"the probe says nothing:\n{outcome.stdout[:500]}\n{outcome.stderr[-2000:]}"
    logged = [line for line in outcome.stderr.splitlines() if "CONSOLE" in line]
    of_page = {line for line in asked if line != f"GET {HOST}/probe.html" and not _ITS_OWN.search(line)}
    return Seen(of_page, logged, json.loads(unescape(found[1])))


def screenshot(path: Path, target: Path, *, width: int, dark: bool = False) -> None:
    """Opens a file as a user does, and draws it."""
    _chromium(
        target.parent,
        *([_DARK] if dark else []),
        f"--window-size={width},2000",
        f"--screenshot={target}",
        path.resolve().as_uri(),
    )


def _chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    outcome = subprocess.run(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    return outcome


@contextmanager
def _server(pages: dict[str, str]) -> Iterator[tuple[int, list[str]]]:
    """A proxy for every host, which has the pages of one of them; gives its port and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            text = pages.get(self.path.removeprefix(HOST))
            body = (text or "").encode()
            self.send_response(404 if text is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_HEAD = do_CONNECT = do_GET  # noqa: N815 - names that the standard library looks for

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
