"""The coordinator's side of the wire: who joins and leaves becomes messages, in order.

Byte for byte what QEMU's ivshmem-server sends (contrib/ivshmem-server/ivshmem-server.c), or another dialect's
order. Knows nothing of sockets: the caller delivers each message, in the order given, or disconnects the one
who cannot take it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from nodes.errors import LocalProtocolError
from nodes.wire.protocol import MEMORY, PEERS_MAX, V0, VERSION, Dialect, Message, Step

__all__ = ["Introduction", "Outbound", "Server"]

D = TypeVar("D")

_PRIVATE = {Step.VERSION, Step.ID, Step.MEMORY}


class Outbound(NamedTuple, Generic[D]):
    """One message for one connected peer."""

    peer: int
    message: Message[D]


class Introduction(NamedTuple):
    """Each of ``to`` is told all vectors of each of ``peers``, in this order."""

    to: Sequence[int]
    peers: Sequence[int]


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
        peer = self.enter(vectors)
        return peer, self.spell_out(self.greet([peer]))

    def enter(self, vectors: Sequence[D]) -> int:
        """Admit a client and tell nobody yet; its ID. Raises as ``join`` does."""
        peer = self._next_peer()
        self.peers[peer] = tuple(Message(peer, (vector,)) for vector in vectors)
        return peer

    def greet(self, newcomers: Sequence[int]) -> list[Outbound[D] | Introduction]:
        """What is said because of those who have entered last, in this order.

        Everybody is told what he would be told if each of them had joined before the next one entered; who of
        several is told first may differ.
        """
        present = list(self.peers)
        before = present[: len(present) - len(newcomers)]
        if len(newcomers) > 1 and self._tells_vectors_last(present):
            said: list[Outbound[D] | Introduction] = []
            for peer in newcomers:
                said += [Outbound(peer, self._tell(step, peer)) for step in self.dialect.steps if step in _PRIVATE]
            return [*said, Introduction(before, newcomers), Introduction(newcomers, present)]
        return [said for at, peer in enumerate(newcomers) for said in self._greet(peer, present[: len(before) + at])]

    def spell_out(self, said: Iterable[Outbound[D] | Introduction]) -> list[Outbound[D]]:
        """The same, message by message."""
        messages: list[Outbound[D]] = []
        for each in said:
            if isinstance(each, Introduction):
                messages += [
                    Outbound(to, message) for to in each.to for peer in each.peers for message in self.peers[peer]
                ]
            else:
                messages.append(each)
        return messages

    def leave(self, peer: int) -> list[Outbound[D]]:
        """Forget a peer; what the others are told. For a peer that is not connected, nothing."""
        gone = self.forget(peer)
        return [] if gone is None else [Outbound(other, gone) for other in self.peers]

    def forget(self, peer: int) -> Message[D] | None:
        """Forget a peer; the message that all who are then connected are told. None when it is not connected."""
        if self.peers.pop(peer, None) is None:
            return None
        if self._reuse_peers:
            insort(self._returned, peer)
        return Message(peer)

    def _next_peer(self) -> int:
        if self._returned:
            return self._returned.pop(0)
        if self.next_peer >= PEERS_MAX:
            told = "are in use" if self._reuse_peers else "have been handed out; start the server anew"
            raise LocalProtocolError(f"all {PEERS_MAX} peer IDs {told}")
        self.next_peer += 1
        return self.next_peer - 1

    def _tells_vectors_last(self, present: list[int]) -> bool:
        """Whether a newcomer is told all vectors in the order of ``present`` and nothing after them: then his own
        and those of who comes after him are told alike."""
        steps = self.dialect.steps
        told_at = min(steps.index(step) for step in (Step.PEERS, Step.PEERS_AND_OWN) if step in steps)
        ordered = Step.PEERS_AND_OWN not in steps or present == sorted(present)
        return ordered and not _PRIVATE & set(steps[told_at:])

    def _greet(self, peer: int, others: list[int]) -> Iterator[Outbound[D] | Introduction]:
        for step in self.dialect.steps:
            match step:
                case Step.ANNOUNCE:
                    yield Introduction(others, [peer])
                case Step.PEERS:
                    yield Introduction([peer], others)
                case Step.PEERS_AND_OWN:
                    yield Introduction([peer], sorted([*others, peer]))
                case Step.OWN:
                    yield Introduction([peer], [peer])
                case _:
                    yield Outbound(peer, self._tell(step, peer))

    def _tell(self, step: Step, peer: int) -> Message[D]:
        """What a newcomer alone is told."""
        return self._memory if step is Step.MEMORY else Message(VERSION if step is Step.VERSION else peer)
