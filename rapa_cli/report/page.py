"""A page of HTML in one file: prose, tables and figures that need no network, no script and no other file.

A page is a tree of frozen values, and `html` turns it into text:

    curve = Picture(figure, "Learning curve", "Test error falls from 60 to 24 % in 20 epochs.", table=numbers)
    errors = Table("Errors", ["network", "paper", "here"], [["random", "17.67 %", Mark("17.9 %", "good")]])
    write(path, Page("Table 1", [Section("Results", ["One draw, all test images.", errors, curve])]))

Every text is escaped, so that texts are texts and never markup. A figure is a drawing in the page itself, with a title
and a description for those who do not see it, and the numbers behind it to open below. It follows light and dark: what
matplotlib draws in black or grey takes the colour of the page's text, and its background is the page's.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

import matplotlib as mpl

from rapa_cli.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tone = Literal["plain", "good", "bad", "weak"]

# What a column of numbers holds; such columns stand on the right. A dash is a number that there is not.
_NUMBER = re.compile(r"[-+±]?[0-9.].*|-?", re.DOTALL)
_FRACTION = re.compile(r"-?[0-9]+\.[0-9]{3,}")
_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_FONT = re.compile(r"font-family: [^;]*;? ?|font: ([0-9.]+px) [^;]*")
_HERE = re.compile(r"url\(#([^)]+)\)")
_HREF = "{http://www.w3.org/1999/xlink}href"
# SVG is drawn at 72 units to an inch, and its texts are legible at this many pixels to a unit and not too large.
_LARGEST = 1.6


@dataclass(frozen=True)
class Mark:
    """A cell that says how good something is; the colour only repeats what the text says."""

    text: str
    tone: Tone = "plain"


Cell = str | Mark


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row is its name.

    Attributes:
        caption: what the table shows; above it.
        columns: headings.
        rows: as many cells each.
        notes: sentences below it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        figure: of matplotlib; about 5 inches wide, so that its texts are legible on a telephone too.
        title: in a few words; read aloud, and the heading of the figure.
        description: what there is to see in it, for who does not see it.
        caption: sentences below it.
        table: the numbers behind it, below it to open.
        wide: has a row of its own, and is scrolled on a narrow screen; other figures that follow each other share rows.
    """

    figure: Figure
    title: str
    description: str
    caption: str = ""
    table: Table | None = None
    wide: bool = False


@dataclass(frozen=True)
class Fact:
    """One number that matters: what it is, the number, and what it rests on."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Numbers in large type, side by side."""

    facts: Sequence[Fact]


@dataclass(frozen=True)
class Code:
    """Lines as they are typed."""

    text: str


@dataclass(frozen=True)
class Beside:
    """Parts side by side where there is room, else below each other."""

    blocks: Sequence[Block]


Block = str | Table | Picture | Facts | Code | Beside
"""A part of a section; a str is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: of the page.
        sections: in order; several make a list of contents.
        subtitle: a line below the title.
        footer: a line at the end.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    footer: str = ""


def write(path: Path, page: Page) -> None:
    """Writes a page atomically.

    Raises:
        FileError: it cannot be written.
    """
    write_text(path, html(page))


def html(page: Page) -> str:
    """A page as one HTML document; the same page gives the same text."""
    numbers = itertools.count(1)
    names = [f"section-{number}" for number in range(1, len(page.sections) + 1)]
    body = "\n".join(_section(section, name, numbers) for section, name in zip(page.sections, names, strict=True))
    links = "".join(
        f'<li><a href="#{name}">{escape(section.title)}</a></li>'
        for section, name in zip(page.sections, names, strict=True)
    )
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(page.sections) > 1 else ""
    subtitle = f"<p>{escape(page.subtitle)}</p>" if page.subtitle else ""
    footer = f"<footer><p>{escape(page.footer)}</p></footer>" if page.footer else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(page.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(page.title)}</h1>{subtitle}</header>
{contents}
<main>
{body}
</main>
{footer}
</body>
</html>
"""


