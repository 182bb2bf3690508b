"""The places in which a run makes files: the directory of its run directory, and /dev/shm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sim.host.limits import SHM_DIRECTORY
from topologies import Topology
from topologies.hosts import has_hosts


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
