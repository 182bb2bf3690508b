"""The resources that a topology needs of this host, each with its parts, before any process is started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console
from rich.text import Text

from nodes.device.profile import Quirk
from nodes.device.profiles import PROFILES
from nodes.errors import HostError, UsageError
from sim.coordination.recording_layouts import Layouts
from sim.host import refusals
from sim.host.libraries import RESULTS as LIBRARIES
from sim.host.limits import SHM_DIRECTORY, Host, Remaining
from sim.host.process_looks import LOOK_DESCRIPTORS
from sim.kernel.shortage import explained
from sim.recording.header import WORD_BYTES
from sim.views.columns import print_columns
from topologies import Machine, Topology
from topologies.actions import Join, Migrate

# Descriptors of the coordinator for each machine (its connection to the server, its control socket, its process), its
# others, and those of a worker, counted in /proc/PID/fd; three of each device are those of its io_uring and the two
# mappings of it.
DESCRIPTORS_EACH = 3
DESCRIPTORS_SPARE = 64
WORKER_DESCRIPTORS = 16
DEVICE_DESCRIPTORS = 5
# The fork server, three processes between it and the workers that they fork, and the thread of the progress.
HELPERS = 5
# The unread messages that a socket's buffer holds (212,992 bytes, net.core.wmem_default).
UNREAD_MESSAGES = 278
GREETING_MESSAGES = 3
# Measured: private memory of a worker, and of the kernel for an eventfd.
PRIVATE_BYTES = round(3.9 * 2**20)
# Measured: the coordinator while it writes results, without the index of the drains (analysis.matching).
RESULTS_BYTES, INDEX_BYTES_EACH = 288 << 20, 28
EVENTFD_BYTES = 200
# Measured on QEMU 7.2 with -m 16M and without a guest: private memory, and threads with the main one.
QEMU_BYTES = 15 << 20
QEMU_THREADS = 4
# Measured: address space of a worker before it maps anything of the run.
WORKER_BYTES = 96 << 20
# Measured: 3.3 bytes of a table for a sample of 24, and 5.5 for a drain of 24; written before recordings are removed.
RESULTS_SHARE = 0.25
# Measured on two idle CPUs: the start of a run of two machines, of one more process, of one more message.
BASE_S, PROCESS_S, MESSAGE_S = 0.2, 0.010, 4e-6
PATIENCE_S, PATIENCE_EACH_S = 30.0, 0.1


class ResourceDemand(msgspec.Struct, frozen=True):
    """One resource: the amount needed, its parts, and the limit.

    ``limit`` is None where it is unlimited. A sum over its limit refuses the run, unless ``binding`` is False: it is an
    estimate, or others only wait longer.
    """

    what: str
    needed: float
    unit: Literal["", "bytes", "s"] = ""
    made_of: str = ""
    limit: float | None = None
    limit_name: str = ""
    advice: str = ""
    binding: bool = True

    @property
    def fits(self) -> bool:
        return self.limit is None or self.needed <= self.limit

    def __str__(self) -> str:
        made_of = f" ({self.made_of})" if self.made_of else ""
        limit = "any number" if self.limit is None else f"{_amount(self.limit, self.unit)} ({self.limit_name})"
        needs = f"this topology needs {_amount(self.needed, self.unit)} {self.what}{made_of}"
        return f"{needs}; this host allows {limit}. {self.advice}".rstrip()


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """All that a topology needs. ``refused`` are requests that this host does not permit."""

    sums: list[ResourceDemand]
    refused: list[str]
    mistaken: list[str] = []
    """Wrong values of the command line, which are no fault of this host."""

    @property
    def problems(self) -> list[str]:
        """Why it cannot be run here; empty when it can."""
        return (
            [str(limit_sum) for limit_sum in self.sums if limit_sum.binding and not limit_sum.fits]
            + self.refused
            + self.mistaken
        )

    def error(self, problems: Sequence[str]) -> HostError | UsageError:
        """These problems as an error: the user's, if this host could carry the run."""
        kind = UsageError if self.problems == self.mistaken else HostError
        return kind("\n".join(problems))

    @property
    def warnings(self) -> list[str]:
        return [str(limit_sum) for limit_sum in self.sums if not limit_sum.binding and not limit_sum.fits]


