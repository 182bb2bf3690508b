"""The memory and the server of a domain, for machines and for foreign clients that connect to a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sim.engines.base import Arrival, LiveMachine
from sim.kernel.channel import has_ended
from sim.kernel.loop import Loop
from sim.kernel.memory import Region, made_smaller
from sim.wire.clients import Dismissal, JoinedClient, PendingClient
from sim.wire.nonblocking_guard import NonBlockingGuard
from sim.wire.server import IvshmemServer
from topologies import Domain


class SocketArrival:
    """A process that has connected, and the machine that it is."""

    def __init__(self, connected: PendingClient, machine: LiveMachine | None) -> None:
        self.connected, self.machine = connected, machine
        self.pid, self.uid = connected.pid, connected.uid

    @property
    def has_left(self) -> bool:
        """Whether it has left; a byte from it means that, too. Its server then forgets it."""
        return has_ended(self.connected.socket)


class SocketServer:
    """Owns the memory and an ivshmem server on ``path``; a `sim.engines.base.DomainServer`.

    ``machine_of(pid)`` is the machine that a process belongs to; ``is_real`` tells whether it is a real QEMU.
    Eventfds of peers that have left stay open, because their counters belong to the accounts of the run.
    """

    def __init__(
        self,
        domain: Domain,
        path: Path,
        loop: Loop,
        *,
        machine_of: Callable[[int], LiveMachine | None],
        is_real: Callable[[LiveMachine | None], bool],
        on_arrival: Callable[[Arrival], None],
        on_leave: Callable[[JoinedClient, str], None],
    ) -> None:
        self.path = path
        self._loop = loop
        self._domain = domain
        self._machine_of, self._on_arrival, self._on_leave = machine_of, on_arrival, on_leave
        self._is_real = is_real
        self._retired: list[JoinedClient] = []  # of servers that were stopped
        self._server: IvshmemServer | None = None
        self._guard: NonBlockingGuard | None = None
        self._region = Region.create(domain.memory.size_bytes, kind=domain.memory.kind, name=domain.memory.name or None)

    @property
    def memory_fault(self) -> str:
        """In words, that the memory was made smaller; nothing when it was not."""
        return made_smaller(self._region.descriptor, self._region.size_bytes) if self._region.descriptor >= 0 else ""

    @property
    def sent(self) -> int:
        """How many messages the server that listens has sent."""
        return self._server.sent if self._server is not None else 0

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    def listen(self, *, vectors: int, first_peer: int) -> None:
        self._server = IvshmemServer(
            self._loop,
            self.path,
            self._region.descriptor,
            vectors=vectors,
            dialect=self._domain.spoken,
            first_peer=first_peer,
            numbers=self._domain.numbers(vectors),
            on_arrival=lambda connected: self._on_arrival(SocketArrival(connected, self._machine_of(connected.pid))),
            on_leave=self._on_leave,
            retain_departed=True,
        )
        self._guard = NonBlockingGuard(self._loop, self._server)

    def stop(self) -> None:
        if self._server is not None:
            self._retired += self._server.retire()
            self._server = None

    def admit(self, arrivals: Iterable[tuple[Arrival, int]]) -> list[JoinedClient | None]:
        assert self._server is not None
        arrivals = list(arrivals)
        connected = [
            (arrival.connected, vectors) for arrival, vectors in arrivals if isinstance(arrival, SocketArrival)
        ]
        if any(self._is_real(arrival.machine) for arrival, _ in arrivals):
            self.guard_eventfds()
        return self._server.join_all(connected)

    def guard_eventfds(self) -> None:
        # A real QEMU clears the flag on every eventfd that it receives; a ring at a full counter would then block.
        if self._guard is not None:
            self._guard.start()

    def clients(self) -> Iterator[JoinedClient]:
        yield from self._retired
        if self._server is not None:
            yield from self._server.peers.values()
            yield from self._server.departed

    def connected_eventfds(self) -> int:
        return self._server.eventfd_count if self._server is not None else 0

    def client(self, peer: int) -> JoinedClient | None:
        if self._server is not None and (connected := self._server.peers.get(peer)) is not None:
            return connected
        return next((each for each in self.clients() if each.peer == peer), None)

    def dismiss(self, pid: int) -> Dismissal | None:
        """Disconnect the client that is this process; None if no server is connected to it."""
        if self._server is None:
            return None
        number = next((number for number, client in self._server.peers.items() if client.pid == pid), None)
        return self._server.dismiss(number) if number is not None else None

    def garble(self, peer: int, kind: str) -> bool:
        return self._server is not None and self._server.garble(peer, kind)

    def close(self) -> None:
        self.stop()
        for peer in self._retired:
            peer.close_eventfds()
        self._retired.clear()
        self._region.close()
