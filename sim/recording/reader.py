"""The only decoder of recordings: whole files after a run, mapped ones during it. Needs numpy; workers do not load it.

:func:`read` reads a file as it is instead of through ``Recording.open``, which maps it for writing and refuses one that
is cut short: a run may be old, on a read-only disk, or cut by a full one. Every word of the file is checked against a
limit. What is sound is kept, and the rest is reported in ``Records.problems``.

The sections of samples can be larger than memory should hold. ``Entries`` reads them a piece at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nodes.errors import UsageError
from sim.recording import header
from sim.recording.file import Recording
from sim.recording.header import COUNT_LIMIT, COUNTER_AT, HEADER_WORDS, WORD_BYTES, Counters, State
from sim.recording.layout import VECTOR_WORDS, RecordingLayout
from sim.recording.tally import DrainTally, add_drains, tally_of

Table = npt.NDArray[np.int64]
Sound = npt.NDArray[np.bool_]
Limits = tuple[int, int, int]

PEERS = 1 << 16
VECTOR_MASK = 0xFFFF
DOMAINS_MAX = 1 << 10
KEY_LIMIT = DOMAINS_MAX << 32
TIME_LIMIT_NS = 1 << 62
CHUNK_ROWS = 1 << 17
WIDTH = VECTOR_WORDS
"""Words of an entry of each section."""
COUNTS: Limits = (COUNT_LIMIT, COUNT_LIMIT, COUNT_LIMIT)
EDGES: Limits = (KEY_LIMIT, COUNT_LIMIT, COUNT_LIMIT)
RINGS: Limits = (KEY_LIMIT, TIME_LIMIT_NS, TIME_LIMIT_NS)
DRAINS: Limits = (COUNT_LIMIT << 16, TIME_LIMIT_NS, TIME_LIMIT_NS)
"""A word at or above its limit is damaged."""
SIZES_AT = (header.VECTORS, header.EDGES, header.RINGS, header.DRAINS)
FEW = 64
"""A section of so few entries is kept: thousands of machines have two each, which are gone through several times."""


@dataclass(frozen=True)
class Entries:
    """One section of samples, read from its file a piece at a time.

    Attributes:
        path: the recording.
        at: the first word of the section.
        stored: entries that the file holds.
        limits: an entry with a word at or above its limit is damaged.
        sound: entries that are not damaged.
        latest_ns: the latest time of a sound entry; 0 without one.
        kept: the sound entries, if they are few.
    """

    path: Path = Path()
    at: int = 0
    stored: int = 0
    limits: Limits = (0, 0, 0)
    sound: int = 0
    latest_ns: int = 0
    kept: Table | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return self.sound

    def chunks(self) -> Iterator[Table]:
        """The sound entries in order, as (n, 3) int64 with n at most ``CHUNK_ROWS``.

        Raises:
            OSError: the file cannot be read any more.
        """
        if self.kept is not None:
            yield self.kept
        elif self.stored:
            with self.path.open("rb", buffering=0) as file:
                yield from self.read(file)

    def read(self, file: FileIO) -> Iterator[Table]:
        """As ``chunks``, from the open file."""
        for first in range(0, self.stored, CHUNK_ROWS):
            count = min(CHUNK_ROWS, self.stored - first)
            table = _entries(file, self.at + WIDTH * first, count)
            sound = _sound(table, self.limits)
            yield table if sound.all() else table[sound]


@dataclass
class Records:
    """The recording of one device.

    Attributes:
        machine: the row of the recording.
        of: the machine that the device belongs to.
        incarnation: the incarnation of that machine, from 1.
        domain: the number of the domain that the device is in.
        peer: the ID of the device; None if it never connected.
        counts_nothing: whether it is a guest of its own, whose doorbells others count.
        guest_rung: how many it says to have rung, if it says so.
        counters: as ``header`` declares them.
        vectors: (n, 2) int64: delivered, interrupts.
        edges: (n, 3) int64: key, rung, refused.
        rings: key, intended_ns, rung_ns.
        drains: count << 16 | vector, delivered_ns, handled_ns.
        problems: what could not be read, in words.
    """

    machine: int
    of: int = 0
    incarnation: int = 1
    domain: int = 0
    peer: int | None = None
    state: int = State.STARTING
    sample_every: int = 1
    ready_ns: int = 0
    started_ns: int = 0
    stopped_ns: int = 0
    missed_oldest_ns: int = 0
    counts_nothing: bool = False
    guest_rung: int | None = None
    counters: Counters = field(default_factory=Counters)
    vectors: Table = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    edges: Table = field(default_factory=lambda: np.zeros((0, WIDTH), np.int64))
    rings: Entries = field(default_factory=Entries)
    drains: Entries = field(default_factory=Entries)
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether the worker stopped by itself, so that its counters are final."""
        return self.state == State.STOPPED and not self.problems


