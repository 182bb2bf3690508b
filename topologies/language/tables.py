"""The tables of a topology file, one struct each.

The loader checks a file against these structs, and the JSON Schema derives from them. A new table or key of the
language is declared here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from topologies import model
from topologies.actions import ACTIONS, MachineAction, fields_of
from topologies.domain import Dialect, HostName, MaxPeers, MemoryKind, Protocol, Version
from topologies.guest_image import GuestImage
from topologies.language.sizes import MEMORY_SIZE_MAX_BYTES, MEMORY_SIZE_MIN_BYTES, SIZE_PATTERN
from topologies.language.validated import NAME_PATTERN, Name, Sparse
from topologies.schedule import COMPARISONS, Load, Seconds

Size = Annotated[
    Annotated[int, Meta(ge=MEMORY_SIZE_MIN_BYTES, le=MEMORY_SIZE_MAX_BYTES)]
    | Annotated[str, Meta(pattern=SIZE_PATTERN)],
    Meta(
        description="Bytes, or a number with a suffix K, M, G or T, or 0x...; a power of two from 4K to 1T.",
        examples=["4M", "64k", "0x10000", 65536],
        extra={"expected": 'a power of two from 4K to 1T: bytes, or a string such as "64K", "4M" or "0x400000"'},
    ),
]
OutputSize = Annotated[
    Annotated[int, Meta(ge=0, le=MEMORY_SIZE_MAX_BYTES)] | Annotated[str, Meta(pattern=SIZE_PATTERN)],
    Meta(
        description="Version 2: the size of each peer's output section, whole pages of 4K; 0: there are none.",
        examples=["64K", 0],
        extra={"expected": 'whole pages of 4K: bytes, or a string such as "64K"; 0 for none'},
    ),
]
MemoryName = Annotated[
    Name,
    Meta(
        description=(
            "The name of the segment in /dev/shm, which other programs open with shm_open(3); "
            "if absent, each run takes a new one. Only for shared_memory."
        )
    ),
]
CPU_LIST = r"^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?){0,63}$"
# Without a pattern for the string: msgspec 0.22 crashes on a union of a limited string and an array.
CpuList = Annotated[
    model.Cpus | str,
    Meta(
        description="The CPUs of the machines' processes: an array, or a list as taskset(1) takes it.",
        examples=["0-3,6", [0, 1]],
        extra={"expected": 'an array of CPU numbers from 0 to 8191, or a list like "0-3,6"'},
    ),
]
NamePattern = Annotated[
    str,
    Meta(
        pattern=r"^([A-Za-z0-9_.-]|\{group\}|\{n(:0[1-9])?\}){1,128}\Z",
        description="The names of the machines: {n} is the place in the group from 0, {n:03} the same in 3 digits.",
        examples=["node-{n}", "{group}-{n:03}"],
        extra={"expected": 'a pattern like "node-{n}", "node-{n:03}" or "{group}-{n}"'},
    ),
]
MachineNames = Annotated[
    str | tuple[str, ...],
    Meta(
        description='The machines: a group, a machine, an array of such names, or "all".',
        extra={"expected": 'the name of a group or machine, "all", or an array of such names'},
    ),
]
Comparison = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=r"^[ \t]*[A-Za-z_][A-Za-z0-9_.]*[ \t]*(<=|>=|==|!=|<|>)[ \t]*[+-]?[0-9_.]+([eE][+-]?[0-9]+)?[ \t]*\Z",
        extra={
            "expected": 'a metric compared to a number, like "p99_us < 500" or "refused == 0"',
            "hints": (
                (r"\b(and|or)\b|[,;]|&&|\|\|", "one comparison in each entry"),
                (r"(?<![<>=!])=(?!=)|=>|=<|===|<>", f"the comparisons are {', '.join(COMPARISONS)}"),
                (r"\A\s*[-+.0-9]", "the metric comes first, then the number"),
                (r"[0-9]\s*[A-Za-z%]+\s*\Z", "a number without a unit: the name of the metric has it"),
            ),
        },
    ),
]
Of = Annotated[
    str,
    Meta(
        max_length=200,
        description='Whose metric: a group, a machine, a vector "b:2", an edge "a -> b" or "a -> b:2"; if absent, all.',
    ),
]
MatrixKey = Annotated[
    str, Meta(min_length=1, max_length=200, extra={"expected": "a dotted key of 1 to 200 characters"})
]
OverrideKey = Annotated[
    str, Meta(pattern=NAME_PATTERN, description="A machine of the group: its place, from 0, or its name.")
]


class MemoryTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shared memory of all machines: the table ``[memory]``."""

    size: Size = "4M"
    kind: MemoryKind = "shared_memory"
    name: MemoryName = ""


