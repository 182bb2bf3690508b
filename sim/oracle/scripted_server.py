"""A server for one device under test: it sends what a test says, and its peers have real eventfds.

One inherited socket pair, dialect v0. The peers are eventfds held here: what a device rings can be counted.
"""

from __future__ import annotations

import contextlib
import mmap
import select
import socket
import time
from collections.abc import Callable, Iterator

from nodes.errors import QemuError
from sim.engines.qemu.relay import Relay
from sim.kernel.closeable import Closeable
from sim.kernel.eventfd import EventFd, signal
from sim.kernel.memory import Region, map_region
from sim.kernel.waiting import Patience

SEND_SECONDS = 20.0


class ScriptedServer(Closeable):
    """Owns the memory, the eventfds and this end of the connection; ``client`` is the other end."""

    def __init__(self, size_bytes: int = 0, *, region: Region | None = None) -> None:
        """Use memory of ``size_bytes``, or the caller's ``region``."""
        with contextlib.ExitStack() as stack:
            near, far = socket.socketpair()
            self._relay = Relay(near)
            stack.callback(self._relay.close)
            stack.callback(far.close)
            self.region = region or Region.create(size_bytes, kind="memfd")
            if region is None:
                stack.callback(self.region.close)
            mapped: mmap.mmap = map_region(self.region.descriptor)
            stack.callback(mapped.close)
            self._stack = stack.pop_all()
        self.memory = memoryview(mapped)
        self._stack.callback(self.memory.release)
        self._far = far
        self.peers: dict[int, list[EventFd]] = {}
        self._rung = select.epoll()
        self._stack.callback(self._rung.close)
        self._lines: dict[int, tuple[int, int, EventFd]] = {}

    @property
    def client(self) -> int:
        return self._far.fileno()

    def close(self) -> None:
        for peer in list(self.peers):
            self._forget(peer)
        self._stack.close()

    def hand_over(self) -> None:
        """Close the other end of the connection, which the device's process has inherited."""
        self._far.close()

    def greet(self, peer: int) -> None:
        """Send version, own ID and shared memory, which wait in the socket until the device's process has started."""
        self._relay.greet(peer, self.region.descriptor)

    def join(
        self,
        peer: int,
        vectors: int,
        eventfds: list[EventFd] | None = None,
        *,
        turn: Callable[[], object] | None = None,
    ) -> None:
        """Send further vectors of a peer, or of the device itself, one message each; the server owns ``eventfds`` then.

        With ``turn``, which lets the device under test make a turn of its main loop, wait until it has taken them.
        """
        eventfds = [EventFd.create() for _ in range(vectors)] if eventfds is None else eventfds[:vectors]
        known = self.peers.setdefault(peer, [])
        for vector, eventfd in enumerate(eventfds, len(known)):
            self._lines[eventfd.descriptor] = (peer, vector, eventfd)
            self._rung.register(eventfd.descriptor, select.EPOLLIN)
        known += eventfds
        for eventfd in eventfds:
            self._relay.connect(peer, eventfd.descriptor)
        self._wait(turn)

    def leave(self, peer: int, *, turn: Callable[[], object] | None = None) -> None:
        """Announce that a peer has left; ``turn`` as in `join`."""
        self._forget(peer)
        self._relay.leave(peer)
        self._wait(turn)

    def _forget(self, peer: int) -> None:
        for eventfd in self.peers.pop(peer):
            self._rung.unregister(eventfd.descriptor)
            del self._lines[eventfd.descriptor]
            eventfd.close()

    def ring(self, peer: int, vector: int, count: int = 1) -> None:
        """Ring an eventfd, as another peer does."""
        signal(self.peers[peer][vector].descriptor, count)

    def take_rung(self, *, but: int) -> Iterator[tuple[int, int, int]]:
        """The (peer, vector, doorbells) of each eventfd that was rung since the last call, those of ``but`` excepted.

        An eventfd that is readable is read without blocking, whatever the device under test did to its flags.
        """
        found = [self._lines[number] for number, _ in self._rung.poll(0, max(1, len(self._lines)))]
        for peer, vector, eventfd in sorted(found, key=lambda line: line[:2]):
            if peer != but:
                yield peer, vector, eventfd.take()

    def _wait(self, turn: Callable[[], object] | None) -> None:
        if turn is not None:
            self._relay.wait_until_read(turn)
            turn()  # the one that handles the last message may be under way still
            return
        patience = Patience(SEND_SECONDS)
        while not self._relay.flush():
            time.sleep(0.001)
            if patience.is_over():
                raise QemuError(f"QEMU has read no message of its server for {SEND_SECONDS:g} s")
