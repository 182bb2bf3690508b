"""All machines of a run, in all their incarnations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from sim.coordination.incarnation import Incarnation, named_machines
from sim.coordination.recording_layouts import Layouts
from sim.engines.base import DeviceRow, Engine, LiveMachine
from sim.engines.messages import Report
from sim.recording import Recording, RecordingLayout, RecordingPack
from topologies import Machine, Topology
from topologies.actions import Join, Migrate


class LiveMachines:
    """Makes the incarnations of all machines, with their recordings; the engine runs them.

    The first ones are made at once, and started by ``start``. ``report(incarnation, report)`` is told what they report.
    """

    def __init__(
        self,
        topology: Topology,
        engine: Engine,
        recording_path: Callable[[int], Path | None],
        report: Callable[[Incarnation, Report], None],
    ) -> None:
        self.topology = topology
        self._engine, self._recording_path, self._report = engine, recording_path, report
        self._layouts = Layouts(topology, all_edges=not engine.shares_peers)
        has_files = recording_path(0) is not None
        self._pack = RecordingPack(recording_path) if engine.is_one_process and has_files else None
        self._domain_numbers = {domain.name: number for number, domain in enumerate(topology.domains)}
        self._count = [0] * len(topology.machines)
        self._row_count = 0
        self.incarnations: list[Incarnation] = []
        self.current: list[Incarnation] = []
        """The latest incarnation of each machine."""
        self._of: dict[LiveMachine, Incarnation] = {}
        self.row_of: dict[tuple[int, int], int] = {}
        """The row of each (domain, peer) that a server has ever admitted as one of these machines."""
        self.index_of: dict[int, int] = {}
        """The index of each machine, by ``domain << 16 | peer``, likewise."""
        self._stays: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (domain, peer) -> (row, since_ns)
        self.foreign: list[dict[int, None]] = [{} for _ in topology.domains]
        """By domain, the IDs of the peers that are connected and no machines of the topology."""
        self._naming = _naming(topology)
        first = first_rows(topology)
        self._row_count = len(first)
        devices: dict[int, list[DeviceRow]] = {}
        for row in first:
            devices.setdefault(row.machine, []).append(row)
        try:
            for machine in topology.machines:
                self.current.append(self._make(machine, devices[machine.index]))
        except BaseException:
            self.close()
            raise

    def start(self, incarnation: Incarnation) -> None:
        incarnation.started = True
        incarnation.live.start()

    def new_incarnation(self, machine: int) -> Incarnation:
        """The incarnation in which a machine can join now: its first one if that has not begun, else one more.

        Raises:
            HostError: there is no room for its recordings.
        """
        current = self.current[machine]
        if not current.started:
            return current
        assert not current.is_running, f"{current.name} is still there"
        its = self.topology.machines[machine]
        name = f"{its.name}.{self._count[machine] + 1}"
        rows = [
            DeviceRow(self._row_count + place, _device_name(name, domain, place), machine, self._domain_numbers[domain])
            for place, domain in enumerate(its.domains)
        ]
        self._row_count += len(rows)
        self.current[machine] = incarnation = self._make(its, rows)
        return incarnation

    def identify(self, incarnation: Incarnation, place: int, domain: int, peer: int) -> None:
        """A server has admitted the device at that place of an incarnation under an ID."""
        row = incarnation.rows[place].row
        incarnation.identities.append((row, domain, peer))
        self.row_of[domain, peer] = row
        self._stays.setdefault((domain, peer), []).append((row, self._engine.loop.clock.now_ns()))
        self.index_of[domain << 16 | peer] = incarnation.machine.index

    def shared_stays(self) -> list[tuple[int, int, int, int]]:
        """(row, domain, peer, since_ns) of each ID that more than one row has had: ivshmem v2 reuses IDs."""
        return [
            (row, domain, peer, since_ns)
            for (domain, peer), stays in self._stays.items()
            if len({row for row, _ in stays}) > 1
            for row, since_ns in stays
        ]

    def naming(self, machine: int) -> Sequence[int]:
        """The machines whose programs work with ``machine``."""
        return self._naming.get(machine, ())

    def of(self, live: LiveMachine | None) -> Incarnation | None:
        """The incarnation that an engine's machine is."""
        return None if live is None else self._of.get(live)

    def close(self) -> None:
        for incarnation in reversed(self.incarnations):
            incarnation.live.close()
            for recording in incarnation.recordings:
                with contextlib.suppress(BufferError):  # a view of it is still in use
                    recording.close()
        if self._pack is not None:
            self._pack.close()

    def _make_recording(self, row: DeviceRow, layout: RecordingLayout, incarnation: int) -> Recording:
        every = self.topology.run.sample_every
        of, domain = row.machine, row.domain
        if self._pack is not None:
            return self._pack.create(row.row, layout, sample_every=every, of=of, incarnation=incarnation, domain=domain)
        path = self._recording_path(row.row)
        return Recording.create(
            path, layout, machine=row.row, sample_every=every, of=of, incarnation=incarnation, domain=domain
        )

    def _make(self, machine: Machine, rows: list[DeviceRow]) -> Incarnation:
        layout = self._layouts.of(machine)
        self._count[machine.index] += 1
        count = self._count[machine.index]
        recordings: list[Recording] = []
        try:
            for row in rows:
                recordings.append(self._make_recording(row, layout, count))
            name = machine.name if count == 1 else f"{machine.name}.{count}"
            incarnation = Incarnation(machine, name, rows, recordings)
            incarnation.live = self._engine.make_machine(
                machine, name, tuple(rows), recordings, lambda report: self._report(incarnation, report)
            )
        except BaseException:
            for recording in recordings:
                recording.close()
            raise
        self._of[incarnation.live] = incarnation
        self.incarnations.append(incarnation)
        return incarnation


def _naming(topology: Topology) -> dict[int, Sequence[int]]:
    """The machines whose programs work with each machine, for machines that join or migrate during the run.

    The others never change their ID, and a list of all that name each of 2048 machines would be long.
    """
    changing = {machine.index for machine in topology.machines if not machine.present}
    for entry in topology.timeline:
        if isinstance(entry.action, Join | Migrate):
            changing.update(entry.machines)
    found: dict[int, list[int]] = {machine: [] for machine in changing}
    for machine in topology.machines if changing else ():
        for index in named_machines(machine) & changing:
            found[index].append(machine.index)
    return dict(found)


def first_rows(topology: Topology) -> list[DeviceRow]:
    """The rows of every machine's first incarnation: first devices in the order of the machines, then further ones."""
    numbers = {domain.name: number for number, domain in enumerate(topology.domains)}
    rows = [
        DeviceRow(machine.index, machine.name, machine.index, numbers[machine.domains[0]])
        for machine in topology.machines
    ]
    for machine in topology.machines:
        for place, domain in enumerate(machine.domains[1:], 1):
            rows.append(DeviceRow(len(rows), _device_name(machine.name, domain, place), machine.index, numbers[domain]))
    return rows


def _device_name(machine: str, domain: str, place: int) -> str:
    return machine if place == 0 else f"{machine}.{domain}"
