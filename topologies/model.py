"""What a topology file asks for, checked: the value that the loader makes and the runner carries out.

    Topology
    ├── RunSettings   how long, how much is sampled, what a death does
    ├── Memory        the region that all machines share
    ├── Group         machines that are alike, as the file has them
    └── Machine       one simulated VM, with a place, a name and resolved parameters

All are frozen, and none can be made with values out of range: a constructor raises `UsageError`. The
limits stand in the annotations, once; the loader's messages and the JSON Schema are made from them.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct

from nodes.errors import UsageError

__all__ = [
    "MAX_MACHINES",
    "MAX_NAME",
    "NAME_PATTERN",
    "Group",
    "Machine",
    "Memory",
    "RunSettings",
    "Topology",
    "machine_name",
]

MAX_MACHINES = 65536
"""A peer's ID has 16 bits."""

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z"
"""Names become parts of file names and of table cells: no separators, no leading dot or dash."""

MAX_NAME = 64

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Title = Annotated[
    str, Meta(max_length=120, description="One line that says what the file shows; `ivsim list` prints it.")
]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1, description="Where every random choice of the programs begins.")]
Count = Annotated[int, Meta(ge=1, le=MAX_MACHINES, description="How many machines the group has.")]
Vectors = Annotated[
    int, Meta(ge=1, le=2048, description="MSI-X vectors of each machine: eventfds the server gives it.")
]
Role = Annotated[
    Literal["peer", "master"],
    Meta(description="A `master` migrates with its memory; a `peer` cannot migrate with its device."),
]
Profile = Annotated[str, Meta(pattern=NAME_PATTERN, description="Which device of the field each machine has.")]
ProgramName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="What the guest runs: the name of a shipped program or `package.module:function`.",
    ),
]
SizeBytes = Annotated[int, Meta(ge=4096, le=2**40)]
MemoryKind = Annotated[
    Literal["shared_memory", "memfd"],
    Meta(description="`shared_memory`: host programs can open it by name; `memfd`: sealed against shrinking."),
]


class _Checked(Struct, frozen=True, kw_only=True):
    """A struct whose fields are what their annotations say, however it was made."""

    def __post_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            value = getattr(self, name)
            try:
                msgspec.convert(value, annotation, strict=True)
            except msgspec.ValidationError as error:
                raise UsageError(f"{type(self).__name__}.{name}: {error}") from None


@functools.cache
def _annotations(struct: type[Struct]) -> dict[str, Any]:
    return get_type_hints(struct, include_extras=True)


class RunSettings(_Checked, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class Memory(_Checked, frozen=True, kw_only=True):
    """The region behind BAR2 of every machine; ``size_bytes`` is a power of two, at least one page."""

    size_bytes: SizeBytes = 4 << 20
    kind: MemoryKind = "shared_memory"

    def __post_init__(self) -> None:
        _Checked.__post_init__(self)
        if self.size_bytes & (self.size_bytes - 1):
            raise UsageError(f"Memory.size_bytes: expected a power of two, got {self.size_bytes}")


class Group(_Checked, frozen=True, kw_only=True):
    """Machines that are alike; ``parameters`` as the file gives them (names of machines not resolved)."""

    name: Name
    count: Count = 1
    vectors: Vectors = 1
    role: Role = "peer"
    profile: Profile = "qemu-doorbell"
    program: ProgramName
    parameters: dict[str, Any] = {}


class Machine(Struct, frozen=True, kw_only=True):
    """One simulated VM.

    ``index`` counts from 0 over all groups in the file's order. The server hands out IDs in that
    order, so it is the peer's ID when the run begins. ``parameters`` holds a value for every parameter
    of the program, typed; machines named in the file have become tuples of indices.
    """

    index: int
    name: str
    group: str
    vectors: int
    role: Literal["peer", "master"]
    profile: str
    program: str
    parameters: dict[str, Any]


class Topology(Struct, frozen=True, kw_only=True):
    """One scenario, checked as a whole.

    ``source_text`` is the file as given, for the run's directory; ``overrides`` (``--set``) are what
    else is needed to make the same topology again.
    """

    title: str
    seed: int
    run: RunSettings
    memory: Memory
    groups: tuple[Group, ...]
    machines: tuple[Machine, ...]
    source_text: str = ""
    source_name: str = ""
    overrides: dict[str, str] = {}

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

    @property
    def eventfds(self) -> int:
        """Eventfds of all machines together; the server and every worker hold a descriptor of each."""
        return sum(group.count * group.vectors for group in self.groups)

    def members(self, group: str) -> tuple[Machine, ...]:
        """The machines of one group, in order; raises `UsageError` for a group that does not exist."""
        found = tuple(machine for machine in self.machines if machine.group == group)
        if not found:
            raise UsageError(f"expected one of the groups {[g.name for g in self.groups]}, got {group!r}")
        return found


def machine_name(group: str, place: int, count: int) -> str:
    """The name of a group's machine number ``place`` (from 0): ``storm-03``; ``hub`` when it is alone."""
    if count == 1:
        return group
    return f"{group}-{place:0{len(str(count - 1))}d}"
