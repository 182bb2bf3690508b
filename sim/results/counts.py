"""Counts of doorbells by scope, of a finished run or of one that goes on.

Doorbells are counted at their targets: ``rung`` of a group are those rung at its machines, as in every table of a run.
Of an edge, rung and refused doorbells are known, and latencies. The others are only known if no other machine rang
the same vectors, because an eventfd counter does not tell the senders apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.recording import Recording
from sim.recording.header import COUNTER_AT
from sim.recording.reader import PEERS, VECTOR_MASK, edges_so_far, vectors_so_far
from sim.results.arrays import Integers, Mask, sums_at
from topologies.metrics import parse_owner


class UnknownMetricError(Exception):
    """A metric that is not known; the text says why. ``is_absent``: there is nothing that would have it."""

    def __init__(self, why: str, *, is_absent: bool = False) -> None:
        super().__init__(why)
        self.is_absent = is_absent


@dataclass(frozen=True)
class Scope:
    """The machines that are rung; ``sources`` of an edge only, ``vector`` where one is named; ``whole``: the run."""

    machines: frozenset[int]
    sources: frozenset[int] | None = None
    vector: int | None = None
    whole: bool = False

    @property
    def is_edge(self) -> bool:
        return self.sources is not None


class Scopes:
    """Finds the scope that a name stands for.

    A name is "" (the whole run), a group, a machine, a vector ``b:2``, or an edge ``a -> b`` or ``a -> b:2``.
    """

    def __init__(self, machines: Iterable[tuple[str, str]]) -> None:
        """``machines``: name and group of each, by index."""
        self.names: list[str] = []
        self._members: dict[str, frozenset[int]] = {}
        groups: dict[str, list[int]] = {}
        for index, (name, group) in enumerate(machines):
            self.names.append(name)
            self._members[name] = frozenset((index,))
            groups.setdefault(group, []).append(index)
        self._members |= {group: frozenset(members) for group, members in groups.items()}

    def __getitem__(self, of: str) -> Scope:
        """Raises ``UsageError`` for what is no name of this topology."""
        if not of:
            return Scope(frozenset(range(len(self.names))), whole=True)
        source, target, vector = parse_owner(of)
        return Scope(self._named(target), None if source is None else self._named(source), vector)

    def _named(self, name: str) -> frozenset[int]:
        found = self._members.get(name)
        if found is None:
            hint = did_you_mean(name, self._members)
            raise UsageError(
                f"expected a group, machine, vector b:2 or edge a -> b of the topology, got {name!r}{hint}"
            )
        return found


@dataclass(frozen=True)
class Counts:
    """The counts of a run: columns by (machine, vector), and others by (source, target, vector).

    ``lines`` has machine, vector and all of ``COUNTED``; ``edges`` source, target (-1: no machine), vector, rung and
    refused. ``nowhere`` are doorbells at peers that never existed: refused, and on no line.
    """

    lines: Mapping[str, Integers]
    edges: Mapping[str, Integers]
    nowhere: int = 0

    def count(self, metric: str, scope: Scope) -> int:
        """One of ``COUNTED``. Raises ``UnknownMetricError`` for a count that an edge does not have."""
        its = np.isin(self.lines["machine"], _array(scope.machines))
        if scope.vector is not None:
            its &= self.lines["vector"] == scope.vector
        if not scope.is_edge:
            everywhere = self.nowhere if scope.whole and metric in ("rung", "refused") else 0
            return int(self.lines[metric][its].sum()) + everywhere
        mine = self._edge(scope)
        if metric in ("rung", "refused"):
            return int(self.edges[metric][mine].sum())
        if int(self.edges["rung"][mine].sum()) != int(self.lines["rung"][its].sum()):
            raise UnknownMetricError(
                "other machines rang the same vectors, and a counter does not tell the senders apart"
            )
        return int(self.lines[metric][its].sum())

    def _edge(self, scope: Scope) -> Mask:
        mine = np.isin(self.edges["target"], _array(scope.machines))
        mine &= np.isin(self.edges["source"], _array(scope.sources or ()))
        if scope.vector is not None:
            mine &= self.edges["vector"] == scope.vector
        return mine

    def value(self, metric: str, scope: Scope) -> float:
        """One of ``COUNTED``, or derived: coalescing, lost. Raises ``UnknownMetricError`` for an unknown value."""
        return counted_value(metric, lambda name: self.count(name, scope))


def counted_value(metric: str, count: Callable[[str], int]) -> float:
    """One of ``COUNTED``, or derived from them, where ``count`` gives each. Raises as `Counts.value`."""
    if metric == "coalescing":
        if not (interrupts := count("interrupts")):
            raise UnknownMetricError("there was no interrupt")
        return count("delivered") / interrupts
    if metric == "lost":  # rung, and neither delivered nor pending nor refused
        return float(count("rung") - sum(map(count, ("delivered", "pending", "refused"))))
    return float(count(metric))


class LiveRecording(NamedTuple):
    """A recording that is still written: its machine, and the machine of each ID.

    IDs are ``domain << 16 | peer``: a machine that has migrated has rung in several domains.
    """

    machine: int
    recording: Recording
    machine_of: Mapping[int, int]


def counts_so_far(recordings: Sequence[LiveRecording]) -> Counts:
    """The counts of a run that goes on, read from its recordings; no memory of them stays referenced.

    The machines write while this reads: pending is the number of doorbells rung and not delivered, at least 0.
    """
    edges, lines, nowhere = [], [], 0
    of_peer = {id(live.machine_of): _looked_up(live.machine_of) for live in recordings}
    for live in recordings:
        rang, took = edges_so_far(live.recording), vectors_so_far(live.recording)
        known = of_peer[id(live.machine_of)]
        targets = known[np.minimum(rang[:, 0] >> 16, len(known) - 1)]
        mine = np.full(len(rang), live.machine, np.int64)
        edges.append(np.column_stack((mine, targets, rang[:, 0] & VECTOR_MASK, rang[:, 1:])))
        lines.append(np.column_stack((np.full(len(took), live.machine, np.int64), np.arange(len(took)), took)))
        nowhere += live.recording.words[COUNTER_AT["rung_nowhere"]]
    rung_at, arrived = np.vstack([*edges, np.zeros((0, 5), np.int64)]), np.vstack([*lines, np.zeros((0, 4), np.int64)])
    columns = dict(zip(("source", "target", "vector", "rung", "refused"), rung_at.T, strict=True))
    return Counts(_lines(columns, arrived), columns, nowhere)


def _looked_up(machine_of: Mapping[int, int]) -> Integers:
    """The machine of each possible ID, -1 for none; the last entry, -1, is for all IDs beyond."""
    machines = np.full((max(machine_of, default=0) // PEERS + 1) * PEERS + 1, -1, np.int64)
    machines[list(machine_of)] = list(machine_of.values())
    return machines


def _lines(edges: Mapping[str, Integers], arrived: Integers) -> dict[str, Integers]:
    """The counts by line: rung and refused from the edges, delivered and interrupts from the vectors."""
    keys = np.concatenate((arrived[:, 0] << 16 | arrived[:, 1], edges["target"] << 16 | edges["vector"]))
    there, place = np.unique(keys, return_inverse=True)
    at_line, at_edge = place[: len(arrived)], place[len(arrived) :]
    rung, refused = (sums_at(at_edge, edges[name], len(there)) for name in ("rung", "refused"))
    delivered, interrupts = (sums_at(at_line, column, len(there)) for column in arrived[:, 2:].T)
    return {
        "machine": there >> 16,
        "vector": there & 0xFFFF,
        "rung": rung,
        "refused": refused,
        "delivered": delivered,
        "interrupts": interrupts,
        "pending": np.maximum(0, rung - refused - delivered),
        "settled": np.zeros(len(there), np.int64),
    }


def _array(machines: Collection[int]) -> Integers:
    return np.fromiter(machines, np.int64, len(machines))
