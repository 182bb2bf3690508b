"""Machines that move: what becomes of who they are when one process goes and the next one comes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sim.coordination.domain import LiveDomain
from sim.coordination.machines import Crew
from sim.coordination.peer_ids import introduce, make_known
from sim.engines.process import control
from sim.engines.process.handle import Hand

__all__ = ["Moves"]


class Moves:
    """Follows the migrations of a crew. ``event(kind, **fields)`` is told how they end, and what they left."""

    def __init__(self, crew: Crew, domains: Sequence[LiveDomain], event: Callable[..., None]) -> None:
        self._crew, self._domains, self._event = crew, domains, event

    def begin(self, hand: Hand, pid: int) -> None:
        """The process is there that a machine is to go on in."""
        try:
            self._crew.adopt(hand, pid)
        except ProcessLookupError:
            return  # its source will say so
        if hand.moving is None:  # its source has been killed meanwhile, and the machine with it
            hand.lose_successor()
        hand.tell(control.Proceed())

    def moved(self, hand: Hand, report: control.Moved) -> None:
        """The machine has gone on in its new process; the one before it ends, or has ended."""
        assert hand.moving is not None
        hand.arrive()
        before, domain = hand.rows[0].domain, hand.moving.domain
        row, hand.moving = hand.rows[0], None
        old_peer, hand.peers[0] = hand.peers[0], report.peer
        hand.rows[0] = row._replace(domain=domain)
        self._event(
            "migrated",
            machine=hand.name,
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
            hand.moves.append((row.row, domain, report.peer, time.monotonic_ns() - report.downtime_ns))
            introduce(self._crew, hand, anew=before != domain)
            make_known(self._crew, hand, 0)

    def stayed(self, hand: Hand, reason: str, paused_ns: int, *, stopping: bool) -> None:
        """A migration has come to nothing; whoever was to take over has ended."""
        if hand.ending == "migrate":
            hand.ending = None  # it was to die, but not as early as this
        if hand.moving is not None:  # or the end was before him, and has told so
            self._event("migration_failed", machine=hand.name, reason=reason, downtime_ms=paused_ns / 1e6)
        hand.moving = None
        hand.lose_successor()
        # What was said meanwhile was said to the other process: who has come, and that it is over.
        introduce(self._crew, hand, anew=False)
        if stopping:
            hand.tell(control.Stop())

    def look_back(self, pending: Mapping[tuple[int, int, int], int]) -> None:
        """Tell what lies in the counters of IDs that nobody has any more; ``pending`` by (domain, peer, vector).

        And of whom the end came before the migration that he had just been told of.
        """
        for hand in self._crew.hands:
            if hand.moving is not None and hand.exit is None:
                hand.moving = None
                self._event("migration_failed", machine=hand.name, reason="the run is over", downtime_ms=0.0)
        held: Counter[tuple[int, int]] = Counter()
        for (domain, peer, _), doorbells in pending.items():
            held[domain, peer] += doorbells
        for hand in self._crew.hands:
            now = {(row.domain, peer) for row, peer in zip(hand.rows, hand.peers, strict=True)}
            for _, domain, peer in hand.identities:
                if (domain, peer) not in now:
                    fields = {"domain": self._domains[domain].name, "peer": peer, "doorbells": held[domain, peer]}
                    self._event("left_behind", machine=hand.name, **fields)
