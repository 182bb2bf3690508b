"""Writes one machine's recording: the ledger of its doorbells, and the drains of its own counters."""

from __future__ import annotations

from collections.abc import Callable
from operator import length_hint
from struct import Struct

from nodes.guest import Interrupt
from nodes.vm import Vm
from sim.recording import Recording, header
from sim.recording.header import COUNTER_AT
from sim.recording.layout import DRAIN_WORDS, VECTOR_WORDS

DRAIN, KEY_AND_TIME, TIME = Struct(f"={DRAIN_WORDS}Q"), Struct("=2Q"), Struct("=Q")
ENTRY_BYTES = DRAIN.size

Deliver = Callable[[int, int], int | None]
"""Delivers a vector and its count of doorbells; returns how long the program waits."""


class Recorder:
    """Plain stores into a recording; implements ``nodes.doorbells.Ledger``. One writer: the worker itself.

    ``domain`` is the number of the domain that the device is in. When a section is full, what no longer fits is
    counted.
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
        """As of `nodes.ledger.Ledger`; the number of an edge is the word at which it begins."""
        if self._edges >= self.layout.edges:
            raise OverflowError(f"no room for the counts of a further doorbell: {self.layout.edges} are in use")
        at = self._edges_at + 3 * self._edges
        self._edges += 1
        self.words[at] = self.domain << 32 | peer << 16 | vector
        self.words[header.EDGES_USED] = self._edges
        return at

    def _make_store_edge(self) -> Callable[[int, int, int], None]:
        words = self.words

        def store_edge(edge: int, rung: int, refused: int) -> None:
            words[edge + 1] = rung
            words[edge + 2] = refused

        return store_edge

    def store_nowhere(self, rung: int) -> None:
        self.words[COUNTER_AT["rung_nowhere"]] = rung

    def _make_sample(self) -> Callable[[int, int, int, int, int], None]:
        words, at = self.words, self.layout.rings_at
        used, end = 0, self.layout.rings
        used_at, refused_at = header.RINGS_USED, COUNTER_AT["samples_refused"]

        def sample(edge: int, rung: int, refused: int, intended_ns: int, rung_ns: int) -> None:
            nonlocal at, used
            words[edge + 1] = rung
            if refused:  # all words are 0 until something is stored
                words[edge + 2] = refused
            if used == end:
                words[refused_at] += 1
                return
            words[at] = words[edge]
            if intended_ns:
                words[at + 1] = intended_ns
            words[at + 2] = rung_ns
            at += 3
            used += 1
            words[used_at] = used

        return sample

    def make_drains(self) -> Drains:
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

    __slots__ = ("_file", "_first", "_open_at", "_places", "_recorder", "_recording", "_size")

    def __init__(self, recorder: Recorder, recording_: Recording) -> None:
        self._recorder, self._recording = recorder, recording_
        self._file, self._first = recording_.drains_in_file()
        self._size = recording_.layout.drains
        self._places = iter(range(self._size))  # counts the entries, and ends when the section is full
        self._open_at = 0  # the byte for the time of the last entry's handling; 0: no program handles it

    def drained(self, vector: int, count: int, delivered_ns: int) -> None:
        """Store a drain before the program sees the interrupt, so that a machine that it kills has counted it."""
        try:
            at = self._first + ENTRY_BYTES * next(self._places)
        except StopIteration:
            self._refuse(vector, count)
            return
        KEY_AND_TIME.pack_into(self._file, at, count << 16 | vector, delivered_ns)
        self._open_at = at + KEY_AND_TIME.size

    def handled(self, handled_ns: int) -> None:
        """Complete the last entry."""
        if self._open_at:
            TIME.pack_into(self._file, self._open_at, handled_ns)

    def record(self, vector: int, count: int, delivered_ns: int, handled_ns: int) -> None:
        """As ``drained`` and ``handled``, where nothing can happen in between."""
        try:
            at = self._first + ENTRY_BYTES * next(self._places)
        except StopIteration:
            self._refuse(vector, count)
            return
        DRAIN.pack_into(self._file, at, count << 16 | vector, delivered_ns, handled_ns)

    def recording(self, vm: Vm, clock: Callable[[], int]) -> Deliver:
        """``vm.deliver`` with ``drained`` before and ``handled`` after it, which costs less than the three calls."""
        keys, delivered, handled_at = self._recording.drain_columns()
        places, take, resume = self._places, next, vm.resume
        # Of one doorbell on each vector: the interrupt, and the key of its entry.
        singles, single_keys = vm.singles, [1 << 16 | vector for vector in range(self._recording.layout.vectors)]

        def recorded_in_steps(vector: int, count: int) -> int | None:
            self.drained(vector, count, clock())
            wait = vm.deliver(vector, count)
            self.handled(clock())
            return wait

        def recorded(vector: int, count: int) -> int | None:
            # The same in one call instead of four, for a drain that interrupts at once and has room: nearly all do.
            if not vm.fires[vector]:
                return recorded_in_steps(vector, count)
            try:
                entry = take(places)
            except StopIteration:
                return recorded_in_steps(vector, count)
            if count == 1:
                keys[entry] = single_keys[vector]
                interrupt = singles[vector]
            else:
                keys[entry] = count << 16 | vector
                interrupt = Interrupt(vector, count, vm.number)
            delivered[entry] = clock()  # the entry counts from now on
            wait = resume(interrupt)
            handled_at[entry] = clock()
            return wait

        return recorded

    def left(self, vector: int, pended: int, lost: int) -> None:
        """Count a drain without an interrupt, as `nodes.vm.Vm` calls it: no program handles it."""
        self._open_at = 0
        self._recorder.count_left(vector, pended, lost)

    def flush(self) -> None:
        """Store how many entries there are."""
        self._recorder.words[header.DRAINS_USED] = self._size - length_hint(self._places)

    def _refuse(self, vector: int, count: int) -> None:
        self._open_at = 0
        self._recorder.count_refused(vector, count)
