"""The virtual machine's side of the wire: what the server said, as events.

Follows today's device (QEMU hw/misc/ivshmem.c: ivshmem_recv_setup, process_msg), but where that one dies or
hangs, this one reports. What is merely odd is an ``Ignored`` event, as QEMU's line on stderr; what makes the
connection useless raises ``RemoteProtocolError``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nodes.errors import RemoteProtocolError
from nodes.wire.protocol import MEMORY, PEERS_MAX, VERSION, Decoder, Message

__all__ = ["Assigned", "Client", "Event", "Ignored", "MemoryShared", "PeerLeft", "VectorConnected"]

D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Assigned:
    """The server gave this client its ID."""

    peer: int


@dataclass(frozen=True, slots=True)
class MemoryShared(Generic[D]):
    """The shared memory arrived."""

    descriptor: D


@dataclass(frozen=True, slots=True)
class VectorConnected(Generic[D]):
    """A peer's next vector can be rung; for the client's own ID, it can be waited for too."""

    peer: int
    vector: int
    descriptor: D


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """A peer is gone; its vectors lead nowhere."""

    peer: int


@dataclass(frozen=True, slots=True)
class Ignored(Generic[D]):
    """Something odd that changes nothing. ``descriptors`` are the receiver's to close."""

    reason: str
    descriptors: tuple[D, ...] = ()


Event = Assigned | MemoryShared[D] | VectorConnected[D] | PeerLeft | Ignored[D]


class Client(Generic[D]):
    """One connection to a server, as a state machine: ``receive`` bytes and descriptors, get events.

    ``vectors`` is how many vectors the own device has: more eventfds than that for one peer are ignored, as the
    device has nowhere to put them (ivshmem.c, process_msg_connect).

    Every descriptor that is handed in comes out again in exactly one event, or from ``unclaimed``.
    """

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        self.peer: int | None = None
        self.peers: dict[int, int] = {}
        self._version_came = False
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
        """True once version, ID and memory have come; eventfds may still follow."""
        return self._memory_came

    def receive(self, data: bytes, descriptors: Sequence[D] = ()) -> Iterator[Event[D]]:
        """Yield what the messages completed by ``data`` mean.

        Raises ``RemoteProtocolError`` when the server breaks the greeting; the descriptors of that message and
        of those behind it are then in ``unclaimed``.
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
        """The server closed the connection. Raises ``RemoteProtocolError`` if it did so within its greeting.

        Later it is no error: doorbells and interrupts go on without a server (ivshmem-spec, "Interrupts").
        """
        if not self._memory_came:
            expected = "the shared memory" if self.peer is not None else "its ID" if self._version_came else "a version"
            raise RemoteProtocolError(f"the server closed the connection before it sent {expected}")

    def unclaimed(self) -> Iterator[D]:
        """Descriptors that no event carried, once nothing more will be received: they are the caller's to close.

        Sooner, one of them may belong to a message of which only the first bytes have come.
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
        if not self._version_came:
            self._check_version(number, descriptors)
            self._version_came = True
        elif self.peer is None:
            if descriptors or not 0 <= number < PEERS_MAX:
                came = "a descriptor" if descriptors else str(number)
                raise RemoteProtocolError(
                    f"server sent invalid ID message: expected 0..{PEERS_MAX - 1} alone, got {came}"
                )
            self.peer = number
            yield Assigned(number)
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

    @staticmethod
    def _check_version(number: int, descriptors: tuple[D, ...]) -> None:
        if number != VERSION:
            raise RemoteProtocolError(f"server sent version {number}, expecting {VERSION}")
        if descriptors:
            raise RemoteProtocolError("server sent invalid version message: it carries a descriptor")

    def _memory(self, descriptors: tuple[D, ...]) -> Iterator[Event[D]]:
        if self._memory_came:
            yield Ignored("server sent the shared memory again", descriptors)
            return
        if not descriptors:
            raise RemoteProtocolError("server sent the shared memory message without a descriptor")
        self._memory_came = True
        yield MemoryShared(descriptors[0])
        if len(descriptors) > 1:
            yield Ignored("server sent more than one descriptor with the shared memory", descriptors[1:])

    def _connect(self, peer: int, descriptors: tuple[D, ...]) -> Iterator[Event[D]]:
        vector = self.peers.get(peer, 0)
        if vector >= self.vectors:
            yield Ignored(f"too many eventfds for peer {peer}, the device has {self.vectors} vectors", descriptors)
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
        if self.peers.pop(peer, None) is None:
            return Ignored(f"peer {peer} left, but was never connected or had left before")
        return PeerLeft(peer)