def places(path: Path, machine: int) -> dict[int, int]:
    """The recordings in a file whose first one is that of ``machine``: the row of each, and its first word."""
    found, at = {machine: 0}, 0
    with path.open("rb", buffering=0) as file:
        while True:
            head = _head(file, at)
            if len(head) < HEADER_WORDS or head[header.MAGIC_AT] != header.MAGIC:
                return found
            found[head[header.MACHINE] if at else machine] = at
            at += RecordingLayout(*(head[place] for place in SIZES_AT)).words
            if at > COUNT_LIMIT:
                return found


def read(path: Path, machine: int, at: int = 0) -> Records:
    """The recording of ``machine``. Never raises for the content of the file: see ``Records.problems``.

    ``at`` is the word at which it begins in a file of several (`places`).
    """
    records = Records(machine)
    try:
        with path.open("rb", buffering=0) as file:
            _read_sections(records, _Sections(records, path, file, at))
    except (OSError, ValueError, OverflowError, UsageError) as error:
        _report(records, str(error))
    return records


def _read_sections(records: Records, sections: _Sections) -> None:
    head = _head(sections.file, sections.at)
    layout = _check(head, records.machine)
    _read_header(records, head)
    vectors, sound = sections.counts("vectors", layout.vectors_at, layout.vectors, layout.vectors, COUNTS)
    vectors = np.where(sound[:, None], vectors, 0)  # a vector's number is its row, so a damaged row is not removed
    edges, sound = sections.counts("edges", layout.edges_at, head[header.EDGES_USED], layout.edges, EDGES)
    records.edges = edges[sound]
    records.rings = sections.samples("rings", layout.rings_at, head[header.RINGS_USED], layout.rings, RINGS)
    used = head[header.DRAINS_USED]
    used += sections.drains_beyond(layout.drains_at, used, layout.drains)
    tally = DrainTally(len(vectors))
    records.drains = sections.samples("drains", layout.drains_at, used, layout.drains, DRAINS, tally)
    # Drains that interrupted nothing are no interrupts.
    beyond = np.column_stack((vectors[:, 0], vectors[:, 1] - vectors[:, 2]))
    records.vectors = np.maximum(0, beyond + tally.sums)


def _report(records: Records, problem: str) -> None:
    records.problems.append(f"recording of machine {records.machine}: {problem}")


def _check(head: list[int], machine: int) -> RecordingLayout:
    if len(head) < HEADER_WORDS:
        raise UsageError(f"{len(head)} words, a header alone has {HEADER_WORDS}")
    if head[header.MAGIC_AT] != header.MAGIC:
        raise UsageError(f"not a recording: its magic is {head[header.MAGIC_AT]:#x}")
    if head[header.VERSION_AT] != header.VERSION:
        raise UsageError(f"version {head[header.VERSION_AT]}, expected {header.VERSION}")
    if head[header.MACHINE] != machine:
        raise UsageError(f"its header names machine {head[header.MACHINE]}")
    return RecordingLayout(*(head[at] for at in SIZES_AT))


