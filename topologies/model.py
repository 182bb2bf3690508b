"""The value that the loader makes of a topology file, and that the runner executes.

    Topology
    ├── RunSettings    duration, sampling, what the death of a machine does
    ├── Phase          a part of that time, with a load of its own       (topologies.schedule)
    ├── Domain         a shared memory with its own server       (topologies.domain)
    ├── Group          equal machines, as the file has them
    ├── Machine        one simulated VM, with index, name and resolved parameters
    ├── TimelineEntry  an action, its time and its machines              (topologies.schedule)
    └── Expectation    what the run must show at its end                 (topologies.schedule)

All are frozen, and a constructor raises `UsageError` for values out of range. The limits are declared once, in the
annotations; the loader's messages and the JSON Schema derive from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from topologies.domain import MAIN_DOMAIN, Domain, Memory
from topologies.guest_image import GuestImage
from topologies.language.validated import NAME_PATTERN, Name, Validated
from topologies.schedule import Expectation, Invariant, Phase, TimelineEntry
from topologies.stop_above import STOP_ABOVE_PATTERN

MAX_MACHINES = 65536
"""A peer's ID has 16 bits."""

MAX_VECTORS = 2048
"""An MSI-X table has 2048 entries (PCI 3.0, 6.8.2)."""

MAX_NAME = 64

Title = Annotated[
    str, Meta(max_length=120, description="One line that says what the file shows; `ivsim list` prints it.")
]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="The seed of every random choice of the programs.")]
Count = Annotated[int, Meta(ge=1, le=MAX_MACHINES, description="The number of machines in the group.")]
Vectors = Annotated[
    int, Meta(ge=0, le=MAX_VECTORS, description="MSI-X vectors of each machine, one eventfd each; 0: memory only.")
]
Role = Annotated[
    Literal["peer", "master", "auto"],
    Meta(
        description=(
            "A `master` migrates with the memory; a `peer` cannot migrate with its device; `auto` is a master if its "
            "ID is 0, else a peer."
        )
    ),
]
MachineKind = Annotated[
    Literal["simulated", "qemu", "external"],
    Meta(
        description=(
            "`simulated`: the device is a model; `qemu`: it is that of a real QEMU without a guest, which the run "
            "starts and which the program drives; `external`: it is that of a QEMU that is started outside the run, "
            "and has no program of the run."
        )
    ),
]
ReadyTimeout = Annotated[
    float, Meta(gt=0, le=86_400, description="How long the QEMU of an external machine is awaited, in seconds.")
]
Profile = Annotated[str, Meta(pattern=NAME_PATTERN, description="The device profile of each machine.")]
ProgramName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="The program of the guest: the name of a shipped one, or `package.module:function`.",
        extra={"expected": "the name of a program: a shipped one, or package.module:function"},
    ),
]
Cpus = Annotated[
    tuple[Annotated[int, Meta(ge=0, le=8191)], ...], Meta(description="The CPUs that the machines may run on.")
]
Policy = Annotated[
    Literal["other", "batch", "idle", "fifo", "rr"], Meta(description="Linux's scheduling policy (sched(7)).")
]
Priority = Annotated[int, Meta(ge=0, le=99, description="1 to 99, for the policies fifo and rr.")]
Nice = Annotated[int, Meta(ge=-20, le=19, description="-20 (favoured) to 19, for the policies other and batch.")]
Blockers = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
    Meta(description="Further reasons why the machines cannot migrate."),
]


class Machines(tuple[int, ...]):
    """Indices of machines: the value of a parameter of type `nodes.guest.Peers` before the machines have IDs."""

    __slots__ = ()


class Trace(Struct, frozen=True, kw_only=True):
    """The doorbells of one machine in a trace's file: the value of a parameter of type `nodes.guest.Trace`.

    ``machines`` are the targets; each doorbell is (due_ns after the start, place in ``machines``, vector).
    """

    machines: Machines
    doorbells: tuple[tuple[int, int, int], ...]


EngineName = Literal["process", "virtual"]
"""The folders of `sim.engines` that can run a topology."""


