"""The coordinator's side of the wire: who joins and leaves becomes messages, in order.

Byte for byte what QEMU's ivshmem-server sends (contrib/ivshmem-server/ivshmem-server.c), or another dialect's
order. Knows nothing of sockets: the caller delivers each message, in the order given, or disconnects the one
who cannot take it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from nodes.errors import LocalProtocolError
from nodes.protocol import MEMORY, PEERS_MAX, V0, VERSION, Dialect, Message, Step

__all__ = ["Outbound", "Server"]

D = TypeVar("D")


class Outbound(NamedTuple, Generic[D]):
    """One message for one connected peer."""

    peer: int
    message: Message[D]


class Server(Generic[D]):
    """The peers of one shared memory and what each must be told.

    IDs run from 0 and are never reused while the server lives: a real QEMU frees a peer it hears leave and
    corrupts its heap when the ID comes back (hw/misc/ivshmem.c, close_peer_eventfds).
    """

    def __init__(self, memory: D, *, dialect: Dialect = V0) -> None:
        self.dialect = dialect
        self.peers: dict[int, tuple[Message[D], ...]] = {}
        self.next_peer = 0
        self._memory = Message(MEMORY, (memory,))

    def join(self, vectors: Sequence[D]) -> tuple[int, list[Outbound[D]]]:
        """Admit a client whose eventfds are ``vectors``; its ID and all messages this causes, in order.

        Raises ``LocalProtocolError`` when all 65536 IDs have been handed out.
        """
        if self.next_peer >= PEERS_MAX:
            raise LocalProtocolError(f"all {PEERS_MAX} peer IDs have been handed out; start the server anew")
        peer = self.next_peer
        self.next_peer += 1
        own = tuple(Message(peer, (vector,)) for vector in vectors)
        messages = [outbound for step in self.dialect.steps for outbound in self._take(step, peer, own)]
        self.peers[peer] = own
        return peer, messages

    def leave(self, peer: int) -> list[Outbound[D]]:
        """Forget a peer; what the others are told. A peer that is not there is no news to anybody."""
        if self.peers.pop(peer, None) is None:
            return []
        gone: Message[D] = Message(peer)
        return [Outbound(other, gone) for other in self.peers]

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
            case Step.PEERS | Step.PEERS_AND_OWN:
                # IDs only ever grow, so the order of joining is the order of IDs.
                yield from (Outbound(peer, message) for theirs in self.peers.values() for message in theirs)
                if step is Step.PEERS_AND_OWN:
                    yield from (Outbound(peer, message) for message in own)
            case Step.OWN:
                yield from (Outbound(peer, message) for message in own)
