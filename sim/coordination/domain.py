"""One domain of a topology while it runs: its memory, its server, and who has joined it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nodes.errors import HostError
from nodes.wire.protocol import DIALECTS, MEMORY, PEERS_MAX, Message
from sim.coordination.machines import LiveMachines
from sim.engines.process.handle import WorkerHandle
from sim.kernel.eventfd import EventFd
from sim.kernel.loop import Loop
from sim.kernel.memory import Region
from sim.wire.nonblocking_guard import NonBlockingGuard
from sim.wire.server import Arrival, IvshmemServer, Peer
from topologies import Domain

__all__ = ["LiveDomain"]


class _Half(Message[int]):
    """The first half of a message, of which the rest never comes."""

    def encode(self) -> bytes:
        return super().encode()[:4]


# Messages that a server must not send, by the names of topologies.actions.MalformedMessage.
_GARBLED: dict[str, Callable[[int, int], Message[int]]] = {
    "bad_peer": lambda _peer, _memory: Message(PEERS_MAX),
    "left_itself": lambda peer, _memory: Message(peer),
    "left_stranger": lambda peer, _memory: Message(PEERS_MAX - 1),
    "memory_again": lambda _peer, memory: Message(MEMORY, (memory,)),
    "half_message": lambda peer, _memory: _Half(peer),
}


class LiveDomain:
    """Owns the region and the server.

    Machines that are there from the start join together, in the order of the topology, whatever the order in which
    their processes got here; whoever comes later joins at once, strangers (real QEMUs, tools) not before the others.

    ``on_join(hand, place)`` tells that a machine has joined with the device at that place of its own list,
    ``on_stranger(arrival)`` that somebody unknown has, ``on_leave(peer, reason)`` that somebody left, ``on_fault``
    that somebody could not be let in.
    """

    def __init__(
        self,
        domain: Domain,
        number: int,
        loop: Loop,
        path: Path,
        *,
        on_join: Callable[[WorkerHandle, int], None],
        on_stranger: Callable[[Arrival], None],
        on_leave: Callable[[Peer, str], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self.name, self.number, self.path = domain.name, number, path
        self._loop = loop
        self._dialect = DIALECTS[domain.dialect]
        self._on_join, self._on_stranger, self._on_leave, self._on_fault = on_join, on_stranger, on_leave, on_fault
        self._machines: LiveMachines | None = None
        self._awaited: dict[int, tuple[WorkerHandle, Arrival | None]] = {}
        self._missing = 0
        self._strangers: list[Arrival] = []
        self._vectors = 1
        self._gone: list[Peer] = []  # of servers that were stopped: their counters still belong to the books
        self._next_peer = 0
        self.server: IvshmemServer | None = None
        self._guard: NonBlockingGuard | None = None
        self.region = Region.create(domain.memory.size_bytes, kind=domain.memory.kind, name=domain.memory.name or None)

    def open(self, machines: LiveMachines) -> None:
        """Listen. The machines of ``crew`` that are present are waited for."""
        self._machines = machines
        mine = [handle for handle in machines.current if any(row.domain == self.number for row in handle.rows)]
        self._vectors = max((handle.plan.vectors for handle in mine), default=1)
        self._awaited = {handle.machine.index: (handle, None) for handle in mine if handle.machine.present}
        self._missing = len(self._awaited)
        self.start()

    def start(self) -> None:
        """Have a server listen; IDs go on where those of the one before it ended."""
        self.server = IvshmemServer(
            self._loop,
            self.path,
            self.region.descriptor,
            vectors=self._vectors,
            dialect=self._dialect,
            first_peer=self._next_peer,
            on_arrival=self._arrive,
            on_leave=self._on_leave,
            retain_departed=True,
        )
        self._guard = NonBlockingGuard(self._loop, self.server)

    def stop(self) -> None:
        """Close every connection and the socket; eventfds stay, for the books and for those who hold them."""
        if self.server is not None:
            self._gone += self.server.retire()
            self.server = None

    def peers(self) -> Iterator[Peer]:
        """Everybody who has ever joined."""
        yield from self._gone
        if self.server is not None:
            yield from self.server.peers.values()
            yield from self.server.departed

    def garble(self, peer: int, kind: str) -> bool:
        """Say something malformed to a peer; False when it is not connected to a server."""
        return self.server is not None and self.server.tell(peer, _GARBLED[kind](peer, self.region.descriptor))

    def eventfds(self, peer: int) -> Sequence[EventFd]:
        """The eventfds of a peer, by vector; none if there is no such peer."""
        return next((each.eventfds for each in self.peers() if each.peer == peer), ())

    def close(self) -> None:
        self.stop()
        for peer in self._gone:
            for eventfd in peer.eventfds:
                eventfd.close()
        self._gone.clear()
        self.region.close()

    def _arrive(self, arrival: Arrival) -> None:
        assert self._machines is not None
        if _has_gone(arrival):
            # Nobody's now, whosever it was: a process that died as it was to take a machine over is not that machine.
            return
        handle = self._machines.with_pid(arrival.pid)
        if handle is not None and handle.machine.index in self._awaited:
            self._awaited[handle.machine.index] = handle, arrival
            self._missing -= 1
            if not self._missing:
                there = [(handle, arrival) for handle, arrival in self._awaited.values() if arrival is not None]
                self._awaited.clear()
                self._let_in(there)
        elif handle is not None and self._place(handle) is not None:
            self._let_in([(handle, arrival)])
        else:
            self._strangers.append(arrival)
        if not self._awaited:
            for stranger in self._strangers:
                if not any(self._join([(stranger, self._vectors)])):
                    continue  # it has gone while it waited
                self._on_stranger(stranger)
                # A real QEMU clears the flag on every eventfd, and whoever rings a full counter would wait for ever.
                assert self._guard is not None
                self._guard.start()
            self._strangers.clear()

    def _let_in(self, handles: list[tuple[WorkerHandle, Arrival]]) -> None:
        """They join, and are told of everybody who is then there."""
        assert self.server is not None
        joined = self._join([(arrival, handle.plan.vectors) for handle, arrival in handles])
        eventfds = sum(len(peer.eventfds) for peer in self.server.peers.values())
        for (handle, _), peer in zip(handles, joined, strict=False):
            place = self._place(handle)
            if place is not None and peer is not None:
                handle.identities.append((handle.rows[place].row, self.number, peer.peer))
                if handle.moving is None:
                    handle.peers[place] = peer.peer
                else:  # nobody is told that it is there before it is
                    handle.moving.peer = peer.peer
                handle.greetings[place] = eventfds
                self._on_join(handle, place)

    def _join(self, arrivals: list[tuple[Arrival, int]]) -> list[Peer | None]:
        assert self.server is not None
        try:
            joined = self.server.join_all(arrivals)
        except HostError as error:
            self._on_fault(str(error))
            return []
        self._next_peer = max([self._next_peer, *(peer.peer + 1 for peer in joined if peer is not None)])
        return joined

    def _place(self, handle: WorkerHandle) -> int | None:
        """With which of its devices a machine joins here; None if it has none in this domain."""
        if handle.moving is not None:
            return 0 if handle.moving.domain == self.number else None
        return next((place for place, row in enumerate(handle.rows) if row.domain == self.number), None)


def _has_gone(arrival: Arrival) -> bool:
    """Whether a client has left before it could join; a byte from it means that, too. Its server then forgets it."""
    try:
        arrival.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True