def preflight(topology: Topology, runs: Path = Path("runs"), host: Host | None = None) -> Demand:
    """Compare the demand of ``topology`` with this host.

    Args:
        topology: What is to be run.
        runs: The directory in which run directories are made.
        host: The limits; by default those of this host now.
    """
    there = host or Host.here(runs)
    count = _Count.of(topology)
    sums = [*_descriptors(topology, count, there), *_processes(count, there), *_server(count, there)]
    sums += [*_memory(topology, count, there), *_time(count, there)]
    return Demand(
        sums=sums,
        refused=[
            *refusals.cpus_refused(topology, there),
            *refusals.policies_refused(topology, there),
            *refusals.qemus_refused(topology),
            *refusals.named_memory_refused(topology),
        ],
        mistaken=[*refusals.place_refused(runs), *refusals.hosts_refused(topology)],
    )


def check(topology: Topology, runs: Path) -> None:
    """Look whether this host can carry the run.

    Raises:
        HostError: It cannot, with every sum that does not fit.
        UsageError: Nothing but ``runs`` is wrong.
    """
    try:
        demand = preflight(topology, runs)
    except OSError as error:
        raise explained(error) from error
    if demand.problems:
        raise demand.error(demand.problems)


def render(demand: Demand, console: Console) -> None:
    """Print a line for each sum, then the problems."""
    rows = [("", "needed", "allowed", "by")]
    for limit_sum in demand.sums:
        amounts = (limit_sum.needed, limit_sum.limit)
        needed, allowed = (
            "" if it is None else _amount(it, limit_sum.unit) if limit_sum.unit else f"{it:,.0f}" for it in amounts
        )
        rows.append((limit_sum.what, needed, allowed, limit_sum.limit_name))
    wrong = {place: "bold red" for place, limit_sum in enumerate(demand.sums, start=1) if not limit_sum.fits}
    print_columns(rows, console, left=(0, 3), styles=wrong)
    for text in (*demand.warnings, *demand.problems):
        console.print(Text(f"! {text}", "yellow"), soft_wrap=True)


@dataclass(frozen=True)
class _Count:
    """The counts that all sums are made of."""

    machines: int
    connections: int
    eventfds: int
    messages: int
    migrations: int
    qemus: int
    incarnations: Mapping[int, int]

    @classmethod
    def of(cls, topology: Topology) -> _Count:
        """Count. A machine that joins again has a new ID, and one more eventfd for each of its vectors."""
        incarnations = Counter({machine.index: int(machine.present) for machine in topology.machines})
        migrations = 0
        for entry in topology.timeline:
            if isinstance(entry.action, Join | Migrate):
                # Of a pick it is not known which machines it hits, only how many: each has its share.
                hits = entry.repeat * (entry.pick or len(entry.machines))
                incarnations.update(dict.fromkeys(entry.machines, math.ceil(hits / max(1, len(entry.machines)))))
            migrations += isinstance(entry.action, Migrate)
        # Of a machine that never joins, there is room for one incarnation, too.
        incarnations = Counter({index: max(1, number) for index, number in incarnations.items()})
        connections = eventfds = messages = 0
        for domain in topology.domains:
            members = [machine for machine in topology.machines if domain.name in machine.domains]
            own = sum(machine.vectors * incarnations[machine.index] for machine in members)
            heads = sum(incarnations[machine.index] for machine in members)
            connections, eventfds = connections + heads, eventfds + own
            # A new peer is told all eventfds and its own; each other peer is told those of the new one.
            messages += heads * (GREETING_MESSAGES + own)
        return cls(
            len(topology.machines),
            connections,
            eventfds,
            messages,
            migrations,
            refusals.count_qemus(topology),
            incarnations,
        )