def svg(figure: Figure, name: str, title: str, description: str) -> str:
    """A figure as an element of an HTML page.

    Args:
        figure: its size in inches sets how large its texts are.
        name: another one for each figure of a page; the ids in it begin with that.
        title: in a few words.
        description: what there is to see.
    """
    drawn = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(drawn.getvalue())
    _clean(root, name)
    _, _, width, _ = root.attrib["viewBox"].split()
    root.attrib = {
        "class": "plot",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "style": f"max-width: {_LARGEST * float(width):.0f}px",
    }
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _section(section: Section, name: str, numbers: Iterator[int]) -> str:
    parts = []
    for narrow, group in itertools.groupby(section.blocks, lambda block: isinstance(block, Picture) and not block.wide):
        blocks = list(group)
        parts += [_block(block, numbers) for block in ([Beside(blocks)] if narrow and len(blocks) > 1 else blocks)]
    body = "\n".join(parts)
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(section.title)}</h2>\n{body}\n</section>'


def _block(block: Block, numbers: Iterator[int]) -> str:
    match block:
        case str():
            return f"<p>{escape(block)}</p>"
        case Table():
            return _table(block)
        case Facts():
            return f"<dl>{''.join(map(_fact, block.facts))}</dl>"
        case Code():
            return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>'
        case Picture():
            return _picture(block, next(numbers))
        case Beside():
            parts = "".join(f"<div>{_block(part, numbers)}</div>" for part in block.blocks)
            return f'<div class="beside">{parts}</div>'


def _table(table: Table) -> str:
    right = [
        all(_NUMBER.fullmatch(_text(cell)) for cell in column) and any(map(_text, column))
        for column in zip(*table.rows, strict=True)
    ] or [False] * len(table.columns)
    head = "".join(
        f'<th scope="col"{_classes("", number)}>{escape(text)}</th>'
        for text, number in zip(table.columns, right, strict=True)
    )
    rows = []
    for row in table.rows:
        cells = []
        for place, (cell, number) in enumerate(zip(row, right, strict=True)):
            tag, scope = ("td", "") if place else ("th", ' scope="row"')
            tone = cell.tone if isinstance(cell, Mark) and cell.tone != "plain" else ""
            cells.append(f"<{tag}{scope}{_classes(tone, number)}>{escape(_text(cell))}</{tag}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    caption = escape(table.caption)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{notes}"
    )


def _picture(picture: Picture, number: int) -> str:
    drawing = svg(picture.figure, f"figure-{number}", picture.title, picture.description)
    caption = f'<p class="note">{escape(picture.caption)}</p>' if picture.caption else ""
    behind = (
        f"<details><summary>Numbers behind this figure</summary>{_table(picture.table)}</details>"
        if picture.table
        else ""
    )
    return (
        f"<figure{_classes('wide' if picture.wide else '', False)}><figcaption>{escape(picture.title)}</figcaption>"
        f'<div class="drawing">{drawing}</div>{caption}{behind}</figure>'
    )


def _fact(fact: Fact) -> str:
    note = f'<dd class="note">{escape(fact.note)}</dd>' if fact.note else ""
    return f"<div><dt>{escape(fact.label)}</dt><dd>{escape(fact.value)}</dd>{note}</div>"


def _text(cell: Cell) -> str:
    return cell.text if isinstance(cell, Mark) else cell


def _classes(tone: str, number: bool) -> str:
    names = [name for name in (tone, "number" if number else "") if name]
    return f' class="{" ".join(names)}"' if names else ""


def _clean(root: ElementTree.Element, name: str) -> None:
    """Leaves of matplotlib's SVG what a page needs: no metadata, ids of its own, and the page's font and colours."""
    parents = [(parent, child) for parent in root.iter() for child in list(parent)]
    for parent, child in parents:
        if child.tag.rpartition("}")[2] in ("metadata", "style"):
            parent.remove(child)
    wanted = {element.attrib[_HREF][1:] for element in root.iter() if element.get(_HREF, "").startswith("#")}
    for element in root.iter():
        wanted.update(found for value in element.attrib.values() for found in _HERE.findall(value))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
        old, element.attrib = element.attrib, {}
        for key, value in old.items():
            if key == "id":
                if value in wanted:
                    element.set("id", f"{name}-{value}")
            elif key == _HREF:
                own = f"#{name}-{value[1:]}" if value.startswith("#") else value.replace("\n", "")
                element.set("href", own)
            elif key == "style":
                element.set("style", _style(_HERE.sub(rf"url(#{name}-\1)", value)))
            elif key in ("d", "x", "y"):
                element.set(key, _FRACTION.sub(lambda found: f"{float(found[0]):.2f}", " ".join(value.split())))
            else:
                element.set(key, _HERE.sub(rf"url(#{name}-\1)", value))


