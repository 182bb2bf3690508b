"""A reference table as text: what `ivsim list` prints, and what the documentation holds as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from topologies.scenario_files import shipped


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of as many cells as lines: in each but the last column, the cells have one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for row in rows:
        yield "  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip()


class Reference(NamedTuple):
    """One table: a head of single words and rows of as many cells.

    An action's optional keys stand in brackets. ``summary`` is the place of a metric in ``summary.json``, ``live``
    tells whether ``when`` and ``abort`` can use it.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as Markdown that ends in a newline; the first column is code."""
        rows = [self.head, ("---",) * len(self.head), *((f"`{first}`", *others) for first, *others in self.rows)]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)

    def plain(self) -> str:
        """The table as columns of text that ends in a newline; names and titles alone need no head."""
        rows = [tuple(cell.replace("`", "") for cell in row) for row in (self.head, *self.rows)]
        return "\n".join(aligned(rows[1:] if len(self.head) == 2 else rows)) + "\n"


def topologies_table() -> Reference:
    """The topologies that ship."""
    return Reference(("name", "title"), tuple(shipped()))
