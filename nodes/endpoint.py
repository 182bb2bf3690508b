"""A machine's end of a connection: it turns the messages of a server into memory, peers and interrupts.

Pure: the caller passes in bytes and descriptors, and the functions that act on descriptors. A worker process, an attach
session and a machine of a test use the same endpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from nodes.errors import RemoteProtocolError
from nodes.peer_table import Line, PeerTable
from nodes.vm import Vm
from nodes.wire.client import Assigned, Client, Event, Ignored, MemoryShared, PeerLeft, VectorConnected
from nodes.wire.protocol import MESSAGE_BYTES, PEERS_MAX, Dialect, Message


def _nothing(*_: object) -> None:
    """Do nothing: lines are not descriptors here."""


def _never(lines: Sequence[Line]) -> bool:
    """Adopt no lines at once."""
    return False


class EndpointHooks(Struct, frozen=True, kw_only=True):
    """What the owner of a machine does with the descriptors that a server sends.

    Attributes:
        place: ``place(peer, memory)`` puts the shared memory in its place, by `Vm.place` as a rule.
        adopt: ``adopt(line)`` is called with each eventfd before it is used. For what is no eventfd it raises
            `RemoteProtocolError`, and has closed it.
        adopt_all: ``adopt_all(lines)`` does so with many at once and returns True; False: each is to be adopted.
        release: ``release(descriptor)`` is called with the memory once it is placed, and with what is not used.
        on_own: ``on_own(line)`` is called with each eventfd of the machine's own, which is to be waited for.
        on_own_gone: ``on_own_gone(line)`` is called before an eventfd of the machine's own is released: it is not to be
            waited for any more. Only for the device of 2012.
        warn: ``warn(text)`` is called with what is odd and changes nothing.
        duplicate: ``duplicate(descriptor)`` returns another descriptor for the same thing, or None when none is left.
            By default it is the same number: descriptors are plain numbers. Only for the device of 2012.
        size_bytes: ``size_bytes(descriptor)`` returns the size of the memory behind it; by default every memory is
            large enough. Only for the device of 2012.
        adapt: the server decides how many vectors the machine has: ``adapt(vectors)`` returns the machine that replaces
            the first one once the number is known. Only for ivshmem v2.
        rung: ``rung(line)`` is how many doorbells an own eventfd holds (`IvshmemV2.rung`). Only for ivshmem v2.
    """

    place: Callable[[int, Line], object]
    adopt: Callable[[Line], object] = _nothing
    adopt_all: Callable[[Sequence[Line]], bool] = _never
    release: Callable[[Line], object] = _nothing
    on_own: Callable[[Line], object] = _nothing
    on_own_gone: Callable[[Line], object] = _nothing
    warn: Callable[[str], object] = _nothing
    duplicate: Callable[[Line], Line | None] = lambda line: line
    size_bytes: Callable[[Line], int] = lambda line: 1 << 62
    adapt: Callable[[int], Vm] | None = None
    rung: Callable[[Line], int] = lambda line: 0


class Endpoint:
    """The client of one server, and the machine that it connects.

    Args:
        vm: the machine.
        peers: an empty table for the peers that the server announces. It owns their lines: it releases them when a
            peer leaves, when the device is removed, and in `close`.
        hooks: what is done with descriptors.
    """

    def __init__(self, vm: Vm, peers: PeerTable, hooks: EndpointHooks) -> None:
        self._vm, self._peers, self._hooks = vm, peers, hooks
        self._adopt, self._release = hooks.adopt, hooks.release
        self._client: Client[Line] = Client(vm.guest.vectors)
        self._unread: deque[tuple[int, Line]] = deque()
        self.own: dict[Line, int] = {}
        """The machine's own eventfds and their vectors."""
        self.heard = 0
        """How many eventfds the server has sent so far, including those that the device does not use."""
        vm.use_peers(peers)

    @property
    def peer(self) -> int | None:
        """The own ID, once the server has given it."""
        return self._client.peer

    @property
    def is_set_up(self) -> bool:
        """Whether the ID and the memory have come."""
        return self._client.is_set_up

    @property
    def dialect(self) -> Dialect | None:
        """The dialect of the server, once it is known."""
        return self._client.dialect

    @property
    def awaited(self) -> str:
        """The missing part of the greeting, in words."""
        return self._client.awaited

    @property
    def missing_bytes(self) -> int:
        """How many bytes the next message, or the rest of one, has."""
        return self._client.missing_bytes

    @property
    def takes_many(self) -> bool:
        """Whether only whole messages of `MESSAGE_BYTES` come now, so that `receive_vectors` can take many at once."""
        return self.is_set_up and self.missing_bytes == MESSAGE_BYTES

    def receive(self, data: bytes, descriptors: Sequence[Line] = ()) -> None:
        """Take in what the server has sent; the descriptors belong to the endpoint from now on.

        Raises:
            RemoteProtocolError: it is something that a server may not say.
        """
        for event in self._client.receive(data, descriptors):
            self._take(event)

    def receive_vectors(self, numbers: Sequence[int], lines: Sequence[Line]) -> None:
        """As `receive`, for whole messages with one descriptor each; where possible without an object for each.

        Only for an endpoint that is set up.

        Raises:
            RemoteProtocolError: as `receive`.
        """
        connected, most = self._client.peers, self._client.vectors
        adopted = self._hooks.adopt_all(lines)
        seen = taken = 0
        try:
            for peer, line in zip(numbers, lines, strict=True):
                vector = connected.get(peer, 0)
                if vector >= most or not 0 <= peer < PEERS_MAX:
                    break  # something odd; the client says what it means
                seen += 1
                if not adopted:
                    self._adopt(line)
                connected[peer] = vector + 1
                taken += 1
        finally:
            self._unread.extend(zip(numbers[seen:], lines[seen:], strict=True))
            self._connect_next(numbers[:taken], lines[:taken])
        while self._unread:
            number, line = self._unread.popleft()
            self.receive(Message(number).encode(), [line])

    def end(self) -> None:
        """The server has closed the connection.

        Raises:
            RemoteProtocolError: it did so within its greeting.
        """
        self._client.end()

    def close(self) -> None:
        """Release the peers, the memory and all unused descriptors."""
        self._peers.clear()
        self.own.clear()
        # Not sooner: a descriptor may have come with the first bytes of its message.
        for descriptor in (*self._client.unclaimed(), *(line for _, line in self._unread)):
            self._release(descriptor)
        self._unread.clear()

    def _take(self, event: Event[Line]) -> None:
        match event:
            case Assigned():
                pass  # the machine gets it together with the memory
            case MemoryShared(memory):
                try:
                    if self._client.peer is None:
                        raise RemoteProtocolError("server sent the shared memory before an ID")
                    self._hooks.place(self._client.peer, memory)
                finally:
                    self._release(memory)
            case VectorConnected(peer, vector, line):
                self._connect(peer, vector, line)
            case PeerLeft(peer):
                self._vm.disconnect(peer)
            case Ignored(reason, descriptors, repeated):
                self.heard += len(descriptors)
                for descriptor in descriptors:
                    self._release(descriptor)
                if self._vm.device.profile.server and not repeated:  # a plain device would not have connected at all
                    self._hooks.warn(reason)

    def _connect(self, peer: int, vector: int, line: Line) -> None:
        self.heard += 1
        self._adopt(line)
        if not self._vm.connect(peer, vector, line):
            self._release(line)
        elif peer == self.peer:
            self.own[line] = vector
            self._hooks.on_own(line)

    def _connect_next(self, peers: Sequence[int], lines: Sequence[Line]) -> None:
        """Connect the next vector of each of these peers, whose lines are adopted."""
        self.heard += len(lines)
        if not self._vm.device.profile.server:
            for line in lines:
                self._release(line)
            return
        own = self.peer
        first = 0 if own is None else self._peers.vectors(own)
        self._vm.connect_next(peers, lines)
        if own in peers:
            mine = [line for peer, line in zip(peers, lines, strict=True) if peer == own]
            for vector, line in enumerate(mine, first):
                self.own[line] = vector
                self._hooks.on_own(line)
