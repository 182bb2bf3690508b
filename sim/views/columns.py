"""Rows of cells as plain columns: readable in a pipe, and never cut, because a cut figure is a wrong one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from sim.views.printable import printable


def print_columns(
    rows: Sequence[Sequence[str]],
    console: Console,
    left: Collection[int] = (0,),
    styles: Mapping[int, str] | None = None,
) -> None:
    """Print ``rows``, the first one in bold: columns in ``left`` to the left, others to the right.

    ``styles`` are those of further rows. Where the width does not do, columns move closer.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = "  " if sum(widths) + 2 * len(widths) - 2 <= console.width else " "
    for place, row in enumerate(rows):
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        plain = printable(gap.join(cells)).rstrip()
        console.print(Text(plain, "bold" if not place else (styles or {}).get(place, "")), soft_wrap=True)
