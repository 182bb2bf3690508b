"""A row of the table ``resources``: what one process, the host or a CPU had used at one moment."""

from __future__ import annotations

from typing import NamedTuple

COORDINATOR = -1
"""The coordinator's number in the column ``machine``."""
HOST = -2
"""The whole host's."""
FIRST_CPU = -3
"""CPU 0's; CPU 1 has the number before it, and so on."""


class Resources(NamedTuple):
    """One process at one moment. ``machine`` is -1 for the coordinator; times and counts are totals since its start.

    ``instrument_bytes`` is how much of ``uss_bytes`` are pages of its recordings: the instrument's, not the
    machine's. None where it was not looked at this time, or where this kernel does not say.

    Machine -2 is the whole host: its CPU times, memory in use as ``rss_bytes``, all its context switches as
    voluntary ones; and what only a host has: time stolen by the hypervisor, the load of the last minute, how
    long a task waited for CPUs, memory or disks (/proc/pressure, "some"), and the CPU time that sampling has
    taken so far. Machines from -3 downwards are CPUs 0, 1, ...: their times, those of interrupts and steal included.
    """

    machine: int
    name: str
    time_ns: int
    cpu_user_s: float
    cpu_system_s: float
    rss_bytes: int = 0
    uss_bytes: int | None = None
    instrument_bytes: int | None = None
    switches_voluntary: int = 0
    switches_involuntary: int = 0
    descriptors: int | None = None
    threads: int | None = None
    pss_bytes: int | None = None
    faults_minor: int | None = None
    faults_major: int | None = None
    steal_s: float | None = None
    load_1: float | None = None
    pressure_cpu_s: float | None = None
    pressure_memory_s: float | None = None
    pressure_io_s: float | None = None
    sampling_s: float | None = None
    irq_s: float | None = None
    softirq_s: float | None = None
