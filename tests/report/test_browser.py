"""Pages in headless Chromium: they open, ask for nothing, log nothing, and fit wide and narrow screens."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapa_cli.report.page import Beside, Code, Fact, Facts, Mark, Page, Picture, Section, Table, html, write
from tests.report import browser
from tests.report.test_page import drawing

pytestmark = [pytest.mark.browser, pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.REASON)]

LONG = "a-name-without-any-space-" * 8


def page() -> Page:
    table = Table(LONG, [f"column {n}" for n in range(20)], [[f"{n} {LONG}" for n in range(20)]], [LONG])
    blocks = [
        LONG,
        Facts([Fact("Error", f"{n} %", LONG) for n in range(7)]),
        table,
        Picture(drawing(), "Curve", "A line that rises.", LONG, table),
        Picture(drawing(), "Wide", "A line that rises.", wide=True),
        Beside([Picture(drawing(), "Left", "A line."), Table("t", ["a", "b"], [["x", Mark("1", "good")]])]),
        Code(f"rapa {LONG}"),
    ]
    return Page(f"A page <b> {LONG}", [Section(LONG, blocks), Section("Two", [])], LONG, LONG)  # type: ignore[arg-type]


def luminance(colour: str) -> float:
    """Relative luminance of rgb(r, g, b), as WCAG 2 has it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_opens_alone_and_fits(tmp_path: Path, dark: bool) -> None:
    seen = browser.look(html(page()), tmp_path, dark=dark)
    assert seen.asked == {f"GET {browser.HOST}/page.html"}, "the page and nothing else"
    assert seen.logged == []
    for found, width in zip(seen.pages, (390, 1280), strict=True):
        assert found["loaded"] == []
        assert found["title"].startswith("A page <b>")
        assert (found["width"], found["content"]) == (width, width), "nothing is wider than the screen"
        assert found["stuck"] == []
        assert len(found["drawings"]) == 3
        assert min(found["drawings"]) >= 300
        assert found["size"] >= 9, "labels are legible"
        assert (luminance(found["background"]) < 0.1) == dark
        assert contrast(found["colour"], found["background"]) > 7
        assert contrast(found["text"], found["background"]) > 7, "labels of figures too"


def test_a_page_that_does_wrong_is_seen(tmp_path: Path) -> None:
    wrong = """<!DOCTYPE html><title>wrong</title><link rel="icon" href="data:,"><img src="http://other.test/x.png">
        <p style="width: 2000px">wide</p><script>console.error("bad")</script>"""
    seen = browser.look(wrong, tmp_path, widths=[390])
    assert "GET http://other.test/x.png" in seen.asked
    assert any("bad" in line for line in seen.logged)
    (found,) = seen.pages
    assert found["loaded"] == ["http://other.test/x.png"]
    assert found["content"] >= 2000
    assert found["stuck"]


def test_what_a_page_must_not_load_is_not_loaded(tmp_path: Path) -> None:
    text = html(page()).replace("<main>", '<main><img src="http://other.test/x.png" alt=""><script>x()</script>')
    seen = browser.look(text, tmp_path, widths=[390])
    assert seen.asked == {f"GET {browser.HOST}/page.html"}
    assert any("Content Security Policy" in line for line in seen.logged)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_file_is_drawn(tmp_path: Path, dark: bool) -> None:
    write(tmp_path / "page.html", page())
    target = tmp_path / "page.png"
    browser.screenshot(tmp_path / "page.html", target, width=1280, dark=dark)
    with Image.open(target) as picture:
        assert picture.size == (1280, 2000)
        grey = np.asarray(picture.convert("L"))
    assert grey.std() > 5, "something is drawn"
    assert (grey.mean() < 60) if dark else (grey.mean() > 200)
