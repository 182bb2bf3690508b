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
        bell: the bell that takes from the supply, too; None without one.
    """

    __slots__ = ("bell", "granted", "index", "line", "peer", "refused", "row", "rung", "supply", "vector")

    def __init__(self, peer: int, vector: int, index: int) -> None:
        self.peer, self.vector, self.index = peer, vector, index
        self.rung = 0
        self.refused = 0
        self.line: Line | None = None
        self.granted = 0
        self.supply: Iterator[Line] = iter(())
        self.row: dict[int, Iterator[Line]] = {}
        self.bell: Bell | None = None

    def grant(self, line: Line, doorbells: int) -> None:
        """Begin a supply of so many doorbells."""
        self.granted = doorbells
        self.row[self.vector] = self.supply = supply = repeat(line, doorbells)
        if self.bell is not None:
            self.bell.supply = supply

    def settle(self) -> None:
        """Add what the supply has counted to the count."""
        left = length_hint(self.supply)
        self.rung += self.granted - left
        self.granted = left

    def lengthen(self) -> None:
        """End the short path: neither `Doorbells.ring` nor the bell takes from the supply."""
        self.row = {}
        if self.bell is not None:
            self.bell.edge, self.bell.supply, self.bell = None, iter(()), None


class Bell:
    """One doorbell that is rung again and again: its ``ring`` looks nothing up.

    Args:
        signal: ``signal(line, 1)`` rings a line.
        ring_otherwise: ``ring_otherwise(bell, intended_ns)`` rings the doorbell when the supply is exhausted.

    Attributes:
        edge, supply: those of the doorbell while it has a short path; else None, and a supply that is exhausted.
    """

    __slots__ = ("_ring_otherwise", "_signal", "edge", "peer", "supply", "vector")

    def __init__(
        self,
        peer: int,
        vector: int,
        signal: Callable[[Line, int], object],
        ring_otherwise: Callable[[Bell, int], None],
    ) -> None:
        self.peer, self.vector = peer, vector
        self._signal, self._ring_otherwise = signal, ring_otherwise
        self.edge: Edge | None = None
        self.supply: Iterator[Line] = iter(())

    def ring(self, intended_ns: int = 0) -> None:
        """Ring it, as `nodes.doorbells.Doorbells.ring` does."""
        # With very many machines, what a doorbell looks at is fetched from memory: here it is one object, where a
        # closure has one for each variable.
        try:
            self._signal(next(self.supply), 1)
        except StopIteration:
            self._ring_otherwise(self, intended_ns)
        except BlockingIOError:
            assert self.edge is not None, "a full counter without a supply"
            self.edge.refused += 1


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
        if (bell := edge.bell) is not None:
            bell.supply = supply
        if every:
            sample(edge.index, rung, edge.refused, intended_ns, clock())
        else:
            store(edge.index, rung, edge.refused)
        try:
            signal(line, 1)
        except BlockingIOError:
            edge.refused += 1

    return ring_sampled
