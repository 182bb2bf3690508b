"""The server's side of the wire of ivshmem v2: joins and leaves become messages, in order.

The messages are byte for byte those of the QEMU fork's ivshmem2-server. IDs are the smallest free ones, and are reused
at once. The caller clears the State Table's entry of a peer that leaves before it delivers what `forget` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from nodes.errors import LocalProtocolError, UsageError
from nodes.wire.protocol import PEERS_MAX, Message, Step
from nodes.wire.server import Server
from nodes.wire.v2.protocol import PROTOCOL_VIRTIO, V2, VECTORS_MAX, DomainNumbers, Frame, protocol_of

D = TypeVar("D")


class FramedServer(Server[D]):
    """The peers of one shared memory of version 2, and what each of them is told.

    Args:
        memory: the descriptor of the shared memory.
        numbers: what every client is told.

    Raises:
        UsageError: numbers that no server has (ivshmem2-server, main.c).
    """

    def __init__(self, memory: D, numbers: DomainNumbers) -> None:
        super().__init__(memory, dialect=V2, reuse_peers=True)
        if not 2 <= numbers.max_peers <= PEERS_MAX:
            raise UsageError(f"expected 2 to {PEERS_MAX} peers, got {numbers.max_peers}")
        if not 1 <= numbers.vectors <= VECTORS_MAX:
            raise UsageError(f"expected 1 to {VECTORS_MAX} vectors, got {numbers.vectors}")
        if numbers.protocol >= PROTOCOL_VIRTIO and numbers.max_peers > 2:
            raise UsageError(f"a virtio protocol ({numbers.protocol:#06x}) has 2 peers, got {numbers.max_peers}")
        self.numbers = numbers
        self._shared = memory

    def enter(self, vectors: Sequence[D]) -> int:
        if len(vectors) != self.numbers.vectors:
            raise LocalProtocolError(f"each peer has {self.numbers.vectors} vectors here, not {len(vectors)}")
        return super().enter(vectors)

    def _next_peer(self) -> int:
        if len(self.peers) >= self.numbers.max_peers:
            raise LocalProtocolError(f"all {self.numbers.max_peers} peers are connected")
        return super()._next_peer()

    def _announcements(self, peer: int, vectors: Sequence[D]) -> tuple[Message[D], ...]:
        return tuple(Frame.event_fd(peer, vector, line) for vector, line in enumerate(vectors))

    def _farewell(self, peer: int) -> Message[D]:
        return Frame.peer_gone(peer & 0xFFFF_FFFF)

    def _tell(self, step: Step, peer: int) -> Message[D]:
        """INIT, which has the ID and the memory."""
        numbers = self.numbers._replace(protocol=protocol_of(peer, self.numbers.protocol))
        return Frame.init(peer, numbers, self._shared)
