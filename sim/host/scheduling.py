"""Checks the scheduling of machines against this host: CPUs, policies, priorities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from sim.host.limits import Host
from topologies import Machine, Topology

T = TypeVar("T")


def cpus_refused(topology: Topology, host: Host) -> Iterator[str]:
    """CPUs that machines ask for and that this process may not use."""
    for name, cpus in _wishes(topology, lambda machine: machine.scheduling.cpus):
        missing = sorted(set(cpus) - host.cpus)
        if missing:
            shown = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
            yield (
                f"{name}: no CPU {shown} for this process: this host has {host.cpus_online} CPUs, "
                f"allowed are {_ranges(host.cpus)}. Name others in `cpus`, or allow more (taskset, cpuset)"
            )


def policies_refused(topology: Topology, host: Host) -> Iterator[str]:
    """Policies, priorities and nice values that this process has no permission for."""
    for name, (policy, priority) in _wishes(
        topology, lambda machine: (machine.scheduling.policy, machine.scheduling.priority)
    ):
        if priority > host.real_time_priority:
            yield (
                f"{name}: policy {policy} with priority {priority} is not permitted: at most "
                f"{host.real_time_priority} is (ulimit -r). Raise the limit, or run with CAP_SYS_NICE"
            )
    for name, nice in _wishes(topology, lambda machine: machine.scheduling.nice):
        if nice < host.nice:
            yield (
                f"{name}: nice {nice} is not permitted: at least {host.nice} is (ulimit -e). "
                "Raise the limit, or run with CAP_SYS_NICE"
            )


def _wishes(topology: Topology, of: Callable[[Machine], T]) -> Iterator[tuple[str, T]]:
    """Return each value once, with the name of the first machine that has it and how many more do."""
    holders: dict[T, list[str]] = {}
    for machine in topology.machines:
        holders.setdefault(of(machine), []).append(machine.name)
    for wish, names in holders.items():
        yield names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""), wish


def _ranges(numbers: frozenset[int]) -> str:
    """0-3,8: as the kernel writes a set of CPUs."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
