"""Tables of layers on a terminal: as many columns as it has room for, and none of them cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def that_fit(
    columns: Mapping[str, Sequence[str]], dispensable: Sequence[str], width: int, *, between: int = 2, around: int = 0
) -> dict[str, Sequence[str]]:
    """The columns for which a screen has room.

    Args:
        columns: cells, by heading.
        dispensable: headings of those that a narrow screen does without, in this order.
        width: of the screen.
        between: what each column takes beside its cells.
        around: what the table takes beside its columns.
    """
    left = dict(columns)
    for heading in dispensable:
        if sum(max(map(len, (name, *cells))) + between for name, cells in left.items()) + around > width:
            left.pop(heading, None)
    return left


def open_table(columns: Mapping[str, Sequence[str]], words: Collection[str]) -> Table:
    """A table without rules between its columns, two spaces apart.

    Args:
        columns: cells, by heading.
        words: headings of the columns that stand on the left; the others are numbers.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in columns:
        table.add_column(heading, justify="left" if heading in words else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table
