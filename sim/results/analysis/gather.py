"""Recordings off the disk, as numpy columns; whatever a cut or strange one still tells is kept, and said.

Reads the files as they are instead of through ``Recording.open``, which maps them for writing and refuses one
that is cut short: here a run may be years old, on a read-only disk, or cut by a full one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nodes.errors import UsageError
from sim import recording
from sim.recording import Layout, State

__all__ = ["Records", "read"]

Table = npt.NDArray[np.int64]

# No edge rings 2^44 doorbells (50 days at 4 million a second): a larger count is damage, and sums stay in 64
# bits.
COUNT_LIMIT = 1 << 44
DOMAINS_MAX = 1 << 10
KEY_LIMIT = DOMAINS_MAX << 32
TIME_LIMIT_NS = 1 << 62


@dataclass
class Records:
    """What one machine recorded. Tables have one row an entry, as ``sim.recording`` describes them.

    ``vectors`` (n, 2), ``edges`` (n, 3), ``rings`` (n, 3), ``drains`` (n, 3), all int64. ``clean``: the
    worker stopped by itself, so its counters are final. ``of``, ``life`` and ``domain`` as ``Recording.create`` has
    them. ``problems`` says what could not be read.
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
    rings_refused: int = 0
    drains_refused: int = 0
    rung_nowhere: int = 0
    pended: int = 0
    dropped: int = 0
    unrung: int = 0
    unrung_oldest_ns: int = 0
    vectors: Table = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    edges: Table = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    rings: Table = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    drains: Table = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.state == State.STOPPED and not self.problems


def read(path: Path, machine: int) -> Records:
    """The recording of ``machine``. Never raises for what the file holds: see ``Records.problems``."""
    records = Records(machine)
    try:
        words = np.memmap(path, dtype="<u8", mode="r", shape=path.stat().st_size // recording.WORD_BYTES)
        layout = _check(words, machine)
    except (OSError, ValueError, UsageError) as error:
        records.problems.append(f"recording of machine {machine}: {error}")
        return records
    _read_header(records, words)
    used = {name: int(words[at]) for name, at in USED}
    for name, at, size, width in (
        ("vectors", layout.vectors_at, layout.vectors, 2),
        ("edges", layout.edges_at, layout.edges, 3),
        ("rings", layout.rings_at, layout.rings, 3),
        ("drains", layout.drains_at, layout.drains, 3),
    ):
        wanted = used.get(name, size)
        there = max(0, min(wanted, size, (len(words) - at) // width))
        if there < wanted:
            records.problems.append(f"recording of machine {machine}: {there} of {wanted} {name} are there")
        # A view of the file, not a copy: ten million samples are a quarter of a gigabyte.
        table = np.asarray(words[at : at + width * there]) if there else np.zeros(0, np.uint64)
        setattr(records, name, table.view(np.int64).reshape(there, width))
    records.vectors = _within(records, "vectors", records.vectors, (COUNT_LIMIT, COUNT_LIMIT))
    records.edges = _within(records, "edges", records.edges, (KEY_LIMIT, COUNT_LIMIT, COUNT_LIMIT))
    records.rings = _within(records, "rings", records.rings, (KEY_LIMIT, TIME_LIMIT_NS, TIME_LIMIT_NS))
    records.drains = _within(records, "drains", records.drains, (TIME_LIMIT_NS,) * 3)
    return records


USED = (
    ("edges", recording.EDGES_USED),
    ("rings", recording.RINGS_USED),
    ("drains", recording.DRAINS_USED),
)


def _check(words: npt.NDArray[np.uint64], machine: int) -> Layout:
    if len(words) < recording.HEADER_WORDS:
        raise UsageError(f"{len(words)} words, a header alone has {recording.HEADER_WORDS}")
    head = [int(word) for word in words[: recording.HEADER_WORDS]]
    if head[recording.MAGIC_AT] != recording.MAGIC:
        raise UsageError(f"no recording: its magic is {head[recording.MAGIC_AT]:#x}")
    if head[recording.VERSION_AT] != recording.VERSION:
        raise UsageError(f"version {head[recording.VERSION_AT]}, this reads {recording.VERSION}")
    if head[recording.MACHINE] != machine:
        raise UsageError(f"it says it is of machine {head[recording.MACHINE]}")
    sizes = [head[at] for at in (recording.VECTORS, recording.EDGES, recording.RINGS, recording.DRAINS)]
    return Layout(*sizes)


def _read_header(records: Records, words: npt.NDArray[np.uint64]) -> None:
    head = [int(word) for word in words[: recording.HEADER_WORDS]]
    peer = head[recording.PEER]
    records.peer = peer if peer < 1 << 16 else None
    records.of, records.life = head[recording.OF_MACHINE], head[recording.LIFE]
    records.domain = min(head[recording.DOMAIN], DOMAINS_MAX - 1)
    records.state = head[recording.STATE]
    records.sample_every = head[recording.SAMPLE_EVERY]
    for name in ("ready_ns", "started_ns", "stopped_ns", "unrung_oldest_ns"):
        value = head[getattr(recording, name.upper())]
        setattr(records, name, value if value < TIME_LIMIT_NS else 0)
    for name in ("rings_refused", "drains_refused", "rung_nowhere", "pended", "dropped", "unrung"):
        value = head[getattr(recording, name.upper())]
        if value >= COUNT_LIMIT:
            records.problems.append(f"recording of machine {records.machine}: {name} reads {value}")
            value = 0
        setattr(records, name, value)


def _within(records: Records, name: str, table: Table, limits: tuple[int, ...]) -> Table:
    """The rows whose words are all below their limits; the others are damage."""
    sound = np.logical_and.reduce(
        [(table[:, column] >= 0) & (table[:, column] < limit) for column, limit in enumerate(limits)]
    )
    wrong = len(table) - int(np.count_nonzero(sound))
    if not wrong:
        return table
    records.problems.append(f"recording of machine {records.machine}: {wrong} of {len(table)} {name} are damaged")
    if name == "vectors":
        # A vector's number is its row: a damaged row is emptied, not taken out.
        return np.where(sound[:, None], table, 0)
    return table[sound]
