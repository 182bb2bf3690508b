"""All machines of a run, in all their lives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sim.engines.process.configuration import DeviceConfiguration
from sim.engines.process.configure import Layouts, configure_worker
from sim.engines.process.handle import Row, WorkerHandle
from sim.recording import Recording
from topologies import Machine, Topology

__all__ = ["LiveMachines"]


class LiveMachines:
    """All machines of a run, in all their lives. ``server(domain)`` is the path of a domain's server.

    The first lives are made at once, with their recordings, but started by nobody yet; ``recruit`` makes a machine's
    next one.
    """

    def __init__(
        self, topology: Topology, runtime: Path, recording_path: Callable[[int], Path], server: Callable[[int], Path]
    ) -> None:
        self.topology = topology
        self._runtime, self._recording_path, self._server = runtime, recording_path, server
        self._layouts = Layouts(topology)
        self._numbers = {domain.name: number for number, domain in enumerate(topology.domains)}
        self.rows: list[Row] = first_rows(topology)
        self.handles: list[WorkerHandle] = []
        self.current: list[WorkerHandle] = []
        """Of each machine, the life that it is in, or was in last."""
        self._lives = [1] * len(topology.machines)
        self._by_pid: dict[int, WorkerHandle] = {}
        devices: dict[int, list[Row]] = {}
        for row in self.rows:
            devices.setdefault(row.machine, []).append(row)
        try:
            for machine in topology.machines:
                handle = self._make(machine, machine.name, devices[machine.index])
                self.current.append(handle)
        except BaseException:
            self.close()
            raise

    def start(self, handle: WorkerHandle) -> None:
        """Give birth to a life that has been made."""
        handle.start()
        self._by_pid[handle.pid] = handle

    def new_incarnation(self, machine: int) -> WorkerHandle:
        """The life in which a machine can join now: its first one if that has not begun, else one more."""
        handle = self.current[machine]
        if handle.process is None:
            return handle
        assert not handle.lives, f"{handle.name} is still there"
        who = self.topology.machines[machine]
        self._lives[machine] += 1
        name = f"{who.name}.{self._lives[machine]}"
        rows = [
            Row(len(self.rows) + place, _device_name(name, domain, place), machine, self._numbers[domain])
            for place, domain in enumerate(who.domains)
        ]
        self.rows += rows
        self.current[machine] = handle = self._make(who, name, rows)
        return handle

    def adopt(self, handle: WorkerHandle, pid: int) -> None:
        """Another process belongs to ``hand``, too: the one that its machine is about to go on in.

        Raises ``ProcessLookupError`` when that has ended already.
        """
        handle.expect_successor(pid)
        self._by_pid[pid] = handle

    def with_pid(self, pid: int) -> WorkerHandle | None:
        """Whose process that is, if it still lives."""
        handle = self._by_pid.get(pid)
        return handle if handle is not None and handle.lives else None

    def close(self) -> None:
        for handle in reversed(self.handles):
            handle.close()

    def _make(self, machine: Machine, name: str, rows: list[Row]) -> WorkerHandle:
        books: list[Recording] = []
        devices: list[DeviceConfiguration] = []
        layout = self._layouts.of(machine)
        try:
            for row in rows:
                path = self._recording_path(row.row)
                books.append(
                    Recording.create(
                        path,
                        layout,
                        machine=row.row,
                        sample_every=self.topology.run.sample_every,
                        of=row.machine,
                        life=self._lives[row.machine],
                        domain=row.domain,
                    )
                )
                size_bytes = self.topology.domains[row.domain].memory.size_bytes
                devices.append(DeviceConfiguration(str(self._server(row.domain)), row.domain, size_bytes, str(path)))
        except BaseException:
            for book in books:
                book.close()
            raise
        plan = configure_worker(
            self.topology, machine, name=name, row=rows[0].row, devices=tuple(devices), runtime=self._runtime
        )
        handle = WorkerHandle(machine, plan, rows, books)
        self.handles.append(handle)
        return handle


def first_rows(topology: Topology) -> list[Row]:
    """The rows of every machine's first life: the first devices in the order of the machines, then further ones."""
    numbers = {domain.name: number for number, domain in enumerate(topology.domains)}
    rows = [Row(each.index, each.name, each.index, numbers[each.domains[0]]) for each in topology.machines]
    for each in topology.machines:
        for place, domain in enumerate(each.domains[1:], 1):
            rows.append(Row(len(rows), _device_name(each.name, domain, place), each.index, numbers[domain]))
    return rows


def _device_name(machine: str, domain: str, place: int) -> str:
    return machine if place == 0 else f"{machine}.{domain}"
