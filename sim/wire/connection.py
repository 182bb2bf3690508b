"""A machine's connection to a server: what arrives there becomes the machine's memory, lines and interrupts."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from nodes.errors import HostError, RemoteProtocolError, UsageError
from nodes.vm import Vm
from nodes.wire.client import Assigned, Client, Event, Ignored, MemoryShared, PeerLeft, VectorConnected
from sim.kernel.channel import Channel
from sim.kernel.eventfd import EventFd
from sim.kernel.memory import map_region

__all__ = ["Connection"]


class Connection:
    """Owns the socket to the server and every eventfd that came over it.

    ``own`` maps the descriptors of the machine's own eventfds to their vectors; ``on_own(descriptor)`` is called
    as each arrives, so that it can be waited for. ``warn(text)`` is told what is odd.

    Raises ``UsageError`` when no server listens on ``path``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        vm: Vm,
        *,
        on_own: Callable[[int], None],
        warn: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._vm = vm
        self._on_own, self._warn = on_own, warn
        self._client: Client[int] = Client(vm.guest.vectors)
        self._eventfds: dict[int, list[EventFd]] = {}
        self.own: dict[int, int] = {}
        self.connected = 0
        """How many vectors have been connected so far, the own ones included."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise HostError(f"no descriptor for a connection to {path}: {error.strerror}") from error
            raise UsageError(f"no server listens on {path}: {error.strerror}") from error
        self._channel = Channel(sock)

    def fileno(self) -> int:
        return self._channel.fileno()

    @property
    def peer(self) -> int | None:
        """The own ID, once the server has given it."""
        return self._client.peer

    def knows(self, expected: tuple[int, ...]) -> bool:
        """Whether the memory has come and, of each peer, as many vectors as ``expected`` has at its ID.

        A device keeps no more eventfds of a peer than it has vectors itself (ivshmem.c, process_msg_connect).
        """
        have, most = self._client.peers, self._client.vectors
        return self._client.is_set_up and all(
            have.get(peer, 0) >= min(count, most) for peer, count in enumerate(expected)
        )

    def read(self) -> bool:
        """Take in everything that the server has said so far; False when it has closed the connection.

        Raises ``RemoteProtocolError`` when it says what a server may not say, or leaves within its greeting.
        """
        client, receive = self._client, self._channel.receive
        while True:
            received = receive(client.missing_bytes)
            if received is None:
                return True
            data, descriptors = received
            if not data:
                client.end()
                return False
            for event in client.receive(data, descriptors):
                self._take(event)

    def close(self) -> None:
        for eventfds in self._eventfds.values():
            for eventfd in eventfds:
                eventfd.close()
        self._eventfds.clear()
        # Not sooner: the first bytes of a message may have brought its descriptor.
        for descriptor in self._client.unclaimed():
            os.close(descriptor)
        self._channel.close()

    def _take(self, event: Event[int]) -> None:
        match event:
            case Assigned():
                pass  # comes to the machine together with the memory
            case MemoryShared(descriptor):
                try:
                    memory = map_region(descriptor)
                finally:
                    os.close(descriptor)
                if self._client.peer is None:
                    raise RemoteProtocolError("server sent the shared memory before an ID")
                self._vm.place(self._client.peer, memoryview(memory))
            case VectorConnected(peer, vector, descriptor):
                self.connected += 1
                eventfd = EventFd.adopt(descriptor)
                self._eventfds.setdefault(peer, []).append(eventfd)
                if self._vm.connect(peer, vector, eventfd.descriptor) and peer == self._client.peer:
                    self.own[eventfd.descriptor] = vector
                    self._on_own(eventfd.descriptor)
            case PeerLeft(peer):
                self._vm.disconnect(peer)
                for eventfd in self._eventfds.pop(peer, ()):
                    eventfd.close()
            case Ignored(reason, descriptors):
                for descriptor in descriptors:
                    os.close(descriptor)
                if self._vm.device.profile.server:  # a plain device would not have connected at all
                    self._warn(reason)
