"""The client's side of the wire: a server's messages as events.

It follows the device of QEMU (hw/misc/ivshmem.c: ivshmem_recv_setup, process_msg), but reports an error where that
device dies or hangs. What is odd and changes nothing is an `Ignored` event, like QEMU's line on stderr. What makes the
connection useless raises `RemoteProtocolError`.

Unless the caller knows the dialect of the server, the first messages tell it:

    first alone   then                                                       dialect
    0             0..65535 alone, and the memory before any own eventfd      v0
    0             0..65535 alone, and an own eventfd before the memory       v0-shm-last
    0..65535      -1 with the memory                                         legacy

A first number alone may be a version or, as in 2012, an ID. The second message decides; before it there is neither an
ID nor an error. A server whose first two messages fit no row is taken for v0. Eventfds of other peers before the memory
decide nothing: without own ones, a server that sends the memory last cannot be told from v0 and is taken for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from nodes.errors import RemoteProtocolError
from nodes.wire.protocol import LEGACY, MEMORY, PEERS_MAX, V0, V0_SHM_LAST, VERSION, Decoder, Dialect, Message

REFUSED = -87
"""-EUSERS (errno(3)): what `ivsim serve` sends instead of a version to a client that it refuses."""
FRAME_BYTES_MAX = 4096

D = TypeVar("D")


class Assigned(Struct, frozen=True):
    """The server has given this client its ID."""

    peer: int


class MemoryShared(Struct, Generic[D], frozen=True):
    """The shared memory has come."""

    descriptor: D


class VectorConnected(Struct, Generic[D], frozen=True):
    """The next vector of a peer can be rung. If the peer is the client itself, it can be waited for too."""

    peer: int
    vector: int
    descriptor: D


class PeerLeft(Struct, frozen=True):
    """A peer has left; its vectors can no longer be rung."""

    peer: int


class Ignored(Struct, Generic[D], frozen=True):
    """Something odd that changes nothing.

    Attributes:
        reason: what it is.
        descriptors: what came with it; the receiver closes them.
        repeated: whether the same was reported before, of the same peer.
        rule: the rule of `nodes.wire.rules` that the server violates; "" where a client alone cannot tell.
    """

    reason: str
    descriptors: tuple[D, ...] = ()
    repeated: bool = False
    rule: str = ""


Event = Assigned | MemoryShared[D] | VectorConnected[D] | PeerLeft | Ignored[D]


class Client(Generic[D]):
    """One connection to a server, as a state machine: `receive` takes bytes and descriptors and returns events.

    Each descriptor that goes in comes out in exactly one event, or from `unclaimed`.

    Args:
        vectors: how many vectors the own device has. Further eventfds of a peer are ignored: the device has no place
            for them (ivshmem.c, process_msg_connect).
        dialect: what the server speaks, if that is known.

    Attributes:
        dialect: what the server speaks; None until that is known.
        peer: the own ID; None until it has come.
        peers: peer -> how many of its vectors are connected.
    """

    def __init__(self, vectors: int, *, dialect: Dialect | None = None) -> None:
        self.vectors = vectors
        self.dialect = dialect
        self.peer: int | None = None
        self.peers: dict[int, int] = {}
        self._surplus: set[int] = set()  # peers that were told to have too many eventfds
        self._first: int | None = None  # the version, or an ID of 2012
        self._memory_came = False
        self._decoder: Decoder[D] = Decoder()
        self._messages: deque[Message[D]] = deque()
        self._events: deque[Event[D]] = deque()
        self._failed: tuple[D, ...] = ()

    @property
    def missing_bytes(self) -> int:
        return self._decoder.missing_bytes

    @property
    def is_set_up(self) -> bool:
        """Whether ID and memory have come; eventfds may still follow."""
        return self._memory_came

    @property
    def awaited(self) -> str:
        """The first missing part of the greeting, in words, until the greeting is complete."""
        if self.peer is not None:
            return "the shared memory"
        if self._first is None:
            return "its ID" if self.dialect is LEGACY else "a version"
        if self._first != VERSION:
            return (
                f"the shared memory after {self._first}, the ID of a server of 2012 or a version that is not {VERSION}"
            )
        return "its ID"

    def receive(self, data: bytes, descriptors: Sequence[D] = ()) -> Iterator[Event[D]]:
        """Yield an event for each message that ``data`` completes.

        Raises:
            RemoteProtocolError: the server violates the greeting. The descriptors of that message and of those behind
                it are then in `unclaimed`.
        """
        self._messages.extend(self._decoder.feed(data, descriptors))
        return self._take_events()

    def _take_events(self) -> Iterator[Event[D]]:
        while self._messages:
            message = self._messages.popleft()
            try:
                self._events.extend(self._interpret(message))
            except RemoteProtocolError:
                self._failed = message.descriptors
                raise
            while self._events:
                yield self._events.popleft()

    def end(self) -> None:
        """The server has closed the connection.

        Raises:
            RemoteProtocolError: it did so within its greeting. Later it is no error: doorbells and interrupts do not
                need a server (ivshmem-spec, "Interrupts").
        """
        if not self._memory_came:
            raise RemoteProtocolError(f"the server closed the connection before it sent {self.awaited}")

    def unclaimed(self) -> Iterator[D]:
        """Yield the descriptors that no event has carried; the caller closes them.

        Only when nothing more is received: one of them may belong to a message of which only the first bytes have come.
        """
        failed, self._failed = self._failed, ()
        yield from failed
        for event in self._events:
            match event:
                case MemoryShared(descriptor) | VectorConnected(descriptor=descriptor):
                    yield descriptor
                case Ignored(descriptors=descriptors):
                    yield from descriptors
        for message in self._messages:
            yield from message.descriptors
        self._events.clear()
        self._messages.clear()
        yield from self._decoder.unclaimed()

    def _interpret(self, message: Message[D]) -> Iterator[Event[D]]:
        number, descriptors = message
        if self.peer is None:
            yield from self._greet(number, descriptors)
        elif number == MEMORY:
            yield from self._memory(descriptors)
        elif not 0 <= number < PEERS_MAX:
            if not self._memory_came:
                raise RemoteProtocolError(f"server sent invalid message {number} before the shared memory")
            yield Ignored(f"server sent invalid message {number}", descriptors)
        elif descriptors:
            yield from self._connect(number, descriptors)
        else:
            yield self._leave(number)

    def _greet(self, number: int, descriptors: tuple[D, ...]) -> Iterator[Event[D]]:
        """The messages before the own ID is known."""
        if self.dialect is LEGACY:
            yield self._assign(number, descriptors)
        elif self._first is None:
            may_be_an_id = self.dialect is None and not descriptors and 0 <= number < PEERS_MAX
            if number != VERSION and not may_be_an_id:
                raise _wrong_version(number)
            if descriptors:
                raise RemoteProtocolError("server sent invalid version message: it carries a descriptor")
            self._first = number
        elif self.dialect is None and number == MEMORY and descriptors:
            self.dialect = LEGACY
            yield self._assign(self._first, ())
            yield from self._memory(descriptors)
        elif self._first != VERSION:
            raise _wrong_version(self._first)
        else:
            yield self._assign(number, descriptors)

    def _assign(self, number: int, descriptors: tuple[D, ...]) -> Event[D]:
        if descriptors or not 0 <= number < PEERS_MAX:
            came = "a descriptor" if descriptors else str(number)
            raise RemoteProtocolError(f"server sent invalid ID message: expected 0..{PEERS_MAX - 1} alone, got {came}")
        self.peer = number
        return Assigned(number)

    def _memory(self, descriptors: tuple[D, ...]) -> Iterator[Event[D]]:
        if self._memory_came:
            yield Ignored("server sent the shared memory again", descriptors)
            return
        if not descriptors:
            raise RemoteProtocolError("server sent the shared memory message without a descriptor")
        self._memory_came = True
        self.dialect = self.dialect or V0
        yield MemoryShared(descriptors[0])
        if len(descriptors) > 1:
            yield Ignored("server sent more than one descriptor with the shared memory", descriptors[1:])

    def _connect(self, peer: int, descriptors: tuple[D, ...]) -> Iterator[Event[D]]:
        if peer == self.peer and not self._memory_came:
            self.dialect = self.dialect or V0_SHM_LAST
        vector = self.peers.get(peer, 0)
        if vector >= self.vectors:
            reason = f"too many eventfds for peer {peer}, the device has {self.vectors} vectors"
            yield Ignored(reason, descriptors, repeated=peer in self._surplus)
            self._surplus.add(peer)
            return
        self.peers[peer] = vector + 1
        yield VectorConnected(peer, vector, descriptors[0])
        if len(descriptors) > 1:
            yield Ignored(f"server sent more than one eventfd at once for peer {peer}", descriptors[1:])

    def _leave(self, peer: int) -> Event[D]:
        if peer == self.peer:
            if not self._memory_came:
                raise RemoteProtocolError(f"invalid peer {peer}: the server says that this client has left")
            return Ignored(f"invalid peer {peer}: the server says that this client has left")
        self._surplus.discard(peer)
        if self.peers.pop(peer, None) is None:
            return Ignored(f"peer {peer} left, but was never connected or had left before")
        return PeerLeft(peer)


def is_framed(first: int) -> bool:
    """Whether the first eight bytes of a server are those of ivshmem v2: a type of 0 and a length."""
    return not first & 0xFFFF_FFFF and 8 <= first >> 32 <= FRAME_BYTES_MAX


def _wrong_version(number: int) -> RemoteProtocolError:
    """The words of QEMU, and what is known about such a server."""
    known = ""
    if number == REFUSED:
        known = ": it does not let this client in (too many, none of its users, or broken memory: its log tells)"
    elif is_framed(number):
        known = ": it speaks ivshmem v2 (framed messages), which a device of version 1 does not"
    return RemoteProtocolError(f"server sent version {number}, expecting {VERSION}{known}")