def _style(style: str) -> str:
    """A style in the page's font, in which grey is a weaker shade of the page's text."""
    style = _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", style)
    return _COLOUR.sub(_own_colour, style)


def _own_colour(found: re.Match[str]) -> str:
    red, green, blue = bytes.fromhex(found[1])
    if not red == green == blue:
        return found[0]
    if red == 255:
        return "var(--paper)"
    return "currentColor" if red == 0 else f"color-mix(in srgb, currentColor {100 - red / 2.55:.0f}%, transparent)"


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --weak: #57606a; --paper: #ffffff; --raised: #f4f6f8;
  --line: #d5dae0; --link: #0b57a4; --good: #1a6b34; --bad: #b3261e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --weak: #a3acb6; --paper: #14171b; --raised: #1e2329; --line: #39414a; --link: #8cc1f5;
    --good: #7fd396; --bad: #ff9d94; }
  svg.plot:not(:has(image)) { filter: brightness(1.2) saturate(0.9); }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
h1 { margin: 0; font-size: clamp(1.5rem, 1.1rem + 2vw, 2.2rem); line-height: 1.2; overflow-wrap: anywhere; }
header p { margin: 0.4rem 0 0; color: var(--weak); overflow-wrap: anywhere; }
h2 { margin: 2.8rem 0 0.8rem; padding-top: 0.8rem; border-top: 1px solid var(--line); font-size: 1.3rem; }
p { margin: 0.7rem 0; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: 1.2rem 0 0; padding: 0; list-style: none; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.note { color: var(--weak); font-size: 0.875rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)); gap: 0.8rem;
  margin: 1rem 0; }
.scroll, figure { max-width: 100%; }
dl div { padding: 0.8rem 1rem; border-radius: 0.5rem; background: var(--raised); }
dt { color: var(--weak); font-size: 0.875rem; }
dd { margin: 0; font-size: 1.6rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
dd.note { margin-top: 0.2rem; font-size: 0.8125rem; font-weight: 400; }
.scroll { margin: 1rem 0 0.5rem; overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 0.4rem; text-align: left; font-weight: 600; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { color: var(--weak); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 7.5rem; }
.number { text-align: right; white-space: nowrap; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.weak { color: var(--weak); }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.5rem 2rem;
  align-items: start; }
.beside > div { min-width: 0; }
figure { margin: 1rem 0; }
figcaption { margin-bottom: 0.3rem; font-weight: 600; }
.drawing { overflow-x: auto; }
svg.plot { display: block; width: 100%; height: auto; color: var(--ink); fill: currentColor; stroke-linejoin: round;
  font-family: inherit; }
.wide svg.plot { min-width: 34rem; }
details { margin-top: 0.4rem; font-size: 0.9rem; }
summary { color: var(--link); cursor: pointer; }
pre { margin: 0.8rem 0; padding: 0.8rem 1rem; border-radius: 0.5rem; background: var(--raised); overflow-x: auto;
  font: 0.875rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); color: var(--weak); font-size: 0.875rem; }
@media print {
  :root { color-scheme: light; }
  @page { margin: 16mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, details:not([open]) { display: none; }
  h2 { break-after: avoid; }
  figure, tr, dl div, pre { break-inside: avoid; }
  .beside { grid-template-columns: 1fr 1fr; }
  .scroll, .drawing, pre { overflow: visible; }
  .wide svg.plot { min-width: 0; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table { font-size: 8pt; }
  .number { white-space: normal; }
  dl div, pre { border: 1px solid var(--line); }
}
"""
