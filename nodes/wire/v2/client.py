"""The client's side of the wire of ivshmem v2: a server's messages as events.

It follows the device of the QEMU fork (hw/misc/ivshmem2.c), with its words, and reports an error where that device
exits, aborts or hangs. After INIT, what is odd and changes nothing is an `Ignored` event, like that device's line on
stderr. It also refuses what that device accepts and cannot work with: fewer than two peers, an ID beyond the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from nodes.errors import RemoteProtocolError
from nodes.wire.client import Ignored, PeerLeft, VectorConnected
from nodes.wire.protocol import PEERS_MAX
from nodes.wire.v2.protocol import (
    VECTORS_MAX,
    VERSION,
    DomainNumbers,
    Frame,
    FrameDecoder,
    FrameKind,
    decode_init,
)

D = TypeVar("D")

BUFFER_BYTES = 32
"""ivshmem2.c, ``msg_buf``: after INIT, a longer message never fits, and the assertion in ivshmem_can_receive fails."""


class Initialized(Struct, Generic[D], frozen=True):
    """The server has given this client its ID, the numbers of the domain and the shared memory."""

    peer: int
    numbers: DomainNumbers
    memory: D


FramedEvent = Initialized[D] | VectorConnected[D] | PeerLeft | Ignored[D]


class FramedClient(Generic[D]):
    """One connection to a v2 server: `receive` takes bytes and descriptors and returns events.

    Each descriptor that goes in comes out in exactly one event, or from `unclaimed`.

    Attributes:
        peer: the own ID; None until it has come.
        numbers: what the server tells of the domain; None until it has come.
        peers: peer -> how many of its vectors are connected.
    """

    def __init__(self) -> None:
        self.peer: int | None = None
        self.numbers: DomainNumbers | None = None
        self.peers: dict[int, int] = {}
        self._decoder: FrameDecoder[D] = FrameDecoder()
        self._frames: deque[Frame[D]] = deque()
        self._events: deque[FramedEvent[D]] = deque()
        self._failed: tuple[D, ...] = ()

    @property
    def missing_bytes(self) -> int:
        return self._decoder.missing_bytes

    def receive(self, data: bytes, descriptors: Sequence[D] = ()) -> Iterator[FramedEvent[D]]:
        """Yield an event for each message that ``data`` completes.

        Raises:
            RemoteProtocolError: the server says what it may not say. The descriptors of that message and of those
                behind it are then in `unclaimed`.
        """
        self._frames.extend(self._decoder.feed(data, descriptors))
        return self._take_events()

    def _take_events(self) -> Iterator[FramedEvent[D]]:
        while self._frames:
            frame = self._frames.popleft()
            try:
                event = self._interpret(frame)
            except RemoteProtocolError:
                self._failed = frame.descriptors
                raise
            self._events.append(event)
            used = len(frame.descriptors) if isinstance(event, Ignored) else 0 if isinstance(event, PeerLeft) else 1
            if surplus := frame.descriptors[used:]:
                self._events.append(Ignored("server sent more descriptors with a message than it takes", surplus))
            while self._events:
                yield self._events.popleft()
        self._decoder.check()

    def end(self) -> None:
        """The server has closed the connection.

        Raises:
            RemoteProtocolError: it did so before INIT.
        """
        if self.numbers is None:
            raise RemoteProtocolError("the server closed the connection before it sent INIT")

    def unclaimed(self) -> Iterator[D]:
        """Yield the descriptors that no event has carried; the caller closes them."""
        failed, self._failed = self._failed, ()
        yield from failed
        for event in self._events:
            match event:
                case Initialized(memory=descriptor) | VectorConnected(descriptor=descriptor):
                    yield descriptor
                case Ignored(descriptors=descriptors):
                    yield from descriptors
        self._events.clear()
        for frame in self._frames:
            yield from frame.descriptors
        self._frames.clear()
        yield from self._decoder.unclaimed()

    def _interpret(self, frame: Frame[D]) -> FramedEvent[D]:
        if self.numbers is None:
            return self._initialize(frame)
        if (size_bytes := len(frame.encode())) > BUFFER_BYTES:
            limit = f"the device has room for {BUFFER_BYTES}"
            raise RemoteProtocolError(f"server sent a message of {size_bytes} bytes, type {frame.kind}: {limit}")
        match frame.kind:
            case FrameKind.EVENT_FD if frame.is_whole:
                return self._connect(frame, self.numbers)
            case FrameKind.EVENT_FD:
                return Ignored("Invalid eventfd message size", frame.descriptors)
            case FrameKind.PEER_GONE if frame.is_whole:
                return self._leave(frame, self.numbers)
            case FrameKind.PEER_GONE:
                return Ignored("Invalid peer-gone message size", frame.descriptors)
            case kind:
                return Ignored(f"invalid message, type {kind}", frame.descriptors)

    def _initialize(self, frame: Frame[D]) -> FramedEvent[D]:
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
        self.peer, self.numbers = peer, numbers
        return Initialized(peer, numbers, frame.descriptors[0])

    def _connect(self, frame: Frame[D], numbers: DomainNumbers) -> FramedEvent[D]:
        peer, vector = frame.fields()
        known = self.peers.get(peer, 0)
        if vector != known:
            return Ignored(f"Received vector {vector} out of order", frame.descriptors)
        if known >= numbers.vectors:
            return Ignored(f"Too many eventfd received, device has {numbers.vectors} vectors", frame.descriptors)
        if peer >= numbers.max_peers:
            return Ignored(f"invalid peer {peer}", frame.descriptors)
        if not frame.descriptors:
            return Ignored(f"server sent vector {vector} of peer {peer} without an eventfd")
        self.peers[peer] = known + 1
        return VectorConnected(peer, vector, frame.descriptors[0])

    def _leave(self, frame: Frame[D], numbers: DomainNumbers) -> FramedEvent[D]:
        (peer,) = frame.fields()
        if peer == self.peer or peer >= numbers.max_peers:
            return Ignored(f"invalid peer {peer}", frame.descriptors)
        if self.peers.pop(peer, None) is None:
            return Ignored(f"peer {peer} left, but was never connected or had left before", frame.descriptors)
        return PeerLeft(peer)
