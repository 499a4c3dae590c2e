"""Documents that say what they should not: JSON as the program itself writes it, TOML as people do."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

# Text that breaks lines, hides them, writes to terminals, names paths, or is no text at all.
TEXTS = (
    "",
    "\n\nerror: all is well",
    "\x1b[2J\x1b]0;title\x07",
    "\x00",
    "\ud800",
    "\u202e\u2028",
    "../../outside/evil",
    "/etc/passwd",
    "~/x",
    "$(touch canary)",
    "`touch canary`",
    "{0.__class__}",
    "%s%s%n",
    "[red]x[/]",
    "x" * 100_000,
    "ideal",
    "full",
)


_LARGE = 10**5
"""Characters of a list that is not repeated thousands of times, which would fill the memory before it is a case."""
_SCHEMES = ("random", "none", "nothing", '""')


class Raw:
    """Text that stands in a document as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


class Pairs(list[tuple[str, Any]]):
    """A table of a document, in which a key may stand twice."""


def hostile(rng: Random) -> Any:
    """A value that hardly anyone expects."""
    numbers = (0, -1, 2, 65, 65_536, 2**31, 2**63, 2**64, 10**30, 10**400, -0.0, 0.5, 1e308, 1e-320)
    return rng.choice(
        (
            lambda: None,
            lambda: rng.choice((True, False)),
            lambda: rng.choice(numbers),
            lambda: rng.choice(numbers),
            lambda: Raw(rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "01", "0x10"))),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice(([], {}, [None], [[]], {"": ""}, [1] * 3, ["a"] * 3)),
            lambda: Raw("[" * rng.choice((300, 100_000))),
            lambda: Raw(nested(rng.choice((150, 900, 20_000)))),
            lambda: [rng.choice((0, "a", {}))] * rng.choice((1000, 70_000)),
            lambda: {f"key{number}": number for number in range(rng.choice((10, 20_000)))},
        )
    )()


def nested(depth: int) -> str:
    """A list in a list, so often."""
    return "[" * depth + "]" * depth


def lie(rng: Random, document: Any) -> str:
    """A JSON document with something in it changed: a value, a key, or a key that stands twice."""
    changed = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 2))):
        changed = _changed(rng, changed, rng.choice((1, 2, 3, 6)))
    return dumped(changed)


def _changed(rng: Random, value: Any, depth: int) -> Any:
    """Goes down to a place that chance chooses, and changes what is there."""
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        way = rng.randrange(8)
        if depth > 1 and way > 3:
            return {**value, key: _changed(rng, value[key], depth - 1)}
        if way == 0:
            return {name: entry for name, entry in value.items() if name != key}
        if way == 1:
            return {**value, rng.choice((*TEXTS, "extra", "__class__")): hostile(rng)}
        if way == 2:
            pairs = [*value.items(), (key, rng.choice((value[key], hostile(rng))))]
            return Pairs(pairs)
        return {**value, key: hostile(rng)}
    if isinstance(value, list) and value:
        place = rng.randrange(len(value))
        if rng.randrange(4) == 0:
            copies = rng.choice((0, 2, 3000))
            return value * (copies if len(dumped(value)) < _LARGE else min(copies, 2))
        entry = _changed(rng, value[place], depth - 1) if depth > 1 else hostile(rng)
        return [*value[:place], entry, *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.randrange(2):
        return value + rng.choice((-1, 1, 7, 1000))
    return hostile(rng)


def dumped(value: Any) -> str:
    """JSON, with texts and tables that JSON's own writer does not write."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, (dict, Pairs)):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ", ".join(f"{json.dumps(key)}: {dumped(entry)}" for key, entry in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumped, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**300:
        return "1" + "0" * 400
    return json.dumps(value)


def _line(rng: Random, text: str, line: str) -> str:
    """The text with a line more, at the top, where keys are those of the whole document, or at the end."""
    return f"{line}\n{text}" if rng.randrange(2) else f"{text}\n{line}\n"


def _replaced(rng: Random, text: str, value: str) -> str:
    """Another value for one of the keys."""
    lines = text.splitlines()
    places = [number for number, line in enumerate(lines) if " = " in line]
    if not places:
        return value
    place = rng.choice(places)
    lines[place] = f"{lines[place].partition(' = ')[0]} = {value}"
    return "\n".join(lines) + "\n"


def _toml_value(rng: Random) -> str:
    return rng.choice(
        (
            lambda: rng.choice(("true", "-1", "0", "65", "65536", "65537", "1e308", "1e999", "nan", "inf", "-0.0")),
            lambda: rng.choice(("9" * 30, "9" * 5000, "0x" + "f" * 6000, "0b" + "1" * 60_000, "1_0", "1__0", "+7")),
            lambda: rng.choice(("1979-05-27", "07:32:00", "1979-05-27T00:32:00.999999-07:00", "9999-99-99")),
            lambda: json.dumps(rng.choice(TEXTS).encode("ascii", "ignore").decode()),
            lambda: rng.choice(("''", '""""""', "'''\n\nerror: x'''", '"\\u0000"', '"\\u001b[2J"', '"\\ud800"')),
            lambda: "[" * rng.choice((10, 300, 60_000)),
            lambda: nested(rng.choice((30, 150, 900, 20_000))),
            lambda: "{a = " * 300 + "1" + "}" * 300,
            lambda: "{" + ".".join(["a"] * rng.choice((10, 300, 3000))) + " = 1}",
            lambda: "[" + "1, " * rng.choice((3, 1000, 15_000)) + "]",
            lambda: (
                "{preset = 'ReRamES', " + rng.choice(("forward = 3}", "nothing = 1}", "preset = 'x'}", "x.y.z = 1}"))
            ),
        )
    )()


def toml_lie(rng: Random, text: str) -> str:
    """A TOML document with something in it that a person who means no good could write."""
    ways: tuple[Callable[[], str], ...] = (
        lambda: _replaced(rng, text, _toml_value(rng)),
        lambda: _replaced(rng, text, _toml_value(rng)),
        lambda: _replaced(rng, text, _toml_value(rng)),
        lambda: _line(
            rng, text, f"{rng.choice(('tiles', 'name', 'scheme', 'arrays', 'lr', 'layers'))} = {_toml_value(rng)}"
        ),
        lambda: _line(rng, text, ".".join(["a"] * rng.choice((3, 500, 5000, 30_000))) + " = 1"),
        lambda: _line(rng, text, "[" + ".".join(["a"] * rng.choice((3, 500, 5000, 30_000))) + "]"),
        lambda: text * 2,
        lambda: _line(rng, text, "\n".join(f"unknown{number} = {number}" for number in range(rng.choice((30, 3000))))),
        lambda: _line(rng, text, "[[layers]]\nkind = 'relu'\n" * rng.choice((3, 2500))),
        lambda: _line(rng, text, "[[layers]]\n" * rng.choice((3, 5000))),
        lambda: _line(rng, text, f"[scheme.{rng.choice(_SCHEMES)}]\nlr = {_toml_value(rng)}"),
        lambda: "\ufeff" + text,
        lambda: text.replace("\n", "\r"),
        lambda: text + "# " + "x" * rng.choice((1000, 3_000_000)),
        lambda: _line(rng, text, '"' + "k" * rng.choice((10, 50_000)) + '" = 1'),
        lambda: _line(rng, text, "'" + rng.choice(("\x07", "\x00", "\x7f")) + "' = 1"),
    )
    return rng.choice(ways)()
