"""A topology whose machines are real QEMUs as far as they can be, and the same topology simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from nodes.errors import UsageError
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
