"""A peer that its server has disconnected, while the others have not all heard of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sim.wire.clients import JoinedClient


class Dismissal:
    """Tells which peers may still ring a peer that has been disconnected.

    A peer rings it no more once it has read all that its server has sent, the leave included.

    Args:
        others: those that are connected.
        is_told: whether a leave is in the socket of each of them that takes more for now.
    """

    def __init__(self, others: Iterable[JoinedClient], is_told: Callable[[], bool]) -> None:
        self._others, self._is_told = list(others), is_told

    def unaware(self) -> list[JoinedClient]:
        """The peers that may not know yet."""
        if self._others and self._is_told():
            self._others = [other for other in self._others if not (other.has_left or other.has_read_all)]
        return self._others
