"""An engine as the coordinator knows it: a clock and a loop, machines, servers.

An engine decides what a machine is: a process of this host (`sim.engines.process`), a virtual machine, an object
in one thread under virtual time. `topologies.model.EngineName` names the engines. To add one, write a folder of that
name with a module ``engine``, whose ``KIND`` is an `EngineKind`, and add the name; the coordinator stays as it is.

Orders and reports are typed messages (`sim.engines.messages`). Counts are never reported: an engine stores them in
the recordings that the coordinator made (`sim.recording`), so they survive the machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from sim.engines.messages import Order, Report
from sim.kernel import loop
from sim.recording import Recording
from topologies import Domain, Machine, Topology

HasDescriptor = loop.HasDescriptor
"""A type of the loop; coordination, which imports nothing of `sim.kernel`, takes it from here."""
COUNTER_MAX = (1 << 64) - 2
"""The largest value of a counter (eventfd(2)); one more doorbell is refused."""


class DeviceRow(NamedTuple):
    """One device of one incarnation of a machine: it has a recording and a row of its own in the results.

    ``row`` is the number of the recording, ``machine`` the index in the topology, ``domain`` a domain's number.
    """

    row: int
    name: str
    machine: int
    domain: int


class Clock(Protocol):
    """The time of a run."""

    def now_ns(self) -> int:
        """Nanoseconds: CLOCK_MONOTONIC where machines run in real time."""

    def cpu_ns(self) -> int:
        """CPU time of the calling thread in nanoseconds; periodic work paces itself by it."""


class RunLoop(Protocol):
    """Calls back when a descriptor is ready and when a moment has come."""

    @property
    def clock(self) -> Clock: ...

    def add(
        self, file: HasDescriptor | int, readable: Callable[[], None], *, writable: Callable[[], None] | None = None
    ) -> None: ...
    def remove(self, file: HasDescriptor | int) -> None: ...
    def at(self, moment_ns: int, callback: Callable[[], None]) -> None: ...
    def step(self, deadline_ns: int | None = None) -> None: ...


class StartGate(Protocol):
    """Holds the start of a run until others, on other hosts, are as far. It is readable when there is an answer."""

    def fileno(self) -> int: ...

    def tell_ready(self) -> None:
        """Tell that all machines are Ready."""

    def is_open(self) -> bool:
        """Whether the answer is to start."""


class Counter(Protocol):
    """The counter of one vector, which doorbells add to: an eventfd, or what stands for one."""

    def take(self) -> int:
        """The value, which becomes 0."""

    def add(self, count: int) -> bool:
        """Add ``count``; False when the sum would exceed ``COUNTER_MAX``."""


class LiveMachine(Protocol):
    """One incarnation of a machine. It reports to the function that it was made with (`Engine.make_machine`)."""

    @property
    def pid(self) -> int | None:
        """The process that costs of this machine are measured on; None without a process of its own."""

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""

    @property
    def is_still(self) -> bool:
        """Whether a stall has taken effect: the machine executes nothing."""

    @property
    def is_starved(self) -> bool:
        """Whether it could execute and has hardly been given a CPU since it was told to stop."""

    def start(self) -> None:
        """Begin to run. A start that fails later is reported as ``Ended`` with ``started=False``."""

    def tell(self, order: Order) -> bool:
        """Send an order; False when it does not arrive."""

    def stall(self) -> None:
        """Halt the machine between two instructions."""

    def resume(self) -> None:
        """End a stall."""

    def kill(self) -> None:
        """End the machine at once, wherever it is."""

    def close(self) -> None:
        """Kill it, and release what belongs to it. Never raises and never waits without a bound."""


class Arrival(Protocol):
    """A client of a server that has connected and is not admitted yet."""

    @property
    def machine(self) -> LiveMachine | None:
        """The machine that it is; None for a foreign client, such as a tool or a QEMU started by hand."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...

    @property
    def has_left(self) -> bool:
        """Whether it has disconnected meanwhile."""


class Client(Protocol):
    """A client that a server has admitted under the ID ``peer``."""

    @property
    def peer(self) -> int: ...

    @property
    def eventfds(self) -> Sequence[Counter]:
        """The counters of its vectors."""


class DomainServer(Protocol):
    """The memory of a domain and the server that gives it out. A server can be stopped and started again."""

    @property
    def is_listening(self) -> bool: ...

    def listen(self, *, vectors: int, first_peer: int) -> None:
        """Accept clients; foreign clients get ``vectors`` vectors; IDs begin at ``first_peer``."""

    def stop(self) -> None:
        """Disconnect all clients and stop listening; counters stay."""

    def admit(self, arrivals: Iterable[tuple[Arrival, int]]) -> Sequence[Client | None]:
        """Make clients peers with so many vectors, in this order; None for one that has left.

        Raises:
            HostError: there are no descriptors or no IDs for one of them.
        """

    def clients(self) -> Iterator[Client]:
        """All that were ever admitted, those that have left included."""

    def guard_eventfds(self) -> None:
        """From now on, make shared counters non-blocking again after a foreign client has made them block."""

    def connected_eventfds(self) -> int:
        """How many eventfds all connected peers have together."""

    def client(self, peer: int) -> Client | None:
        """The client with that ID, connected or not."""

    def garble(self, peer: int, kind: str) -> bool:
        """Send a client a malformed message (`nodes.wire.server.Server.malformed`); False when it is not connected."""

    def close(self) -> None: ...


class Engine(Protocol):
    """Makes the machines and the servers of one run. A context manager; leaving it ends all that it has started."""

    is_one_process: bool
    """Whether all machines run in the coordinator's process: their recordings can share files."""
    shares_peers: bool
    """Whether machines hear of peers without a message for each: one has counts only for peers that it rings."""

    @property
    def loop(self) -> RunLoop: ...

    def make_machine(
        self,
        machine: Machine,
        name: str,
        rows: Sequence[DeviceRow],
        recordings: Sequence[Recording],
        report: Callable[[Report], None],
    ) -> LiveMachine:
        """One incarnation of ``machine`` with one device for each row; it does not run yet."""

    def make_server(
        self,
        domain: Domain,
        number: int,
        *,
        on_arrival: Callable[[Arrival], None],
        on_leave: Callable[[Client, str], None],
    ) -> DomainServer:
        """The memory and the server of the domain with that number; it does not listen yet."""

    def start_progress(self) -> int:
        """A number that grows while the engine works on starting machines: patience is measured by it."""

    def state(self) -> str:
        """What it does, in words, for a start that makes no progress."""

    def end_leftovers(self) -> list[str]:
        """End what machines have started and left behind; one line about each."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...


class EngineKind(NamedTuple):
    """How a run makes an engine.

    ``make`` is called with the topology, a private directory, and the path of the first server's socket. ``prepare``
    adds to the topology what the engine draws from the seed. ``during`` is entered for the whole run and its results.
    ``in_real_time``: the engine needs this host to be large enough, and its latencies contain a wake-up.
    """

    make: Callable[[Topology, Path, Path], Engine]
    in_real_time: bool
    prepare: Callable[[Topology], Topology] = lambda topology: topology
    during: Callable[[Topology], contextlib.AbstractContextManager[None]] = lambda topology: contextlib.nullcontext()
