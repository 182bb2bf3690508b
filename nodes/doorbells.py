"""The table in which a doorbell finds its line: what KVM's ioeventfd is to a real device.

A ring is one look-up and one call. What it costs beyond that is nothing, and still every doorbell is counted:
the table does not hold lines but supplies of them, which count what is taken. A supply is finite, so that once
in ``sample_every`` doorbells it runs dry, and that one doorbell takes the slow path which keeps the books: it is
stamped, and the edge's count goes to the instrument.

Books are opened by the first doorbell, and when a line is lost: a machine that knows thousands rings few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from math import gcd
from operator import length_hint
from typing import Protocol

__all__ = ["Burst", "Doorbells", "Ledger", "Line", "NoLedger"]

Line = int
"""What the engine signals: a descriptor where there are real ones, any number elsewhere."""

UNSAMPLED_SUPPLY = 1 << 16


class Ledger(Protocol):
    """Where an instrument keeps what was rung; all times in nanoseconds of one monotonic clock."""

    def open_edge(self, peer: int, vector: int) -> int:
        """A new place for the counts of doorbells to ``vector`` of ``peer``; asked for once, before the first."""

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        """The counts of one edge as they stand."""

    def sample(self, peer: int, vector: int, intended_ns: int, rung_ns: int) -> None:
        """One doorbell, just before it is rung."""

    def store_nowhere(self, rung: int) -> None:
        """How many doorbells were rung at what was never connected."""


class NoLedger:
    """A ``Ledger`` that keeps nothing, for a machine whose books nobody reads."""

    def open_edge(self, peer: int, vector: int) -> int:
        return 0

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        pass

    def sample(self, peer: int, vector: int, intended_ns: int, rung_ns: int) -> None:
        pass

    def store_nowhere(self, rung: int) -> None:
        pass


class _Edge:
    """The books of one (peer, vector) as seen from here."""

    __slots__ = ("granted", "index", "line", "peer", "refused", "rung", "supply", "vector")

    def __init__(self, peer: int, vector: int, index: int) -> None:
        self.peer, self.vector, self.index = peer, vector, index
        self.rung = 0  # without those still counted by the supply and by bursts
        self.refused = 0
        self.line: Line | None = None
        self.granted = 0
        self.supply: Iterator[Line] = iter(())

    def settle(self) -> None:
        """Move what the supply has counted to the count."""
        left = length_hint(self.supply)
        self.rung += self.granted - left
        self.granted = left


class Burst:
    """A fixed sequence of doorbells that is rung as a whole, again and again: ``burst.ring()``.

    A peer that leaves takes its doorbells out of the fast loop; they are then rung one by one, at nobody.
    """

    __slots__ = ("edges", "lines", "others", "ring", "rung")

    def __init__(self, edges: list[_Edge], others: list[tuple[int, int]]) -> None:
        self.edges = edges
        self.lines: list[Line] = [edge.line for edge in edges if edge.line is not None]
        self.others = others
        self.rung = 0  # how often all of it was rung, as far as the edges do not know yet
        self.ring: Callable[[], None]

    def settle(self) -> None:
        """Move what was rung to the edges' own counts."""
        rung, self.rung = self.rung, 0
        for edge in self.edges:
            edge.rung += rung

    def drop(self, peer: int) -> None:
        """Take a peer's doorbells out of the fast loop; whoever holds ``lines`` sees it."""
        self.settle()
        self.others += [(edge.peer, edge.vector) for edge in self.edges if edge.peer == peer]
        self.edges[:] = [edge for edge in self.edges if edge.peer != peer]
        self.lines[:] = [edge.line for edge in self.edges if edge.line is not None]


