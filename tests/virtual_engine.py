"""An engine of the tests: machines are objects, and time jumps from one moment to the next.

It is the smallest engine that `sim.engines.base` allows, so it also shows that the coordinator needs no more.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from nodes.wire.protocol import Message
from sim.engines import messages
from sim.engines.base import Arrival, Client, DeviceRow, HasDescriptor
from sim.engines.messages import Ended, Order, Placed, Ready, Report, Stopped
from sim.recording import Recording
from topologies import Domain, Machine

__all__ = ["MILLISECOND_NS", "VirtualEngine", "VirtualMachine"]

MILLISECOND_NS = 1_000_000
BEGIN_NS = 1_000_000_000_000


class VirtualClock:
    def __init__(self) -> None:
        self.time_ns = BEGIN_NS

    def now_ns(self) -> int:
        return self.time_ns

    def cpu_ns(self) -> int:
        return 0


class VirtualLoop:
    """Moments only: descriptors never become ready."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self._moments: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def add(
        self,
        file: HasDescriptor | int,
        readable: Callable[[], None],
        *,
        writable: Callable[[], None] | None = None,
    ) -> None: ...

    def remove(self, file: HasDescriptor | int) -> None: ...

    def at(self, moment_ns: int, callback: Callable[[], None]) -> None:
        heapq.heappush(self._moments, (max(moment_ns, self.clock.time_ns), next(self._order), callback))

    def soon(self, callback: Callable[[], None]) -> None:
        self.at(self.clock.time_ns + MILLISECOND_NS, callback)

    def step(self, deadline_ns: int | None = None) -> None:
        if self._moments and (deadline_ns is None or self._moments[0][0] <= deadline_ns):
            self.clock.time_ns, _, callback = heapq.heappop(self._moments)
            callback()


@dataclass
class VirtualCounter:
    value: int = 0

    def take(self) -> int:
        value, self.value = self.value, 0
        return value

    def add(self, count: int) -> bool:
        self.value += count
        return True


@dataclass
class VirtualClient:
    peer: int
    eventfds: list[VirtualCounter]


@dataclass
class VirtualArrival:
    machine: VirtualMachine
    pid: int = 0
    uid: int = 0
    has_left: bool = False


@dataclass(eq=False)
class VirtualMachine:
    """Connects, is Ready, and stops when told to, unless a test sets one of the functions to do something else."""

    name: str
    engine: VirtualEngine
    domains: list[int]
    report: Callable[[Report], None]
    pid: int | None = None
    is_running: bool = False
    is_still: bool = False
    is_starved: bool = False
    orders: list[Order] = field(default_factory=list)
    on_stop: Callable[[], None] | None = None
    on_kill: Callable[[], None] | None = None

    def start(self) -> None:
        self.is_running = True
        self.report(Placed())
        if self.name not in self.engine.never_connect:
            self.engine.loop.soon(self._connect)

    def _connect(self) -> None:
        for domain in self.domains:
            self.engine.servers[domain].on_arrival(VirtualArrival(self))

    def tell(self, order: Order) -> bool:
        self.orders.append(order)
        match order:
            case messages.Expect():
                self.engine.loop.soon(lambda: self.report(Ready()))
            case messages.Stop() | messages.Leave():
                self.engine.loop.soon(self.on_stop or self.end)
        return self.is_running

    def stall(self) -> None:
        self.is_still = True

    def resume(self) -> None:
        self.is_still = False

    def kill(self) -> None:
        if self.is_running:
            self.engine.loop.soon(self.on_kill or (lambda: self.end("SIGKILL")))

    def close(self) -> None:
        self.is_running = False

    def end(self, how: str = "") -> None:
        if self.is_running:
            self.is_running = False
            if not how:
                self.report(Stopped())
            self.report(Ended(how))


class VirtualServer:
    def __init__(self, on_arrival: Callable[[Arrival], None], on_leave: Callable[[Client, str], None]) -> None:
        self.on_arrival, self.on_leave = on_arrival, on_leave
        self.admitted: list[VirtualClient] = []
        self.is_listening = False
        self._next = 0

    def listen(self, *, vectors: int, first_peer: int) -> None:
        self.is_listening, self._next = True, first_peer

    def stop(self) -> None:
        self.is_listening = False

    def admit(self, arrivals: Iterable[tuple[Arrival, int]]) -> list[VirtualClient]:
        joined = []
        for _, vectors in arrivals:
            joined.append(VirtualClient(self._next, [VirtualCounter() for _ in range(vectors)]))
            self._next += 1
        self.admitted += joined
        return joined

    def clients(self) -> Iterator[VirtualClient]:
        yield from self.admitted

    def guard_eventfds(self) -> None: ...

    def connected_eventfds(self) -> int:
        return sum(len(client.eventfds) for client in self.admitted)

    def client(self, peer: int) -> VirtualClient | None:
        return next((client for client in self.admitted if client.peer == peer), None)

    def send(self, peer: int, make: Callable[[int], Message[int]]) -> bool:
        return self.is_listening

    def close(self) -> None: ...


class VirtualEngine:
    """Machines by name in ``machines``; those in ``never_connect`` start and are not heard of again."""

    is_one_process = shares_peers = False

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.machines: dict[str, VirtualMachine] = {}
        self.servers: dict[int, VirtualServer] = {}
        self.never_connect: set[str] = set()
        self.progress: Callable[[], int] = lambda: 0
        self.leftovers: list[str] = []

    def make_machine(
        self,
        machine: Machine,
        name: str,
        rows: Sequence[DeviceRow],
        recordings: Sequence[Recording],
        report: Callable[[Report], None],
    ) -> VirtualMachine:
        made = VirtualMachine(name, self, [row.domain for row in rows], report)
        self.machines[name] = made
        return made

    def make_server(self, domain: Domain, number: int, **told: Any) -> VirtualServer:
        self.servers[number] = VirtualServer(**told)
        return self.servers[number]

    def start_progress(self) -> int:
        return self.progress()

    def state(self) -> str:
        return "the engine is virtual"

    def end_leftovers(self) -> list[str]:
        return self.leftovers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...
