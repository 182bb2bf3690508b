"""All recordings of a run joined: which line each doorbell was rung on, and which drain delivered it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.recording.reader import PEERS, VECTOR_MASK, Entries, Records
from sim.results.analysis.latency import Samples, assign, overfull
from sim.results.store.manifest import Machine

__all__ = ["VECTOR_MASK", "Drains", "Lines", "match"]

Column = npt.NDArray[np.int64]
# Of machines, vectors and lines, of which there are ten million each: half the width is half the memory.
NUMBER: Any = np.int32


class Lines:
    """The numbers of all eventfds: the vectors of machine 0, those of machine 1, ...

    ``identities`` are (machine, domain, peer) of those that a machine had besides: before it migrated, or on the way.
    ``machine_of`` has for each domain, and in it for each of 65536 peer IDs, the machine that had it, -1 for none.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        records: Sequence[Records],
        identities: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        self.vectors = np.array([machine.vectors for machine in machines], dtype=np.int64)
        self.first = np.concatenate(([0], np.cumsum(self.vectors)))
        self.count = int(self.first[-1])
        domains = [machine.domain for machine in machines] + [each.domain for each in records]
        domains += [domain for _, domain, _ in identities]
        self.machine_of = np.full((max(domains, default=0) + 1, PEERS), -1, dtype=np.int64)
        for each in records:
            # Whose recording cannot be read had the ID that the server gives out first: its place.
            peer = each.machine if each.peer is None and each.problems else each.peer
            own = self.machine_of[machines[each.machine].domain if each.problems else each.domain]
            if peer is not None and (own[peer] < 0 or not each.problems):
                own[peer] = each.machine
        for row, domain, its_peer in identities:
            self.machine_of[domain, its_peer] = row

    def of_keys(self, keys: Column) -> tuple[Column, Column, Column]:
        """Target machine (-1: none), vector and line (-1: none) of domain << 32 | peer << 16 | vector."""
        domain = np.minimum(keys >> 32, len(self.machine_of) - 1)  # nobody is known in a domain beyond
        target, vector = self.machine_of[domain, keys >> 16 & PEERS - 1], keys & VECTOR_MASK
        target = np.where(domain == keys >> 32, target, -1)
        return target, vector, self.of_vectors(target, vector)

    def of_vectors(self, machine: Column, vector: Column) -> Column:
        """The lines of (machine, vector); -1 for what there is not."""
        there = (machine >= 0) & (vector < self.vectors[machine])
        return np.where(there, self.first[machine] + vector, -1)


@dataclass(frozen=True)
class Drains:
    """Drained eventfd counters as columns of one length; ``handled_ns`` is 0 where it never came to that."""

    machine: Column
    vector: Column
    count: Column
    delivered_ns: Column
    handled_ns: Column


def match(
    records: Sequence[Records], lines: Lines, measure_start_ns: int, moves: Sequence[tuple[int, int, int, int]] = ()
) -> tuple[Samples, Drains, int]:
    """Samples, drains, and how many drains are given more samples than their count (0: a sound match).

    ``moves`` are (machine, domain, peer, ns): since when a machine that has migrated drains the eventfds of that ID.
    """
    source, target, vector, ring_line, intended_ns, rung_ns = _rings(records, lines)
    drains, drain_line = _drains(records, lines)
    apart = _part(records, lines, moves, ring_line, drain_line, drains)
    assigned = assign(ring_line, rung_ns, drain_line, drains.delivered_ns, apart)
    lost = np.flatnonzero(assigned < 0)

    def of_drain(column: Column) -> Column:
        if len(column) == 0:
            return np.zeros(len(assigned), np.int64)
        its: Column = column[assigned]
        its[lost] = 0
        return its

    samples = Samples(
        source=source,
        target=target,
        vector=vector,
        intended_ns=intended_ns,
        rung_ns=rung_ns,
        delivered_ns=of_drain(drains.delivered_ns),
        handled_ns=of_drain(drains.handled_ns),
        count=of_drain(drains.count),
        warmup=intended_ns < measure_start_ns,
    )
    return samples, drains, overfull(assigned, drains.count)


def _part(
    records: Sequence[Records],
    lines: Lines,
    moves: Sequence[tuple[int, int, int, int]],
    ring_line: Column,
    drain_line: Column,
    drains: Drains,
) -> int:
    """Give the eventfds of each further ID of a machine lines of their own, in place; how many lines there are then.

    A doorbell that was left behind at the ID before is not delivered by the first drain under the next one.
    """
    count = lines.count
    if not moves:
        return count
    identity = np.concatenate([_table(each.rings)[:, 0] >> 16 for each in records])
    for machine, domain, peer, since_ns in sorted(moves, key=lambda move: move[3]):
        rung = (identity == (domain << 16 | peer)) & (ring_line >= 0)
        ring_line[rung] += count - int(lines.first[machine])
        drained = (drains.machine == machine) & (drains.delivered_ns >= since_ns) & (drain_line >= 0)
        drain_line[drained] = count + drains.vector[drained]
        count += int(lines.vectors[machine])
    return count


def _rings(records: Sequence[Records], lines: Lines) -> tuple[Column, ...]:
    """Source, target, vector, line, intended_ns and rung_ns of every ring, one machine's after the other's.

    Filled machine by machine, so that what is in between stays small and in the cache.
    """
    sizes = [len(each.rings) for each in records]
    columns: tuple[Column, ...] = tuple(np.empty(sum(sizes), kind) for kind in (*[NUMBER] * 4, np.int64, np.int64))
    at = 0
    for each, size in zip(records, sizes, strict=True):
        part = slice(at, at + size)
        source, target, vector, line, intended_ns, rung_ns = (column[part] for column in columns)
        source[:] = each.machine
        rings = _table(each.rings)
        target[:], vector[:], line[:] = lines.of_keys(rings[:, 0])
        rung_ns[:] = rings[:, 2]
        # A program without a schedule intends to ring when it rings.
        intended_ns[:] = np.where(rings[:, 1] == 0, rings[:, 2], rings[:, 1])
        at += size
    return columns


def _drains(records: Sequence[Records], lines: Lines) -> tuple[Drains, Column]:
    """All drains, one machine's after the other's, and their lines."""
    sizes = [len(each.drains) for each in records]
    machine, vector, line = (np.empty(sum(sizes), NUMBER) for _ in range(3))
    count, delivered_ns, handled_ns = (np.empty(sum(sizes), np.int64) for _ in range(3))
    at = 0
    for each, size in zip(records, sizes, strict=True):
        part = slice(at, at + size)
        machine[part] = each.machine
        its = _table(each.drains)
        vector[part], count[part] = its[:, 0] & VECTOR_MASK, its[:, 0] >> 16
        delivered_ns[part], handled_ns[part] = its[:, 1], its[:, 2]
        line[part] = lines.of_vectors(machine[part], vector[part])
        at += size
    return Drains(machine, vector, count, delivered_ns, handled_ns), line


def _table(entries: Entries) -> Column:
    return np.concatenate([np.zeros((0, 3), np.int64), *entries.chunks()])
