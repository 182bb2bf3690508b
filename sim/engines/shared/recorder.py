"""Writes one machine's recording: the ledger of its doorbells, and the drains of its own counters."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from sim.recording import Recording, header
from sim.recording.header import COUNTER_AT
from sim.recording.layout import DRAIN_WORDS, VECTOR_WORDS

DRAIN, KEY_AND_TIME, TIME = Struct(f"={DRAIN_WORDS}Q"), Struct("=2Q"), Struct("=Q")
ENTRY_BYTES = DRAIN.size

Deliver = Callable[[int, int], int | None]
"""Delivers a vector and its count of doorbells; returns how long the program waits."""


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
        """What stores the drains of this device."""
        return Drains(self, self._recording)

    def count_refused(self, vector: int, count: int) -> None:
        """Count a drain that the section has no room for."""
        words, at = self.words, self.layout.vectors_at + VECTOR_WORDS * vector
        words[COUNTER_AT["drains_refused"]] += 1
        words[at] += count
        words[at + 1] += 1

    def count_left(self, vector: int, pended: int, lost: int) -> None:
        """Count a drain that has interrupted nothing."""
        words = self.words
        words[COUNTER_AT["pba_pending"]] += pended
        words[COUNTER_AT["dropped"]] += lost
        words[self.layout.vectors_at + VECTOR_WORDS * vector + 2] += 1

    def count_fired(self, vector: int) -> None:
        """Count an interrupt without a drain, as `nodes.vm.Vm` calls it."""
        self.words[self.layout.vectors_at + VECTOR_WORDS * vector + 1] += 1


class Drains:
    """Stores the drains of one device, one after the other.

    An entry counts by itself as soon as its time is stored: totals are derived from the entries, and the header's
    number of them is a lower bound that ``flush`` raises.
    """

    __slots__ = ("_file", "_first", "_is_open", "_recorder", "_recording", "_size", "_used")

    def __init__(self, recorder: Recorder, recording_: Recording) -> None:
        self._recorder, self._recording = recorder, recording_
        self._file, self._first = recording_.drains_in_file()
        self._used, self._size = 0, recording_.layout.drains
        self._is_open = False  # whether the last entry is still to be completed

    def drained(self, vector: int, count: int, delivered_ns: int) -> None:
        """Store a drain before the program sees the interrupt, so that a machine that it kills has counted it."""
        if self._used == self._size:
            self._refuse(vector, count)
            return
        KEY_AND_TIME.pack_into(self._file, self._first + ENTRY_BYTES * self._used, count << 16 | vector, delivered_ns)
        self._used += 1
        self._is_open = True

    def handled(self, handled_ns: int) -> None:
        """Complete the last entry."""
        if self._is_open:
            TIME.pack_into(self._file, self._first + ENTRY_BYTES * self._used - TIME.size, handled_ns)

    def record(self, vector: int, count: int, delivered_ns: int, handled_ns: int) -> None:
        """As ``drained`` and ``handled``, where nothing can happen in between."""
        used = self._used
        if used == self._size:
            self._refuse(vector, count)
            return
        DRAIN.pack_into(self._file, self._first + ENTRY_BYTES * used, count << 16 | vector, delivered_ns, handled_ns)
        self._used = used + 1

    def recording(self, deliver: Deliver, clock: Callable[[], int]) -> Deliver:
        """``deliver`` with ``drained`` before and ``handled`` after it, which costs less than three calls."""
        keys, delivered, handled_at = self._recording.drain_columns()
        one = [1 << 16 | vector for vector in range(self._recording.layout.vectors)]  # the keys of one doorbell
        size = self._size

        def recorded(vector: int, count: int) -> int | None:
            if (entry := self._used) == size:
                self._refuse(vector, count)
                return deliver(vector, count)
            keys[entry] = one[vector] if count == 1 else count << 16 | vector
            delivered[entry] = clock()
            self._used = entry + 1
            self._is_open = True
            wait = deliver(vector, count)
            if self._is_open:
                handled_at[entry] = clock()
            return wait

        return recorded

    def left(self, vector: int, pended: int, lost: int) -> None:
        """Count a drain without an interrupt, as `nodes.vm.Vm` calls it: no program handles it."""
        self._is_open = False
        self._recorder.count_left(vector, pended, lost)

    def flush(self) -> None:
        """Store how many entries there are."""
        self._recorder.words[header.DRAINS_USED] = self._used

    def _refuse(self, vector: int, count: int) -> None:
        self._is_open = False
        self._recorder.count_refused(vector, count)
