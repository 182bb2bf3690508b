"""How a run ended, as its coordinator saw it."""

from __future__ import annotations

from dataclasses import dataclass, field


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
