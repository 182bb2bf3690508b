"""A machine's connection to a server: what arrives there becomes the machine's memory, lines and interrupts."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
from collections import deque
from collections.abc import Callable

from nodes.errors import HostError, RemoteProtocolError, UsageError
from nodes.vm import Vm
from nodes.wire.client import Assigned, Client, Event, Ignored, MemoryShared, PeerLeft, VectorConnected
from nodes.wire.protocol import MESSAGE_BYTES, PEERS_MAX, Message
from sim.kernel.channel import Channel
from sim.kernel.eventfd import EventFd
from sim.kernel.memory import map_region
from sim.kernel.mmsg import Arrived
from sim.wire.credentials import credentials_of

__all__ = ["Connection"]


class Connection:
    """Owns the socket to the server and every eventfd that came over it.

    ``own`` maps the descriptors of the machine's own eventfds to their vectors; ``on_own(descriptor)`` is called
    as each arrives, so that it can be waited for. ``warn(text)`` is told what is odd. ``on_memory(peer, descriptor)``
    puts the memory in its place; by default, that of the machine, whose driver then starts.

    Raises ``UsageError`` when no server listens on ``path``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        vm: Vm,
        *,
        on_own: Callable[[int], None],
        warn: Callable[[str], object] = lambda text: None,
        on_memory: Callable[[int, int], None] | None = None,
    ) -> None:
        self._vm = vm
        self._on_memory = on_memory or self._place
        self._on_own, self._warn = on_own, warn
        self._client: Client[int] = Client(vm.guest.vectors)
        self._lines: dict[int, list[int]] = {}  # peer -> its eventfds
        self._pieces: deque[tuple[bytes, list[int]]] = deque()  # received and not looked at yet
        self.own: dict[int, int] = {}
        self.heard = 0
        """How many eventfds the server has sent so far, those included that the device has no use for."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise HostError(f"no descriptor for a connection to {path}: {error.strerror}") from error
            raise UsageError(f"no server listens on {path}: {error.strerror}") from error
        # What our own parent sends needs no second look: whose process listens is the kernel's word.
        parent = multiprocessing.parent_process()
        self._trusted = parent is not None and parent.pid == credentials_of(sock).pid
        self._channel = Channel(sock)

    def fileno(self) -> int:
        return self._channel.fileno()

    @property
    def peer(self) -> int | None:
        """The own ID, once the server has given it."""
        return self._client.peer

    @property
    def is_set_up(self) -> bool:
        """Whether the ID and the memory have come."""
        return self._client.is_set_up

    def read(self) -> bool:
        """Take in everything that the server has said so far; False when it has closed the connection.

        Raises ``RemoteProtocolError`` when it says what a server may not say, or leaves within its greeting.
        """
        while True:
            while self._pieces:
                data, descriptors = self._pieces.popleft()
                if not data:
                    self._client.end()
                    return False
                for event in self._client.receive(data, descriptors):
                    self._take(event)
            arrived = self._receive()
            if arrived is None:
                return True
            if isinstance(arrived, Arrived):
                self._connect_all(arrived)
            else:
                self._pieces.extend(arrived)

    def _receive(self) -> Arrived | list[tuple[bytes, list[int]]] | None:
        """One message until the greeting is over and between the pieces of one, then as many as there are."""
        if self._client.is_set_up and self._client.missing_bytes == MESSAGE_BYTES:
            return self._channel.receive_many()
        received = self._channel.receive(self._client.missing_bytes)
        return None if received is None else [received]

    def close(self) -> None:
        for peer in list(self._lines):
            self._disconnect(peer)
        # Not sooner: the first bytes of a message may have brought its descriptor.
        for descriptor in self._client.unclaimed():
            os.close(descriptor)
        for _, descriptors in self._pieces:
            for descriptor in descriptors:
                os.close(descriptor)
        self._pieces.clear()
        self._channel.close()

    def _take(self, event: Event[int]) -> None:
        match event:
            case Assigned():
                pass  # comes to the machine together with the memory
            case MemoryShared(descriptor):
                try:
                    if self._client.peer is None:
                        raise RemoteProtocolError("server sent the shared memory before an ID")
                    self._on_memory(self._client.peer, descriptor)
                finally:
                    os.close(descriptor)
            case VectorConnected(peer, vector, descriptor):
                self._connect(peer, vector, descriptor)
            case PeerLeft(peer):
                self._vm.disconnect(peer)
                self._disconnect(peer)
            case Ignored(reason, descriptors, repeated):
                self.heard += len(descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                if self._vm.device.profile.server and not repeated:  # a plain device would not have connected at all
                    self._warn(reason)

    def _place(self, peer: int, descriptor: int) -> None:
        self._vm.place(peer, memoryview(map_region(descriptor)))

    def _connect_all(self, arrived: Arrived) -> None:
        """What ``Client`` and ``_take`` make of vectors, one after the other, without an object for each."""
        have, most = self._client.peers, self._client.vectors
        numbers, descriptors = arrived
        taken = 0
        try:
            for peer, descriptor in zip(numbers, descriptors, strict=True):
                vector = have.get(peer, 0)
                if vector >= most or not 0 <= peer < PEERS_MAX:
                    break  # what is odd takes the usual way, with all that follows
                have[peer] = vector + 1
                taken += 1
                self._connect(peer, vector, descriptor)
        finally:
            rest = zip(numbers[taken:], descriptors[taken:], strict=True)
            self._pieces.extend((Message(number).encode(), [descriptor]) for number, descriptor in rest)

    def _connect(self, peer: int, vector: int, descriptor: int) -> None:
        self.heard += 1
        if not self._trusted:
            EventFd.adopt(descriptor)
        elif os.get_blocking(descriptor):  # a peer cleared the flag, which belongs to what all share
            os.set_blocking(descriptor, False)
        self._lines.setdefault(peer, []).append(descriptor)
        if self._vm.connect(peer, vector, descriptor) and peer == self._client.peer:
            self.own[descriptor] = vector
            self._on_own(descriptor)

    def _disconnect(self, peer: int) -> None:
        for descriptor in self._lines.pop(peer, ()):
            os.close(descriptor)
