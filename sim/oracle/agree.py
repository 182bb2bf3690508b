"""Runs a topology simulated and with real QEMUs as far as its machines can be, and tells whether both agree."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from nodes.errors import UsageError
from sim.oracle.agreement import Difference, compare_facts
from sim.oracle.facts import Facts, facts
from sim.results import Run
from sim.runner import Begun, run
from topologies import Group, Topology, TopologyError, load

REAL_PROFILE = "qemu-doorbell"
"""The profile of the device of today's QEMU, which real machines have."""

Share = Literal["all", "half"]


@dataclass(frozen=True)
class Pair:
    """One topology twice.

    Attributes:
        simulated: all machines are simulated.
        real: those named in ``real_machines`` are QEMUs.
        profiles: by real machine with another profile in the file: that profile.
        notes: what was changed in both, and which machines stay simulated, and why.
    """

    simulated: Topology
    real: Topology
    profiles: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def real_machines(self) -> list[str]:
        return [machine.name for machine in self.real.machines if machine.kind == "qemu"]


def pair(
    source: str | Path,
    overrides: Mapping[str, object] | None = None,
    programs: Sequence[str | Path] = (),
    *,
    share: Share = "all",
    machines_max: int = 8,
    every_profile: bool = False,
) -> Pair:
    """The topology in a file, or the shipped one of that name, simulated and with real QEMUs.

    Args:
        overrides: as of `topologies.load`, for both.
        share: "half": every other machine of those that can be real. A group of one machine is simulated if the one
            before it is real.
        machines_max: groups are made smaller, in both, until the topology has no more machines.
        every_profile: machines with another profile become real, too, with the device of today's QEMU.

    Raises:
        TopologyError: with all problems.
        UsageError: no machine of it can be real.
    """
    changes: dict[str, object] = dict(overrides or {})
    base = load(source, changes, programs)
    notes: list[str] = []
    if base.run.engine != "process":
        changes["run.engine"] = "process"
        notes.append(f"it runs in real time, not on the engine {base.run.engine}")
    counts = _counts(base, machines_max)
    changes |= {f"machines.{group}.count": count for group, count in counts.items()}
    notes += [f"{group} has {count} machines" for group, count in counts.items()]
    try:
        simulated = load(source, changes, programs)
    except TopologyError as error:
        raise UsageError(
            f"with no more than {machines_max} machines, this topology is not valid; say --machines N\n{error}"
        ) from error
    kinds, profiles, reasons = _kinds(simulated, share, every_profile=every_profile)
    if not kinds:
        raise UsageError(f"no machine of {source} can be a real QEMU: {'; '.join(reasons)}")
    return Pair(
        _open_memory(simulated), _open_memory(load(source, changes | kinds, programs)), profiles, notes + reasons
    )


def _counts(base: Topology, machines_max: int) -> dict[str, int]:
    """The groups that have too many machines, and how many each gets."""
    left = machines_max
    counts = {}
    for group in base.groups:
        count = min(group.count, max(1, left - (len(base.groups) - 1)))
        left -= count
        if count < group.count:
            counts[group.name] = count
    return counts


def _kinds(
    topology: Topology, share: Share, *, every_profile: bool
) -> tuple[dict[str, object], dict[str, str], list[str]]:
    """Overrides that make machines real, the profiles that these had, and why others stay simulated."""
    kinds: dict[str, object] = {}
    profiles: dict[str, str] = {}
    reasons: list[str] = []
    turn = False
    for group in topology.groups:
        if reason := _stays(topology, group, every_profile=every_profile):
            reasons.append(f"{group.name} stays as it is: {reason}")
            continue
        for place, machine in enumerate(topology.members(group.name)):
            turn = not turn
            if share == "half" and not turn:
                continue
            key = f"machines.{group.name}.override.{place}"
            kinds[f"{key}.kind"] = "qemu"
            if machine.profile != REAL_PROFILE:
                kinds[f"{key}.profile"] = REAL_PROFILE
                kinds[f"{key}.variant"] = {}
                profiles[machine.name] = machine.profile
    return kinds, profiles, reasons


def _stays(topology: Topology, group: Group, *, every_profile: bool) -> str:
    """Why the machines of a group are not made real; "" if they can be."""
    members = topology.members(group.name)
    if group.kind != "simulated":
        return f"its machines are of the kind {group.kind}"
    if not every_profile and any(machine.profile != REAL_PROFILE for machine in members):
        return f"its profile is {group.profile}; --every-profile makes it real"
    if not group.vectors:
        return "it has no vectors"
    return ""


def _open_memory(topology: Topology) -> Topology:
    """With memories that have names, so that their contents can be read."""
    domains: list[Any] = []
    for domain in topology.domains:
        memory = msgspec.structs.replace(domain.memory, kind="shared_memory")
        domains.append(msgspec.structs.replace(domain, memory=memory))
    return msgspec.structs.replace(topology, domains=tuple(domains))


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome.

    Attributes:
        machines: those that were real.
        edges: how many edges were rung in both runs.
        doorbells: how many doorbells each run rang.
        simulated, real: the run directories.
    """

    topology: str
    seed: int
    machines: list[str]
    edges: int
    doorbells: tuple[int, int]
    simulated: str
    real: str
    differences: list[Difference]
    notes: list[str]

    @property
    def agrees(self) -> bool:
        """Whether there is no difference that nothing explains."""
        return all(difference.explained for difference in self.differences)


def agree(pair: Pair, *, runs: Path) -> Agreement:
    """Run both topologies of a pair, in the directory ``runs``, and compare them.

    Raises:
        HostError: this host cannot carry them.
    """
    seen: list[tuple[Run, Facts]] = []
    for topology in (pair.simulated, pair.real):
        seen.append(_run(topology, runs))
    (simulated, a), (real, b) = seen
    return Agreement(
        topology=pair.simulated.source_name,
        seed=pair.simulated.seed,
        machines=pair.real_machines,
        edges=len(a.edges.keys() & b.edges.keys()),
        doorbells=(sum(a.edges.values()), sum(b.edges.values())),
        simulated=os.fspath(simulated.path),
        real=os.fspath(real.path),
        differences=list(compare_facts(pair.simulated, pair.profiles, a, b)),
        notes=list(pair.notes),
    )


def _run(topology: Topology, runs: Path) -> tuple[Run, Facts]:
    """One run, and what it left in the memories."""
    memories: dict[str, int] = {}

    def begin(begun: Begun) -> None:
        for access in begun.access:
            memories[access.domain] = os.open(f"/dev/shm/{access.memory}", os.O_RDONLY | os.O_CLOEXEC)

    try:
        done = run(topology, runs=runs, on_begin=begin, resources_every_s=0)
        contents = {
            name: os.pread(descriptor, os.fstat(descriptor).st_size, 0) for name, descriptor in memories.items()
        }
    finally:
        for descriptor in memories.values():
            os.close(descriptor)
    return done, facts(done, contents)
