"""The other side of one device under test: a server that says what a test tells it to, with real peers.

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
from sim.kernel.channel import Outbox
from sim.kernel.eventfd import EventFd, signal
from sim.kernel.memory import Region, map_region
from sim.oracle.qtest import QemuError

__all__ = ["ScriptedServer"]

QUEUE_LIMIT = 1 << 17
SEND_SECONDS = 20.0


class ScriptedServer:
    """Owns the memory, the eventfds and this end of the connection; ``client`` is the other end."""

    def __init__(self, size_bytes: int = 0, *, region: Region | None = None) -> None:
        """Memory of ``size_bytes`` of its own, or somebody else's ``region``."""
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
        """Close everything; twice is no error."""
        for peer in list(self.peers):
            self._forget(peer)
        self._stack.close()

    def hand_over(self) -> None:
        """The device's process has inherited its end: close it here."""
        self._far.close()

    def greet(self, peer: int) -> None:
        """Version, own ID, shared memory."""
        self._send(Message(VERSION), Message(peer), Message(MEMORY, (self.region.descriptor,)))

    def join(self, peer: int, vectors: int, eventfds: list[EventFd] | None = None) -> None:
        """A peer appears, or the device's own vectors: one message each. ``eventfds`` become this server's."""
        eventfds = [EventFd.create() for _ in range(vectors)] if eventfds is None else eventfds[:vectors]
        self.peers[peer] = eventfds
        self._send(*(Message(peer, (eventfd.descriptor,)) for eventfd in eventfds))

    def leave(self, peer: int) -> None:
        """A peer is gone."""
        self._forget(peer)
        self._send(Message(peer))

    def _forget(self, peer: int) -> None:
        for eventfd in self.peers.pop(peer):
            eventfd.close()

    def ring(self, peer: int, vector: int, count: int = 1) -> None:
        """Ring an eventfd, as another peer would."""
        signal(self.peers[peer][vector].descriptor, count)

    def take(self, peer: int) -> list[int]:
        """The doorbells that each of a peer's eventfds has counted since the last look."""
        counts = []
        for eventfd in self.peers[peer]:
            # The device under test may have cleared the flag, which all who hold the eventfd share.
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
