"""The migrations of a timeline that will be refused or fail, as far as the file tells.

They are not mistakes of the file, because the run may be meant to show them: they are noted and not refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from msgspec import Struct

from nodes.device.migration import RamMigration
from nodes.device.migration_texts import MigrationError
from nodes.device.profiles import PROFILES
from nodes.device.qemu_1_1.shared_object import check_size
from nodes.errors import UsageError
from nodes.qemu_versions import NEWEST, QemuVersion
from topologies.actions import Join, Migrate
from topologies.migration_plan import blockers_of, make_device, refusal_of
from topologies.model import Machine, Topology
from topologies.resolve.names import several
from topologies.schedule import TimelineEntry

MAX_STEPS = 100_000
"""The number of single steps of a timeline that are looked at."""

NOT_FIRST = "master must connect to the server before any peers"
"""The error of a QEMU that is configured as a master and gets another ID than 0 (ivshmem.c, ivshmem_common_realize)."""


class FailingMigration(Struct, frozen=True):
    """The outcome of a migration for some of its machines.

    Attributes:
        line: that of the entry; 0 for one that is in no file.
        log: what the destination prints, if it is what fails.
    """

    line: int
    machines: tuple[str, ...]
    verdict: Literal["refused", "fails"]
    reason: str
    hint: str = ""
    log: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}migrate {several(self.machines)}: {self.verdict}: {self.reason}{hint}"


class _Step(Struct, frozen=True):
    """One machine's turn of an entry; ``again``: not the first of its repetitions."""

    entry: TimelineEntry
    action: Join | Migrate
    machine: Machine
    again: bool


def failing_migrations(topology: Topology, version: QemuVersion = NEWEST) -> tuple[FailingMigration, ...]:
    """The migrations that a blocker forbids, and those that no destination can accept, in the order of the file.

    Earlier actions on a machine are not considered, and no condition is assumed to hold. Logs are those of QEMU of
    ``version``.
    """
    sizes = {domain.name: domain.memory.size_bytes for domain in topology.domains}
    # A server gives out each ID once: a domain in which a machine has been gives out peer 0 no more.
    begun = {name for machine in topology.machines if machine.present for name in machine.domains}
    # The machines that can be peer 0, on which the role "auto" depends.
    firsts = {machine.index for machine in topology.machines if not machine.present}
    firsts |= {machine.index for machine in _first(topology)}
    refusals: dict[tuple[object, ...], str] = {}
    found: dict[tuple[int, str, str, str, tuple[str, ...]], dict[str, None]] = {}
    places = {id(entry): place for place, entry in enumerate(topology.timeline)}
    for step in _steps(topology):
        entry, action, machine = step.entry, step.action, step.machine
        is_certain = not entry.waits and entry.pick is None
        if isinstance(action, Join):
            firsts.add(machine.index)
            if begun.issuperset(machine.domains):
                firsts.remove(machine.index)
            begun.update(machine.domains if is_certain else ())
            continue
        kind = (machine.profile, machine.role, machine.blockers, machine.index in firsts)
        if kind not in refusals:
            refusals[kind] = refusal_of(blockers_of(machine, 0 if machine.index in firsts else 1))
        verdict, reason, hint = "refused", refusals[kind], ""
        log: tuple[str, ...] = ()
        if not reason:
            verdict = "fails"
            reason, hint, log = _failure(action, machine, begun, sizes, version)
            if reason and step.again:
                reason = f"{reason}, from the second time on"
        if reason:
            names = found.setdefault((places[id(entry)], verdict, reason, hint, log), {})
            names[machine.name] = None
        elif is_certain and action.to_domain and not action.fault:
            begun.add(action.to_domain)
    return tuple(
        FailingMigration(topology.timeline[place].line, tuple(names), verdict, reason, hint, log)  # type: ignore[arg-type]
        for (place, verdict, reason, hint, log), names in sorted(found.items(), key=lambda item: item[0][0])
    )


def _steps(topology: Topology) -> list[_Step]:
    """The single joins and migrations in the order of time; the first two of many repetitions."""
    steps = (
        (
            entry.at_s + repetition * entry.period_s + place * entry.every_s,
            _Step(entry, action, topology.machines[index], repetition > 0),
        )
        for entry in topology.timeline
        if isinstance(action := entry.action, Join | Migrate)
        for repetition in range(min(2, entry.repeat))
        for place, index in enumerate(entry.machines)
    )
    return [step for _, step in sorted(islice(steps, MAX_STEPS), key=lambda timed: timed[0])]


def _first(topology: Topology) -> Iterator[Machine]:
    """The first machine in each domain, of those that are present from the start."""
    begun: set[str] = set()
    for machine in topology.machines:
        if machine.present:
            if not begun.issuperset(machine.domains):
                yield machine
            begun.update(machine.domains)


def _failure(
    action: Migrate, machine: Machine, begun: set[str], sizes: dict[str, int], version: QemuVersion
) -> tuple[str, str, tuple[str, ...]]:
    """Why the destination refuses a machine that may migrate, what would help, what it prints; all empty if unknown."""
    nothing = "", "", ()
    if action.fault or action.hand_over:
        return nothing
    target = action.to_domain or machine.domains[0]
    here, there = sizes[machine.domains[0]], sizes[target]
    try:
        if PROFILES[
            machine.profile
        ].memory_container:  # BAR2 has the size of the device, and maps a part of the segment
            check_size(here, there)
            there = here
        source, destination = make_device(machine, here), make_device(machine, there)
        RamMigration(source).check(destination)
    except UsageError as error:
        return str(error), "", _log(error, version)
    if action.to_domain and target not in begun:
        return nothing
    try:
        destination.set_peer(1)
        if machine.kind == "qemu" and machine.role == "master":
            raise UsageError(NOT_FIRST)
        if machine.role == "auto":  # no other role depends on the ID
            destination.load(source.save())
    except UsageError as error:
        reason = str(error).partition(": it is peer")[0]
        hint = (
            f"peer 0 of domain {target} has been given out and is not given out again; "
            f"take a to_domain in which no machine has been{'' if machine.guest else ', or hand_over = true'}"
        )
        return reason, hint, _log(error, version)
    return nothing


def _log(error: UsageError, version: QemuVersion) -> tuple[str, ...]:
    return error.log.lines(version) if isinstance(error, MigrationError) else ()
