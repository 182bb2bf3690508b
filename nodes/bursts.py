"""Doorbells that are rung together, again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodes.edges import Edge
from nodes.peer_table import Line

__all__ = ["Burst"]


class Burst:
    """A fixed sequence of doorbells that is rung as a whole, again and again, by ``burst.ring()``.

    Doorbells without a short path are rung one by one, after the others.
    """

    __slots__ = ("doorbells", "edges", "every", "lines", "others", "ring", "rung")

    def __init__(self, doorbells: Sequence[tuple[int, int]]) -> None:
        self.doorbells = tuple(doorbells)
        self.edges: list[Edge] = []
        self.lines: list[Line] = []
        self.others: list[tuple[int, int]] = []
        self.every = 1  # one in so many of the fast loop is sampled and stored
        self.rung = 0  # how often the fast loop ran, as far as the edges do not know yet
        self.ring: Callable[[], None]

    def settle(self) -> None:
        """Add what was rung to the counts of the edges."""
        rung, self.rung = self.rung, 0
        for edge in self.edges:
            edge.rung += rung
