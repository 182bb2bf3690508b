"""The virtual engine: all machines in one thread, on a clock that jumps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from sim.engines.base import Arrival, Client, DeviceRow
from sim.engines.messages import Report
from sim.engines.shared.configure import configure_worker
from sim.engines.virtual.chaos import Decisions, draw_decisions
from sim.engines.virtual.cost_model import load_model
from sim.engines.virtual.host import VirtualHost, Watcher
from sim.engines.virtual.loop import VirtualLoop
from sim.engines.virtual.machine import VirtualMachine
from sim.engines.virtual.server import VirtualServer
from sim.recording import Recording
from topologies import Domain, Machine, Topology
from topologies.actions import Migrate

__all__ = ["VirtualEngine"]


class VirtualEngine:
    """A `sim.engines.base.Engine`. Nothing in a run depends on this host: the same seed gives the same run.

    ``decisions`` are those of the topology's ``[chaos]``, None to draw them. Its faults are in the timeline already.
    """

    def __init__(self, topology: Topology, decisions: Decisions | None = None, watcher: Watcher | None = None) -> None:
        self._topology = topology
        self.loop = VirtualLoop()
        decisions = decisions or draw_decisions(topology)
        self.host = VirtualHost(self.loop, load_model(), f"{topology.seed}/costs", decisions, watcher)
        self._may_migrate = {
            machine for entry in topology.timeline if isinstance(entry.action, Migrate) for machine in entry.machines
        }
        self._machines: list[VirtualMachine] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
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
        server = VirtualServer(domain, on_arrival=on_arrival, on_leave=on_leave)
        self.host.servers.append(server)
        return server

    def start_progress(self) -> int:
        return sum(machine.is_running for machine in self._machines)

    def state(self) -> str:
        return "under virtual time"

    def end_leftovers(self) -> list[str]:
        return []
