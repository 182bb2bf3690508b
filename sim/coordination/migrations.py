"""Machines that move: what becomes of who they are when one process goes and the next one comes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sim.coordination.domain import LiveDomain
from sim.coordination.machines import LiveMachines
from sim.coordination.peer_ids import introduce, make_known
from sim.engines.process import control
from sim.engines.process.handle import WorkerHandle

__all__ = ["Migrations"]


class Migrations:
    """Follows the migrations of a crew. ``event(kind, **fields)`` is told how they end, and what they left."""

    def __init__(self, machines: LiveMachines, domains: Sequence[LiveDomain], event: Callable[..., None]) -> None:
        self._machines, self._domains, self._event = machines, domains, event

    def begin(self, handle: WorkerHandle, pid: int) -> None:
        """The process is there that a machine is to go on in."""
        try:
            self._machines.adopt(handle, pid)
        except ProcessLookupError:
            return  # its source will say so
        if handle.moving is None:  # its source has been killed meanwhile, and the machine with it
            handle.lose_successor()
        handle.tell(control.Proceed())

    def moved(self, handle: WorkerHandle, report: control.Moved) -> None:
        """The machine has gone on in its new process; the one before it ends, or has ended."""
        assert handle.moving is not None
        handle.arrive()
        before, domain = handle.rows[0].domain, handle.moving.domain
        row, handle.moving = handle.rows[0], None
        old_peer, handle.peers[0] = handle.peers[0], report.peer
        handle.rows[0] = row._replace(domain=domain)
        self._event(
            "migrated",
            machine=handle.name,
            from_peer=old_peer,
            to_peer=report.peer,
            from_domain=self._domains[before].name,
            to_domain=self._domains[domain].name,
            downtime_ms=report.downtime_ns / 1e6,
            state_bytes=report.state_bytes,
            memory_bytes=report.memory_bytes,
            pending_vectors=report.pending_vectors,
        )
        if (before, old_peer) != (domain, report.peer):
            # It stood still until now: whenever that was, no drain of its own falls between this and the pause.
            handle.moves.append((row.row, domain, report.peer, time.monotonic_ns() - report.downtime_ns))
            introduce(self._machines, handle, anew=before != domain)
            make_known(self._machines, handle, 0)

    def stayed(self, handle: WorkerHandle, reason: str, paused_ns: int, *, stopping: bool) -> None:
        """A migration has come to nothing; whoever was to take over has ended."""
        if handle.ending == "migrate":
            handle.ending = None  # it was to die, but not as early as this
        if handle.moving is not None:  # or the end was before him, and has told so
            self._event("migration_failed", machine=handle.name, reason=reason, downtime_ms=paused_ns / 1e6)
        handle.moving = None
        handle.lose_successor()
        # What was said meanwhile was said to the other process: who has come, and that it is over.
        introduce(self._machines, handle, anew=False)
        if stopping:
            handle.tell(control.Stop())

    def look_back(self, pending: Mapping[tuple[int, int, int], int]) -> None:
        """Tell what lies in the counters of IDs that nobody has any more; ``pending`` by (domain, peer, vector).

        And of whom the end came before the migration that he had just been told of.
        """
        for handle in self._machines.handles:
            if handle.moving is not None and handle.exit is None:
                handle.moving = None
                self._event("migration_failed", machine=handle.name, reason="the run is over", downtime_ms=0.0)
        held: Counter[tuple[int, int]] = Counter()
        for (domain, peer, _), doorbells in pending.items():
            held[domain, peer] += doorbells
        for handle in self._machines.handles:
            now = {(row.domain, peer) for row, peer in zip(handle.rows, handle.peers, strict=True)}
            for _, domain, peer in handle.identities:
                if (domain, peer) not in now:
                    fields = {"domain": self._domains[domain].name, "peer": peer, "doorbells": held[domain, peer]}
                    self._event("left_behind", machine=handle.name, **fields)