def _descriptors(topology: Topology, count: _Count, host: Host) -> Iterator[ResourceDemand]:
    each = DESCRIPTORS_EACH + (LOOK_DESCRIPTORS if topology.run.stop_above else 0)
    others = DESCRIPTORS_SPARE + host.descriptors_open + count.connections - count.machines + count.qemus
    advice = "Take fewer machines or vectors, or raise the limit"
    yield _sum(
        "descriptors in the coordinator",
        count.eventfds + each * count.machines + others,
        host.descriptors,
        f"{count.eventfds} eventfds, {each} for each of {count.machines} machines, {others} others",
        advice,
    )
    eventfds, machine = max(((_worker_eventfds(topology, kind), kind) for kind in _kinds(topology)), key=itemgetter(0))
    fixed = WORKER_DESCRIPTORS + DEVICE_DESCRIPTORS * (len(machine.domains) - 1)
    yield _sum(
        "descriptors in a machine",
        eventfds + fixed,
        host.descriptors,
        f"{eventfds} eventfds in {machine.name}, {fixed} others",
        advice,
    )
    yield _sum(
        "open files on this host",
        count.eventfds + (each + WORKER_DESCRIPTORS) * count.machines,
        host.files,
        f"{count.eventfds} eventfds, {each + WORKER_DESCRIPTORS} for each of {count.machines} machines",
        advice,
    )


def _kinds(topology: Topology) -> list[Machine]:
    """Return one machine for each kind, profile, number of vectors and set of domains: the others need the same."""
    kinds = {
        (machine.domains, machine.vectors, machine.kind, machine.profile): machine
        for machine in reversed(topology.machines)
    }
    return list(kinds.values())


def _worker_eventfds(topology: Topology, machine: Machine) -> int:
    """A device keeps no more eventfds of a peer than it has vectors itself.

    That of 2012 keeps each of them twice. The process beside a QEMU has one of its own for each, which QEMU rings.
    """
    total = 0
    for domain in machine.domains:
        sizes = Counter(other.vectors for other in topology.machines if domain in other.domains)
        total += sum(min(machine.vectors, vectors) * those for vectors, those in sizes.items())
    twice = machine.kind != "simulated" or PROFILES[machine.profile].has(Quirk.DESCRIPTOR_LEAK)
    return 2 * total if twice else total


def _processes(count: _Count, host: Host) -> Iterator[ResourceDemand]:
    moving = 1 if count.migrations else 0
    made_of = f"{count.machines} machines, {HELPERS} helpers" + (", 1 that another moves to" if moving else "")
    if count.qemus:
        made_of += f", {QEMU_THREADS} of each of {count.qemus} QEMUs"
    needed = count.machines + moving + HELPERS + QEMU_THREADS * count.qemus
    yield _sum("processes and threads", needed, host.processes, made_of, "Take fewer machines, or raise the limit")


def _server(count: _Count, host: Host) -> Iterator[ResourceDemand]:
    made_of = f"{count.connections} connections, each told of {count.eventfds} eventfds at most"
    yield _sum("messages of the server", count.messages, None, made_of)
    in_flight = min(count.messages, UNREAD_MESSAGES * count.connections)
    advice = "The server waits until they are read: coming up takes longer"
    made_of = f"at most {UNREAD_MESSAGES} unread messages for each of {count.connections} connections"
    yield _sum("descriptors in flight", in_flight, host.in_flight, made_of, advice, binding=False)


def _memory(topology: Topology, count: _Count, host: Host) -> Iterator[ResourceDemand]:
    by_kind: Counter[str] = Counter()
    for domain in topology.domains:
        by_kind[domain.memory.kind] += domain.memory.size_bytes
    layouts = Layouts(topology)
    each = {machine.vectors: layouts.of(machine).words * WORD_BYTES for machine in _kinds(topology)}
    devices = [(machine, len(machine.domains) * count.incarnations[machine.index]) for machine in topology.machines]
    drains = sum(layouts.of(machine).drains * times for machine, times in devices)
    recordings = sum(each[machine.vectors] * times for machine, times in devices)
    shared, private = sum(by_kind.values()), PRIVATE_BYTES * count.machines + EVENTFD_BYTES * count.eventfds
    private += QEMU_BYTES * count.qemus
    made_of = (
        f"{_amount(shared, 'bytes')} shared, {_amount(recordings, 'bytes')} of recordings, "
        f"{_amount(PRIVATE_BYTES, 'bytes')} for each of {count.machines} machines"
    )
    if count.qemus:
        made_of += f", {_amount(QEMU_BYTES, 'bytes')} for each of {count.qemus} QEMUs"
    advice = "Take fewer machines or a smaller memory"
    yield _sum("of memory", shared + recordings + private, host.memory_bytes, made_of, advice, unit="bytes")
    made_of = (
        f"at most {INDEX_BYTES_EACH} bytes for each of {drains:,} drains, {_amount(RESULTS_BYTES, 'bytes')} others"
    )
    needed = RESULTS_BYTES + INDEX_BYTES_EACH * drains
    advice = "The recordings are kept where the results cannot be made. Take a shorter run or a larger run.sample_every"
    yield _sum("of memory for the results", needed, host.memory_bytes, made_of, advice, unit="bytes", binding=False)
    if named := by_kind["shared_memory"]:
        advice = 'Take a smaller memory or kind = "memfd", or mount a larger file system there'
        yield _sum(f"of shared memory in {SHM_DIRECTORY}", named, host.shm_bytes, "", advice, unit="bytes")
    if nameless := by_kind["memfd"]:
        yield _sum("of nameless memory", nameless, host.memory_bytes, "", "Take a smaller memory", unit="bytes")
    advice = "Take a shorter run, run.sample_every = 0, or another directory with --runs"
    results = round(RESULTS_SHARE * recordings)
    made_of = (
        f"{_amount(recordings, 'bytes')} of recordings of {count.machines} machines, "
        f"{_amount(results, 'bytes')} of results beside them while these are written"
    )
    yield _sum("of disk", recordings + results, host.disk_bytes, made_of, advice, unit="bytes")
    yield from _limits_of_processes(topology, each, recordings, host)


