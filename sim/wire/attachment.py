"""A peer in this process: a machine, its connection, and a loop that waits for both; no worker, no coordinator.

`ivsim attach`, the client library (`sim.connect`) and the machines of a test (`sim.serve`) are made of it.

A greeting has no end marker, except where the memory comes last. A server of dialect v0 sends a newcomer's own eventfds
last: when the first of them has come, all earlier peers are known. The greeting does not tell how many own eventfds
follow. `Attachment.meet` waits until all vectors that this peer can have are connected, or nothing has come for
``GRACE_NS``. A legacy server announces all peers by ascending ID: others may follow the own eventfds.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from nodes.device.profiles import PROFILES
from nodes.device.v2.sections import Sections
from nodes.errors import GuestError, RemoteProtocolError, UsageError
from nodes.guest import FOREVER, Guest, Interrupt, Program
from nodes.ledger import NoLedger
from nodes.vm import Vm
from nodes.wire.protocol import V0, V0_SHM_LAST, Dialect
from nodes.wire.v2.protocol import V2
from sim.kernel.eventfd import drain, signal
from sim.kernel.loop import Loop
from sim.wire.connection import Connection, connect, release_memory
from sim.wire.listener import check_path
from sim.wire.peer_changes import Change, PeerChange, StateWatch

SECOND_NS = 1_000_000_000
GRACE_NS = 50_000_000
GREETING_NS = 10 * SECOND_NS
RECONNECT_NS = SECOND_NS
WARNINGS_MAX = 1000
# How long to wait for own eventfds. A server that loses messages may never send them (QEMU's, beyond some 275).
DEAF_NS = SECOND_NS


class Attachment:
    """One peer of a server, driven by a loop. Close it before the loop.

    A call of the loop raises `RemoteProtocolError` when the server violates the protocol.

    Args:
        loop: what waits for the connection and for the own eventfds.
        path: the socket on which the server listens.
        vectors: how many vectors the peer has, and how many of each other peer it can ring.
        reconnect: try again every second when there is no server, when it ends, or when it refuses this peer.
        program: what the machine runs, from the moment when all present peers are known. Without one, interrupts are
            kept in ``unseen``.
        in_background: `meet` is not called: the steps of the loop do its work, and ``on_return`` is called at its end.
        on_interrupt: ``on_interrupt(time_ns, vector, doorbells)`` is called for each interrupt; CLOCK_MONOTONIC.
        on_change: ``on_change(change)`` is called when a peer joins, leaves or has another State, or the server closes.
        say: ``say(text)`` is called with what is odd.
        on_return: ``on_return()`` is called when all peers are known again after a reconnect.

    Attributes:
        met: whether all peers that were there at the join are known; False again while a server is tried again.
        served: whether the server is there. Doorbells and interrupts do not need it (ivshmem-spec, "Interrupts").
        unseen: vector -> doorbells of interrupts that no reader has taken, in the order of their first; see `take`.

    Raises:
        UsageError: no server listens there, and ``reconnect`` is off.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        *,
        vectors: int,
        reconnect: bool = False,
        program: Callable[[Guest], Program] | None = None,
        in_background: bool = False,
        on_interrupt: Callable[[int, int, int], object] = lambda time_ns, vector, doorbells: None,
        on_change: Callable[[Change], object] = lambda change: None,
        say: Callable[[str], object] = lambda text: None,
        on_return: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop, self._path, self._vectors, self._reconnect = loop, path, vectors, reconnect
        self._on_interrupt, self._on_change, self._on_return = on_interrupt, on_change, on_return
        self._say, self._program = say, program
        self._states = StateWatch(on_change)
        self._armed_ns: int | None = None  # when the loop looks whether the program waits no longer
        check_path(path)
        self._connection: Connection | None = None
        self._connected_ns = self._news_ns = 0
        self.met = self.served = False
        self._returns = in_background  # `meet` has returned before, or is not called
        self._refused = self._closed = False
        self._warned: set[str] = set()
        self._vm = self._make_machine()
        self.unseen: Counter[int] = Counter()
        self._connect(first=True)

    def _make_machine(self, profile: str = "qemu-doorbell") -> Vm:
        vm = Vm(
            PROFILES[profile],
            vectors=self._vectors,
            role="peer",
            signal=self._signal,
            ledger=NoLedger(),
            clock=time.monotonic_ns,
            random=random.Random(0),
            sample_every=0,
        )
        if self._program is None:
            vm.start(self._listen)
        return vm

    def _adapt(self, vectors: int) -> Vm:
        """A device of version 2 has as many vectors as its server says that each peer has."""
        self._vm.stop()
        self._vectors = vectors
        self._vm = self._make_machine("qemu-v2")
        return self._vm

    # State

    @property
    def peer(self) -> int | None:
        """The own ID; None before it has come."""
        return None if self._connection is None else self._connection.endpoint.peer

    @property
    def dialect(self) -> Dialect | None:
        """The dialect of the server, by its first messages; None while it is unknown."""
        return None if self._connection is None else self._connection.endpoint.dialect

    @property
    def peers(self) -> dict[int, int]:
        """The peers that can be rung, this one included: ID -> number of vectors."""
        return self._vm.guest.peers

    @property
    def own_vectors(self) -> int:
        """How many own eventfds have come: the vectors that other peers can ring."""
        return 0 if self.peer is None else self.peers.get(self.peer, 0)

    @property
    def memory(self) -> memoryview:
        """The shared memory; empty while there is none."""
        return self._vm.guest.memory

    def vectors_of(self, peer: int) -> int:
        """How many vectors of a peer can be rung; 0 when it is not connected."""
        return self._vm.guest.vectors_of(peer)

    @property
    def sections(self) -> Sections | None:
        """The memory with its rights, of a server of ivshmem v2; None for other servers."""
        return self._vm.device.sections

    def set_state(self, value: int) -> None:
        """Write the State register of a peer of ivshmem v2.

        Raises:
            GuestError: the server is of another version.
        """
        self._vm.guest.set_state(value)

    def enable_interrupts(self, *, enabled: bool) -> None:
        """Write the Interrupt Control of a peer of ivshmem v2.

        Raises:
            GuestError: the server is of another version.
        """
        self._vm.guest.enable_interrupts(enabled=enabled)

    def ring(self, peer: int, vector: int) -> bool:
        """Ring a vector of a peer; returns False when its counter is full.

        Raises:
            GuestError: it is not connected.
        """
        connected = self.vectors_of(peer)
        if not connected:
            there = ", ".join(map(str, sorted(self.peers))) or "no peer"
            raise GuestError(f"peer {peer} is not there: expected one of {there}")
        if not 0 <= vector < connected:
            raise GuestError(f"peer {peer} has no vector {vector}: expected 0..{connected - 1}")
        self._refused = False
        self._vm.guest.ring(peer, vector)
        return not self._refused

    def _signal(self, line: int, value: int) -> None:
        try:
            signal(line, value)
        except BlockingIOError:
            self._refused = True
            raise

    # Being connected

    def meet(self, deadline_ns: int | None = None) -> bool:
        """Wait until all present peers are known, as far as that can be told.

        Returns:
            False if there is no server at the deadline.

        Raises:
            RemoteProtocolError: the server has not sent an ID and the memory within ``GREETING_NS``.
        """
        while (until_ns := self._met_at_ns()) is None or time.monotonic_ns() < until_ns:
            silent_ns = self._connected_ns + GREETING_NS if self.served and until_ns is None else None
            silence = self.silence if silent_ns is not None and time.monotonic_ns() >= silent_ns else ""
            if not self.served and deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                return False
            self._loop.step(until_ns or silent_ns or (None if self.served else deadline_ns))
            # What came while this process stood still has been read by now.
            if silence and self._met_at_ns() is None and self.silence == silence:
                raise RemoteProtocolError(silence)
        self._returns = True
        self._be_met()
        return True

    @property
    def silence(self) -> str:
        """The error text for a server whose greeting has not come within ``GREETING_NS``."""
        missing = "a greeting" if self._connection is None else self._connection.endpoint.awaited
        return (
            f"the server on {self._path} is silent: expected {missing} within {GREETING_NS // SECOND_NS} s, "
            f"got nothing; is it an ivshmem server?"
        )

    def _be_met(self) -> None:
        self.met = True
        self._states.begin(self.sections)
        if not self.own_vectors:
            self._say("no eventfds of its own have come: no peer can interrupt this one")
        if self._program is not None:
            self._resume_at(self._vm.start(self._program))

    def _meet_again(self, connection: Connection) -> None:
        """As `meet`, while the loop does other things."""
        if connection is self._connection and not self._meet_now():
            until_ns = self._met_at_ns() or time.monotonic_ns() + GRACE_NS
            self._loop.at(until_ns, lambda: self._meet_again(connection))

    def _meet_now(self) -> bool:
        """Whether all present peers are known by now."""
        if not self.met and (until_ns := self._met_at_ns()) is not None and time.monotonic_ns() >= until_ns:
            self._be_met()
            self._on_return()
        return self.met

    def _met_at_ns(self) -> int | None:
        """The time from which on all peers count as known if nothing more comes; None while that is open."""
        if not len(self.memory):
            return None
        complete = self.dialect is V0_SHM_LAST or (self.dialect in (V0, V2) and self.own_vectors == self._vectors)
        if complete or not self.served:
            return self._news_ns
        return self._news_ns + (GRACE_NS if self.own_vectors else DEAF_NS)

    def _connect(self, first: bool = False) -> None:
        if self._closed:
            return
        try:
            connection = Connection(connect(self._path), self._vm, on_own=self._watch_own, warn=self._warn)
        except UsageError as error:
            if not self._reconnect:
                raise
            if first:
                self._say(f"{error}; trying again every second")
            self._loop.at(time.monotonic_ns() + RECONNECT_NS, self._connect)
            return
        self._connection = connection
        self._connected_ns = self._news_ns = time.monotonic_ns()
        self.served = True
        self._loop.add(connection, self._read)
        if self._returns:
            self._meet_again(connection)

    def _warn(self, text: str) -> None:
        """Tell each odd thing once: a peer with many more vectors than this one would fill the screen."""
        if text not in self._warned and len(self._warned) < WARNINGS_MAX:
            self._warned.add(text)
            self._say(text)

    def _read(self) -> None:
        connection = self._connection
        assert connection is not None
        before = self.peers
        if connection.endpoint.dialect is None and connection.is_framed():
            connection.use(self._adapt(1), adapt=self._adapt)
        try:
            going_on = connection.read()
        except RemoteProtocolError as error:
            if not self._reconnect:
                raise
            self._try_again(str(error))
            return
        self._news_ns = time.monotonic_ns()
        self._tell_changes(before)
        if self._returns:
            self._meet_now()
        if going_on:
            return
        if self._reconnect:
            self._try_again("the server has closed the connection")
            return
        self._loop.remove(connection)
        self.served = False
        self._on_change(PeerChange("server_closed"))

    def _try_again(self, reason: str) -> None:
        tell = self._say if self.memory else self._warn  # a peer that is refused again and again says so once
        tell(f"{reason}; trying again every second")
        self.met = False
        self._drop()
        self._vm = self._make_machine()
        self._loop.at(time.monotonic_ns() + RECONNECT_NS, self._connect)

    def _tell_changes(self, before: dict[int, int]) -> None:
        if self.met or before:
            for peer in self.peers.keys() - before.keys() - {self.peer}:
                self._on_change(PeerChange("joined", peer))
        for peer in before.keys() - self.peers.keys():
            self._on_change(PeerChange("left", peer))
        self._states.look(self.sections)
        while self._vm.warnings:
            self._warn(self._vm.warnings.pop(0))

    # Being interrupted

    def _watch_own(self, descriptor: int) -> None:
        self._loop.add(descriptor, lambda: self._take(descriptor))

    def _take(self, descriptor: int) -> None:
        connection = self._connection
        if connection is None or descriptor not in connection.own:
            return
        with contextlib.suppress(BlockingIOError):  # another process that has this eventfd has drained it
            self._resume_at(self._vm.deliver(connection.own[descriptor], drain(descriptor)))
            self._states.look(self.sections)

    def take(self, vector: int | None = None) -> Interrupt | None:
        """The oldest interrupt of a vector, or of any, that no reader has taken, with all doorbells since; or None."""
        vector = next(iter(self.unseen), None) if vector is None else vector
        doorbells = 0 if vector is None else self.unseen.pop(vector, 0)
        return Interrupt(vector or 0, doorbells) if doorbells else None

    def _resume_at(self, due_ns: int | None) -> None:
        """Resume the program at the time for which it waits; one moment of the loop is enough for the earliest."""
        if due_ns is not None and (self._armed_ns is None or due_ns < self._armed_ns):
            self._armed_ns = due_ns
            self._loop.at(due_ns, lambda: self._expire(due_ns))

    def _expire(self, armed_ns: int) -> None:
        if armed_ns != self._armed_ns or self._closed:
            return
        self._armed_ns = None
        due_ns = self._vm.wait
        if due_ns is not None and due_ns <= time.monotonic_ns():
            due_ns = self._vm.expire()
        self._resume_at(due_ns)

    def _listen(self, guest: Guest) -> Program:
        while True:
            interrupt = yield FOREVER
            if interrupt is not None:
                self.unseen[interrupt.vector] += interrupt.doorbells
                self._on_interrupt(time.monotonic_ns(), interrupt.vector, interrupt.doorbells)

    # The end

    def close(self) -> None:
        """Leave the server and release the memory, unless the caller still uses parts of it. Closing twice is no error.

        A mapping holds a descriptor (mmap.mmap duplicates the one that it is given).
        """
        if self._closed:
            return
        self._closed = True
        self._drop()
        self._vm.unplug()  # the device has a view of the memory, too
        release_memory(self._vm)

    def _drop(self) -> None:
        """Close the connection and everything that came over it."""
        connection, self._connection = self._connection, None
        self._vm.stop()
        if connection is not None:
            if self.served:
                self._loop.remove(connection)
                self.served = False
            for descriptor in connection.own:
                self._loop.remove(descriptor)
            connection.close()
