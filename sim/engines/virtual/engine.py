"""The virtual engine: all machines in one thread, on a clock that jumps."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from nodes.device import profiles
from sim.engines.base import Arrival, Client, DeviceRow, EngineKind
from sim.engines.messages import Report
from sim.engines.shared.configure import configure_worker
from sim.engines.virtual.announced_link import TimedAnnouncements
from sim.engines.virtual.chaos import Decisions, draw_decisions, with_faults
from sim.engines.virtual.cost_model import load_model
from sim.engines.virtual.host import VirtualHost, Watcher
from sim.engines.virtual.loop import VirtualLoop
from sim.engines.virtual.machine import VirtualMachine
from sim.engines.virtual.process_exit import process_exit_refused
from sim.engines.virtual.server import VirtualServer
from sim.engines.virtual.watchdog import watching
from sim.recording import Recording
from topologies import Domain, Machine, Topology
from topologies.actions import Deafen, Garble, Migrate, StartServer, StopServer

GC_THRESHOLDS = (200_000, 50, 1000)
"""Machines are many objects that stay. To look for cycles among them at the usual rate costs more than to make them."""
OBJECTS_EACH = 512
"""Twice as many containers as one machine has: a collection looks at most at what the machines themselves have not."""
MESSAGES_MAX = 1 << 18
"""How many messages the greetings of a run may have, if each is a message of its own."""
SAID_TO_ONE = (Garble, Deafen, Migrate, StartServer, StopServer)
"""Actions that concern the connection of one machine: these have messages of their own however many there are."""


def _shares_peers(topology: Topology) -> bool:
    """Whether servers announce once for all machines: where these are many, and all hear the same in the same order."""
    vectors = Counter[str]()
    for machine in topology.machines:
        for domain in machine.domains:
            vectors[domain] += machine.vectors
    messages = sum(vectors[domain] for machine in topology.machines for domain in machine.domains)
    return (
        messages > MESSAGES_MAX
        and all(domain.dialect == "v0" and domain.version == 1 for domain in topology.domains)
        and all(profiles.profile(kind).client != "2012" for kind in {machine.profile for machine in topology.machines})
        and not any(isinstance(entry.action, SAID_TO_ONE) for entry in topology.timeline)
    )


@contextlib.contextmanager
def rare_collections(topology: Topology) -> Iterator[None]:
    """While this lasts, the interpreter looks for cycles of objects only when there are as many as machines have.

    With 65,536 machines one look takes some seconds and finds nothing. The machines are still there while the tables
    of the results are made, so this lasts until these are.
    """
    before, (youngest, *older) = gc.get_threshold(), GC_THRESHOLDS
    gc.set_threshold(max(youngest, OBJECTS_EACH * len(topology.machines)), *older)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class VirtualEngine:
    """A `sim.engines.base.Engine`. Nothing in a run depends on this host: the same seed gives the same run.

    ``decisions`` are those of the topology's ``[chaos]``, None to draw them. Its faults are in the timeline already.
    """

    is_one_process = True

    def __init__(self, topology: Topology, decisions: Decisions | None = None, watcher: Watcher | None = None) -> None:
        self._topology = topology
        self.shares_peers = _shares_peers(topology)
        self._stack = contextlib.ExitStack()
        self.loop = VirtualLoop()
        decisions = decisions or draw_decisions(topology)
        self.host = VirtualHost(
            self.loop, load_model(topology.run.cost_model), f"{topology.seed}/costs", decisions, watcher
        )
        self._may_migrate = {
            machine for entry in topology.timeline if isinstance(entry.action, Migrate) for machine in entry.machines
        }
        self._machines: list[VirtualMachine] = []

    def __enter__(self) -> Self:
        self._stack.enter_context(rare_collections(self._topology))
        self._stack.enter_context(watching(self.host))
        self._stack.enter_context(process_exit_refused(self.host))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for machine in self._machines:
            machine.close()
        for server in self.host.servers:
            server.close()

    def make_machine(
        self,
        machine: Machine,
        name: str,
        rows: Sequence[DeviceRow],
        recordings: Sequence[Recording],
        report: Callable[[Report], None],
    ) -> VirtualMachine:
        configuration = configure_worker(self._topology, machine, name=name, row=rows[0].row, devices=())
        may_migrate = machine.index in self._may_migrate
        made = VirtualMachine(self.host, configuration, rows, recordings, report, may_migrate=may_migrate)
        self._machines.append(made)
        return made

    def make_server(
        self,
        domain: Domain,
        number: int,
        *,
        on_arrival: Callable[[Arrival], None],
        on_leave: Callable[[Client, str], None],
    ) -> VirtualServer:
        server = VirtualServer(
            domain,
            on_arrival=on_arrival,
            on_leave=on_leave,
            announcements=TimedAnnouncements(self.loop.clock.now_ns, self.host.announce) if self.shares_peers else None,
        )
        self.host.servers.append(server)
        return server

    def start_progress(self) -> int:
        return sum(machine.is_running for machine in self._machines)

    def state(self) -> str:
        return "under virtual time"

    def end_leftovers(self) -> list[str]:
        return []


KIND = EngineKind(
    lambda topology, runtime, socket_path: VirtualEngine(topology),
    in_real_time=False,
    prepare=lambda topology: with_faults(topology, draw_decisions(topology)),
    during=rare_collections,
)
