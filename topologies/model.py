"""What a topology file asks for, checked: the value that the loader makes and the runner carries out.

    Topology
    ├── RunSettings   how long, how much is sampled, what a death does
    ├── Phase         a part of that time, with a load of its own        (topologies.schedule)
    ├── Domain        a shared memory with its own server
    ├── Group         machines that are alike, as the file has them
    ├── Machine       one simulated VM, with a place, a name and resolved parameters
    ├── TimelineEntry what happens to machines and servers meanwhile     (topologies.schedule)
    └── Expectation   what the run must have shown at its end            (topologies.schedule)

All are frozen, and none can be made with values out of range: a constructor raises `UsageError`. The
limits stand in the annotations, once; the loader's messages and the JSON Schema are made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from nodes.errors import UsageError
from topologies.language.sizes import MEMORY_SIZE_MAX_BYTES, MEMORY_SIZE_MIN_BYTES
from topologies.language.validated import NAME_PATTERN, Name, Validated
from topologies.schedule import Expectation, Phase, TimelineEntry

__all__ = [
    "MAX_MACHINES",
    "MAX_NAME",
    "NAME_PATTERN",
    "Domain",
    "Group",
    "Machine",
    "Machines",
    "Memory",
    "RunSettings",
    "Scheduling",
    "Topology",
    "Trace",
    "machine_name",
]

MAX_MACHINES = 65536
"""A peer's ID has 16 bits."""

MAX_NAME = 64

Title = Annotated[
    str, Meta(max_length=120, description="One line that says what the file shows; `ivsim list` prints it.")
]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="Where every random choice of the programs begins.")]
Count = Annotated[int, Meta(ge=1, le=MAX_MACHINES, description="How many machines the group has.")]
Vectors = Annotated[
    int, Meta(ge=0, le=2048, description="MSI-X vectors of each machine: eventfds the server gives it; 0: memory only.")
]
Role = Annotated[
    Literal["peer", "master", "auto"],
    Meta(
        description=(
            "A `master` migrates with its memory; a `peer` cannot migrate with its device; `auto` is a master if its "
            "ID is 0, else a peer."
        )
    ),
]
Profile = Annotated[str, Meta(pattern=NAME_PATTERN, description="Which device of the field each machine has.")]
ProgramName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="What the guest runs: the name of a shipped program or `package.module:function`.",
        extra={"expected": "the name of a program: a shipped one, or package.module:function"},
    ),
]
SizeBytes = Annotated[int, Meta(ge=MEMORY_SIZE_MIN_BYTES, le=MEMORY_SIZE_MAX_BYTES)]
MemoryKind = Annotated[
    Literal["shared_memory", "memfd"],
    Meta(description="`shared_memory`: host programs can open it by name; `memfd`: sealed against shrinking."),
]


Dialect = Annotated[
    Literal["v0", "legacy", "v0-shm-last"], Meta(description="How the server speaks: as today's, or as older ones.")
]
Cpus = Annotated[
    tuple[Annotated[int, Meta(ge=0, le=8191)], ...], Meta(description="The CPUs that the machines may run on.")
]
Policy = Annotated[
    Literal["other", "batch", "idle", "fifo", "rr"], Meta(description="Linux's scheduling policy (sched(7)).")
]
Priority = Annotated[int, Meta(ge=0, le=99, description="Of the policies fifo and rr: 1 to 99.")]
Nice = Annotated[int, Meta(ge=-20, le=19, description="Of the policies other and batch: -20 (favoured) to 19.")]
Blockers = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
    Meta(description="Reasons of the machines' own why they cannot migrate."),
]
MAIN_DOMAIN = "main"


class Machines(tuple[int, ...]):
    """Indices of machines, as the value of a parameter that is `nodes.guest.Peers`: who is meant, not yet which IDs."""

    __slots__ = ()


