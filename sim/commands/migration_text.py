"""A plan of migration as text, for `ivsim migrate --plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from nodes.qemu_versions import QemuVersion
from topologies.migration_check import FailingMigration
from topologies.migration_plan import MigrationPlan, PlannedMachine, Step
from topologies.resolve.names import several
from topologies.text_tables import aligned


def plan_lines(plan: MigrationPlan) -> Iterator[str]:
    """A plan in lines: the machines, the steps, what is copied and what is lost."""
    yield from aligned(list(_rows(plan.machines)))
    yield ""
    if not plan.steps:
        yield "nothing can move"
        return
    later = [machine.name for machine in plan.machines if not machine.present]
    yield "to another host, with a fresh server for each domain" + (
        f", once {several(later)} {'has' if len(later) == 1 else 'have'} joined:" if later else ":"
    )
    for number, step in enumerate(plan.steps, 1):
        yield f"{number:>3}. {_step(step)}"
    yield ""
    yield f"copied: {plan.state_bytes:,} bytes of devices' state, {plan.memory_bytes:,} bytes of memory"
    for loss in plan.losses:
        yield f"lost: {loss}"


def timeline_lines(failing: Sequence[FailingMigration], version: QemuVersion) -> Iterator[str]:
    """The migrations of the timeline that will be refused or fail in a run."""
    if failing:
        yield ""
        yield "in a run, by its timeline:"
    for failure in failing:
        yield f"  {failure}"
        for at, line in enumerate(failure.log):
            yield f"    {'' if at else f'QEMU {version} prints: '}{line}"


def _rows(machines: Sequence[PlannedMachine]) -> Iterator[tuple[str, str, str, str]]:
    """A row for each sequence of machines with the same role and fate."""
    yield "machine", "role", "peer", "fate"
    for _, alike in groupby(
        machines, key=lambda machine: (machine.group, machine.fate, machine.reason, machine.refusal)
    ):
        some = list(alike)
        first, last = some[0], some[-1]
        roles = dict.fromkeys("master" if device.master else "peer" for device in first.devices)
        yield several([machine.name for machine in some]), "+".join(roles), _peers(first, last), _fate(first)


def _peers(first: PlannedMachine, last: PlannedMachine) -> str:
    def shown(machine: PlannedMachine) -> str:
        return "/".join(
            str(device.peer) if device.peer is not None else "-" if machine.present else "later"
            for device in machine.devices
        )

    ends = dict.fromkeys((shown(first), shown(last)))
    return " ... ".join(ends)


def _fate(machine: PlannedMachine) -> str:
    match machine.fate:
        case "moves":
            return "moves with its device" + ("s" if len(machine.devices) > 1 else "")
        case "stays" if machine.refusal not in ("", machine.reason):
            return f"stays: {machine.reason}; by itself: {machine.refusal}"
        case "stays" | "does not start":
            return f"{machine.fate}: {machine.reason}"
    peers = [device.domain for device in machine.devices if not device.master]
    which = "" if len(machine.devices) == 1 else f" in {', '.join(peers)}"
    return f"moves after detaching its device{which}: {machine.refusal}"


def _step(step: Step) -> str:
    names = several(step.machines)
    match step.do:
        case "detach":
            return f"detach {names} from domain {step.domain}"
        case "move" if step.state_bytes:
            copied = f"{step.state_bytes:,} bytes of state, {step.memory_bytes:,} bytes of memory"
            return f"move {names}: {copied}"
        case "move":
            return f"move {names}, without a device"
    if not step.peers:
        return f"reattach {names} to domain {step.domain}"
    first, last = step.peers[0], step.peers[-1]
    between = "and" if last == first + 1 else "to"
    peers = f"peer {first}" if first == last else f"peers {first} {between} {last}"
    return f"reattach {names} to domain {step.domain}, as {peers}"
