"""The process engine: each machine a process of this host, forked from one that has all it needs loaded."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from sim.access import external_path, server_path
from sim.engines.base import Arrival, Client, DeviceRow, EngineKind
from sim.engines.messages import Report
from sim.engines.process.domain_server import SocketServer
from sim.engines.process.forkserver import ForkServer
from sim.engines.process.handle import WorkerHandle
from sim.engines.qemu.guest_machine import GuestMachine
from sim.engines.shared.configuration import DeviceConfiguration
from sim.engines.shared.configure import configure_worker
from sim.kernel.loop import Loop
from sim.kernel.processes import adopting_orphans, children, end_children, process_name, run_of
from sim.recording import Recording
from sim.recording.console_file import console_file
from topologies import Domain, Machine, Topology

SECOND_NS = 1_000_000_000


class ProcessEngine:
    """An `sim.engines.base.Engine`. Owns the loop, the fork server, and each machine and server that it makes.

    Args:
        topology: what is run.
        runtime: a private directory for sockets.
        socket_path: where the server of the first domain listens; those of others add the domain's name.
    """

    is_one_process = shares_peers = False

    def __init__(self, topology: Topology, runtime: Path, socket_path: Path) -> None:
        self._topology, self._runtime, self._socket_path = topology, runtime, socket_path
        self._machine_of: dict[int, WorkerHandle | GuestMachine] = {}
        self._guests: list[GuestMachine] = []
        self._machines: list[WorkerHandle] = []
        self._servers: list[SocketServer] = []
        self._stack = contextlib.ExitStack()
        self._children_before: set[int] = set()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_all_descriptors())
            stack.enter_context(adopting_orphans())
            self._children_before = children()
            self.loop = Loop()
            stack.callback(self.loop.close)
            machines = sum(machine.guest is None for machine in self._topology.machines)
            self._fork_server = ForkServer(self.loop, self._runtime, lambda: None, machines=machines)
            # The machines have ended first, however the run went, and the fork server: its children are adopted then.
            stack.callback(self.end_leftovers)
            stack.callback(self._fork_server.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def make_machine(
        self,
        machine: Machine,
        name: str,
        rows: Sequence[DeviceRow],
        recordings: Sequence[Recording],
        report: Callable[[Report], None],
    ) -> WorkerHandle | GuestMachine:
        if machine.guest is not None:
            guest = GuestMachine(
                machine,
                [row.domain for row in rows],
                recordings,
                self.loop,
                server_path=self._server_path,
                memory_bytes=[domain.memory.size_bytes for domain in self._topology.domains],
                console_path=Path(recordings[0].path).parents[1] / console_file(name),
                watched={entry.console: None for entry in self._topology.timeline if entry.console},
                runtime=self._runtime,
                on_process=lambda pid: self._machine_of.__setitem__(pid, guest),
                dismiss=lambda domain, pid: self._servers[domain].dismiss(pid),
                report=report,
            )
            self._guests.append(guest)
            self._stack.callback(guest.close)
            return guest
        devices = tuple(
            DeviceConfiguration(
                self._server_path(row.domain),
                row.domain,
                self._topology.domains[row.domain].memory.size_bytes,
                os.fspath(recording.path),
                recording.layout,
            )
            for row, recording in zip(rows, recordings, strict=True)
        )
        handle = WorkerHandle(
            configure_worker(
                self._topology,
                machine,
                name=name,
                row=rows[0].row,
                devices=devices,
                socket=os.fspath(external_path(self._socket_path, machine.name)),
            ),
            recordings,
            self.loop,
            self._fork_server,
            server_path=self._server_path,
            on_process=lambda pid: self._machine_of.__setitem__(pid, handle),
            memory_fault=self._memory_fault,
            report=report,
        )
        self._machines.append(handle)
        self._stack.callback(handle.close)
        return handle

    def make_server(
        self,
        domain: Domain,
        number: int,
        *,
        on_arrival: Callable[[Arrival], None],
        on_leave: Callable[[Client, str], None],
    ) -> SocketServer:
        def left(client: Client, reason: str) -> None:
            for guest in self._guests:
                guest.hear_leave(number)
            on_leave(client, reason)

        server = SocketServer(
            domain,
            Path(self._server_path(number)),
            self.loop,
            machine_of=self._running_machine_of,
            is_real=lambda machine: isinstance(machine, GuestMachine),
            on_arrival=on_arrival,
            on_leave=left,
        )
        self._servers.append(server)
        self._stack.callback(server.close)
        return server

    def _memory_fault(self) -> str:
        return next(filter(None, (server.memory_fault for server in self._servers)), "")

    def start_progress(self) -> int:
        ready = sum(machine.pid is not None for machine in self._machines)
        now_ns = self.loop.clock.now_ns()
        awaited_s = now_ns // SECOND_NS if any(machine.is_awaited(now_ns) for machine in self._machines) else 0
        awaited_s += sum(guest.start_progress(now_ns) for guest in self._guests)
        # With thousands of machines, each is Ready when nearly all that all are told has been sent.
        return ready + self._fork_server.work() + awaited_s + sum(server.sent for server in self._servers)

    def state(self) -> str:
        return self._fork_server.state()

    def end_leftovers(self) -> list[str]:
        known = {*self._children_before, self._fork_server.pid}
        ended, all_gone = end_children(known, marked=self._is_of_this_run)
        lines = [f"process {pid} was left behind by a machine, and was ended" for pid in ended]
        return lines if all_gone else [*lines, "some processes that machines have left behind do not end"]

    def _server_path(self, domain: int) -> str:
        return os.fspath(server_path(self._socket_path, domain, self._topology.domains[domain].name))

    def _running_machine_of(self, pid: int) -> WorkerHandle | GuestMachine | None:
        machine = self._machine_of.get(pid)
        return machine if machine is not None and machine.is_running else None

    def _is_of_this_run(self, pid: int) -> bool:
        """Whether a child of this process descends from the fork server, which has marked its environment.

        That of a zombie cannot be read; it is known by the name of its process, or was announced.
        """
        if pid in self._machine_of or process_name(pid) == self._fork_server.name:
            return True
        return run_of(pid) == os.fspath(self._runtime)


@contextlib.contextmanager
def _all_descriptors() -> Iterator[None]:
    """Raise the soft limit on descriptors to the hard one: workers inherit it, the caller gets its own back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


KIND = EngineKind(ProcessEngine, in_real_time=True)
