"""The demand of machines that are real QEMUs: the program, processes, threads, memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from sim.kernel.qemu_program import chosen_qemu
from topologies import Topology

# Measured on QEMU 7.2 with -m 16M and without a guest: private memory, and threads with the main one.
QEMU_BYTES = 15 << 20
QEMU_THREADS = 4


def count_qemus(topology: Topology) -> int:
    """How many QEMUs run at the same time at most."""
    return sum(machine.kind == "qemu" for machine in topology.machines)


def qemus_refused(topology: Topology) -> Iterator[str]:
    """Machines whose QEMU is not installed."""
    if count_qemus(topology) and shutil.which(chosen_qemu()) is None:
        groups = dict.fromkeys(machine.group for machine in topology.machines if machine.kind == "qemu")
        yield (
            f"{', '.join(groups)}: {chosen_qemu()} is not on PATH, for machines of the kind qemu. "
            "Install it (Debian: qemu-system-x86)"
        )
