"""Finds loads that can reach no machine, as far as the file tells: noted before a run, and reported after it.

They are not mistakes of the file: the run may be meant to show them, and some programs name peers without ringing them.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from nodes.device.profiles import PROFILES
from topologies.model import Machine, Machines, Topology, Trace
from topologies.resolve.names import several


class Unreachable(Struct, frozen=True):
    """Machines of one group of which no doorbell can reach a machine that ``parameter`` of their program names."""

    machines: tuple[str, ...]
    parameter: str
    reason: str

    def __str__(self) -> str:
        return f"{several(self.machines)} can ring no machine by its parameter {self.parameter}: {self.reason}"


def unreachable(topology: Topology) -> tuple[Unreachable, ...]:
    """The machines whose doorbells reach no machine, by group, parameter and reason, in the order of the file."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for machine in topology.machines:
        for parameter, targets in _targets(machine):
            if not targets and parameter in machine.foreign:
                continue  # foreign peers may come
            if reason := _reason(machine, targets, topology):
                found.setdefault((machine.group, parameter, reason), []).append(machine.name)
    return tuple(Unreachable(tuple(names), parameter, reason) for (_, parameter, reason), names in found.items())


def open_loops(topology: Topology) -> dict[str, list[Machine]]:
    """The machines whose program rings at given times, by group: those with a rate or a trace."""
    found: dict[str, list[Machine]] = {}
    for machine in topology.machines:
        for name, value in machine.parameters.items():
            if isinstance(value, Trace) or (name.rpartition("_")[2] == "hz" and isinstance(value, int | float)):
                found.setdefault(machine.group, []).append(machine)
                break
    return found


def _targets(machine: Machine) -> Iterator[tuple[str, Machines]]:
    """The parameters that name machines, with the machines."""
    for name, value in machine.parameters.items():
        if isinstance(value, Machines | Trace):
            yield name, value if isinstance(value, Machines) else value.machines


def _reason(machine: Machine, targets: Machines, topology: Topology) -> str:
    """Why none of ``targets`` can be rung by the machine; "" when one can, or may."""
    if not _rings(machine):
        return f"its device, {machine.profile}, has no doorbells"
    if not targets:
        # An odd machine of a pattern has no partner, which its group is not to be blamed for.
        return "it names no other machine" if len(topology.machines) == 1 else ""
    its = [topology.machines[index] for index in targets]
    if any(_rings(machine) and machine.vectors for machine in its):
        return ""
    return f"{several([machine.name for machine in its])} {'has' if len(its) == 1 else 'have'} no interrupts"


def _rings(machine: Machine) -> bool:
    """Whether the device gets eventfds, by which it rings and is rung."""
    return PROFILES[machine.profile].server
