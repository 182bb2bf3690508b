"""The only decoder of recordings: whole files after a run, mapped ones during it. Needs numpy; workers do not load it.

:func:`read` reads a file as it is instead of through ``Recording.open``, which maps it for writing and refuses one that
is cut short: a run may be old, on a read-only disk, or cut by a full one. Every word of the file is checked against a
limit. What is sound is kept, and the rest is reported in ``Records.problems``.

The sections of samples can be larger than memory should hold. ``Entries`` reads them a piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nodes.errors import UsageError
from sim.recording import header
from sim.recording.file import Recording
from sim.recording.header import COUNT_LIMIT, COUNTER_AT, HEADER_WORDS, WORD_BYTES, Counters, State
from sim.recording.layout import DRAIN_WORDS, VECTOR_WORDS, RecordingLayout
from sim.recording.tally import DrainTally, add_drains, tally_of

__all__ = [
    "PEERS",
    "VECTOR_MASK",
    "Records",
    "domain_and_peer",
    "drains_so_far",
    "edges_so_far",
    "latest_drains",
    "latest_rings",
    "places",
    "read",
    "totals_so_far",
    "vectors_so_far",
]

Table = npt.NDArray[np.int64]

PEERS = 1 << 16
VECTOR_MASK = 0xFFFF
DOMAINS_MAX = 1 << 10
KEY_LIMIT = DOMAINS_MAX << 32
TIME_LIMIT_NS = 1 << 62
CHUNK_ROWS = 1 << 17
WIDTH = DRAIN_WORDS
FEW = 64
"""Words of an entry of edges, rings and drains."""


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
    """

    path: Path
    at: int = 0
    stored: int = 0
    limits: tuple[int, int, int] = (0, 0, 0)
    sound: int = 0
    latest_ns: int = 0

    def __len__(self) -> int:
        return self.sound

    def chunks(self) -> Iterator[Table]:
        """The sound entries in order, as (n, 3) int64 with n at most ``CHUNK_ROWS``.

        Raises:
            OSError: the file cannot be read any more.
        """
        for first in range(0, self.stored, CHUNK_ROWS):
            count = min(CHUNK_ROWS, self.stored - first)
            offset = (self.at + WIDTH * first) * WORD_BYTES
            words = np.fromfile(self.path, np.int64, WIDTH * count, offset=offset)
            table = words[: len(words) // WIDTH * WIDTH].reshape(-1, WIDTH)
            sound = _sound(table, self.limits)
            yield table if sound.all() else table[sound]


@dataclass
class Records:
    """The recording of one device.

    Attributes:
        machine: the row of the recording.
        of: the machine that the device belongs to.
        life: the incarnation of that machine, from 1.
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
    life: int = 1
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
    rings: Entries = field(default_factory=lambda: Entries(Path()))
    drains: Entries = field(default_factory=lambda: Entries(Path()))
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether the worker stopped by itself, so that its counters are final."""
        return self.state == State.STOPPED and not self.problems


def places(path: Path, machine: int) -> dict[int, int]:
    """The recordings in a file whose first one is that of ``machine``: the row of each, and its first byte."""
    found, at = {machine: 0}, 0
    with path.open("rb") as file:
        while True:
            head = np.frombuffer(file.read(HEADER_WORDS * WORD_BYTES), np.uint8)
            words = head[: len(head) // WORD_BYTES * WORD_BYTES].view("<u8").tolist()
            if len(words) < HEADER_WORDS or words[header.MAGIC_AT] != header.MAGIC:
                return found
            found[words[header.MACHINE] if at else machine] = at
            sizes = [words[place] for place in (header.VECTORS, header.EDGES, header.RINGS, header.DRAINS)]
            at += RecordingLayout(*sizes).words * WORD_BYTES
            if at > COUNT_LIMIT:
                return found
            file.seek(at)


def read(path: Path, machine: int, at_bytes: int = 0) -> Records:
    """The recording of ``machine``. Never raises for the content of the file: see ``Records.problems``.

    ``at_bytes`` is where it begins in a file of several (`places`).
    """
    records = Records(machine)
    try:
        words = (path.stat().st_size - at_bytes) // WORD_BYTES
        head = [int(word) for word in np.fromfile(path, "<u8", HEADER_WORDS, offset=at_bytes)]
        layout = _check(head, machine)
        _read_header(records, head)
        _read_counts(records, path, layout, head[header.EDGES_USED], words, at_bytes)
        samples = (KEY_LIMIT, TIME_LIMIT_NS, TIME_LIMIT_NS)
        used = head[header.RINGS_USED]
        at = layout.rings_at
        records.rings = _entries(records, "rings", path, at, (used, layout.rings, words), samples, at_bytes)
        drained = (COUNT_LIMIT << 16, TIME_LIMIT_NS, TIME_LIMIT_NS)
        at = layout.drains_at
        used = head[header.DRAINS_USED]
        most = min(layout.drains, (words - at) // WIDTH)
        used += _beyond(path, at_bytes // WORD_BYTES + at + WIDTH * used, most - used)
        tally = DrainTally(len(records.vectors))
        sizes = (used, layout.drains, words)
        records.drains = _entries(records, "drains", path, at, sizes, drained, at_bytes, tally)
        records.vectors = np.maximum(0, records.vectors + tally.sums)
    except (OSError, ValueError, OverflowError, UsageError) as error:
        _report(records, str(error))
    return records


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
    return RecordingLayout(*(head[at] for at in (header.VECTORS, header.EDGES, header.RINGS, header.DRAINS)))


def _read_header(records: Records, head: list[int]) -> None:
    peer = head[header.PEER]
    records.peer = peer if peer < PEERS else None
    records.of, records.life = head[header.OF_MACHINE], head[header.LIFE]
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


def _read_counts(records: Records, path: Path, layout: RecordingLayout, used: int, words: int, at_bytes: int) -> None:
    """The vectors and the edges, which are small."""
    for name, at, wanted, size, width in (
        ("vectors", layout.vectors_at, layout.vectors, layout.vectors, VECTOR_WORDS),
        ("edges", layout.edges_at, used, layout.edges, WIDTH),
    ):
        there = _available(records, name, at, (wanted, size, words), width)
        table = np.fromfile(path, np.int64, width * there, offset=at_bytes + at * WORD_BYTES).reshape(-1, width)
        limits = (COUNT_LIMIT if name == "vectors" else KEY_LIMIT, COUNT_LIMIT, COUNT_LIMIT)
        sound = _sound(table, limits)
        if not sound.all():
            _report(records, f"{int(np.count_nonzero(~sound))} of {len(table)} {name} are damaged")
            # A vector's number is its row: a damaged row is set to zero and not removed.
            table = np.where(sound[:, None], table, 0) if name == "vectors" else table[sound]
        if name == "vectors":  # drains that interrupted nothing are no interrupts
            table = np.column_stack((table[:, 0], table[:, 1] - table[:, 2]))
        setattr(records, name, table)


def _available(records: Records, name: str, at: int, sizes: tuple[int, int, int], width: int) -> int:
    """How many of the wanted entries the section and the file can hold; a difference is reported.

    ``sizes``: entries in use, entries of the section, words of the file.
    """
    wanted, size, words = sizes
    there = max(0, min(wanted, size, (words - at) // width))
    if there < wanted:
        _report(records, f"{there} of {wanted} {name} are there")
    return there


def _entries(
    records: Records,
    name: str,
    path: Path,
    at: int,
    sizes: tuple[int, int, int],
    limits: tuple[int, int, int],
    at_bytes: int,
    tally: DrainTally | None = None,
) -> Entries:
    """A section of samples, its damage counted, its latest time found, and drains added up, in one pass."""
    stored = _available(records, name, at, sizes, WIDTH)
    sound, latest_ns = 0, 0
    at += at_bytes // WORD_BYTES
    for chunk in Entries(path, at, stored, limits).chunks():
        sound += len(chunk)
        latest_ns = max(latest_ns, int(chunk[:, 1:].max(initial=0)))
        if tally is not None:
            add_drains(tally, chunk)
    if sound < stored:
        _report(records, f"{stored - sound} of {stored} {name} are damaged")
    return Entries(path, at, stored, limits, sound, latest_ns)


def _beyond(path: Path, at: int, most: int) -> int:
    """How many valid drains follow those that the header counts, at most ``most``; the first one is at word ``at``."""
    found = 0
    while found < most:
        count = min(CHUNK_ROWS, most - found)
        words = np.fromfile(path, np.int64, WIDTH * count, offset=(at + WIDTH * found) * WORD_BYTES)
        stored = words[: len(words) // WIDTH * WIDTH].reshape(-1, WIDTH)[:, 1] != 0
        if not stored.all() or len(stored) < count:
            return found + (int(stored.argmin()) if not stored.all() else len(stored))
        found += count
    return found


def _sound(table: Table, limits: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The rows whose words are all below their limits."""
    sound: npt.NDArray[np.bool_] = np.logical_and.reduce((table >= 0) & (table < np.array(limits)), axis=1)
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
