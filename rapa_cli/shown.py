"""Results that show well where they are looked at, in a notebook or at a prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

# Of longer tuples the beginning and the end are shown.
_LONG = 8
_WIDE = 100


class Shown:
    """A dataclass that shows what matters of it, numbers with four digits, large things by their sizes.

    Use with `@dataclass(repr=False)`.

    Attributes:
        shown: names of attributes and properties, in their order.
    """

    shown: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        parts = [f"{name}={_brief(getattr(self, name))}" for name in self.shown]
        line = f"{type(self).__name__}({', '.join(parts)})"
        if len(line) <= _WIDE and "\n" not in line:
            return line
        return f"{type(self).__name__}(\n{_below(parts)}\n)"


def _brief(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_brief(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return _several(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return repr(value)


def _below(texts: Sequence[str]) -> str:
    return textwrap.indent(",\n".join(texts) + ",", "    ")


def _several(values: tuple[Any, ...] | list[Any]) -> str:
    opening, closing = "[]" if isinstance(values, list) else "()"
    if any(isinstance(value, Shown) for value in values):
        return f"{opening}\n{_below([_brief(value) for value in values])}\n{closing}"
    texts = [_brief(value) for value in values]
    if len(texts) > _LONG:
        texts = [*texts[: _LONG // 2], f"... {len(texts)} in all ...", texts[-1]]
    only = "," if len(values) == 1 and opening == "(" else ""
    return f"{opening}{', '.join(texts)}{only}{closing}"
