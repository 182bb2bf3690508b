"""All recordings of a run joined: which line each doorbell was rung on, and which drain delivered it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.results.gather import Records
from sim.results.latency import Samples, assign, overfull
from sim.results.manifest import Machine

__all__ = ["VECTOR_MASK", "Drains", "Lines", "match"]

Column = npt.NDArray[np.int64]
VECTOR_MASK = 0xFFFF
PEERS = 1 << 16


class Lines:
    """The numbers of all eventfds: the vectors of machine 0, those of machine 1, ...

    ``machine_of`` has for each of 65536 peer IDs the machine that had it, -1 for none.
    """

    def __init__(self, machines: Sequence[Machine], records: Sequence[Records]) -> None:
        self.vectors = np.array([machine.vectors for machine in machines], dtype=np.int64)
        self.first = np.concatenate(([0], np.cumsum(self.vectors)))
        self.count = int(self.first[-1])
        self.machine_of = np.full(PEERS, -1, dtype=np.int64)
        for each in records:
            # Whose recording cannot be read had the ID that the server gives out first: its place.
            peer = each.machine if each.peer is None and each.problems else each.peer
            if peer is not None and (self.machine_of[peer] < 0 or not each.problems):
                self.machine_of[peer] = each.machine

    def of_keys(self, keys: Column) -> tuple[Column, Column, Column]:
        """Target machine (-1: none), vector and line (-1: none) of doorbell values peer << 16 | vector."""
        target, vector = self.machine_of[keys >> 16], keys & VECTOR_MASK
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


def match(records: Sequence[Records], lines: Lines, measure_start_ns: int) -> tuple[Samples, Drains, int]:
    """Samples, drains, and how many drains are given more samples than their count (0: a sound match)."""
    source, rings = _stack(records, [each.rings for each in records])
    target, vector, ring_line = lines.of_keys(rings[0])
    machine, drained = _stack(records, [each.drains for each in records])
    drains = Drains(machine, drained[0] & VECTOR_MASK, drained[0] >> 16, drained[1], drained[2])
    drain_line = lines.of_vectors(drains.machine, drains.vector)
    intended_ns, rung_ns = rings[1], rings[2]
    assigned = assign(ring_line, rung_ns, drain_line, drains.delivered_ns, lines.count)
    found = assigned >= 0

    def of_drain(column: Column) -> Column:
        if len(column) == 0:
            return np.zeros(len(assigned), np.int64)
        return np.where(found, column[assigned], 0)

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


def _stack(records: Sequence[Records], tables: Sequence[Column]) -> tuple[Column, list[Column]]:
    """Tables of three columns one below the other: the machine of each row, and the columns."""
    machines = np.array([each.machine for each in records], dtype=np.int64)
    owner = np.repeat(machines, [len(table) for table in tables])
    # One column at a time: ten million rows need not exist twice as a whole.
    columns = [np.concatenate([np.zeros(0, np.int64), *(table[:, at] for table in tables)]) for at in range(3)]
    return owner, columns