class RunSettings(Validated, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one run: the table ``[run]``."""

    duration_s: Annotated[float, Meta(gt=0, le=604800, description="Measured time after the warm-up, in seconds.")] = (
        5.0
    )
    warmup_s: Annotated[float, Meta(ge=0, le=604800, description="Time in seconds that the latencies leave out.")] = 0.5
    sample_every: Annotated[
        int,
        Meta(ge=0, le=2**31 - 1, description="One doorbell in this many, per edge, is time-stamped; 1: all, 0: none."),
    ] = 16
    on_death: Annotated[
        Literal["fail", "degrade"],
        Meta(description="`fail`: a machine that dies ends the run; `degrade`: it does not."),
    ] = "fail"
    engine: Annotated[
        EngineName,
        Meta(description="`process`: each machine a process; `virtual`: all in one thread, under virtual time."),
    ] = "process"
    cost_model: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4096,
            description="What things cost under virtual time: `default`, or a TOML file with the keys of "
            "`sim/engines/virtual/models/default.toml`.",
        ),
    ] = "default"
    only_migratable: Annotated[
        bool, Meta(description="Refuse machines that cannot migrate, as QEMU's --only-migratable does.")
    ] = False
    stop_above: Annotated[
        str,
        Meta(
            pattern=STOP_ABOVE_PATTERN,
            description="End the run when a latency is above this limit, and say what it was: `5ms` for the total of "
            "one doorbell, or a latency, a percentile and a limit, such as `delivery.p99_9=500us`.",
            examples=["5ms", "p99_9=500us", "delivery.max=2ms"],
            extra={
                "expected": 'a limit such as "5ms", "p99_9=500us" or "delivery.max=2ms": a latency (lag, delivery, '
                "handling, raw or total), a percentile or max, and a time with its unit"
            },
        ),
    ] = ""


Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=0, le=1_000_000)]


class Chaos(Validated, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Delays and faults under virtual time, drawn from the seed: the table ``[chaos]``."""

    wake_delays: Annotated[Share, Meta(description="The share of wake-ups of machines that are delayed.")] = 0.0
    message_delays: Annotated[Share, Meta(description="The share of messages of the server that are delayed.")] = 0.0
    cuts: Annotated[
        Share, Meta(description="The share of reads from the server that end early, within a message or before one.")
    ] = 0.0
    reorders: Annotated[
        Share, Meta(description="The share of wake-ups that take the counters in another order than they were rung.")
    ] = 0.0
    preemptions: Annotated[
        Share, Meta(description="The share of the points marked `yield STEP` at which the program is preempted.")
    ] = 0.0
    delay_max_us: Annotated[
        float, Meta(ge=1, le=60_000_000, description="The longest delay; short ones are as likely as long ones.")
    ] = 1000.0
    kills_per_s: Annotated[Rate, Meta(description="How many machines are killed in a second; each joins again.")] = 0.0
    stalls_per_s: Annotated[Rate, Meta(description="How many machines are stalled in a second.")] = 0.0
    fills_per_s: Annotated[Rate, Meta(description="How many machines have their counters filled in a second.")] = 0.0
    outage_max_us: Annotated[
        float, Meta(ge=1, le=60_000_000, description="The longest time that a fault lasts, likewise.")
    ] = 1000.0


class Scheduling(Validated, frozen=True, kw_only=True):
    """How the kernel schedules a machine's process; without ``cpus``: on the CPUs of the coordinator."""

    cpus: Cpus = ()
    policy: Policy = "other"
    priority: Priority = 0
    nice: Nice = 0

    def __post_init__(self) -> None:
        Validated.__post_init__(self)
        if (self.policy in ("fifo", "rr")) != (self.priority > 0):
            raise UsageError("Scheduling.priority: expected 1 to 99 for the policies fifo and rr, 0 for others")


class Group(Validated, frozen=True, kw_only=True):
    """Equal machines; ``parameters`` as the file has them, with names of machines unresolved."""

    name: Name
    count: Count = 1
    pattern: str = ""
    kind: MachineKind = "simulated"
    vectors: Vectors = 1
    role: Role = "peer"
    profile: str = "qemu-doorbell"
    program: ProgramName
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class Machine(Struct, frozen=True, kw_only=True):
    """One simulated VM.

    Attributes:
        index: from 0 over all groups in the file's order. The server gives IDs in that order to the machines that are
            ``present`` at the start of the run; the others join by the timeline.
        kind: what its device is, a model or that of a real QEMU.
        ready_timeout_s: how long an external machine is awaited.
        vectors: the vectors of each device.
        parameters: a typed value for every parameter of the program; names of machines have become `Machines`.
        domains: the machine has a device in each of them.
        profiles: the profile of the device in each of ``domains``; () where all have ``profile``.
        guest: the image that it boots in a QEMU; None for a machine whose program is a function.
        blockers: reasons not to migrate besides those of the devices.
        foreign: the parameters whose peers are also those that are no machines of the topology.
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
    profiles: tuple[str, ...] = ()
    present: bool = True
    kind: MachineKind = "simulated"
    ready_timeout_s: ReadyTimeout = 60.0
    guest: GuestImage | None = None
    scheduling: Scheduling = Scheduling()
    blockers: tuple[str, ...] = ()
    foreign: frozenset[str] = frozenset()

    def profile_in(self, domain: str) -> str:
        """The profile of the device in that domain."""
        return self.profiles[self.domains.index(domain)] if self.profiles else self.profile


class Topology(Struct, frozen=True, kw_only=True):
    """One scenario, checked as a whole.

    Attributes:
        invariants: what `ivsim explore` checks besides its own.
        chaos: delays and faults under virtual time; None without any.
        matrix: for sweeps, the values of each key, spelled as for ``--set``.
        source_text: the text of the file. With ``overrides`` it makes the same topology again.
        overrides: the keys and values of ``--set``.
        files: the files that the topology names (traces): the name in the file, and the path.
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
    invariants: tuple[Invariant, ...] = ()
    chaos: Chaos | None = None
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
        """Whether the file has phases; else there are a warm-up and the measured time."""
        return self.phases != _plain_phases(self.run)

    @property
    def memory(self) -> Memory:
        """The shared memory of the first domain, usually the only one."""
        return self.domains[0].memory

    @property
    def eventfds(self) -> int:
        """Eventfds of all machines together; the coordinator holds a descriptor of each."""
        return sum(machine.vectors * len(machine.domains) for machine in self.machines)

    def real(self, group: str) -> str:
        """Which machines of a group are real QEMUs, by kind: "qemu", "4 of 8 qemu"; "" when none is."""
        kinds = [machine.kind for machine in self.machines if machine.group == group]
        counts = {kind: kinds.count(kind) for kind in sorted(set(kinds) - {"simulated"})}
        shown = [kind if count == len(kinds) else f"{count} of {len(kinds)} {kind}" for kind, count in counts.items()]
        return ", ".join(shown)

    def members(self, group: str) -> tuple[Machine, ...]:
        """The machines of one group, in order; raises `UsageError` for a group that does not exist."""
        found = tuple(machine for machine in self.machines if machine.group == group)
        if not found:
            names = [each.name for each in self.groups]
            raise UsageError(f"expected one of the groups {names}, got {group!r}{did_you_mean(group, names)}")
        return found


def _plain_phases(run: RunSettings) -> tuple[Phase, ...]:
    """The phases of a topology that declares none: the warm-up and the measured time."""
    measured = Phase(name="measured", duration_s=run.duration_s)
    return (Phase(name="warmup", duration_s=run.warmup_s, measured=False), measured) if run.warmup_s else (measured,)


def machine_name(group: str, place: int, count: int, pattern: str = "") -> str:
    """The name of the machine at ``place`` (from 0) of a group: ``storm-03``; ``hub`` if the group has one machine.

    ``pattern`` is a checked one of the file: ``node-{n:03}``, ``{group}-{n}``.
    """
    if pattern:
        return pattern.format(group=group, n=place)
    if count == 1:
        return group
    return f"{group}-{place:0{len(str(count - 1))}d}"
