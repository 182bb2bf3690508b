"""The state of a run that its coordinator shows to its parts, and how the run ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sim.coordination.domain import LiveDomain
from sim.coordination.machines import LiveMachines
from topologies import Topology


@dataclass
class RunEnd:
    """How the run ended, as the coordinator saw it. ``pending`` is by (domain, peer, vector).

    ``foreign_peers`` counts the processes that have joined and are no machine of the topology.
    """

    status: str = "finished"
    reason: str = ""
    pending: dict[tuple[int, int, int], int] = field(default_factory=dict)
    foreign_peers: int = 0
    start_ns: int = 0
    measure_start_ns: int = 0
    stop_ns: int = 0
    ready_ns: int = 0
    phases: list[tuple[str, int, int, bool]] = field(default_factory=list)
    """Name, beginning, end and whether it is measured, of each."""


class CoordinatedRun(Protocol):
    """The coordinator, as the monitor, the timeline and the watch for outliers use it."""

    topology: Topology
    phase: str
    machines: LiveMachines
    domains: list[LiveDomain]
    ending: RunEnd

    def stop(self, status: str, reason: str) -> None: ...