class Trace(Struct, frozen=True, kw_only=True):
    """The doorbells of one machine out of a trace's file, as the value of a parameter that is `nodes.guest.Trace`.

    ``machines`` are those that it rings; each doorbell is (due_ns after the start, place in ``machines``, vector).
    """

    machines: Machines
    doorbells: tuple[tuple[int, int, int], ...]


class RunSettings(Validated, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one run goes: the table ``[run]``."""

    duration_s: Annotated[float, Meta(gt=0, le=604800, description="Measured time after the warm-up, in seconds.")] = (
        5.0
    )
    warmup_s: Annotated[float, Meta(ge=0, le=604800, description="Time in seconds that is cut from the latencies.")] = (
        0.5
    )
    sample_every: Annotated[
        int,
        Meta(
            ge=0,
            le=2**31 - 1,
            description="One doorbell in so many, per edge, is time-stamped; 1: all, 0: none.",
        ),
    ] = 16
    on_death: Annotated[Literal["fail", "degrade"], Meta(description="What a machine that dies does to the run.")] = (
        "fail"
    )
    only_migratable: Annotated[
        bool, Meta(description="Refuse machines that could not migrate, as QEMU's --only-migratable does.")
    ] = False


class Memory(Validated, frozen=True, kw_only=True):
    """The region behind BAR2 of every machine; ``size_bytes`` is a power of two, at least one page.

    ``name`` is that of the segment in /dev/shm, for ``shared_memory`` only; "" leaves the choice to the run.
    """

    size_bytes: SizeBytes = 4 << 20
    kind: MemoryKind = "shared_memory"
    name: Annotated[str, Meta(pattern=rf"{NAME_PATTERN}|^\Z")] = ""

    def __post_init__(self) -> None:
        Validated.__post_init__(self)
        if self.size_bytes & (self.size_bytes - 1):
            raise UsageError(f"Memory.size_bytes: expected a power of two, got {self.size_bytes}")
        if self.name and self.kind != "shared_memory":
            raise UsageError(f"Memory.name: expected none for the kind {self.kind}, got {self.name!r}")


class Domain(Validated, frozen=True, kw_only=True):
    """A shared memory with a server of its own; most topologies have one, called ``main``."""

    name: Name = MAIN_DOMAIN
    memory: Memory = Memory()
    dialect: Dialect = "v0"


class Scheduling(Validated, frozen=True, kw_only=True):
    """Where and how the kernel runs a machine's process; no ``cpus``: wherever the coordinator may run."""

    cpus: Cpus = ()
    policy: Policy = "other"
    priority: Priority = 0
    nice: Nice = 0

    def __post_init__(self) -> None:
        Validated.__post_init__(self)
        if (self.policy in ("fifo", "rr")) != (self.priority > 0):
            raise UsageError("Scheduling.priority: expected 1 to 99 for the policies fifo and rr, 0 for others")


class Group(Validated, frozen=True, kw_only=True):
    """Machines that are alike; ``parameters`` as the file gives them (names of machines not resolved)."""

    name: Name
    count: Count = 1
    pattern: str = ""
    vectors: Vectors = 1
    role: Role = "peer"
    profile: Profile = "qemu-doorbell"
    program: ProgramName
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class Machine(Struct, frozen=True, kw_only=True):
    """One simulated VM.

    ``index`` counts from 0 over all groups in the file's order. A server hands out IDs in that order to those
    who are ``present`` when the run begins; the others join when the timeline says so. ``parameters`` holds a
    value for every parameter of the program, typed; machines named in the file have become `Machines`.
    A machine has a device in each of its ``domains``, with ``vectors`` each. ``blockers`` are its own reasons not
    to migrate.
    """

    index: int
    name: str
    group: str
    vectors: int
    role: Literal["peer", "master", "auto"]
    profile: str
    program: str
    parameters: dict[str, Any]
    domains: tuple[str, ...] = (MAIN_DOMAIN,)
    present: bool = True
    scheduling: Scheduling = Scheduling()
    blockers: tuple[str, ...] = ()


class Topology(Struct, frozen=True, kw_only=True):
    """One scenario, checked as a whole.

    ``source_text`` is the file as given, for the run's directory; ``overrides`` (``--set``) are what
    else is needed to make the same topology again. ``matrix`` maps overrides to the values that a sweep gives them,
    as ``--set`` would have them. ``files`` are those that the file names (traces): as named, and where they are.
    """

    title: str
    seed: int
    run: RunSettings
    groups: tuple[Group, ...]
    machines: tuple[Machine, ...]
    domains: tuple[Domain, ...] = (Domain(),)
    phases: tuple[Phase, ...] = ()
    timeline: tuple[TimelineEntry, ...] = ()
    expectations: tuple[Expectation, ...] = ()
    matrix: dict[str, tuple[str, ...]] = {}
    source_text: str = ""
    source_name: str = ""
    overrides: dict[str, str] = {}
    files: dict[str, str] = {}

    def __post_init__(self) -> None:
        for name, value, annotation in (("title", self.title, Title), ("seed", self.seed, Seed)):
            try:
                msgspec.convert(value, annotation, strict=True)
            except msgspec.ValidationError as error:
                raise UsageError(f"Topology.{name}: {error}") from None
        if not self.machines:
            raise UsageError("Topology.machines: expected at least one machine")
        if len(self.machines) > MAX_MACHINES:
            raise UsageError(f"Topology.machines: expected at most {MAX_MACHINES}, got {len(self.machines)}")
        if [machine.index for machine in self.machines] != list(range(len(self.machines))):
            raise UsageError("Topology.machines: expected the indices 0, 1, 2, ... in order")
        if len({machine.name for machine in self.machines}) != len(self.machines):
            raise UsageError("Topology.machines: two machines have the same name")
        members = [(group.name, group.count) for group in self.groups]
        counts: dict[str, int] = {}
        for machine in self.machines:
            counts[machine.group] = counts.get(machine.group, 0) + 1
        if members != list(counts.items()):
            raise UsageError("Topology.machines: the groups do not have the machines that they count")
        domains = {domain.name for domain in self.domains}
        if not domains or any(not machine.domains or set(machine.domains) - domains for machine in self.machines):
            raise UsageError("Topology.machines: each needs one of the topology's domains")
        if not self.phases:
            msgspec.structs.force_setattr(self, "phases", _plain_phases(self.run))

    @property
    def has_own_phases(self) -> bool:
        """Whether the file names phases; else there is a warm-up, and the time that is measured."""
        return self.phases != _plain_phases(self.run)

    @property
    def memory(self) -> Memory:
        """The shared memory of the first domain, which is most often the only one."""
        return self.domains[0].memory

    @property
    def eventfds(self) -> int:
        """Eventfds of all machines together; the coordinator holds a descriptor of each."""
        return sum(machine.vectors * len(machine.domains) for machine in self.machines)

    def members(self, group: str) -> tuple[Machine, ...]:
        """The machines of one group, in order; raises `UsageError` for a group that does not exist."""
        found = tuple(machine for machine in self.machines if machine.group == group)
        if not found:
            raise UsageError(f"expected one of the groups {[g.name for g in self.groups]}, got {group!r}")
        return found


def _plain_phases(run: RunSettings) -> tuple[Phase, ...]:
    """What a topology without phases of its own has: the warm-up, and the time that is measured."""
    measured = Phase(name="measured", duration_s=run.duration_s)
    return (Phase(name="warmup", duration_s=run.warmup_s, measured=False), measured) if run.warmup_s else (measured,)


def machine_name(group: str, place: int, count: int, pattern: str = "") -> str:
    """The name of a group's machine number ``place`` (from 0): ``storm-03``; ``hub`` when it is alone.

    ``pattern`` is a checked one of the file: ``node-{n:03}``, ``{group}-{n}``.
    """
    if pattern:
        return pattern.format(group=group, n=place)
    if count == 1:
        return group
    return f"{group}-{place:0{len(str(count - 1))}d}"
