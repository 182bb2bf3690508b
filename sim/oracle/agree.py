"""Runs a topology simulated and with real QEMUs, and tells whether both agree."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from sim.oracle.agreement import Difference, compare_facts
from sim.oracle.facts import Facts, facts
from sim.oracle.real_share import Pair
from sim.results import Run
from sim.runner import Begun, run
from topologies import Topology


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome.

    Attributes:
        machines: those that were real.
        edges: how many edges were rung in both runs.
        doorbells: how many doorbells each run rang.
        simulated, real: the run directories.
    """

    topology: str
    seed: int
    machines: list[str]
    edges: int
    doorbells: tuple[int, int]
    simulated: str
    real: str
    differences: list[Difference]
    notes: list[str]

    @property
    def agrees(self) -> bool:
        """Whether there is no difference that nothing explains."""
        return all(difference.explained for difference in self.differences)


def agree(pair: Pair, *, runs: Path) -> Agreement:
    """Run both topologies of a pair, in the directory ``runs``, and compare them.

    Raises:
        HostError: this host cannot carry them.
    """
    seen: list[tuple[Run, Facts]] = []
    for topology in (pair.simulated, pair.real):
        seen.append(_run(topology, runs))
    (simulated, a), (real, b) = seen
    return Agreement(
        topology=pair.simulated.source_name,
        seed=pair.simulated.seed,
        machines=pair.real_machines,
        edges=len(a.edges.keys() & b.edges.keys()),
        doorbells=(sum(a.edges.values()), sum(b.edges.values())),
        simulated=os.fspath(simulated.path),
        real=os.fspath(real.path),
        differences=list(compare_facts(pair.simulated, pair.profiles, a, b)),
        notes=list(pair.notes),
    )


def _run(topology: Topology, runs: Path) -> tuple[Run, Facts]:
    """One run, and what it left in the memories."""
    memories: dict[str, int] = {}

    def begin(begun: Begun) -> None:
        for access in begun.access:
            memories[access.domain] = os.open(f"/dev/shm/{access.memory}", os.O_RDONLY | os.O_CLOEXEC)

    try:
        done = run(topology, runs=runs, on_begin=begin, resources_every_s=0)
        contents = {
            name: os.pread(descriptor, os.fstat(descriptor).st_size, 0) for name, descriptor in memories.items()
        }
    finally:
        for descriptor in memories.values():
            os.close(descriptor)
    return done, facts(done, contents)
