"""Doorbells that are rung together, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Protocol

from nodes.edges import Edge
from nodes.peer_table import Line


class Batch(Protocol):
    """Lines that an engine has prepared to be rung together."""

    @property
    def ring(self) -> Callable[[int, int], Sequence[int]]:
        """``ring(start, stop)`` rings the lines from place ``start`` to before ``stop``, in order.

        It returns the places of those whose counter is full: they are refused, and the others are rung.
        """

    @property
    def ring_from(self) -> Callable[[int], Sequence[int]] | None:
        """``ring_from(first)`` rings all lines, beginning with that one, and returns what ``ring`` does.

        None where two calls of ``ring`` are faster.
        """

    def close(self) -> None:
        """Release the resources of the batch before one of its lines changes."""


class LoopBatch:
    """Lines that are rung one after the other.

    Args:
        lines: in the order in which they are rung.
        signal_all: rings all lines of an iterator; when it raises `BlockingIOError`, it has taken no line after the
            one that is full.
    """

    def __init__(self, lines: Sequence[Line], signal_all: Callable[[Iterator[Line]], object]) -> None:
        def ring(start: int, stop: int) -> Sequence[int]:
            refused: list[int] = []
            rest = iter(lines[start:stop])
            while True:
                try:
                    signal_all(rest)
                    return refused
                except BlockingIOError:
                    refused.append(stop - length_hint(rest) - 1)

        self.ring = ring
        self.ring_from = None

    def close(self) -> None:
        """Do nothing: this batch holds no resources."""


def one_by_one(signal: Callable[[Line, int], object]) -> Callable[[Iterator[Line]], None]:
    """The ``signal_all`` that calls ``signal(line, 1)`` for each line."""

    def signal_all(lines: Iterator[Line]) -> None:
        for line in lines:
            signal(line, 1)

    return signal_all


class Burst:
    """A fixed sequence of doorbells that is rung as a whole, again and again, by ``burst.ring()``.

    The sequence is a cycle: a ring may begin at any of its doorbells, for example at the one that is sampled. Doorbells
    without a short path are rung one by one, after the others.
    """

    __slots__ = ("batch", "doorbells", "edges", "every", "others", "ring", "rung")

    def __init__(self, doorbells: Sequence[tuple[int, int]], batch: Batch) -> None:
        self.doorbells = tuple(doorbells)
        self.edges: list[Edge] = []
        self.batch = batch  # the lines of these edges
        self.others: list[tuple[int, int]] = []
        self.every = 1  # one in so many of the fast loop is sampled and stored
        self.rung = 0  # how often the fast loop ran, as far as the edges do not know yet
        self.ring: Callable[[], None]

    def settle(self) -> None:
        """Add what was rung to the counts of the edges."""
        rung, self.rung = self.rung, 0
        for edge in self.edges:
            edge.rung += rung
