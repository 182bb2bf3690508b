"""The changes that a peer sees: joins, leaves, the end of the server, and States (ivshmem v2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from nodes.device.v2.sections import Sections


class PeerChange(NamedTuple):
    """A peer has joined or left, or the server has closed the connection (``peer`` is None)."""

    kind: Literal["joined", "left", "server_closed"]
    peer: int | None = None

    def __str__(self) -> str:
        if self.kind == "server_closed":
            return "the server has closed the connection; doorbells and interrupts go on without it"
        return f"peer {self.peer} has {self.kind}"


class StateChange(NamedTuple):
    """A peer of ivshmem v2 has another State; ``kind`` is "state"."""

    kind: Literal["state"]
    peer: int
    state: int

    def __str__(self) -> str:
        return f"peer {self.peer} has State {self.state}"


Change = PeerChange | StateChange


class StateWatch:
    """Compares the State Table of ivshmem v2 with what it was at the last look.

    A State that changes twice between two looks is told once, with its last value: the table has no history.

    Args:
        on_change: ``on_change(change)`` is called for each peer whose State is another one, the own one excepted.
    """

    def __init__(self, on_change: Callable[[Change], object]) -> None:
        self._on_change = on_change
        self._seen: list[int] = []

    def begin(self, sections: Sections | None) -> None:
        """Take the States as they are now for known."""
        self._seen = [] if sections is None else sections.states()

    def look(self, sections: Sections | None) -> None:
        """Tell what differs. Without sections, or before `begin`, nothing does."""
        if sections is None or not self._seen:
            return
        before, self._seen = self._seen, sections.states()
        for peer, (old, new) in enumerate(zip(before, self._seen, strict=True)):
            if old != new and peer != sections.peer:
                self._on_change(StateChange("state", peer, new))
