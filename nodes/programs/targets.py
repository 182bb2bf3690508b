"""Whom programs ring, while peers come and go."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from nodes.errors import GuestError
from nodes.guest import Guest, Interrupt, Peers

__all__ = ["Targets", "check_vectors"]

LOOK_EVERY_NS = 10_000_000


def check_vectors(guest: Guest, vectors: Sequence[int]) -> None:
    """Raise `GuestError` for a vector that cannot be rung: a device knows no more of a peer's than it has itself."""
    for vector in vectors:
        if not 0 <= vector < guest.vectors:
            raise GuestError(
                f"expected a vector below {guest.vectors}, got {vector}: a machine cannot ring more vectors than it "
                "has itself; give it more, or ask for another"
            )


class Targets:
    """The doorbells that a program rings: ``rows`` has (peer, vector) pairs, for each peer of ``to`` in that order.

    The row of a peer that has not come yet is empty. One that left is rung as before, at nobody: the program was
    told to. Without ``vectors``, it is every one that a peer has, or had. ``generation`` is that of the last look.
    """

    def __init__(self, guest: Guest, to: Peers, vectors: Sequence[int] | None) -> None:
        check_vectors(guest, vectors or ())
        self._guest, self._to, self._vectors = guest, to, vectors
        self._there: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self.generation = -1
        self.rows: list[list[tuple[int, int]]] = []

    def look(self) -> bool:
        """See who is there; whether anybody came, or became more than before."""
        self.generation = self._guest.generation
        before, self._there = self._there, self._guest.peers
        self._known.update(self._there)
        rows = [self._row(peer) if peer in self._known else [] for peer in self._to]
        came = rows != self.rows or any(self._there.get(peer, 0) > before.get(peer, 0) for peer in self._to)
        self.rows = rows
        return came

    def _row(self, peer: int) -> list[tuple[int, int]]:
        return [(peer, vector) for vector in self._vectors or range(self._known[peer])]

    def wait(self) -> Generator[int | None, Interrupt | None, bool]:
        """Look until there is somebody to ring; whether that took any time."""
        waited = False
        self.look()
        while not any(self.rows):
            waited = True
            yield self._guest.clock() + LOOK_EVERY_NS
            self.look()
        return waited
