"""An edge: one vector of one peer as seen from a machine, its counters, and its short path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from operator import length_hint

from nodes.ledger import Ledger
from nodes.peer_table import Line

UNSAMPLED_SUPPLY = 1 << 16


class Edge:
    """The counters of one (peer, vector), and the supply that its doorbells are taken from.

    Attributes:
        index: its number in the ledger.
        rung: doorbells rung, without those that the supply and bursts still count.
        refused: how many of them were refused.
        line: where it is rung; None while the vector is not connected.
        supply: yields the line; its length is what is left of ``granted``.
        row: where the supply is kept: the table of short paths, or a dict that nothing looks into.
        follow: tells the bell of this edge its supply, or None when the short path has ended; None without a bell.
    """

    __slots__ = ("follow", "granted", "index", "line", "peer", "refused", "row", "rung", "supply", "vector")

    def __init__(self, peer: int, vector: int, index: int) -> None:
        self.peer, self.vector, self.index = peer, vector, index
        self.rung = 0
        self.refused = 0
        self.line: Line | None = None
        self.granted = 0
        self.supply: Iterator[Line] = iter(())
        self.row: dict[int, Iterator[Line]] = {}
        self.follow: Callable[[Iterator[Line] | None], None] | None = None

    def grant(self, line: Line, doorbells: int) -> None:
        """Begin a supply of so many doorbells."""
        self.granted = doorbells
        self.row[self.vector] = self.supply = supply = repeat(line, doorbells)
        if self.follow is not None:
            self.follow(supply)

    def settle(self) -> None:
        """Add what the supply has counted to the count."""
        left = length_hint(self.supply)
        self.rung += self.granted - left
        self.granted = left

    def lengthen(self) -> None:
        """End the short path: neither `Doorbells.ring` nor the bell takes from the supply."""
        self.row = {}
        if self.follow is not None:
            self.follow(None)
            self.follow = None


def make_ring_sampled(
    signal: Callable[[Line, int], object], ledger: Ledger, clock: Callable[[], int], every: int
) -> Callable[[Edge, int], None]:
    """The slow path of a ring, when a supply is exhausted: it takes the time stamps and stores the count.

    Args:
        signal, ledger, clock: as of `nodes.doorbells.Doorbells`.
        every: of so many doorbells of an edge, one gets its time stamps; 0: none.

    Returns:
        ``ring_sampled(edge, intended_ns)``.
    """
    store, sample = ledger.store_edge, ledger.sample
    ones = every - 1 if every else UNSAMPLED_SUPPLY

    def ring_sampled(edge: Edge, intended_ns: int) -> None:
        line = edge.line
        assert line is not None
        edge.rung = rung = edge.rung + edge.granted + 1
        # As `Edge.grant` does: a call costs a tenth of a doorbell.
        edge.granted = ones
        edge.row[edge.vector] = edge.supply = supply = repeat(line, ones)
        if (follow := edge.follow) is not None:
            follow(supply)
        if every:
            sample(edge.index, rung, edge.refused, intended_ns, clock())
        else:
            store(edge.index, rung, edge.refused)
        try:
            signal(line, 1)
        except BlockingIOError:
            edge.refused += 1

    return ring_sampled
