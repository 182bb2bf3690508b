"""The announcements of a server that peers have not been sent yet, in order; each is encoded once for all peers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nodes.wire.protocol import V0, Dialect, Message
from sim.kernel.mmsg import Batch, BatchWriter, join_neighbours
from sim.wire.clients import JoinedClient

MISSED_MAX = 512


class _ToPeers(NamedTuple):
    """For some peers, by their IDs."""

    to: Sequence[int]
    said: Message[int] | list[Batch]


class _Leaves(NamedTuple):
    """Leaves that no join separates, for all peers that joined before them."""

    joined: int
    said: list[Batch]


class Announcements:
    """A queue of messages for ``peers``, a server's peers in the order in which they joined.

    Peers that have left since are not told. Leaves that no join separates are one entry: their receivers are looked up
    once, when they are told. A peer that is stuck takes no more for now: it is told of leaves when it does, or when it
    has missed many. So thousands of peers that leave together cost what those cost that can still hear of it.
    """

    def __init__(self, peers: Mapping[int, JoinedClient], dialect: Dialect = V0) -> None:
        self._peers = peers
        self._ready: dict[int, JoinedClient] = {}
        self.stuck: dict[int, JoinedClient] = {}
        """The peers that take no more for now, in the order in which they are to be tried again."""
        self._missed: list[_Leaves] = []
        self._misses_from = 0  # the greatest of all peers: what is before it is not changed any more
        self._joined = 0
        self._queue: deque[_ToPeers | _Leaves] = deque()
        self._vectors, self._leaves = BatchWriter(dialect.vector_bytes), BatchWriter(dialect.leave_bytes)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def lay_out(self, vectors: Sequence[Message[int]]) -> Batch:
        """The vectors of a peer that joins now."""
        return self._vectors.lay_out(vectors)

    def joins(self, peer: JoinedClient) -> None:
        """A peer has joined: it is told of no leave before."""
        peer.joined_at = self._joined
        self._joined += 1
        self._ready[peer.peer] = peer

    def sticks(self, peer: JoinedClient, cause: str) -> None:
        """A peer takes no more for now, because of ``cause``; it is tried again after all others."""
        if peer.stuck_by:
            del self.stuck[peer.peer]
        else:
            del self._ready[peer.peer]
            peer.misses_from = self._misses_from = len(self._missed)
        peer.stuck_by = cause
        self.stuck[peer.peer] = peer

    def is_ready(self, peer: JoinedClient) -> None:
        """A peer that was stuck has been told everything."""
        peer.stuck_by = ""
        del self.stuck[peer.peer]
        self._ready[peer.peer] = peer

    def tell(self, peer: int, message: Message[int]) -> None:
        self._queue.append(_ToPeers([peer], message))

    def announce_vectors(self, to: Sequence[int], peers: Sequence[int]) -> None:
        """Queue all vectors of ``peers`` for the peers in ``to``."""
        self._queue.append(_ToPeers(to, join_neighbours(self._peers[number].vectors for number in peers)))

    def leaves(self, peer: JoinedClient, message: Message[int]) -> None:
        """Queue the leave of a peer for all connected peers."""
        self._ready.pop(peer.peer, None)
        self.stuck.pop(peer.peer, None)
        gone = self._leaves.lay_out([message])
        last = self._queue[-1] if self._queue else None
        if isinstance(last, _Leaves) and last.joined == self._joined:
            last.said.extend(join_neighbours([last.said.pop(), gone]))
        elif self._peers:
            self._queue.append(_Leaves(self._joined, [gone]))

    def take(self) -> tuple[list[JoinedClient], Message[int] | list[Batch]]:
        """Remove the first entry; returns its connected receivers, and its messages."""
        first = self._queue.popleft()
        if isinstance(first, _Leaves):
            if self.stuck:
                self._miss(first)
            return [peer for peer in self._ready.values() if peer.joined_at < first.joined], first.said
        return [peer for number in first.to if (peer := self._peers.get(number)) is not None], first.said

    def _miss(self, leaves: _Leaves) -> None:
        last = self._missed[-1] if len(self._missed) > self._misses_from else None
        if last is not None and last.joined == leaves.joined:
            last.said[:] = join_neighbours([*last.said, *leaves.said])
        else:
            self._missed.append(_Leaves(leaves.joined, [*leaves.said]))

    def missed(self, peer: JoinedClient) -> list[Batch]:
        """The leaves that a stuck peer was not told of; from here on it misses others."""
        missed = self._missed[peer.misses_from :]
        peer.misses_from = self._misses_from = len(self._missed)
        return join_neighbours(batch for each in missed if peer.joined_at < each.joined for batch in each.said)

    def all_missed(self) -> list[tuple[JoinedClient, list[Batch]]]:
        """The leaves that each stuck peer was not told of, once they are many."""
        if sum(batch.stop - batch.start for each in self._missed for batch in each.said) < MISSED_MAX:
            return []
        missed = [(peer, self.missed(peer)) for peer in self.stuck.values()]
        self._missed.clear()
        self._misses_from = 0
        for peer, _ in missed:
            peer.misses_from = 0
        return missed