class DomainTable(MemoryTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A shared memory with a server of its own: a table ``[domains.NAME]``."""

    dialect: Dialect = "v0"
    version: Version = 1
    max_peers: MaxPeers = 2
    output_size: OutputSize = 0
    protocol: Protocol = 0
    host: HostName = ""


class MachineTable(Sparse, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of machines, in groups, overrides and ``[defaults]``."""

    program: model.ProgramName = ""
    kind: model.MachineKind = "simulated"
    ready_timeout_s: model.ReadyTimeout = 60.0
    vectors: model.Vectors = 1
    role: Annotated[
        model.Role | None,
        Meta(
            description=(
                "A `master` migrates with the memory, a `peer` cannot, `auto` is a master if its ID is 0; "
                "if absent, the profile's default."
            )
        ),
    ] = None
    profile: model.Profile = "qemu-doorbell"
    variant: Annotated[
        dict[str, bool | int],
        Meta(description="Cells of the profile that are changed; `ivsim device cells` lists them."),
    ] = {}  # noqa: RUF012 - msgspec copies an empty default
    parameters: Annotated[
        dict[str, Any], Meta(description="The parameters of the program; machines by the names of groups or machines.")
    ] = {}  # noqa: RUF012 - msgspec copies an empty default
    domains: Annotated[
        tuple[Name, ...],
        Meta(min_length=1, max_length=64, description="The domains in which each machine has a device."),
    ] = ()
    absent: Annotated[
        bool, Meta(description="The machines do not exist at the start of the run: the timeline lets them join.")
    ] = False
    guest: Annotated[
        GuestImage, Meta(description="The image that a machine of the kind qemu boots: [machines.NAME.guest].")
    ] = GuestImage()
    cpus: CpuList = ()
    policy: model.Policy = "other"
    priority: model.Priority = 0
    nice: model.Nice = 0
    blockers: model.Blockers = ()


class GroupTable(MachineTable, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of equal machines: a table ``[machines.NAME]``."""

    count: model.Count = 1
    name: NamePattern = ""
    override: Annotated[
        dict[OverrideKey, MachineTable],
        Meta(description="Settings of one machine of the group, by its place or its name."),
    ] = {}  # noqa: RUF012 - msgspec copies an empty default


class PhaseTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the run: an entry of ``[[phases]]``."""

    name: Annotated[Name, Meta(description="Its name in the results; no other phase has it.")]
    duration_s: Annotated[float, Meta(gt=0, le=604_800, description="How long it lasts, in seconds.")]
    # Not tuple[Load, Load]: msgspec 0.22 crashes on a union of a limited number and an array of fixed length.
    load: Annotated[
        Load | Annotated[tuple[Load, ...], Meta(min_length=2, max_length=2)],
        Meta(
            description="The factor of the rates of open-loop programs: a number, or [at the begin, at the end].",
            extra={"expected": "a number from 0 to 1000, or an array of two: [at the begin, at the end]"},
        ),
    ] = 1.0
    measured: Annotated[
        bool, Meta(description="Whether its latencies count; leading phases that do not are the warm-up.")
    ] = True


class EntryTable(Sparse, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a ``[[timeline]]`` entry that do not depend on its action."""

    do: Annotated[str, Meta(description="The action.")]
    at_s: Annotated[Seconds, Meta(description="When, in seconds after the start of the programs.")] = 0.0
    when: Annotated[Comparison, Meta(description="Or when this first holds: a live metric compared to a number.")] = ""
    of: Of = ""
    console: Annotated[
        str,
        Meta(
            max_length=500,
            description="A regular expression; the entry waits, from `at_s` on, until a line on the console of a guest "
            "contains it. With `when`, both must hold.",
        ),
    ] = ""
    repeat: Annotated[int, Meta(ge=1, le=100_000, description="How often the whole is done.")] = 1
    period_s: Annotated[Seconds, Meta(description="How far apart the repetitions begin.")] = 0.0
    machines: MachineNames = ()
    pick: Annotated[
        int, Meta(ge=1, le=65536, description="How many of the machines that are present, drawn anew each time.")
    ] = 1
    every_s: Annotated[Seconds, Meta(description="How much later the next machine's turn comes.")] = 0.0


_OF_MACHINES = frozenset({"machines", "pick", "every_s"})
# The keys of all actions in one table: which of them an entry may have depends on its `do`, see `keys_of`.
ActionTable = msgspec.defstruct(
    "ActionTable",
    [
        ("do", Annotated[Literal[tuple(ACTIONS)], Meta(description="The action.")]),
        *{
            name: (name, annotation, None)
            for action in ACTIONS.values()
            for name, annotation in fields_of(action).items()
        }.values(),
    ],
    bases=(EntryTable,),
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    module=__name__,
)


def keys_of(do: str) -> list[str]:
    """The keys that an entry with this action takes, in order."""
    action = ACTIONS[do]
    common = [
        key for key in EntryTable.__struct_fields__ if issubclass(action, MachineAction) or key not in _OF_MACHINES
    ]
    return [*common, *fields_of(action)]


def required_keys_of(do: str) -> list[str]:
    """The keys that an entry with this action must have besides ``do`` and its time."""
    action = ACTIONS[do]
    own = action.__struct_fields__[: len(action.__struct_fields__) - len(action.__struct_defaults__)]
    return ["machines", *own] if issubclass(action, MachineAction) else list(own)


class ExpectTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the run must show at its end: an entry of ``[[expect]]``."""

    that: Annotated[
        Comparison, Meta(description='A metric compared to a number; with `console`, "console_lines >= 1" if absent.')
    ] = ""
    console: Annotated[
        str, Meta(max_length=500, description="A regular expression: `console_lines` are the lines that contain it.")
    ] = ""
    of: Of = ""
    abort: Annotated[bool, Meta(description="End the run as soon as it is broken; for live metrics.")] = False
    allow_empty: Annotated[
        bool, Meta(description="Judge a value of 0 also where nothing was rung, ready or migrated; else it is not met.")
    ] = False


class InvariantTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `ivsim explore` checks besides its own: an entry of ``[[invariant]]``."""

    that: Annotated[
        str,
        Meta(
            pattern=r"^[^:]{1,1000}:[A-Za-z_][A-Za-z0-9_]*\Z",
            description='"module:function": a module that can be imported, or the name of a file given with --program.',
            examples=["ring_buffer:is_drained"],
            extra={"expected": 'a function, like "module:function"'},
        ),
    ]
    within_ms: Annotated[
        Annotated[float, Meta(gt=0, le=604_800_000)] | None,
        Meta(
            description="A liveness invariant: how long the result may stay the same without being True. "
            "If absent, it is a safety invariant: it is True after every event.",
            extra={"expected": "a number of milliseconds above 0"},
        ),
    ] = None


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A topology: which machines share a memory, what they run, what happens to them, and for how long."""

    machines: Annotated[dict[Name, GroupTable], Meta(min_length=1, description="The groups of machines, by name.")]
    title: model.Title = ""
    seed: model.Seed = 1
    run: model.RunSettings = model.RunSettings()
    memory: MemoryTable = MemoryTable()
    domains: Annotated[
        dict[Name, DomainTable], Meta(max_length=64, description="Several shared memories, each with its own server.")
    ] = {}
    defaults: Annotated[MachineTable, Meta(description="Settings of the machines whose group does not set them.")] = (
        MachineTable()
    )
    phases: Annotated[tuple[PhaseTable, ...], Meta(description="The parts of the run, in order.")] = ()
    timeline: Annotated[
        tuple[ActionTable, ...],  # type: ignore[valid-type]  # made of the declared actions
        Meta(description="The actions on machines and servers during the run."),
    ] = ()
    expect: Annotated[tuple[ExpectTable, ...], Meta(description="What must hold at the end.")] = ()
    invariant: Annotated[tuple[InvariantTable, ...], Meta(description="What `ivsim explore` checks.")] = ()
    chaos: Annotated[
        model.Chaos,
        Meta(description="Delays and faults under virtual time, drawn from the seed; no other engine has them."),
    ] = model.Chaos()
    matrix: Annotated[
        dict[MatrixKey, Annotated[list[Any], Meta(min_length=1, extra={"expected": "an array of values"})]],
        Meta(description="For sweeps: dotted keys, in quotes, and the values of each."),
    ] = {}


def other_tables_with(key: str) -> str:
    """A hint on the tables that have ``key``, or ""."""
    if key in ("title", "seed"):
        return f"{key} belongs before the first table of the file"
    tables = [name for name, table in _TABLES.items() if key in table.__struct_fields__]
    return f"{' and '.join(tables)} can have that key" if tables else ""


def parse_cpus(cpus: tuple[int, ...] | str) -> tuple[int, ...] | None:
    """The numbers of a `CpuList`, sorted, each once; None for another text, or a range that runs backwards."""
    if not isinstance(cpus, str):
        return tuple(sorted(set(cpus)))
    if re.fullmatch(CPU_LIST, cpus, re.ASCII) is None:
        return None
    found: set[int] = set()
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high <= _LAST_CPU:
            return None
        found.update(range(low, high + 1))
    return tuple(sorted(found))


_TABLES: dict[str, type[Struct]] = {
    "[run]": model.RunSettings,
    "[memory]": MemoryTable,
    "[machines.NAME]": GroupTable,
    "[[phases]]": PhaseTable,
    "[[timeline]]": ActionTable,
    "[[expect]]": ExpectTable,
    "[chaos]": model.Chaos,
    "[[invariant]]": InvariantTable,
}
_LAST_CPU = 8191
