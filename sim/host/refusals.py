"""What this host refuses whatever its size: CPUs, policies, QEMUs, memory with a name, directories, other hosts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sim.host.limits import SHM_DIRECTORY, Host
from sim.kernel.qemu_program import chosen_qemu
from topologies import Machine, Topology
from topologies.hosts import has_hosts

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


def count_qemus(topology: Topology) -> int:
    return sum(machine.kind == "qemu" for machine in topology.machines)


def qemus_refused(topology: Topology) -> Iterator[str]:
    """Machines whose QEMU is not installed."""
    if count_qemus(topology) and shutil.which(chosen_qemu()) is None:
        groups = dict.fromkeys(machine.group for machine in topology.machines if machine.kind == "qemu")
        yield (
            f"{', '.join(groups)}: {chosen_qemu()} is not on PATH, for machines of the kind qemu. "
            "Install it (Debian: qemu-system-x86)"
        )


def place_refused(runs: Path) -> Iterator[str]:
    """Why no directory can be made in ``runs``, or ``runs`` itself in the part of its path that exists."""
    whole = runs.absolute()
    there = next(folder for folder in (whole, *whole.parents) if os.path.lexists(folder))
    if not there.is_dir():
        yield f"{runs}: no run directory can be made there: {there} is no directory. Name another one with --runs"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"{runs}: no run directory can be made there: {there} cannot be written. Name another one with --runs"


def hosts_refused(topology: Topology) -> Iterator[str]:
    """Why a topology whose domains are on several hosts is not run by this one."""
    if has_hosts(topology):
        names = ", ".join(f"{domain.name} on {domain.host}" for domain in topology.domains)
        yield (
            f"the domains have hosts ({names}): `ivsim run FILE --scheduler ADDRESS` runs them there, --workers 2 in "
            "parts on this host, --domains NAME one part"
        )


def named_memory_refused(topology: Topology) -> Iterator[str]:
    """Why this host makes no segment with a name, whatever its size."""
    if any(domain.memory.kind == "shared_memory" for domain in topology.domains):
        hint = 'shared memory with a name is made there. Take kind = "memfd" in [memory], or mount a tmpfs'
        if not os.path.isdir(SHM_DIRECTORY):
            yield f"this host has no {SHM_DIRECTORY}: {hint}"
        elif not os.access(SHM_DIRECTORY, os.W_OK | os.X_OK):
            yield f"{SHM_DIRECTORY} cannot be written: {hint}"
