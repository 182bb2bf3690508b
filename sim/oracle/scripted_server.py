"""A server for one device under test: it sends what a test says, and its peers have real eventfds.

One inherited socket pair, dialect v0. The peers are eventfds held here, so that what a device rings can be
counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import time

from nodes.wire.protocol import MEMORY, VERSION, Message
from sim.engines.qemu.qtest import QemuError
from sim.kernel.channel import Outbox
from sim.kernel.eventfd import EventFd, signal
from sim.kernel.memory import Region, map_region

__all__ = ["ScriptedServer"]

QUEUE_LIMIT = 1 << 17
SEND_SECONDS = 20.0


class ScriptedServer:
    """Owns the memory, the eventfds and this end of the connection; ``client`` is the other end."""

    def __init__(self, size_bytes: int = 0, *, region: Region | None = None) -> None:
        """Use memory of ``size_bytes``, or the caller's ``region``."""
        with contextlib.ExitStack() as stack:
            near, far = socket.socketpair()
            stack.callback(near.close)
            stack.callback(far.close)
            self.region = region or Region.create(size_bytes, kind="memfd")
            if region is None:
                stack.callback(self.region.close)
            mapped: mmap.mmap = map_region(self.region.descriptor)
            stack.callback(mapped.close)
            self._stack = stack.pop_all()
        near.setblocking(False)
        self.memory = memoryview(mapped)
        self._stack.callback(self.memory.release)
        self._near, self._far = near, far
        self._outbox = Outbox(near, QUEUE_LIMIT)
        self.peers: dict[int, list[EventFd]] = {}

    @property
    def client(self) -> int:
        return self._far.fileno()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close everything; closing again is allowed."""
        for peer in list(self.peers):
            self._forget(peer)
        self._stack.close()

    def hand_over(self) -> None:
        """Close the other end of the connection, which the device's process has inherited."""
        self._far.close()

    def greet(self, peer: int) -> None:
        """Send version, own ID and shared memory."""
        self._send(Message(VERSION), Message(peer), Message(MEMORY, (self.region.descriptor,)))

    def join(self, peer: int, vectors: int, eventfds: list[EventFd] | None = None) -> None:
        """Send the vectors of a peer, or of the device itself, one message each; the server owns ``eventfds`` then."""
        eventfds = [EventFd.create() for _ in range(vectors)] if eventfds is None else eventfds[:vectors]
        self.peers[peer] = eventfds
        self._send(*(Message(peer, (eventfd.descriptor,)) for eventfd in eventfds))

    def leave(self, peer: int) -> None:
        """Announce that a peer has left."""
        self._forget(peer)
        self._send(Message(peer))

    def _forget(self, peer: int) -> None:
        for eventfd in self.peers.pop(peer):
            eventfd.close()

    def ring(self, peer: int, vector: int, count: int = 1) -> None:
        """Ring an eventfd, as another peer does."""
        signal(self.peers[peer][vector].descriptor, count)

    def take(self, peer: int) -> list[int]:
        """Return the doorbells that each eventfd of a peer has counted since the last call."""
        counts = []
        for eventfd in self.peers[peer]:
            # The device under test can have cleared the flag, which is shared by all descriptors of the eventfd.
            flags = fcntl.fcntl(eventfd.descriptor, fcntl.F_GETFL)
            if not flags & os.O_NONBLOCK:
                fcntl.fcntl(eventfd.descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
            counts.append(eventfd.take())
        return counts

    def _send(self, *messages: Message[int]) -> None:
        for message in messages:
            self._outbox.put(message)
        deadline = time.monotonic() + SEND_SECONDS
        while not self._outbox.flush():
            if time.monotonic() > deadline:
                raise QemuError("the device under test reads no messages")
            time.sleep(0.001)
