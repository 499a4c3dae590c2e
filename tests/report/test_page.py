"""Pages are whole, escaped, labelled, and lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from rapa_cli.errors import FileError
from rapa_cli.report.page import Beside, Block, Code, Fact, Facts, Mark, Page, Picture, Section, Table, html, svg, write
from tests.report.pages import Read

NASTY = "<b>&\"' </script><!-- ]]> ünï"


def drawing(text: str = "a", colour: str = "black") -> Figure:
    figure = Figure((4, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([1, 2], [3, 4.123456], color=colour, marker="o", label=text)
    axes.fill_between([1, 2], [3, 3], [4, 5], alpha=0.2, color="#4477aa")
    axes.set_title(text, parse_math=False)
    axes.grid()
    return figure


def picture(text: str = "a", **more: object) -> Picture:
    return Picture(drawing(text), f"{text} title", f"{text} description", **more)  # type: ignore[arg-type]


def page(*blocks: object, **more: str) -> Page:
    return Page("A page", [Section("One", blocks)], **more)  # type: ignore[arg-type]


def test_a_page_of_everything() -> None:
    table = Table(f"{NASTY} caption", ["name", NASTY], [[NASTY, "1.5"], ["x", Mark(f"-2 {NASTY}", "bad")]], [NASTY])
    blocks: list[Block] = [
        NASTY,
        table,
        Facts([Fact(NASTY, NASTY, NASTY)]),
        Code(NASTY),
        picture(NASTY, caption=NASTY, table=table),
    ]
    found = Read(html(Page(NASTY, [Section(NASTY, blocks), Section("Two", [picture(NASTY)])], NASTY, NASTY)))
    assert found.text().count(NASTY) >= 20, "every text is there, as it is"
    assert not found.all("b")
    assert found.text("title").startswith(NASTY)
    assert [heading for tag, heading in found.texts if tag == "h2"] == [NASTY, "Two"]
    assert len(found.all("svg")) == 2
    assert len(found.all("details")) == 1


def test_no_address_is_in_it() -> None:
    text = html(page(picture(), "text", Table("t", ["a"], [["b"]])))
    assert not re.search(r"https?:|//[a-z]|<!DOCTYPE svg|<metadata|Matplotlib", text)
    assert "default-src 'none'" in text, "and what is added to it by mistake is not loaded"


def test_tables_have_headings_for_rows_and_columns() -> None:
    table = Table("Errors", ["network", "paper", "here"], [["random", "17.67", "-"], ["none", "18.85", "18.9 to 19"]])
    found = Read(html(page(table)))
    headings = found.all("th")
    assert [heading["scope"] for heading in headings] == ["col"] * 3 + ["row"] * 2
    assert ["number" in heading.get("class", "") for heading in headings[:3]] == [False, True, True]
    assert found.text("caption") == "Errors"
    (around,) = [attributes for attributes in found.all("div") if attributes.get("class") == "scroll"]
    assert (around["tabindex"], around["aria-label"]) == ("0", "Errors"), "it can be scrolled by keys"


def test_a_table_of_nothing_and_rows_of_another_length() -> None:
    assert Read(html(page(Table("Nothing", ["a", "b"], [])))).text("caption") == "Nothing"
    with pytest.raises(ValueError, match=r"zip\(\)"):
        html(page(Table("Wrong", ["a", "b"], [["1"]])))


def test_tones() -> None:
    found = Read(html(page(Table("t", ["a", "b"], [["x", Mark("1", "good")], ["y", Mark("no", "weak")]]))))
    assert [cell.get("class") for cell in found.all("td")] == ["good", "weak"]


def test_a_figure_is_labelled_and_has_its_numbers() -> None:
    found = Read(html(page(picture("Curve", table=Table("Behind", ["epoch"], [["1"]]), caption="Why."))))
    (drawn,) = found.all("svg")
    assert drawn["aria-labelledby"] == "figure-1-title figure-1-desc"
    assert found.text("desc") == "Curve description"
    assert found.text("caption") == "Behind"
    assert "Why." in found.text("p")
    assert found.text("text").split().count("Curve") == 1, "its texts are texts"


def test_figures_share_rows_unless_they_are_wide() -> None:
    table = Table("t", ["a"], [["b"]])
    blocks = [
        picture("a"),
        picture("b"),
        "between",
        picture("c"),
        picture("d", wide=True),
        Beside([picture("e"), table]),
    ]
    found = Read(html(page(*blocks)))
    kinds = [attributes.get("class", tag) for tag, attributes in found.elements if tag in ("div", "figure")]
    inside = ["div", "figure", "drawing"]
    alone, wide = inside[1:], ["wide", "drawing"]
    assert kinds == ["beside", *inside, *inside, *alone, *wide, "beside", *inside, "div", "scroll"]


def test_ids_of_equal_figures_differ() -> None:
    figure = drawing()
    found = Read(html(page(*(Picture(figure, "a", "b") for _ in range(3)))))
    uses = [attributes["href"] for attributes in found.all("use")]
    assert {name.split("-")[1] for name in uses} == {"1", "2", "3"}


def test_black_and_grey_follow_the_page_and_colours_stay() -> None:
    for colour, expected in (
        ("black", "stroke: currentColor"),
        ("#808080", "stroke: color-mix(in srgb, currentColor 50%, transparent)"),
        ("white", "stroke: var(--paper)"),
        ("#cc3311", "stroke: #cc3311"),
    ):
        assert expected in svg(drawing(colour=colour), "x", "title", "description")
    text = svg(drawing(), "x", "title", "description")
    assert "#ffffff" not in text
    assert "#000000" not in text
    assert "DejaVu" not in text, "the page's font"
    assert "4477aa" in text


def test_the_same_page_twice_is_the_same_text() -> None:
    assert html(page(picture(), "a")) == html(page(picture(), "a"))


def test_one_section_has_no_contents() -> None:
    assert not Read(html(page("a"))).all("nav")
    found = Read(html(Page("A", [Section("One", []), Section("Two", [])])))
    assert [link["href"] for link in found.all("a")] == ["#section-1", "#section-2"]


def test_it_is_written(tmp_path: Path) -> None:
    write(tmp_path / "page.html", page("a"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html(page("a"))
    with pytest.raises(FileError, match="folder does not exist"):
        write(tmp_path / "none" / "page.html", page("a"))
