"""All recordings of a run joined: the line that each doorbell was rung on, and the drain that delivered it.

The samples are matched a piece at a time. What is held is an index of the drains, at most 28 bytes for each
(``INDEX_BYTES_EACH``), which the preflight counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.recording.reader import CHUNK_ROWS, PEERS, VECTOR_MASK, Records
from sim.results.analysis.latency.latencies import SHORT, Samples
from sim.results.arrays import Integers
from sim.results.store.manifest import MachineRow

INDEX_BYTES_EACH = 28
Move = tuple[int, int, int, int]


class LineNumbers:
    """The line numbers of all eventfds: the vectors of machine 0, then those of machine 1, ...

    ``identities`` are (machine, domain, peer) of further IDs of a machine: before or during a migration.
    ``machine_of`` has for each domain and each of 65536 peer IDs the machine that had it, -1 for none.
    """

    def __init__(
        self,
        machines: Sequence[MachineRow],
        records: Sequence[Records],
        identities: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.vectors = np.array([machine.vectors for machine in machines], dtype=np.int64)
        self.first = np.concatenate(([0], np.cumsum(self.vectors)))
        self.count = int(self.first[-1])
        domains = [machine.domain for machine in machines] + [record.domain for record in records]
        domains += [domain for _, domain, _ in identities]
        self.machine_of = np.full((max(domains, default=0) + 1, PEERS), -1, dtype=np.int32)
        for record in records:
            # A machine without a readable recording had the ID that the server assigns first: its index.
            peer = record.machine if record.peer is None and record.problems else record.peer
            own = self.machine_of[machines[record.machine].domain if record.problems else record.domain]
            if peer is not None and (own[peer] < 0 or not record.problems):
                own[peer] = record.machine
        for row, domain, its_peer in identities:
            self.machine_of[domain, its_peer] = row

    def of_keys(self, keys: Integers) -> tuple[Integers, Integers, Integers]:
        """Target machine (-1: none), vector and line (-1: none) of domain << 32 | peer << 16 | vector."""
        domain = np.minimum(keys >> 32, len(self.machine_of) - 1)  # no machine is known in a domain beyond
        target, vector = self.machine_of[domain, keys >> 16 & PEERS - 1].astype(np.int64), keys & VECTOR_MASK
        target = np.where(domain == keys >> 32, target, -1)
        return target, vector, self.of_vectors(target, vector)

    def of_vectors(self, machine: Integers, vector: Integers) -> Integers:
        """The lines of (machine, vector); -1 where there is none."""
        there = (machine >= 0) & (vector < self.vectors[machine])
        return np.where(there, self.first[machine] + vector, -1)


@dataclass(frozen=True)
class DrainChunk:
    """Drained eventfd counters as columns of one length; ``handled_ns`` is 0 if the program never handled it."""

    machine: Integers
    vector: Integers
    count: Integers
    delivered_ns: Integers
    handled_ns: Integers


class DrainIndex:
    """All drains, sorted by line and then by time, to find the one that delivered a doorbell.

    ``lines`` beyond those of ``LineNumbers`` are those of the further IDs of machines that migrated (``moves``:
    machine, domain, peer, the time since when it drains them): a doorbell left behind at the ID before is not
    delivered by the first drain under the next one. ``stays`` are likewise those of the machines that have had the same
    ID one after the other: a doorbell was rung at the one that had it then.
    """

    def __init__(
        self, records: Sequence[Records], lines: LineNumbers, moves: Sequence[Move], stays: Sequence[Move] = ()
    ) -> None:
        self._lines = lines
        self._stays = sorted(stays, key=lambda stay: stay[3])
        self._moves: list[tuple[Move, int]] = []
        count = lines.count
        for move in sorted(moves, key=lambda move: move[3]):
            self._moves.append((move, count))
            count += int(lines.vectors[move[0]])
        self.lines = count
        sizes, most = np.zeros(count + 1, np.int64), 0
        for chunk in self._chunks(records):
            sizes += np.bincount(self._line_of_drains(chunk), minlength=count + 1)
            most = max(most, int(chunk.count.max(initial=0)))
        self._starts = np.concatenate(([0], np.cumsum(sizes[:-1])))
        total = int(self._starts[-1])
        self._delivered_ns, self._handled_ns = np.zeros(total, np.int64), np.zeros(total, np.int64)
        # A drain of 2^31 doorbells is rare: only a counter that was filled holds so many.
        self._count: npt.NDArray[Any] = np.zeros(total, np.int32 if most < 1 << 31 else np.int64)
        self._held: npt.NDArray[Any] = np.zeros(total, np.int32)

    @staticmethod
    def _chunks(records: Sequence[Records]) -> Iterator[DrainChunk]:
        for part, machine in _together(records, "drains"):
            yield DrainChunk(machine, part[:, 0] & VECTOR_MASK, part[:, 0] >> 16, part[:, 1], part[:, 2])

    def fill(self, records: Sequence[Records]) -> Iterator[DrainChunk]:
        """Store every drain in the index, and yield them all in the order of machines."""
        cursors = self._starts.copy()
        for chunk in self._chunks(records):
            line = self._line_of_drains(chunk)
            order = np.argsort(line, kind="stable")
            ordered = line[order]
            known = ordered < self.lines
            order, ordered = order[known], ordered[known]
            firsts = np.searchsorted(ordered, ordered, side="left")
            place = cursors[ordered] + np.arange(len(ordered)) - firsts
            self._delivered_ns[place] = chunk.delivered_ns[order]
            self._handled_ns[place] = chunk.handled_ns[order]
            self._count[place] = chunk.count[order]
            cursors[:-1] += np.bincount(ordered, minlength=self.lines)
            yield chunk
        self._sort()

    def _sort(self) -> None:
        """A machine stamps its drains in order; sort the lines where a recording says otherwise."""
        back = np.flatnonzero(self._delivered_ns[1:] < self._delivered_ns[:-1]) + 1
        for line in np.unique(np.searchsorted(self._starts, np.setdiff1d(back, self._starts), side="right") - 1):
            mine = slice(int(self._starts[line]), int(self._starts[line + 1]))
            order = np.argsort(self._delivered_ns[mine], kind="stable")
            for column in (self._delivered_ns, self._handled_ns, self._count):
                column[mine] = column[mine][order]

    def _line_of_drains(self, chunk: DrainChunk) -> Integers:
        line = self._lines.of_vectors(chunk.machine, chunk.vector)
        for (machine, _, _, since_ns), first in self._moves:
            own = (chunk.machine == machine) & (chunk.delivered_ns >= since_ns) & (line >= 0)
            line[own] = first + chunk.vector[own]
        return np.where(line < 0, self.lines, line)

    def line_of_rings(self, keys: Integers, rung_ns: Integers) -> tuple[Integers, Integers, Integers]:
        """Target, vector and line (-1: none) of each key, rung at that time."""
        target, vector, line = self._lines.of_keys(keys)
        for machine, domain, peer, since_ns in self._stays:
            then = (keys >> 16 == (domain << 16 | peer)) & (rung_ns >= since_ns)
            target[then] = machine
            line[then] = self._lines.of_vectors(target[then], vector[then])
        for (machine, domain, peer, _), first in self._moves:
            there = (keys >> 16 == (domain << 16 | peer)) & (line >= 0)
            line[there] += first - int(self._lines.first[machine])
        return target, vector, line

    def find(self, line: Integers, rung_ns: Integers) -> Integers:
        """The place of the drain that delivered each doorbell: the first of its line at or after it; -1 for none."""
        found = np.full(len(line), -1, np.int64)
        order = np.argsort(line, kind="stable")
        there, firsts, sizes = np.unique(line[order], return_index=True, return_counts=True)
        for each, first, end in zip(there.tolist(), firsts.tolist(), (firsts + sizes).tolist(), strict=True):
            if each < 0:
                continue
            low, high = int(self._starts[each]), int(self._starts[each + 1])
            rings = order[first:end]
            place = low + np.searchsorted(self._delivered_ns[low:high], rung_ns[rings], side="left")
            kept = place < high
            found[rings[kept]] = place[kept]
        places, held = np.unique(found[found >= 0], return_counts=True)
        self._held[places] += held
        return found

    def drained(self, place: Integers) -> tuple[Integers, Integers, Integers]:
        """delivered_ns, handled_ns and count of drains by place; 0 for -1."""
        if not len(self._count):
            return (np.zeros(len(place), np.int64),) * 3
        lost = place < 0
        delivered, handled, count = (
            np.where(lost, 0, column[place]).astype(np.int64, copy=False)
            for column in (self._delivered_ns, self._handled_ns, self._count)
        )
        return delivered, handled, count

    def close(self) -> int:
        """Free the index. Returns the drains with more samples than the doorbells they drained: 0 if all is sound."""
        overfull = int(np.count_nonzero(self._held > self._count))
        self._delivered_ns = self._handled_ns = self._count = self._held = np.zeros(0, np.int64)
        return overfull


@dataclass
class Matching:
    """Matches the samples of a run, and counts what the summary says of them.

    Attributes:
        samples: how many there are.
        unmatched: those whose drain is not known.
        short: deliveries in less than a quarter of a bare wake-up, which takes ``bare_ns`` (0: not measured).
        unscheduled: by row, the measured samples that were rung without a schedule.
        drains: how many drains there are.
        overfull: drains that have more samples than the doorbells they drained.
    """

    records: Sequence[Records]
    index: DrainIndex
    measure_start_ns: int
    unmeasured: Sequence[tuple[int, int]] = ()
    bare_ns: int = 0
    samples: int = 0
    unmatched: int = 0
    short: int = 0
    drains: int = 0
    overfull: int = 0
    unscheduled: Integers = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        self.unscheduled = np.zeros(len(self.records), np.int64)

    def drain_chunks(self) -> Iterator[DrainChunk]:
        """All drains; they must be exhausted before the samples are asked for."""
        for chunk in self.index.fill(self.records):
            self.drains += len(chunk.machine)
            yield chunk

    def sample_chunks(self) -> Iterator[Samples]:
        """All samples, in the order of their senders; then the index is freed."""
        for part, source in _together(self.records, "rings"):
            intended_ns, rung_ns = part[:, 1], part[:, 2]
            target, vector, line = self.index.line_of_rings(part[:, 0], rung_ns)
            delivered_ns, handled_ns, count = self.index.drained(self.index.find(line, rung_ns))
            due_ns = np.where(intended_ns > 0, intended_ns, rung_ns)
            warmup = due_ns < self.measure_start_ns
            for start_ns, end_ns in self.unmeasured:
                warmup |= (due_ns >= start_ns) & (due_ns < end_ns)
            self.samples += len(part)
            self.unmatched += int(np.count_nonzero(delivered_ns == 0))
            counts = (delivered_ns > 0) & ~warmup
            self.short += int(np.count_nonzero((delivered_ns - rung_ns)[counts] * SHORT < self.bare_ns))
            closed = source[(intended_ns == 0) & ~warmup]
            self.unscheduled += np.bincount(closed, minlength=len(self.records))
            yield Samples(
                source=source,
                target=target,
                vector=vector,
                intended_ns=intended_ns,
                rung_ns=rung_ns,
                delivered_ns=delivered_ns,
                handled_ns=handled_ns,
                count=count,
                warmup=warmup,
            )
        self.overfull = self.index.close()


def _together(records: Sequence[Records], section: str) -> Iterator[tuple[Integers, Integers]]:
    """The entries of a section of all recordings, and the machine of each; small recordings share a piece."""
    parts: list[Integers] = []
    machines: list[int] = []
    size = 0
    for record in records:
        for chunk in getattr(record, section).chunks():
            parts.append(chunk)
            machines.append(record.machine)
            size += len(chunk)
            if size >= CHUNK_ROWS:
                yield np.concatenate(parts), np.repeat(machines, [len(part) for part in parts])
                parts, machines, size = [], [], 0
    if parts:
        yield np.concatenate(parts), np.repeat(machines, [len(part) for part in parts])
