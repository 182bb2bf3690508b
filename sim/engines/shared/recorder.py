"""Writes one machine's recording: the ledger of its doorbells, and the drains of its own counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sim.recording import Recording, header
from sim.recording.header import COUNTER_AT

__all__ = ["Drains", "Recorder"]


class Drains(NamedTuple):
    """``drained(vector, count, delivered_ns)``, then ``handled(handled_ns)``; ``left`` and ``fired`` as `nodes.vm.Vm`
    calls them: a drain without an interrupt, an interrupt without a drain.
    """

    drained: Callable[[int, int, int], None]
    handled: Callable[[int], None]
    left: Callable[[int, int, int], None]
    fired: Callable[[int], None]


class Recorder:
    """Plain stores into a recording; implements ``nodes.doorbells.Ledger``. One writer: the worker itself.

    ``domain`` is the number of the domain that the device is in. When a section is full, what no longer fits is counted
    (``RINGS_REFUSED``, ``DRAINS_REFUSED``).
    """

    __slots__ = ("_edges", "_edges_at", "domain", "layout", "sample", "words")

    def __init__(self, recording_: Recording, *, domain: int = 0) -> None:
        self.domain = domain
        self.words = recording_.words
        self.layout = recording_.layout
        self._edges, self._edges_at = 0, recording_.layout.edges_at
        self.sample = self._make_sample()

    def open_edge(self, peer: int, vector: int) -> int:
        index = self._edges
        if index >= self.layout.edges:
            raise OverflowError(f"no room for the counts of a further doorbell: {self.layout.edges} are in use")
        self._edges = index + 1
        self.words[self._edges_at + 3 * index] = self.domain << 32 | peer << 16 | vector
        self.words[header.EDGES_USED] = index + 1
        return index

    def store_edge(self, edge: int, rung: int, refused: int) -> None:
        words, at = self.words, self._edges_at + 3 * edge
        words[at + 1] = rung
        words[at + 2] = refused

    def store_nowhere(self, rung: int) -> None:
        self.words[COUNTER_AT["rung_nowhere"]] = rung

    def _make_sample(self) -> Callable[[int, int, int, int], None]:
        words, at = self.words, self.layout.rings_at
        used, end = 0, self.layout.rings
        used_at, refused_at = header.RINGS_USED, COUNTER_AT["samples_refused"]

        def sample(peer: int, vector: int, intended_ns: int, rung_ns: int) -> None:
            nonlocal at, used
            if used == end:
                words[refused_at] += 1
                return
            words[at] = self.domain << 32 | peer << 16 | vector
            words[at + 1] = intended_ns
            words[at + 2] = rung_ns
            at += 3
            used += 1
            words[used_at] = used

        return sample

    def make_drains(self) -> Drains:
        """The closures for the hot path, and what they need when a drain is no interrupt.

        ``drained`` stores before the program sees the interrupt, so that a machine that is killed by it
        has counted it; ``handled`` completes the entry.
        """
        words, layout = self.words, self.layout
        at, used, end = layout.drains_at, 0, layout.drains
        used_at, refused_at, vectors_at = header.DRAINS_USED, COUNTER_AT["drains_refused"], layout.vectors_at
        handled_at = header.SCRATCH
        delivered = [0] * layout.vectors
        wakes = [0] * layout.vectors

        def drained(vector: int, count: int, delivered_ns: int) -> None:
            nonlocal at, used, handled_at
            delivered[vector] = total = delivered[vector] + count
            wakes[vector] = times = wakes[vector] + 1
            counts_at = vectors_at + 2 * vector
            words[counts_at] = total
            words[counts_at + 1] = times
            if used == end:
                words[refused_at] += 1
                handled_at = header.SCRATCH
                return
            words[at] = count << 16 | vector
            words[at + 1] = delivered_ns
            handled_at = at + 2
            at += 3
            used += 1
            words[used_at] = used

        def handled(handled_ns: int) -> None:
            words[handled_at] = handled_ns

        def left(vector: int, pended: int, lost: int) -> None:
            nonlocal handled_at
            handled_at = header.SCRATCH  # no program has handled it
            words[COUNTER_AT["pba_pending"]] += pended
            words[COUNTER_AT["dropped"]] += lost
            fired(vector, -1)

        def fired(vector: int, interrupts: int = 1) -> None:
            wakes[vector] = times = wakes[vector] + interrupts
            words[vectors_at + 2 * vector + 1] = times

        return Drains(drained, handled, left, fired)