class Doorbells:
    """All lines of one machine, and its books.

    ``signal(line, 1)`` rings a line and raises ``BlockingIOError`` when its counter is full. ``miss(peer,
    vector)`` is the device's slow path for a doorbell that has no line; it returns False when nobody heard.
    ``ring(peer, vector=0, intended_ns=0)`` is a plain function: programs call it as often as they can.
    ``intended_ns`` is when an open-loop program meant to ring.
    """

    def __init__(
        self,
        signal: Callable[[Line, int], object],
        miss: Callable[[int, int], bool],
        ledger: Ledger,
        clock: Callable[[], int],
        *,
        sample_every: int,
    ) -> None:
        self._signal, self._miss, self._ledger, self._clock = signal, miss, ledger, clock
        self._every = sample_every
        self._lines: dict[int, dict[int, Line]] = {}
        self._rows: dict[int, dict[int, Iterator[Line]]] = {}  # of what was rung
        self._edges: dict[int, _Edge] = {}  # by doorbell value, the same
        self._bursts: list[Burst] = []
        self._nowhere = 0
        self.ring = self._make_ring()

    def connect(self, peer: int, vector: int, line: Line) -> None:
        """From now on a doorbell to ``vector`` of ``peer`` signals ``line``."""
        self._lines.setdefault(peer, {})[vector] = line
        if (edge := self._edges.get(peer << 16 | vector)) is not None:
            self._start(edge, line)

    def disconnect(self, peer: int) -> None:
        """The lines of ``peer`` lead nowhere; its books stay."""
        for burst in self._bursts:
            burst.drop(peer)
        self._rows.pop(peer, None)
        for vector in self._lines.pop(peer, {}):
            edge = self._open(peer, vector)
            edge.settle()
            edge.line, edge.supply, edge.granted = None, iter(()), 0
            self._store(edge)

    def move(self) -> None:
        """Forget everybody, books and all, which stand where they were stored: the machine goes on among others."""
        for peer in self.peers():
            self.disconnect(peer)
        self._edges.clear()

    def line(self, peer: int, vector: int) -> Line | None:
        """The line that a doorbell would signal, if there is one."""
        return self._lines[peer].get(vector) if peer in self._lines else None

    def peers(self) -> dict[int, int]:
        """Who can be rung: peer -> number of vectors."""
        return {peer: len(lines) for peer, lines in self._lines.items()}

    def refuse_nowhere(self, count: int) -> None:
        """Doorbells that a program wrote to the register itself and that reached nobody: rung, and refused."""
        self._nowhere += count

    def flush(self) -> None:
        """Bring the instrument's counts up to this moment."""
        for burst in self._bursts:
            burst.settle()
        for edge in self._edges.values():
            edge.settle()
            self._store(edge)
        self._ledger.store_nowhere(self._nowhere)

    def _open(self, peer: int, vector: int) -> _Edge:
        """The books of a doorbell, from now on if there were none."""
        edge = self._edges.get(peer << 16 | vector)
        if edge is None:
            edge = _Edge(peer, vector, self._ledger.open_edge(peer, vector))
            self._edges[peer << 16 | vector] = edge
        return edge

    def _start(self, edge: _Edge, line: Line) -> None:
        """The first supply of an edge that has a line, or another one now."""
        edge.settle()
        edge.line = line
        # Edges start out of step, so that a program that rings them in turn is not always caught on the same one.
        phase = (7 * edge.peer + edge.vector + 1) % self._every if self._every else UNSAMPLED_SUPPLY
        self._grant(edge, phase)

    def _grant(self, edge: _Edge, ones: int) -> None:
        assert edge.line is not None
        edge.supply, edge.granted = repeat(edge.line, ones), ones
        self._rows.setdefault(edge.peer, {})[edge.vector] = edge.supply

    def _store(self, edge: _Edge) -> None:
        self._ledger.store_edge(edge.index, edge.rung, edge.refused)

    def _make_ring(self) -> Callable[..., None]:
        # Locals and a closure, two plain look-ups, no arithmetic on the 32-bit doorbell value: measured, each of
        # these is a tenth of what the write itself costs.
        rows, signal, take, ring_sampled = self._rows, self._signal, next, self._make_ring_sampled()

        def ring(peer: int, vector: int = 0, intended_ns: int = 0) -> None:
            try:
                signal(take(rows[peer][vector]), 1)
            except StopIteration:
                ring_sampled(peer, vector, intended_ns)
            except BlockingIOError:
                self._refuse(self._edges[peer << 16 | vector])
            except KeyError:
                self._ring_unknown(peer, vector, intended_ns)

        return ring

    def _make_ring_sampled(self) -> Callable[[int, int, int], None]:
        """What ``ring`` falls back to when a supply has run dry: the doorbell is stamped, the books are kept."""
        rows, edges, clock = self._rows, self._edges, self._clock
        store, sample, every = self._ledger.store_edge, self._ledger.sample, self._every
        ones = every - 1 if every else UNSAMPLED_SUPPLY

        def ring_sampled(peer: int, vector: int, intended_ns: int) -> None:
            edge = edges[peer << 16 | vector]
            line = edge.line
            assert line is not None
            edge.rung = rung = edge.rung + edge.granted + 1
            # The count first: should the machine be killed between these two, the doorbell is known to be missing.
            store(edge.index, rung, edge.refused)
            if every:
                now_ns = clock()
                sample(peer, vector, intended_ns or now_ns, now_ns)
            edge.granted = ones
            rows[peer][vector] = edge.supply = repeat(line, ones)
            try:
                self._signal(line, 1)
            except BlockingIOError:
                self._refuse(edge)

        return ring_sampled

    def _refuse(self, edge: _Edge) -> None:
        edge.refused += 1

    def _ring_unknown(self, peer: int, vector: int, intended_ns: int) -> None:
        """A doorbell that was not rung before, or has no line."""
        line = self.line(peer, vector)
        if line is not None:
            self._start(self._open(peer, vector), line)
            self.ring(peer, vector, intended_ns)
            return
        if self._miss(peer, vector):
            return  # the register decoder found a line after all and has rung it
        edge = self._edges.get(peer << 16 | vector)
        if edge is None:
            self._nowhere += 1
        else:
            edge.rung += 1
            edge.refused += 1

    def burst(self, doorbells: Sequence[tuple[int, int]]) -> Burst:
        """Prepare (peer, vector) pairs to be rung together, in this order; pairs without a line come last."""
        edges = []
        for peer, vector in doorbells:
            if (line := self.line(peer, vector)) is not None:
                edges.append(edge := self._open(peer, vector))
                if edge.line is None:
                    self._start(edge, line)
        burst = Burst(
            edges,
            [pair for pair in doorbells if self.line(*pair) is None],
        )
        burst.ring = self._make_burst_ring(burst)
        self._bursts.append(burst)
        return burst

    def release(self, burst: Burst) -> None:
        """Forget a burst; what it rang stays on the books."""
        burst.settle()
        self._bursts.remove(burst)

    def _make_burst_ring(self, burst: Burst) -> Callable[[], None]:
        lines, others, signal, ring = burst.lines, burst.others, self._signal, self.ring
        # Out of step with the burst, so that each of its edges has its turn to be sampled and stored.
        every = self._every or UNSAMPLED_SUPPLY
        while gcd(every, len(lines) or 1) != 1:
            every += 1
        due = every  # doorbells until the next one is sampled

        def ring_lines(start: int, stop: int) -> None:
            rest = iter(lines[start:stop])
            while True:
                try:
                    for line in rest:
                        signal(line, 1)
                    return
                except BlockingIOError:
                    self._refuse(burst.edges[stop - length_hint(rest) - 1])

        def ring_all() -> None:
            nonlocal due
            burst.rung += 1
            size = len(lines)
            start = 0
            for sampled in range(due - 1, size, every):
                ring_lines(start, sampled)
                self._sample_in_burst(burst, burst.edges[sampled])
                start = sampled
                due += every
            ring_lines(start, size)
            due -= size
            for peer, vector in others:
                ring(peer, vector)

        return ring_all

    def _sample_in_burst(self, burst: Burst, edge: _Edge) -> None:
        # What other bursts rang on this edge is added by the next flush.
        self._ledger.store_edge(edge.index, edge.rung + burst.rung, edge.refused)
        if self._every:
            now_ns = self._clock()
            self._ledger.sample(edge.peer, edge.vector, now_ns, now_ns)
