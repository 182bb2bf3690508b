"""From a topology to what each worker is told at its birth, and how much room its recordings have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sim.engines.process.configuration import DeviceConfiguration, WorkerConfiguration
from sim.recording import RecordingLayout
from topologies import Machine, Machines, Topology, Trace
from topologies.actions import Join, Migrate

__all__ = ["Layouts", "configure_worker"]

# What a run may take of the disk for its recordings, and the most that one machine can make of it: nobody rings
# or wakes more often than that.
SAMPLES_BUDGET_BYTES = 1 << 28
SAMPLE_BYTES = 24
SAMPLES_MIN = 1 << 10
SAMPLES_PER_S_MAX = 250_000
SECOND_NS = 1_000_000_000


def configure_worker(
    topology: Topology,
    machine: Machine,
    *,
    name: str,
    row: int,
    devices: tuple[DeviceConfiguration, ...],
    runtime: Path,
) -> WorkerConfiguration:
    """The plan of one life of ``machine``, whose first device writes the recording number ``row``."""
    plain, peers, traces = {}, {}, {}
    for parameter, value in machine.parameters.items():
        match value:
            case Machines():
                peers[parameter] = tuple(value)
            case Trace(machines=machines, doorbells=doorbells):
                traces[parameter] = tuple(machines), doorbells
            case _:
                plain[parameter] = value
    scheduling = machine.scheduling
    return WorkerConfiguration(
        name=name,
        machine=row,
        vectors=machine.vectors,
        role=machine.role,
        profile=machine.profile,
        program=machine.program,
        parameters=plain,
        peers=peers,
        traces=traces,
        seed=f"{topology.seed}/{machine.name}",
        sample_every=topology.run.sample_every,
        load=tuple((round(phase.duration_s * SECOND_NS), *phase.load) for phase in topology.phases),
        cpus=scheduling.cpus,
        policy=scheduling.policy,
        priority=scheduling.priority,
        nice=scheduling.nice,
        devices=devices,
        runtime=str(runtime),
    )


class Layouts:
    """How much room each machine's recordings have.

    The budget of the run for samples is shared by all devices; drains get twice what rings get.
    """

    def __init__(self, topology: Topology) -> None:
        devices = sum(len(each.domains) for each in topology.machines)
        share = SAMPLES_BUDGET_BYTES // SAMPLE_BYTES // devices // 3
        most = round(SAMPLES_PER_S_MAX * (topology.run.warmup_s + topology.run.duration_s))
        self._rings = max(SAMPLES_MIN, min(most, share)) if topology.run.sample_every else 0
        self._drains = max(SAMPLES_MIN, min(most, 2 * share))
        # Who comes back has another ID, and each of its vectors an eventfd more.
        lives = Counter({each.index: 1 for each in topology.machines})
        for entry in topology.timeline:
            if isinstance(entry.action, Join | Migrate):
                lives.update(dict.fromkeys(entry.machines, entry.repeat))
        self._peers: Counter[int] = Counter()
        self._peers_at_once = Counter(each.vectors for each in topology.machines)
        for each in topology.machines:
            self._peers[each.vectors] += lives[each.index]
        # Who moves opens its books anew each time.
        self._moves: Counter[int] = Counter()
        for entry in topology.timeline:
            if isinstance(entry.action, Migrate):
                self._moves.update(dict.fromkeys(entry.machines, entry.repeat))

    def of(self, machine: Machine) -> RecordingLayout:
        """The layout for one device of ``machine``; real peers that come later want a few edges too."""
        edges = sum(min(machine.vectors, vectors) * count for vectors, count in self._peers.items())
        at_once = sum(min(machine.vectors, vectors) * count for vectors, count in self._peers_at_once.items())
        edges += self._moves[machine.index] * at_once
        return RecordingLayout(
            vectors=machine.vectors, edges=edges + 64 * machine.vectors, rings=self._rings, drains=self._drains
        )
