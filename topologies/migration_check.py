"""What a timeline's migrations come to, where a file tells it before a run begins: who is refused, and who fails.

That is no mistake of the file, for it may be just what the run is to show. So it is said, and nothing is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from nodes.device.migration import Blocker, Blockers, MigrationError, RamMigration
from nodes.device.profiles import PROFILES
from nodes.device.qemu_1_1.shared_object import check_size
from nodes.errors import UsageError
from topologies.migration_plan import make_device, several
from topologies.model import Machine, Topology
from topologies.schedule import Action

__all__ = ["Foreseen", "foresee"]

MAX_STEPS = 100_000
"""So far into a timeline is looked."""

_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What comes of an action, for some of its machines; ``line`` is 0 where the action stands in no file."""

    line: int
    machines: tuple[str, ...]
    verdict: Literal["refused", "fails"]
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}migrate {several(self.machines)}: {self.verdict}: {self.reason}{hint}"


@dataclass(frozen=True, slots=True)
class _Step:
    """One machine's turn of an action; ``again``: not the first of its repetitions."""

    action: Action
    machine: Machine
    again: bool


def foresee(topology: Topology) -> tuple[Foreseen, ...]:
    """The migrations that a blocker forbids, and those that no destination can take, in the order of the file.

    What the timeline does to a machine before is not looked at, and no condition is known to hold.
    """
    sizes = {domain.name: domain.memory.size_bytes for domain in topology.domains}
    # A server gives out each ID once: who is the second in a domain, whoever the first was, is not peer 0.
    begun = {name for machine in topology.machines if machine.present for name in machine.domains}
    # Who may be peer 0: all that a role which is left to the ID asks for.
    firsts = {machine.index for machine in topology.machines if not machine.present}
    firsts |= {machine.index for machine in _first(topology)}
    refusals: dict[tuple[object, ...], str] = {}
    found: dict[tuple[int, str, str, str], dict[str, None]] = {}
    places = {id(action): place for place, action in enumerate(topology.timeline)}
    for step in _steps(topology):
        action, machine = step.action, step.machine
        is_certain = action.when is None and action.pick is None
        if action.do == "join":
            firsts.add(machine.index)
            if begun.issuperset(machine.domains):
                firsts.remove(machine.index)
            begun.update(machine.domains if is_certain else ())
            continue
        kind = (machine.profile, machine.role, machine.blockers, machine.index in firsts)
        if kind not in refusals:
            refusals[kind] = _refusal(machine, 0 if machine.index in firsts else 1)
        verdict, reason, hint = "refused", refusals[kind], ""
        if not reason:
            verdict = "fails"
            reason, hint = _failure(action, machine, begun, sizes)
            if reason and step.again:
                reason = f"{reason}, from the second time on"
        if reason:
            names = found.setdefault((places[id(action)], verdict, reason, hint), {})
            names[machine.name] = None
        elif is_certain and not action.fault:
            begun.add(action.to_domain)
    return tuple(
        Foreseen(topology.timeline[place].line, tuple(names), verdict, reason, hint)  # type: ignore[arg-type]
        for (place, verdict, reason, hint), names in sorted(found.items(), key=lambda item: item[0][0])
    )


def _steps(topology: Topology) -> Iterator[_Step]:
    """Who joins and who migrates, in the order of time; of many repetitions two."""

    def at(action: Action) -> Iterator[tuple[float, _Step]]:
        for repetition in range(min(2, action.repeat)):
            for place, index in enumerate(action.machines):
                at_s = action.at_s + repetition * action.period_s + place * action.every_s
                yield at_s, _Step(action, topology.machines[index], repetition > 0)

    steps = (step for action in topology.timeline if action.do in ("join", "migrate") for step in at(action))
    for _, step in sorted(islice(steps, MAX_STEPS), key=lambda timed: timed[0]):
        yield step


def _first(topology: Topology) -> Iterator[Machine]:
    """The first in each domain of those that are there from the beginning; of machines with one domain."""
    begun: set[str] = set()
    for machine in topology.machines:
        if machine.present:
            if not begun.issuperset(machine.domains):
                yield machine
            begun.update(machine.domains)


def _refusal(machine: Machine, peer: int) -> str:
    """The newest reason not to migrate, as QEMU words it; "" when there is none."""
    blockers = Blockers(settled=PROFILES[machine.profile].revision > 0)
    for reason in machine.blockers:
        blockers.add(Blocker(reason))
    made = make_device(machine, _PAGE_BYTES)  # any size: what forbids a migration does not hang on it
    if machine.role == "auto":
        made.set_peer(peer)
    blockers.plug(made)
    try:
        blockers.check()
    except MigrationError as error:
        return str(error)
    return ""


def _failure(action: Action, machine: Machine, begun: set[str], sizes: dict[str, int]) -> tuple[str, str]:
    """Why the destination refuses a machine that may go, and what would help; "" when nothing is known against it."""
    if action.fault or action.hand_over:
        return "", ""
    target = action.to_domain or machine.domains[0]
    here, there = sizes[machine.domains[0]], sizes[target]
    try:
        if PROFILES[machine.profile].memory_container:  # it has the size of its device, and is a part of what is there
            check_size(here, there)
            there = here
        source, destination = make_device(machine, here), make_device(machine, there)
        RamMigration(source).check(destination)
    except UsageError as error:
        return str(error), ""
    if action.to_domain and target not in begun:
        return "", ""
    try:
        destination.set_peer(1)
        if machine.role == "auto":  # no other role hangs on the ID
            destination.load(source.save())
    except UsageError as error:
        reason = str(error).partition(": it is peer")[0]
        hint = (
            f"peer 0 of domain {target} has been given out, and is not again; "
            "to_domain = one in which nobody has been works, or hand_over = true"
        )
        return reason, hint
    return "", ""
