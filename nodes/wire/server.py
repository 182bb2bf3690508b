"""The coordinator's side of the wire: who joins and leaves becomes messages, in order.

Byte for byte what QEMU's ivshmem-server sends (contrib/ivshmem-server/ivshmem-server.c), or another dialect's
order. Knows nothing of sockets: the caller delivers each message, in the order given, or disconnects the one
who cannot take it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from nodes.errors import LocalProtocolError
from nodes.wire.protocol import MEMORY, PEERS_MAX, V0, VERSION, Dialect, Message, Step

__all__ = ["Outbound", "Server"]

D = TypeVar("D")


class Outbound(NamedTuple, Generic[D]):
    """One message for one connected peer."""

    peer: int
    message: Message[D]


class Server(Generic[D]):
    """The peers of one shared memory and what each must be told.

    IDs run from ``first_peer`` and are never reused while the server lives: a real QEMU frees a peer it hears
    leave and corrupts its heap when the ID comes back (hw/misc/ivshmem.c, close_peer_eventfds). With
    ``reuse_peers`` the lowest free ID is given all the same, as fixed slots have it.
    """

    def __init__(self, memory: D, *, dialect: Dialect = V0, first_peer: int = 0, reuse_peers: bool = False) -> None:
        self.dialect = dialect
        self.peers: dict[int, tuple[Message[D], ...]] = {}
        self.next_peer = first_peer
        self._reuse_peers = reuse_peers
        self._returned: list[int] = []  # ascending; only with reuse_peers
        self._memory = Message(MEMORY, (memory,))

    def join(self, vectors: Sequence[D]) -> tuple[int, list[Outbound[D]]]:
        """Admit a client whose eventfds are ``vectors``; its ID and all messages this causes, in order.

        Raises ``LocalProtocolError`` when all 65536 IDs have been handed out.
        """
        peer = self._next_peer()
        own = tuple(Message(peer, (vector,)) for vector in vectors)
        messages = [outbound for step in self.dialect.steps for outbound in self._take(step, peer, own)]
        self.peers[peer] = own
        return peer, messages

    def leave(self, peer: int) -> list[Outbound[D]]:
        """Forget a peer; what the others are told. A peer that is not there is no news to anybody."""
        if self.peers.pop(peer, None) is None:
            return []
        if self._reuse_peers:
            insort(self._returned, peer)
        gone: Message[D] = Message(peer)
        return [Outbound(other, gone) for other in self.peers]

    def _next_peer(self) -> int:
        if self._returned:
            return self._returned.pop(0)
        if self.next_peer >= PEERS_MAX:
            told = "are in use" if self._reuse_peers else "have been handed out; start the server anew"
            raise LocalProtocolError(f"all {PEERS_MAX} peer IDs {told}")
        self.next_peer += 1
        return self.next_peer - 1

    def _take(self, step: Step, peer: int, own: tuple[Message[D], ...]) -> Iterator[Outbound[D]]:
        match step:
            case Step.VERSION:
                yield Outbound(peer, Message(VERSION))
            case Step.ID:
                yield Outbound(peer, Message(peer))
            case Step.MEMORY:
                yield Outbound(peer, self._memory)
            case Step.ANNOUNCE:
                yield from (Outbound(other, message) for other in self.peers for message in own)
            case Step.PEERS:
                yield from (Outbound(peer, message) for theirs in self.peers.values() for message in theirs)
            case Step.PEERS_AND_OWN:
                for _, theirs in sorted({**self.peers, peer: own}.items()):
                    yield from (Outbound(peer, message) for message in theirs)
            case Step.OWN:
                yield from (Outbound(peer, message) for message in own)
