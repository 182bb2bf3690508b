"""The memory and the server of a domain under virtual time; its clients are machines of the same engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol

from nodes.device.v2.sections import ENTRY_BYTES
from nodes.errors import HostError, LocalProtocolError
from nodes.wire.protocol import Message
from nodes.wire.server import Server
from nodes.wire.v2.server import FramedServer
from sim.engines.base import Arrival, Client, LiveMachine
from sim.engines.virtual.announced_link import TimedAnnouncements
from sim.engines.virtual.counter import VirtualCounter
from sim.kernel.memory import Region, map_region
from topologies import Domain


class Link(Protocol):
    """A machine's end of a connection."""

    @property
    def machine(self) -> LiveMachine: ...

    def make_counters(self, count: int) -> Sequence[tuple[int, VirtualCounter]]:
        """The lines of so many vectors, and their counters."""

    def send(self, message: Message[int]) -> None:
        """The server says something; the machine can read it a little later."""

    def end(self) -> None:
        """The server has closed the connection."""

    def greet(self, peer: int, lines: Sequence[int]) -> None:
        """A server that announces once for all admits the machine."""

    def close(self) -> None:
        """The machine closes its end."""


class VirtualClient:
    """A machine that the server has admitted."""

    __slots__ = ("eventfds", "link", "peer")

    def __init__(self, peer: int, link: Link, eventfds: Sequence[VirtualCounter]) -> None:
        self.peer, self.link, self.eventfds = peer, link, eventfds


class VirtualArrival:
    """A machine that has connected."""

    __slots__ = ("has_left", "link", "machine")

    pid = uid = 0

    def __init__(self, link: Link) -> None:
        self.link, self.machine = link, link.machine
        self.has_left = False


class VirtualServer:
    """A `sim.engines.base.DomainServer`. What it says, and in which order, is `nodes.wire.server`'s.

    A machine connects by `connect` and disconnects by `disconnect`.

    Attributes:
        announcements: the joins and leaves, where machines hear a prefix of these; None where each is told by messages.
    """

    def __init__(
        self,
        domain: Domain,
        *,
        on_arrival: Callable[[Arrival], None],
        on_leave: Callable[[Client, str], None],
        announcements: TimedAnnouncements | None = None,
    ) -> None:
        self.announcements = announcements
        self._domain = domain
        self._on_arrival, self._on_leave = on_arrival, on_leave
        self._server: Server[int] | None = None
        self._states: memoryview | None = None  # the State Table of ivshmem v2
        self._connected: dict[int, VirtualClient] = {}
        self._departed: list[VirtualClient] = []
        self._by_link: dict[Link, VirtualClient] = {}
        self._waiting: dict[Link, VirtualArrival] = {}
        self._region = Region.create(domain.memory.size_bytes, kind="memfd")
        self.memory = memoryview(map_region(self._region.descriptor))

    @property
    def descriptor(self) -> int:
        """The memory, for a machine that maps it by itself."""
        return self._region.descriptor

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    def listen(self, *, vectors: int, first_peer: int) -> None:
        numbers = self._domain.numbers(vectors)
        if numbers is None:
            self._server = Server(self._region.descriptor, dialect=self._domain.spoken, first_peer=first_peer)
        else:
            self._server = FramedServer(self._region.descriptor, numbers)
            self._states = self.memory[: numbers.max_peers * ENTRY_BYTES].cast("I")

    def stop(self) -> None:
        for client in self._connected.values():
            client.link.end()
        for link in self._waiting:
            link.end()
        self._departed += self._connected.values()
        self._connected.clear()
        self._by_link.clear()
        self._waiting.clear()
        self._server = None

    # Clients

    @property
    def connected(self) -> Collection[VirtualClient]:
        """The clients that are connected."""
        return self._connected.values()

    @property
    def version(self) -> int:
        """A number that changes when a client joins or leaves."""
        return len(self._connected) + 2 * len(self._departed)

    def connect(self, link: Link) -> bool:
        """A machine connects; False when no server listens."""
        if self._server is None:
            return False
        self._waiting[link] = arrival = VirtualArrival(link)
        self._on_arrival(arrival)
        return True

    def disconnect(self, link: Link) -> None:
        """A machine has closed its connection, or has ended."""
        if (arrival := self._waiting.pop(link, None)) is not None:
            arrival.has_left = True
        gone = self._by_link.pop(link, None)
        if gone is None or self._server is None:
            return
        del self._connected[gone.peer]
        self._departed.append(gone)
        if self.announcements is not None:
            self._server.forget(gone.peer)
            self.announcements.leave(gone.peer)
        else:
            if self._states is not None:
                self._states[gone.peer] = 0
            for to, message in self._server.leave(gone.peer):
                self._connected[to].link.send(message)
        self._on_leave(gone, "closed the connection")

    def admit(self, arrivals: Iterable[tuple[Arrival, int]]) -> list[Client | None]:
        assert self._server is not None
        clients: list[Client | None] = []
        joined: list[int] = []
        for arrival, vectors in arrivals:
            assert isinstance(arrival, VirtualArrival)
            if arrival.has_left or self._waiting.pop(arrival.link, None) is None:
                clients.append(None)
                continue
            made = arrival.link.make_counters(vectors)
            try:
                peer = self._server.enter([line for line, _ in made])
            except LocalProtocolError as error:
                raise HostError(str(error)) from error
            client = VirtualClient(peer, arrival.link, [counter for _, counter in made])
            self._connected[peer] = self._by_link[arrival.link] = client
            clients.append(client)
            joined.append(peer)
            if self.announcements is not None:
                lines = [line for line, _ in made]
                arrival.link.greet(peer, lines)
                self.announcements.join(peer, lines)
        for to, message in self._server.spell_out(self._server.greet(joined)) if self.announcements is None else ():
            self._connected[to].link.send(message)
        return clients

    def clients(self) -> Iterator[VirtualClient]:
        yield from self._departed
        yield from self._connected.values()

    @property
    def reuses_ids(self) -> bool:
        """Whether an ID is given again when its peer has left."""
        return self._domain.version > 1

    def clients_of(self, peer: int) -> list[VirtualClient]:
        """All clients that have had this ID: more than one only where IDs are reused."""
        if not self.reuses_ids:
            client = self.client(peer)
            return [] if client is None else [client]
        return [client for client in self.clients() if client.peer == peer]

    def guard_eventfds(self) -> None:
        """There are no foreign clients under virtual time."""

    def connected_eventfds(self) -> int:
        return sum(len(client.eventfds) for client in self._connected.values())

    def client(self, peer: int) -> VirtualClient | None:
        departed = (client for client in reversed(self._departed) if client.peer == peer)
        return self._connected.get(peer) or next(departed, None)

    def garble(self, peer: int, kind: str) -> bool:
        client = self._connected.get(peer)
        if client is None or self._server is None:
            return False
        client.link.send(self._server.malformed(kind, peer))
        return True

    def close(self) -> None:
        self._region.close()