def _limits_of_processes(
    topology: Topology, recording_bytes: Mapping[int, int], recordings: int, host: Host
) -> Iterator[ResourceDemand]:
    """The limits of setrlimit(2) in each process: its address space, its files, its CPU time."""
    advice = "Take fewer machines, a shorter run or run.sample_every = 0, or raise the limit"
    loaded = LIBRARIES.address_space_bytes
    read = _amount(2 * recordings, "bytes")
    made_of = f"{_amount(loaded, 'bytes')} of libraries, {read} of recordings and of what is read from them"
    needed = loaded + 2 * recordings
    yield _sum("of address space in the coordinator", needed, host.address_space_bytes, made_of, advice, unit="bytes")
    sizes = {domain.name: domain.memory.size_bytes for domain in topology.domains}
    needed, machine = max(
        (
            (sum(sizes[name] + recording_bytes[kind.vectors] for name in kind.domains), kind)
            for kind in _kinds(topology)
        ),
        key=itemgetter(0),
    )
    mapped = f"{_amount(needed, 'bytes')} of memory and recordings in {machine.name}"
    made_of = f"{_amount(WORKER_BYTES, 'bytes')} of libraries, {mapped}"
    advice = "Take a smaller memory or a shorter run, or raise the limit"
    what = "of address space in a machine"
    yield _sum(what, WORKER_BYTES + needed, host.address_space_bytes, made_of, advice, unit="bytes")
    largest = max(*sizes.values(), *recording_bytes.values())
    made_of = "the largest of the memories and recordings"
    yield _sum("in one file", largest, host.file_bytes, made_of, advice, unit="bytes")
    total_s = sum(phase.duration_s for phase in topology.phases)
    advice = "The kernel kills a process that uses more"
    yield _sum("of CPU time in one process", total_s, host.cpu_s, "if it never waits", advice, unit="s", binding=False)


def _time(count: _Count, host: Host) -> Iterator[ResourceDemand]:
    alone = 2 if len(host.cpus) == 1 else 1
    needed = BASE_S + alone * (PROCESS_S * count.machines + MESSAGE_S * count.messages)
    patience = Remaining(round(PATIENCE_S + PATIENCE_EACH_S * count.machines), "the coordinator's patience")
    made_of = f"an estimate from {count.machines} processes and {count.messages} messages"
    advice = "It may be given up before all machines are Ready"
    yield _sum("to come up", round(needed, 2), patience, made_of, advice, unit="s", binding=False)


def _sum(
    what: str,
    needed: float,
    left: Remaining | None,
    made_of: str,
    advice: str = "",
    *,
    unit: Literal["", "bytes", "s"] = "",
    binding: bool = True,
) -> ResourceDemand:
    limit, name = (None, "") if left is None else left
    return ResourceDemand(what, needed, unit, made_of, limit, name, advice, binding)


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:,.1f} s"
    if unit == "bytes":
        for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value >= 2**power:
                return f"{value / 2**power:,.1f} {name}"
        return f"{value:.0f} bytes"
    return f"{value:.0f}"