def _read_header(records: Records, head: list[int]) -> None:
    peer = head[header.PEER]
    records.peer = peer if peer < PEERS else None
    records.of, records.incarnation = head[header.OF_MACHINE], head[header.INCARNATION]
    records.domain = min(head[header.DOMAIN], DOMAINS_MAX - 1)
    records.state = head[header.STATE]
    records.sample_every = head[header.SAMPLE_EVERY]
    records.counts_nothing = head[header.GUEST] == 1
    records.guest_rung = head[header.GUEST_RUNG] - 1 if 0 < head[header.GUEST_RUNG] <= COUNT_LIMIT else None
    for name in ("ready_ns", "started_ns", "stopped_ns", "missed_oldest_ns"):
        value = head[getattr(header, name.upper())]
        setattr(records, name, value if value < TIME_LIMIT_NS else 0)
    counts = {name: head[at] for name, at in COUNTER_AT.items()}
    for name, value in counts.items():
        if value >= COUNT_LIMIT:
            _report(records, f"{name} reads {value}")
            counts[name] = 0
    records.counters = Counters(**counts)


class _Sections:
    """The sections of one recording.

    Args:
        records: what problems are reported to.
        path: the file.
        file: the same, open.
        at: the word at which the recording begins.
    """

    def __init__(self, records: Records, path: Path, file: FileIO, at: int) -> None:
        self._records, self._path, self.file, self.at = records, path, file, at
        self._size = os.fstat(file.fileno()).st_size // WORD_BYTES - at

    def counts(self, name: str, at: int, used: int, room: int, limits: Limits) -> tuple[Table, Sound]:
        """A section that is small, and which of its rows are sound."""
        table = _entries(self.file, self.at + at, self._available(name, at, used, room))
        sound = _sound(table, limits)
        if not sound.all():
            _report(self._records, f"{int(np.count_nonzero(~sound))} of {len(table)} {name} are damaged")
        return table, sound

    def samples(
        self, name: str, at: int, used: int, room: int, limits: Limits, tally: DrainTally | None = None
    ) -> Entries:
        """A section of samples, its damage counted, its latest time found, and drains added up, in one pass."""
        entries = Entries(self._path, self.at + at, self._available(name, at, used, room), limits)
        sound, latest_ns, kept = 0, 0, None
        for chunk in entries.read(self.file):
            sound += len(chunk)
            latest_ns = max(latest_ns, int(chunk[:, 1:].max(initial=0)))
            if tally is not None:
                add_drains(tally, chunk)
            kept = chunk if entries.stored <= FEW else None
        if sound < entries.stored:
            _report(self._records, f"{entries.stored - sound} of {entries.stored} {name} are damaged")
        return replace(entries, sound=sound, latest_ns=latest_ns, kept=kept)

    def drains_beyond(self, at: int, used: int, room: int) -> int:
        """How many valid drains follow the first ``used``."""
        found, most = 0, min(room, (self._size - at) // WIDTH) - used
        while found < most:
            count = min(CHUNK_ROWS, FEW if not found else most, most - found)
            stored = _entries(self.file, self.at + at + WIDTH * (used + found), count)[:, 1] != 0
            if not stored.all() or len(stored) < count:
                return found + (int(stored.argmin()) if not stored.all() else len(stored))
            found += count
        return found

    def _available(self, name: str, at: int, used: int, room: int) -> int:
        """How many of the entries in use the section and the file can hold; a difference is reported."""
        there = max(0, min(used, room, (self._size - at) // WIDTH))
        if there < used:
            _report(self._records, f"{there} of {used} {name} are there")
        return there


def _head(file: FileIO, at: int) -> list[int]:
    """The words of the header at that word, as many as the file has."""
    head: list[int] = _words(file, at, HEADER_WORDS).view(np.uint64).tolist()
    return head


def _entries(file: FileIO, at: int, count: int) -> Table:
    """So many entries from word ``at`` on, or as many as the file has."""
    words = _words(file, at, WIDTH * count)
    return words[: len(words) // WIDTH * WIDTH].reshape(-1, WIDTH)


def _words(file: FileIO, at: int, count: int) -> npt.NDArray[np.int64]:
    data = os.pread(file.fileno(), count * WORD_BYTES, at * WORD_BYTES)
    return np.frombuffer(data, np.int64, len(data) // WORD_BYTES)


def _sound(table: Table, limits: Limits) -> Sound:
    """The rows whose words are all below their limits."""
    sound: Sound = np.logical_and.reduce((table >= 0) & (table < np.array(limits)), axis=1)
    return sound


# During the run: mapped recordings that their workers write meanwhile.


def domain_and_peer(key: int) -> tuple[int, int]:
    """The domain and the peer ID in the key of an edge or a ring."""
    return key >> 32, key >> 16 & PEERS - 1


def edges_so_far(recording: Recording) -> Table:
    """The edges as they stand now, a copy: (n, 3) int64: key, rung, refused."""
    return _copied(recording, recording.layout.edges_at, 0, recording.words[header.EDGES_USED])


def vectors_so_far(recording: Recording) -> Table:
    """The own vectors as they stand now, a copy: (n, 2) int64: delivered, interrupts."""
    layout = recording.layout
    words = np.frombuffer(recording.words, np.uint64)[layout.vectors_at : layout.edges_at]
    beyond = words.astype(np.int64).reshape(layout.vectors, VECTOR_WORDS)
    return tally_of(recording).sums + np.column_stack((beyond[:, 0], beyond[:, 1] - beyond[:, 2]))


def totals_so_far(recording: Recording) -> tuple[int, int, int, int]:
    """Doorbells rung, doorbells delivered, interrupts, and doorbells refused, as they stand now."""
    layout, words = recording.layout, recording.words
    drains, vectors_at = tally_of(recording), layout.vectors_at
    nowhere, edges_end = words[COUNTER_AT["rung_nowhere"]], layout.edges_at + WIDTH * words[header.EDGES_USED]
    return (
        _total(words[layout.edges_at + 1 : edges_end : WIDTH]) + nowhere,
        drains.doorbells + _total(words[vectors_at : layout.edges_at : VECTOR_WORDS]),
        drains.used
        + _total(words[vectors_at + 1 : layout.edges_at : VECTOR_WORDS])
        - _total(words[vectors_at + 2 : layout.edges_at : VECTOR_WORDS]),
        _total(words[layout.edges_at + 2 : edges_end : WIDTH]) + nowhere,
    )


def _total(words: memoryview[int]) -> int:
    """The sum of some words. Few are summed faster without numpy: a run may have 65,536 machines with one each."""
    return sum(words) if len(words) < FEW else int(np.asarray(words).sum())


def latest_rings(recording: Recording, most: int) -> Table:
    """The last ``most`` rings, a copy: (n, 3) int64: key, intended_ns, rung_ns."""
    return _latest(recording, recording.layout.rings_at, recording.words[header.RINGS_USED], most)


def latest_drains(recording: Recording, most: int) -> Table:
    """The last ``most`` drains, a copy: (n, 3) int64: count << 16 | vector, delivered_ns, handled_ns."""
    return _latest(recording, recording.layout.drains_at, drains_so_far(recording), most)


def drains_so_far(recording: Recording) -> int:
    """How many drains are stored now."""
    return tally_of(recording).used


def _latest(recording: Recording, at: int, used: int, most: int) -> Table:
    return _copied(recording, at, max(0, used - most), used)


def _copied(recording: Recording, at: int, first: int, end: int) -> Table:
    words = np.frombuffer(recording.words, np.uint64)[at + WIDTH * first : at + WIDTH * end]
    return words.astype(np.int64).reshape(end - first, WIDTH)
