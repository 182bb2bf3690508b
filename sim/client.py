"""The client library: a peer of any ivshmem server in this process, without a thread, a process or a message queue.

`connect` gives a `Peer`, whose calls block; `sim.async_client` has the same for asyncio. Both are a
`sim.wire.attachment.Attachment` with a loop of its own: a blocking call steps that loop, and asyncio steps it whenever
its descriptor is readable.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nodes.device.v2.sections import Sections
from nodes.errors import GuestError, UsageError
from nodes.guest import Interrupt
from sim.kernel.closeable import Closeable
from sim.kernel.loop import Loop
from sim.wire.attachment import GRACE_NS, Attachment
from sim.wire.peer_changes import Change

DEFAULT_PATH = "/tmp/ivshmem_socket"
"""Where ivshmem-server and `ivsim serve` listen unless told otherwise."""
VECTORS = 64
CHANGES_MAX = 4096
NANOSECONDS = 1_000_000_000

Found = TypeVar("Found")


class ConnectedPeer:
    """The common part of the blocking and the asynchronous peer."""

    timeout: float | None

    def __init__(self, path: str | os.PathLike[str], *, vectors: int, in_background: bool) -> None:
        self.path = Path(path)
        self.warnings: deque[str] = deque(maxlen=CHANGES_MAX)
        """Descriptions of odd messages that changed nothing; the newest 4096."""
        self._changes: deque[Change] = deque(maxlen=CHANGES_MAX)
        self._closed = False
        self._loop = Loop()
        try:
            self._attachment = Attachment(
                self._loop,
                self.path,
                vectors=vectors,
                in_background=in_background,
                on_change=self._note_change,
                say=self.warnings.append,
            )
        except BaseException:
            self._loop.close()
            raise

    def _note_change(self, change: Change) -> None:
        if self._attachment.met:  # the peers of the greeting were there before
            self._changes.append(change)

    def _take_in(self) -> None:
        """Take in what the server and the peers have sent so far."""
        self._check_open()
        self._loop.step(time.monotonic_ns())

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this peer is closed")

    @property
    def id(self) -> int:
        """The own ID, 0..65535: the IVPosition register of a device."""
        self._check_open()
        peer = self._attachment.peer
        assert peer is not None, "a greeting begins with the ID"
        return peer

    @property
    def vectors(self) -> int:
        """How many vectors of its own other peers can ring."""
        return self._attachment.own_vectors

    @property
    def peers(self) -> dict[int, int]:
        """The other peers that can be rung now: ID -> number of vectors."""
        self._take_in()
        return {peer: vectors for peer, vectors in self._attachment.peers.items() if peer != self._attachment.peer}

    @property
    def memory(self) -> memoryview:
        """The shared memory (BAR2 of a device): writable, of ivshmem v2 read-only. Closing the peer releases it."""
        return self._attachment.memory

    @property
    def sections(self) -> Sections:
        """The memory by this peer's rights (ivshmem v2): ``state(peer)``, ``shared``, ``own``, ``output(peer)``.

        Raises:
            GuestError: the server is of version 1, whose memory all peers may write.
        """
        self._check_open()
        if self._attachment.sections is None:
            raise GuestError("this peer has no sections: its server is not of ivshmem v2")
        return self._attachment.sections

    @property
    def state(self) -> int:
        """The State of this peer (ivshmem v2). To set it writes the State register: all others are interrupted.

        Raises:
            GuestError: the server is of version 1.
        """
        return self.sections.state(self.id)

    @state.setter
    def state(self, value: int) -> None:
        self._check_open()
        self._attachment.set_state(value)

    @property
    def states(self) -> list[int]:
        """The State Table (ivshmem v2): the State of each peer by its ID, 0 where there is none.

        Raises:
            GuestError: the server is of version 1.
        """
        return self.sections.states()

    def enable_interrupts(self, *, enabled: bool = True) -> None:
        """Write Interrupt Control (ivshmem v2), which `connect` sets: while it is 0, doorbells at this peer are lost.

        Raises:
            GuestError: the server is of version 1.
        """
        self._check_open()
        self._attachment.enable_interrupts(enabled=enabled)

    @property
    def dialect(self) -> str | None:
        """The name of the dialect that the server speaks; None if its messages do not tell."""
        return None if self._attachment.dialect is None else self._attachment.dialect.name

    @property
    def connected(self) -> bool:
        """Whether the server is there. Doorbells and interrupts go on without it; joins and leaves do not."""
        if not self._closed:
            self._take_in()
        return self._attachment.served

    def events(self) -> list[Change]:
        """The peers that have joined, left and changed their State since the last call, in order: ``change.kind``,
        ``change.peer``, ``change.state``.

        The newest 4096 are kept. A State that changes twice before this process looks is one event.
        """
        self._take_in()
        changes = list(self._changes)
        self._changes.clear()
        return changes

    def ring(self, peer: int, vector: int = 0) -> bool:
        """Ring a vector of a peer, or of this peer itself. Never blocks where the vector is connected.

        Returns:
            Whether it was rung: False when the counter of that vector is full.

        Raises:
            GuestError: there is no such peer, or it has no such vector.
        """
        until_ns = time.monotonic_ns() + GRACE_NS  # the vectors of a newcomer may come one by one
        while self._attachment.vectors_of(peer) <= vector:
            self._take_in()
            if time.monotonic_ns() >= until_ns or not self._waits_for_vector(peer, until_ns):
                break
        return self._attachment.ring(peer, vector)

    def _waits_for_vector(self, peer: int, until_ns: int) -> bool:
        return False

    def _are_there(self, count: int) -> bool:
        """Whether so many other peers are there with as many vectors as this one has."""
        there = self._attachment.peers
        own = self._attachment.own_vectors
        return sum(vectors >= own for vectors in there.values()) - (self._attachment.peer in there) >= count

    def _limit_s(self, timeout: float | None) -> float | None:
        return self.timeout if timeout is None else timeout

    def _no_interrupt(self, vector: int | None, timeout: float | None) -> TimeoutError:
        wanted = "an interrupt" if vector is None else f"an interrupt of vector {vector}"
        unseen = ", ".join(map(str, self._attachment.unseen)) or "none"
        limit_s = self._limit_s(timeout) or 0.0
        return TimeoutError(f"expected {wanted} within {limit_s:g} s, got none (other vectors that wait: {unseen})")

    def _no_peers(self, count: int, timeout: float | None) -> TimeoutError:
        limit_s = self._limit_s(timeout) or 0.0
        return TimeoutError(f"expected {count} other peers within {limit_s:g} s, got {self.peers}")

    def _check_vector(self, vector: int | None) -> None:
        if vector is not None and not 0 <= vector < self.vectors:
            raise ValueError(f"expected a vector of this peer, 0..{self.vectors - 1}, got {vector}")

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            self._attachment.close()
            self._loop.close()


class Peer(ConnectedPeer, Closeable):
    """A peer of a server, in this process. Its calls block; use it in one thread at a time. See `connect`.

    Attributes:
        timeout: the default of all timeouts, seconds; None: wait for ever.
    """

    def __init__(
        self, path: str | os.PathLike[str] = DEFAULT_PATH, *, vectors: int = VECTORS, timeout: float | None = None
    ) -> None:
        super().__init__(path, vectors=vectors, in_background=False)
        self.timeout = timeout
        try:
            self._attachment.meet()
        except BaseException:
            self.close()
            raise

    def _waits_for_vector(self, peer: int, until_ns: int) -> bool:
        if self._attachment.served:
            self._loop.step(until_ns)
        return self._attachment.served

    def wait(self, vector: int | None = None, *, timeout: float | None = None) -> Interrupt:
        """Wait for an interrupt. One that came earlier counts, unless a call has returned it.

        Args:
            vector: the own vector to wait for; any, if not given.
            timeout: seconds; the default is that of the peer.

        Returns:
            ``vector``, and ``doorbells``: how many of them came since the last interrupt of that vector.

        Raises:
            TimeoutError: none came in time.
        """
        self._check_vector(vector)
        self._take_in()
        found = self._until(lambda: self._attachment.take(vector), timeout)
        if found is None:
            raise self._no_interrupt(vector, timeout)
        return found

    def wait_for_peers(self, count: int = 1, *, timeout: float | None = None) -> dict[int, int]:
        """Wait until at least ``count`` other peers are there, with as many vectors as this one has; return `peers`.

        Raises:
            TimeoutError: fewer came in time.
        """
        if not self._until(lambda: self._are_there(count), timeout):
            raise self._no_peers(count, timeout)
        return self.peers

    def _until(self, look: Callable[[], Found], timeout: float | None) -> Found:
        """Step the loop until there is what is looked for or the time is over; returns what was found last."""
        limit_s = self._limit_s(timeout)
        deadline_ns = None if limit_s is None else time.monotonic_ns() + round(limit_s * NANOSECONDS)
        self._take_in()
        while not (found := look()) and (deadline_ns is None or time.monotonic_ns() < deadline_ns):
            self._loop.step(deadline_ns)
        return found

    def fileno(self) -> int:
        """A descriptor that becomes readable when there is something to take in: for select, epoll and other loops."""
        return self._loop.fileno()

    def close(self) -> None:
        """Leave the server, and close everything that came from it. Closing twice is no error."""
        self._release()

    def __repr__(self) -> str:
        return f"<Peer {self._attachment.peer if not self._closed else 'closed'} of {self.path}>"


def connect(
    path: str | os.PathLike[str] = DEFAULT_PATH, *, vectors: int = VECTORS, timeout: float | None = None
) -> Peer:
    """Connect to the ivshmem server on a socket as one more peer, and wait until all present peers are known.

    Args:
        path: the socket of the server: `ivsim serve`, a run, QEMU's ivshmem-server, Cuttlefish's.
        vectors: how many vectors this peer has, and how many of each other peer it can ring. A server of dialect v0
            gives as many as it was told; if that is known, say so: the greeting has no end marker, and a peer that
            expects more waits 50 ms for them.
        timeout: the default of the timeouts of this peer's methods, seconds; None: wait for ever.

    Returns:
        The peer, a context manager that closes everything.

    Raises:
        UsageError: no server listens there.
        RemoteProtocolError: the server violates the protocol, or is silent for ten seconds.
    """
    return Peer(path, vectors=vectors, timeout=timeout)
