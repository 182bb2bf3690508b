"""The server's side of the wire: joins and leaves become messages, in order.

The messages are byte for byte those of QEMU's ivshmem-server (contrib/ivshmem-server/ivshmem-server.c), or in the order
of another dialect. This module uses no socket: the caller delivers each message, in the given order, or disconnects a
client that does not take it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from nodes.errors import LocalProtocolError
from nodes.wire.protocol import MEMORY, PEERS_MAX, V0, VERSION, Dialect, Message, RawMessage, Step

D = TypeVar("D")

_PRIVATE = {Step.VERSION, Step.ID, Step.MEMORY, Step.INIT}


class Outbound(NamedTuple, Generic[D]):
    """One message for one connected peer."""

    peer: int
    message: Message[D]


class VectorAnnouncement(NamedTuple):
    """Every client in ``to`` gets all vectors of each peer in ``peers``, in this order."""

    to: Sequence[int]
    peers: Sequence[int]


class Server(Generic[D]):
    """The peers of one shared memory, and what each of them is told.

    Args:
        memory: the descriptor of the shared memory.
        dialect: the order of the messages.
        first_peer: the first ID. IDs are not reused while the server runs: a real QEMU frees a peer that leaves and
            corrupts its heap when the ID comes back (hw/misc/ivshmem.c, close_peer_eventfds).
        reuse_peers: give each newcomer the lowest free ID instead, as a fixed number of slots requires.

    Attributes:
        peers: ID -> the messages that announce its vectors, in the order of the joins.
        next_peer: the ID of the next client, unless an ID is reused.
    """

    def __init__(self, memory: D, *, dialect: Dialect = V0, first_peer: int = 0, reuse_peers: bool = False) -> None:
        self.dialect = dialect
        self.peers: dict[int, tuple[Message[D], ...]] = {}
        self.next_peer = first_peer
        self._reuse_peers = reuse_peers
        self._returned: list[int] = []  # ascending; only with reuse_peers
        self._memory = Message(MEMORY, (memory,))

    def join(self, vectors: Sequence[D]) -> tuple[int, list[Outbound[D]]]:
        """Admit a client.

        Args:
            vectors: its eventfds.

        Returns:
            Its ID, and all messages that this causes, in order.

        Raises:
            LocalProtocolError: all 65536 IDs have been given.
        """
        peer = self.enter(vectors)
        return peer, self.spell_out(self.greet([peer]))

    def enter(self, vectors: Sequence[D]) -> int:
        """Admit a client and announce it later, by `greet`; returns its ID.

        Raises:
            LocalProtocolError: all 65536 IDs have been given.
        """
        peer = self._next_peer()
        self.peers[peer] = self._announcements(peer, vectors)
        return peer

    def greet(self, newcomers: Sequence[int]) -> list[Outbound[D] | VectorAnnouncement]:
        """The messages that the clients in ``newcomers`` cause, which have just entered in this order.

        Each client gets the messages that it would get if each newcomer had joined before the next one entered. Only
        the order between different clients may differ.
        """
        present = list(self.peers)
        before = present[: len(present) - len(newcomers)]
        if len(newcomers) > 1 and self._tells_vectors_last(present):
            said: list[Outbound[D] | VectorAnnouncement] = []
            for peer in newcomers:
                said += [Outbound(peer, self._tell(step, peer)) for step in self.dialect.steps if step in _PRIVATE]
            return [*said, VectorAnnouncement(before, newcomers), VectorAnnouncement(newcomers, present)]
        return [said for at, peer in enumerate(newcomers) for said in self._greet(peer, present[: len(before) + at])]

    def spell_out(self, said: Iterable[Outbound[D] | VectorAnnouncement]) -> list[Outbound[D]]:
        """The same, with one message for each vector of a `VectorAnnouncement`."""
        messages: list[Outbound[D]] = []
        for each in said:
            if isinstance(each, VectorAnnouncement):
                messages += [
                    Outbound(to, message) for to in each.to for peer in each.peers for message in self.peers[peer]
                ]
            else:
                messages.append(each)
        return messages

    def leave(self, peer: int) -> list[Outbound[D]]:
        """Remove a peer; returns the messages to the others, none if it was not connected."""
        gone = self.forget(peer)
        return [] if gone is None else [Outbound(other, gone) for other in self.peers]

    def forget(self, peer: int) -> Message[D] | None:
        """Remove a peer; returns the message for all peers that remain, or None when it is not connected."""
        if self.peers.pop(peer, None) is None:
            return None
        if self._reuse_peers:
            insort(self._returned, peer)
        return self._farewell(peer)

    def malformed(self, kind: str, peer: int) -> Message[D]:
        """A message that a server must not send to a peer that has its greeting.

        Args:
            kind: "bad_peer", "negative_peer", "left_itself" and "left_unknown" (the leave of an ID that no peer has, of
                -2, of this peer, of the last ID), "memory_again", "memory_missing" (a second greeting or memory, the
                latter without its descriptor), "half_message".
            peer: the peer that gets it.
        """
        leaves = {"bad_peer": PEERS_MAX, "negative_peer": -2, "left_itself": peer, "left_unknown": PEERS_MAX - 1}
        if kind in leaves:
            return self._farewell(leaves[kind])
        if kind == "half_message":
            data = self._farewell(peer).encode()
            return RawMessage.of(data[: len(data) // 2])
        memory = self._tell(Step.MEMORY, peer)
        return memory if kind == "memory_again" else RawMessage.of(memory.encode())

    def _announcements(self, peer: int, vectors: Sequence[D]) -> tuple[Message[D], ...]:
        return tuple(Message(peer, (vector,)) for vector in vectors)

    def _farewell(self, peer: int) -> Message[D]:
        """The message that a peer has left."""
        return Message(peer)

    def _next_peer(self) -> int:
        if self._returned:
            return self._returned.pop(0)
        if self.next_peer >= PEERS_MAX:
            told = "are in use" if self._reuse_peers else "have been given; restart the server"
            raise LocalProtocolError(f"all {PEERS_MAX} peer IDs {told}")
        self.next_peer += 1
        return self.next_peer - 1

    def _tells_vectors_last(self, present: list[int]) -> bool:
        """Whether a newcomer is told all vectors in the order of ``present`` and nothing after them.

        Then its own vectors, and those of clients that join after it, are announced in the same way.
        """
        steps = self.dialect.steps
        told_at = min(steps.index(step) for step in (Step.PEERS, Step.PEERS_AND_OWN) if step in steps)
        ordered = Step.PEERS_AND_OWN not in steps or present == sorted(present)
        return ordered and not _PRIVATE & set(steps[told_at:])

    def _greet(self, peer: int, others: list[int]) -> Iterator[Outbound[D] | VectorAnnouncement]:
        for step in self.dialect.steps:
            match step:
                case Step.ANNOUNCE:
                    yield VectorAnnouncement(others, [peer])
                case Step.PEERS:
                    yield VectorAnnouncement([peer], others)
                case Step.PEERS_AND_OWN:
                    yield VectorAnnouncement([peer], sorted([*others, peer]))
                case Step.OWN:
                    yield VectorAnnouncement([peer], [peer])
                case _:
                    yield Outbound(peer, self._tell(step, peer))

    def _tell(self, step: Step, peer: int) -> Message[D]:
        """A message that only the newcomer gets."""
        return self._memory if step is Step.MEMORY else Message(VERSION if step is Step.VERSION else peer)
