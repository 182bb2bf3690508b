"""Writes one machine's recording: the ledger of its doorbells, and the drains of its own counters."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from sim.recording import Recording, header
from sim.recording.header import COUNTER_AT
from sim.recording.layout import DRAIN_WORDS, VECTOR_WORDS

DRAIN = Struct(f"={DRAIN_WORDS}Q")
ENTRY_BYTES = DRAIN.size

Deliver = Callable[[int, int], int | None]
"""Delivers a vector and its count of doorbells; returns how long the program waits."""


class Drains(NamedTuple):
    """``drained(vector, count, delivered_ns)``, then ``handled(handled_ns)``; or, where nothing can
    happen in between, ``record(vector, count, delivered_ns, handled_ns)``;
    ``recording(deliver, clock)`` is ``deliver`` with both, which costs less; ``left`` and ``fired`` as `nodes.vm.Vm`
    calls them: a drain without an interrupt, an interrupt without a drain. ``flush()`` stores how many entries there
    are.
    """

    drained: Callable[[int, int, int], None]
    handled: Callable[[int], None]
    record: Callable[[int, int, int, int], None]
    recording: Callable[[Deliver, Callable[[], int]], Deliver]
    left: Callable[[int, int, int], None]
    fired: Callable[[int], None]
    flush: Callable[[], None]


class Recorder:
    """Plain stores into a recording; implements ``nodes.doorbells.Ledger``. One writer: the worker itself.

    ``domain`` is the number of the domain that the device is in. When a section is full, what no longer fits is counted
    (``RINGS_REFUSED``, ``DRAINS_REFUSED``).
    """

    __slots__ = ("_edges", "_edges_at", "_recording", "domain", "layout", "sample", "store_edge", "words")

    def __init__(self, recording_: Recording, *, domain: int = 0) -> None:
        self.domain = domain
        self._recording = recording_
        self.words = recording_.words
        self.layout = recording_.layout
        self._edges, self._edges_at = 0, recording_.layout.edges_at
        self.sample = self._make_sample()
        self.store_edge = self._make_store_edge()

    def open_edge(self, peer: int, vector: int) -> int:
        index = self._edges
        if index >= self.layout.edges:
            raise OverflowError(f"no room for the counts of a further doorbell: {self.layout.edges} are in use")
        self._edges = index + 1
        self.words[self._edges_at + 3 * index] = self.domain << 32 | peer << 16 | vector
        self.words[header.EDGES_USED] = index + 1
        return index

    def _make_store_edge(self) -> Callable[[int, int, int], None]:
        words, rung_at, refused_at = self.words, self._edges_at + 1, self._edges_at + 2

        def store_edge(edge: int, rung: int, refused: int) -> None:
            at = 3 * edge
            words[rung_at + at] = rung
            words[refused_at + at] = refused

        return store_edge

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
        has counted it; ``handled`` completes the entry. An entry counts by itself as soon as its time is stored: totals
        are derived from the entries, and the header's number of them is a lower bound that ``flush`` raises.
        """
        words, drains_at = self.words, self.layout.drains_at
        used, size = 0, self.layout.drains
        is_open = False  # whether the last entry is still to be completed

        def drained(vector: int, count: int, delivered_ns: int) -> None:
            nonlocal used, is_open
            if used == size:
                full(vector, count)
                return
            at = drains_at + DRAIN_WORDS * used
            words[at] = count << 16 | vector
            words[at + 1] = delivered_ns
            used += 1
            is_open = True

        def handled(handled_ns: int) -> None:
            if is_open:
                words[drains_at + DRAIN_WORDS * used - 1] = handled_ns

        file, first = self._recording.drains_in_file()

        def record(vector: int, count: int, delivered_ns: int, handled_ns: int) -> None:
            nonlocal used
            if used == size:
                full(vector, count)
                return
            DRAIN.pack_into(file, first + ENTRY_BYTES * used, count << 16 | vector, delivered_ns, handled_ns)
            used += 1

        def recording(deliver: Deliver, clock: Callable[[], int]) -> Deliver:
            keys, delivered, handled_at = self._recording.drain_columns()
            one = [1 << 16 | vector for vector in range(self.layout.vectors)]  # the keys of one doorbell

            def recorded(vector: int, count: int) -> int | None:
                nonlocal used, is_open
                if (entry := used) == size:
                    full(vector, count)
                    return deliver(vector, count)
                keys[entry] = one[vector] if count == 1 else count << 16 | vector
                delivered[entry] = clock()
                used = entry + 1
                is_open = True
                wait = deliver(vector, count)
                if is_open:
                    handled_at[entry] = clock()
                return wait

            return recorded

        def full(vector: int, count: int) -> None:
            nonlocal is_open
            is_open = False
            self._count_refused(vector, count)

        def left(vector: int, pended: int, lost: int) -> None:
            nonlocal is_open
            is_open = False  # no program has handled it
            self._count_left(vector, pended, lost)

        def flush() -> None:
            words[header.DRAINS_USED] = used

        return Drains(drained, handled, record, recording, left, self._count_fired, flush)

    def _count_refused(self, vector: int, count: int) -> None:
        """Count a drain that the section has no room for."""
        words, at = self.words, self.layout.vectors_at + VECTOR_WORDS * vector
        words[COUNTER_AT["drains_refused"]] += 1
        words[at] += count
        words[at + 1] += 1

    def _count_left(self, vector: int, pended: int, lost: int) -> None:
        words = self.words
        words[COUNTER_AT["pba_pending"]] += pended
        words[COUNTER_AT["dropped"]] += lost
        words[self.layout.vectors_at + VECTOR_WORDS * vector + 2] += 1

    def _count_fired(self, vector: int) -> None:
        self.words[self.layout.vectors_at + VECTOR_WORDS * vector + 1] += 1
