"""The doorbells that a program rings, while peers come and go."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import lru_cache

from nodes.errors import GuestError
from nodes.guest import Guest, Interrupt, Peers

LOOK_EVERY_NS = 10_000_000


def check_vectors(guest: Guest, vectors: Sequence[int]) -> None:
    """Check that vectors can be rung: a device knows no more vectors of a peer than it has itself.

    Raises:
        GuestError: one of them cannot.
    """
    for vector in vectors:
        if not 0 <= vector < guest.vectors:
            raise GuestError(
                f"expected a vector below {guest.vectors}, got {vector}: a machine cannot ring more vectors than it "
                "has itself; give it more, or ask for another"
            )


@lru_cache(maxsize=1 << 17)
def _row(peer: int, vectors: tuple[int, ...] | int) -> tuple[tuple[int, int], ...]:
    """The pairs of a peer: these vectors, or so many. One for all machines of a process: each may know all others."""
    return tuple((peer, vector) for vector in (range(vectors) if isinstance(vectors, int) else vectors))


class Targets:
    """The doorbells that a program rings: (peer, vector) pairs.

    The row of a peer that has not joined yet is empty. A peer that has left is still rung, as the topology asks, and
    its doorbells are refused.

    Args:
        guest: the machine of the program.
        to: the peers to ring.
        vectors: the vectors to ring; None: each vector that a peer has, or had.

    Attributes:
        rows: the pairs of each peer of ``to``, in that order.
        generation: the ``guest.generation`` of the last `look`.

    Raises:
        GuestError: one of the vectors cannot be rung.
    """

    def __init__(self, guest: Guest, to: Peers, vectors: Sequence[int] | None) -> None:
        check_vectors(guest, vectors or ())
        self._guest, self._to, self._vectors = guest, to, None if vectors is None else tuple(vectors)
        self._connected: dict[int, int] = {}  # peer -> how many of its vectors can be rung now
        self._known: dict[int, int] = {}  # the same, as it was when the peer could last be rung
        self.generation = -1
        self.rows: list[tuple[tuple[int, int], ...]] = []

    def look(self) -> bool:
        """Take in which peers are connected; returns whether a peer has come, or has more vectors than before."""
        self.generation = self._guest.generation
        before, vectors_of = self._connected, self._guest.vectors_of
        self._connected = {peer: vectors for peer in self._to if (vectors := vectors_of(peer))}
        self._known.update(self._connected)
        rows = [_row(peer, self._vectors or self._known[peer]) if peer in self._known else () for peer in self._to]
        came = rows != self.rows or any(vectors > before.get(peer, 0) for peer, vectors in self._connected.items())
        self.rows = rows
        return came

    def wait(self) -> Generator[int | None, Interrupt | None, bool]:
        """Look until there is a peer to ring; returns whether that took any time."""
        waited = False
        self.look()
        while not any(self.rows):
            waited = True
            yield self._guest.clock() + LOOK_EVERY_NS
            self.look()
        return waited
