"""One domain of a topology while it runs: which client is admitted when, and as which machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from nodes.errors import HostError
from sim.coordination.incarnation import Incarnation
from sim.coordination.machines import LiveMachines
from sim.coordination.peer_ids import announce_foreign_peer
from sim.engines.base import Arrival, Client, Counter, Engine
from topologies import Domain


class LiveDomain:
    """Decides which clients of a domain's server are admitted.

    Machines that are present from the start join together, in the order of the topology, in whatever order they
    connect. A machine that connects later joins at once. Foreign clients (real QEMUs, tools) join after the machines
    that are present.

    Args:
        on_join: called with the incarnation, and the index in its list of the device that has joined.
        on_foreign: called with the arrival of a client that is no machine of the topology, and its ID.
        on_leave: called with a client that has left, and the reason.
        on_fault: called with the reason why a client could not be admitted.
    """

    def __init__(
        self,
        domain: Domain,
        number: int,
        engine: Engine,
        *,
        on_join: Callable[[Incarnation, int], None],
        on_foreign: Callable[[Arrival, int], None],
        on_leave: Callable[[Client, str], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self.name, self.number = domain.name, number
        self._on_join, self._on_foreign, self._on_fault = on_join, on_foreign, on_fault
        self._machines: LiveMachines | None = None
        self._awaited: dict[int, tuple[Incarnation, Arrival | None]] = {}
        self._missing = 0
        self._foreign_arrivals: list[Arrival] = []
        self._vectors = 1
        self._next_peer = 0
        self._on_leave = on_leave
        self.server = engine.make_server(domain, number, on_arrival=self._arrive, on_leave=self._leave)

    def open(self, machines: LiveMachines) -> None:
        """Listen, and wait for the machines that are present from the start."""
        self._machines = machines
        mine = [
            incarnation
            for incarnation in machines.current
            if any(row.domain == self.number for row in incarnation.rows)
        ]
        self._vectors = max((incarnation.machine.vectors for incarnation in mine), default=1)
        self._awaited = {
            incarnation.machine.index: (incarnation, None) for incarnation in mine if incarnation.machine.present
        }
        self._missing = len(self._awaited)
        self.start()

    def start(self) -> None:
        """Let a server listen; its IDs continue where those of the last one ended."""
        self.server.listen(vectors=self._vectors, first_peer=self._next_peer)

    def counters(self, peer: int, vectors: tuple[int, ...]) -> list[Counter]:
        """The counters of these vectors (none: all) of a peer."""
        client = self.server.client(peer)
        eventfds = client.eventfds if client is not None else ()
        return [eventfd for vector, eventfd in enumerate(eventfds) if not vectors or vector in vectors]

    def take_pending(self) -> Iterator[tuple[int, int, int]]:
        """Empty every counter of every peer there ever was: (peer, vector, doorbells)."""
        for client in self.server.clients():
            for vector, counter in enumerate(client.eventfds):
                yield client.peer, vector, counter.take()

    def close(self) -> None:
        self.server.close()

    def _arrive(self, arrival: Arrival) -> None:
        assert self._machines is not None
        if arrival.has_left:
            # A process that died before it took over a machine is not that machine.
            return
        incarnation = self._machines.of(arrival.machine)
        if incarnation is not None and incarnation.machine.index in self._awaited:
            self._awaited[incarnation.machine.index] = incarnation, arrival
            self._missing -= 1
            if not self._missing:
                present = [(each, arrived) for each, arrived in self._awaited.values() if arrived is not None]
                self._awaited.clear()
                self._admit(present)
        elif incarnation is not None and self._place(incarnation) is not None:
            self._admit([(incarnation, arrival)])
        else:
            self._foreign_arrivals.append(arrival)
        if not self._awaited:
            for foreign in self._foreign_arrivals:
                for client in self._join([(foreign, self._vectors)]):
                    if client is not None:  # otherwise it has left while it waited
                        self._on_foreign(foreign, client.peer)
                        announce_foreign_peer(self._machines, self.number, client.peer, is_there=True)
                        self.server.guard_eventfds()
            self._foreign_arrivals.clear()

    def _leave(self, client: Client, reason: str) -> None:
        self._on_leave(client, reason)
        if self._machines is not None:
            announce_foreign_peer(self._machines, self.number, client.peer, is_there=False)

    def _admit(self, arrivals: list[tuple[Incarnation, Arrival]]) -> None:
        """Let machines join; they are told of all connected peers."""
        joined = self._join([(arrival, incarnation.machine.vectors) for incarnation, arrival in arrivals])
        eventfds = self.server.connected_eventfds()
        for (incarnation, _), client in zip(arrivals, joined, strict=False):
            place = self._place(incarnation)
            if place is not None and client is not None:
                assert self._machines is not None
                self._machines.identify(incarnation, place, self.number, client.peer)
                if incarnation.migration is None:
                    incarnation.peers[place] = client.peer
                else:  # other machines learn the new ID when the migration is complete
                    incarnation.migration.peer = client.peer
                incarnation.greetings[place] = eventfds
                self._on_join(incarnation, place)

    def _join(self, arrivals: list[tuple[Arrival, int]]) -> Sequence[Client | None]:
        try:
            joined = self.server.admit(arrivals)
        except HostError as error:
            self._on_fault(str(error))
            return []
        self._next_peer = max([self._next_peer, *(client.peer + 1 for client in joined if client is not None)])
        return joined

    def _place(self, incarnation: Incarnation) -> int | None:
        """Which of its devices a machine joins with here; None when it has none in this domain."""
        if incarnation.migration is not None:
            return 0 if incarnation.migration.domain == self.number else None
        return next((place for place, row in enumerate(incarnation.rows) if row.domain == self.number), None)
