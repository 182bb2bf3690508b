"""The layout of each machine's recordings: how many samples, drains and edges fit."""

from __future__ import annotations

from collections import Counter

from sim.coordination.incarnation import named_machines
from sim.recording import RecordingLayout
from topologies import Machine, Topology
from topologies.actions import Join, Migrate

# The budget of a run on the disk for samples, and the most samples of one machine: none rings or wakes more often.
SAMPLES_BUDGET_BYTES = 1 << 28
SAMPLE_BYTES = 24
SAMPLES_MIN = 1 << 5
SAMPLES_PER_S_MAX = 250_000
SPARE, SPARE_WHERE_MANY = 64, 8
"""Peers that a machine has room for beyond those of the topology."""


class Layouts:
    """The size of each machine's recordings: devices share the run's budget for samples, drains get two thirds.

    ``all_edges``: a machine has room for the counts of all peers; otherwise for those that its program works with.
    """

    def __init__(self, topology: Topology, *, all_edges: bool = True) -> None:
        self._topology, self._all_edges = topology, all_edges
        devices = sum(len(machine.domains) for machine in topology.machines)
        budget_bytes = SAMPLES_BUDGET_BYTES if all_edges else SAMPLES_BUDGET_BYTES // 2
        share = budget_bytes // SAMPLE_BYTES // devices // 3
        most = round(SAMPLES_PER_S_MAX * (topology.run.warmup_s + topology.run.duration_s))
        self._rings = max(SAMPLES_MIN, min(most, share)) if topology.run.sample_every else 0
        self._drains = max(SAMPLES_MIN, min(most, 2 * share))
        # A machine that joins again has another ID, and one more edge for each vector.
        self._incarnations = incarnations = Counter({machine.index: 1 for machine in topology.machines})
        for entry in topology.timeline:
            if isinstance(entry.action, Join | Migrate):
                incarnations.update(dict.fromkeys(entry.machines, entry.repeat))
        self._peers: Counter[int] = Counter()
        self._peers_at_once = Counter(machine.vectors for machine in topology.machines)
        for machine in topology.machines:
            self._peers[machine.vectors] += incarnations[machine.index]
        # A machine that migrates opens its edges anew each time.
        self._moves: Counter[int] = Counter()
        for entry in topology.timeline:
            if isinstance(entry.action, Migrate):
                self._moves.update(dict.fromkeys(entry.machines, entry.repeat))

    def of(self, machine: Machine) -> RecordingLayout:
        """The layout for one device of ``machine``, with some edges to spare for peers that are not in the topology."""
        if not self._all_edges:
            return self._layout(machine, self._named(machine), SPARE_WHERE_MANY)
        edges = sum(min(machine.vectors, vectors) * count for vectors, count in self._peers.items())
        at_once = sum(min(machine.vectors, vectors) * count for vectors, count in self._peers_at_once.items())
        edges += self._moves[machine.index] * at_once
        return self._layout(machine, edges, SPARE)

    def _named(self, machine: Machine) -> int:
        """The edges to the machines that its program works with, in all their incarnations."""
        machines, count = self._topology.machines, self._incarnations
        return sum(min(machine.vectors, machines[index].vectors) * count[index] for index in named_machines(machine))

    def _layout(self, machine: Machine, edges: int, spare: int) -> RecordingLayout:
        return RecordingLayout(
            vectors=machine.vectors, edges=edges + spare * machine.vectors, rings=self._rings, drains=self._drains
        )
