"""Reading an HTML page as strictly as a browser reads it leniently."""

from __future__ import annotations

import re
from html.parser import HTMLParser

# Elements that have no end.
_VOID = {"meta", "link", "br", "hr", "img", "input"}
_NAMES_A_PLACE = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "formaction", "ping")


class Read(HTMLParser):
    """A page that was read; whatever is wrong with it fails.

    Attributes:
        texts: all text, by the element that it stands in.
        elements: tag and attributes of every element, in order.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.texts: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"not closed: {self._open}"
        self._check()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs), f"an attribute twice in {self.get_starttag_text()}"
        self.elements.append((tag, found))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self._open, f"<{tag}/> ends at once outside of a drawing"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open:
            self.texts.append((self._open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags: str) -> str:
        """All text in elements of these names, or of any but the style."""
        return " ".join(text for tag, text in self.texts if (tag in tags if tags else tag != "style"))

    def _check(self) -> None:
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids)), "an id twice"
        for tag, attributes in self.elements:
            assert tag not in ("script", "iframe", "object", "embed", "base"), tag
            for name in _NAMES_A_PLACE:
                place = attributes.get(name, "#")
                assert place.startswith(("data:", "#")), f"<{tag} {name}={place}> leads outside"
                assert not place.startswith("#") or place in ("#", *(f"#{name}" for name in ids)), f"nothing at {place}"
            for value in attributes.values():
                assert all(found in ids for found in re.findall(r"url\(#([^)]*)\)", value)), value
            assert not any(name.startswith("on") for name in attributes), f"a script in <{tag}>"
            for referred in attributes.get("aria-labelledby", "").split():
                assert referred in ids
        assert "@import" not in self.html
        assert not re.search(r"url\((?!#)", self.html), "a style leads outside"
        for drawing in self.all("svg"):
            assert drawing["role"] == "img"
            assert drawing["aria-labelledby"]
        assert self.html.count("<title") == len(self.all("svg")) + 1
        assert self.html.count("<desc") == len(self.all("svg"))
