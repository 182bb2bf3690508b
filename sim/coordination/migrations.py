"""Migrations of machines: their IDs and domains before and after, and what a migration leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sim.coordination.domain import LiveDomain
from sim.coordination.incarnation import FAILED, MIGRATED, Incarnation
from sim.coordination.machines import LiveMachines
from sim.coordination.peer_ids import announce_new_id, send_peer_ids
from sim.engines import messages
from sim.engines.base import Clock


class Migrations:
    """Follows the migrations of a run. ``event(kind, **fields)`` gets their outcome and the doorbells left behind."""

    def __init__(
        self, machines: LiveMachines, domains: Sequence[LiveDomain], clock: Clock, event: Callable[..., None]
    ) -> None:
        self._machines, self._domains, self._clock, self._event = machines, domains, clock, event

    def moved(self, incarnation: Incarnation, report: messages.Moved) -> None:
        if incarnation.migration is None:
            return  # the machine has ended meanwhile
        before, domain = incarnation.rows[0].domain, incarnation.migration.domain
        peer = incarnation.migration.peer if report.peer is None else report.peer
        assert peer is not None, "it has joined"
        row, incarnation.migration = incarnation.rows[0], None
        old_peer, incarnation.peers[0] = incarnation.peers[0], peer
        incarnation.rows[0] = row._replace(domain=domain)
        incarnation.migrations[MIGRATED] += 1
        self._event(
            "migrated",
            machine=incarnation.name,
            from_peer=old_peer,
            to_peer=peer,
            from_domain=self._domains[before].name,
            to_domain=self._domains[domain].name,
            downtime_ms=report.downtime_ns / 1e6,
            state_bytes=report.state_bytes,
            memory_bytes=report.memory_bytes,
            pending_vectors=report.pending_vectors,
        )
        if (before, old_peer) != (domain, peer):
            # The machine was paused until now, so it has no drain in the pause.
            since_ns = self._clock.now_ns() - report.downtime_ns
            incarnation.moves.append((row.row, domain, peer, since_ns))
            send_peer_ids(self._machines, incarnation, anew=before != domain)
            announce_new_id(self._machines, incarnation, 0)

    def stayed(self, incarnation: Incarnation, report: messages.Stayed, *, stopping: bool) -> None:
        """A migration has failed; the machine continues where it was."""
        if incarnation.ending == "migrate":
            incarnation.ending = None  # it was to be killed, but the migration failed before
        if incarnation.migration is not None:  # otherwise its end was reported first
            downtime_ms = report.paused_ns / 1e6
            incarnation.migrations[FAILED] += 1
            self._event("migration_failed", machine=incarnation.name, reason=report.reason, downtime_ms=downtime_ms)
        incarnation.migration = None
        # Orders that were sent meanwhile may have gone to the other process: which IDs there are, and Stop.
        send_peer_ids(self._machines, incarnation, anew=False)
        if stopping:
            incarnation.live.tell(messages.Stop())

    def conclude(self, pending: Mapping[tuple[int, int, int], int]) -> None:
        """Report migrations in progress, and doorbells (by domain, peer, vector) left at IDs that no machine has."""
        for incarnation in self._machines.incarnations:
            if incarnation.migration is not None and incarnation.exit is None:
                incarnation.migration = None
                self._event("migration_failed", machine=incarnation.name, reason="the run is over", downtime_ms=0.0)
        held: Counter[tuple[int, int]] = Counter()
        for (domain, peer, _), doorbells in pending.items():
            held[domain, peer] += doorbells
        for incarnation in self._machines.incarnations:
            now = {(row.domain, peer) for row, peer in zip(incarnation.rows, incarnation.peers, strict=True)}
            for _, domain, peer in incarnation.identities:
                if (domain, peer) not in now:
                    fields = {"domain": self._domains[domain].name, "peer": peer, "doorbells": held[domain, peer]}
                    self._event("left_behind", machine=incarnation.name, **fields)
