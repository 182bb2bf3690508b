"""The client's side of the wire of ivshmem v2: a server's messages as events.

It follows the device of the QEMU fork (hw/misc/ivshmem2.c), with its words, and reports an error where that device
exits, aborts or hangs. After INIT, what is odd and changes nothing is an `Ignored` event, like that device's line on
stderr. It also refuses what that device accepts and cannot work with: fewer than two peers, an ID beyond the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from nodes.errors import RemoteProtocolError
from nodes.wire.client import Client, Event, Ignored, MemoryShared, PeerLeft, VectorConnected
from nodes.wire.protocol import PEERS_MAX, Message
from nodes.wire.v2.protocol import V2, VECTORS_MAX, VERSION, DomainNumbers, Frame, FrameDecoder, FrameKind, decode_init

D = TypeVar("D")

BUFFER_BYTES = 32
"""ivshmem2.c, ``msg_buf``: after INIT, a longer message never fits, and the assertion in ivshmem_can_receive fails."""


class Initialized(MemoryShared[D], Generic[D], frozen=True):
    """The server has given this client its ID, the numbers of the domain and the shared memory."""

    peer: int
    numbers: DomainNumbers


class FramedClient(Client[D]):
    """As `Client`, for a server that speaks ivshmem v2, which tells how many vectors there are.

    Attributes:
        numbers: what the server tells of the domain; None until it has come.
    """

    def __init__(self) -> None:
        super().__init__(0, dialect=V2)
        self.numbers: DomainNumbers | None = None
        self._decoder = self._frames = FrameDecoder[D]()

    @property
    def awaited(self) -> str:
        return "INIT"

    def _take_events(self) -> Iterator[Event[D]]:
        yield from super()._take_events()
        self._frames.check()

    def _interpret(self, message: Message[D]) -> Iterator[Event[D]]:
        assert isinstance(message, Frame)
        event = self._event(message)
        yield event
        used = len(message.descriptors) if isinstance(event, Ignored) else 0 if isinstance(event, PeerLeft) else 1
        if surplus := message.descriptors[used:]:
            yield Ignored("server sent more descriptors with a message than it takes", surplus)

    def _event(self, frame: Frame[D]) -> Event[D]:
        if self.numbers is None:
            return self._initialize(frame)
        if (size_bytes := len(frame.encode())) > BUFFER_BYTES:
            limit = f"the device has room for {BUFFER_BYTES}"
            raise RemoteProtocolError(f"server sent a message of {size_bytes} bytes, type {frame.kind}: {limit}")
        match frame.kind:
            case FrameKind.EVENT_FD if frame.is_whole:
                return self._connected(frame, self.numbers)
            case FrameKind.EVENT_FD:
                return Ignored("Invalid eventfd message size", frame.descriptors, rule="v2-size")
            case FrameKind.PEER_GONE if frame.is_whole:
                return self._gone(frame, self.numbers)
            case FrameKind.PEER_GONE:
                return Ignored("Invalid peer-gone message size", frame.descriptors, rule="v2-size")
            case kind:
                return Ignored(f"invalid message, type {kind}", frame.descriptors, rule="v2-type")

    def _initialize(self, frame: Frame[D]) -> Event[D]:
        if frame.kind != FrameKind.INIT:
            raise RemoteProtocolError(f"server sent invalid initial info: type {frame.kind}")
        compatible, peer, numbers = decode_init(frame)
        if compatible != VERSION:
            raise RemoteProtocolError(f"server sent compatible version {compatible}, expecting {VERSION}")
        if not 0 <= peer < PEERS_MAX:
            raise RemoteProtocolError(f"server sent invalid ID {peer}")
        if not 1 <= numbers.vectors <= VECTORS_MAX:
            raise RemoteProtocolError(f"server sent invalid number of vectors message: {numbers.vectors}")
        if not 2 <= numbers.max_peers <= PEERS_MAX or peer >= numbers.max_peers:
            raise RemoteProtocolError(f"server sent ID {peer} of {numbers.max_peers} peers")
        if not frame.descriptors:
            raise RemoteProtocolError("server sent invalid initial info: without the shared memory")
        self.peer, self.numbers, self._memory_came = peer, numbers, True
        return Initialized(frame.descriptors[0], peer, numbers)

    def _connected(self, frame: Frame[D], numbers: DomainNumbers) -> Event[D]:
        peer, vector = frame.fields()
        known = self.peers.get(peer, 0)
        if vector != known:
            return Ignored(f"Received vector {vector} out of order", frame.descriptors, rule="v2-vector-order")
        if known >= numbers.vectors:
            return Ignored(
                f"Too many eventfd received, device has {numbers.vectors} vectors",
                frame.descriptors,
                rule="v2-too-many-vectors",
            )
        if peer >= numbers.max_peers:
            return Ignored(f"invalid peer {peer}", frame.descriptors, rule="v2-peer")
        if not frame.descriptors:
            return Ignored(f"server sent vector {vector} of peer {peer} without an eventfd", rule="v2-eventfd-missing")
        self.peers[peer] = known + 1
        return VectorConnected(peer, vector, frame.descriptors[0])

    def _gone(self, frame: Frame[D], numbers: DomainNumbers) -> Event[D]:
        (peer,) = frame.fields()
        if peer == self.peer or peer >= numbers.max_peers:
            return Ignored(f"invalid peer {peer}", frame.descriptors)
        if self.peers.pop(peer, None) is None:
            return Ignored(f"peer {peer} left, but was never connected or had left before", frame.descriptors)
        return PeerLeft(peer)
