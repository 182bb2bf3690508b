"""CPU time, memory and descriptors of processes and the host, seen from outside: the only user of psutil."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any

import psutil

from sim.host.process_looks import CpuLook, look_at_cpus
from sim.host.resource_row import FIRST_CPU, HOST, Resources
from sim.kernel.processes import stat_fields

PRESSURE = Path("/proc/pressure")
# Summing up the pages of a process takes some 2 ms, all the rest together 0.1: so many processes have theirs
# summed up at each look, taking turns.
MEMORY_LOOKS = 2

PRIVATE = re.compile(rb"^Private_(?:Clean|Dirty): +([0-9]+) kB$", re.MULTILINE)


class Sampler:
    """Samples a set of processes and the host; processes that have ended are left out."""

    def __init__(self, run: Path) -> None:
        """``run``: the run directory; what a machine has mapped of it are its recordings."""
        self._mapped = b" " + os.fsencode(run.resolve()) + b"/"
        self._processes: dict[int, tuple[str, psutil.Process]] = {}
        self._last: dict[int, Resources] = {}
        self._carried: dict[int, Resources] = {}
        """For a machine that continues in another process: the CPU time of its earlier processes, when last sampled."""
        self._turn = 0
        self._spent_ns = 0

    def watch(self, machine: int, name: str, pid: int) -> None:
        """Sample this process from now on; the totals of the machine's process before it are added."""
        if machine in self._last:
            self._carried[machine] = self._last[machine]
        try:
            self._processes[machine] = name, psutil.Process(pid)
        except psutil.NoSuchProcess:
            self._processes.pop(machine, None)

    def forget(self, machine: int) -> None:
        for known in (self._processes, self._last, self._carried):
            known.pop(machine, None)

    def sample(self) -> list[Resources]:
        """Return one row for each process that still runs, one for the host, and one for each CPU.

        About 0.1 ms each, and 2 ms more for those whose memory is summed up and whose descriptors are counted
        this time (with thousands of descriptors, 5 ms more): those that have waited longest, so many that it
        stays a small part of what they use themselves.
        """
        begin_ns = time.thread_time_ns()
        watched = list(self._processes.items())
        turns = range(self._turn, self._turn + min(MEMORY_LOOKS, len(watched)))
        in_depth = {watched[turn % len(watched)][0] for turn in turns}
        self._turn = turns.stop % max(1, len(watched))
        rows = []
        for machine, (name, process) in watched:
            try:
                row = _look(machine, name, process, self._mapped if machine in in_depth else None)
                if machine in self._carried:
                    row = _added(row, self._carried[machine])
                self._last[machine] = row
                rows.append(row)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                self.forget(machine)
        self._spent_ns += time.thread_time_ns() - begin_ns
        return rows + _look_at_host(self._spent_ns / 1e9)


def _look(machine: int, name: str, process: psutil.Process, mapped: bytes | None) -> Resources:
    """With ``mapped``, how what is the instrument's begins in the list of its mappings, in depth."""
    cpu, switches = process.cpu_times(), process.num_ctx_switches()
    if mapped is not None:
        full = process.memory_full_info()
        rss_bytes, uss_bytes, pss_bytes = full.rss, full.uss, full.pss
    else:
        rss_bytes, uss_bytes, pss_bytes = process.memory_info().rss, None, None
    minor, major = _faults(process.pid)
    return Resources(
        machine=machine,
        name=name,
        time_ns=time.monotonic_ns(),
        cpu_user_s=cpu.user,
        cpu_system_s=cpu.system,
        rss_bytes=rss_bytes,
        uss_bytes=uss_bytes,
        instrument_bytes=_private_bytes(process.pid, mapped) if mapped is not None and machine >= 0 else None,
        switches_voluntary=switches.voluntary,
        switches_involuntary=switches.involuntary,
        descriptors=process.num_fds() if mapped is not None else None,
        threads=process.num_threads(),
        pss_bytes=pss_bytes,
        faults_minor=minor,
        faults_major=major,
    )


def _added(row: Resources, before: Resources) -> Resources:
    """The counters of a process, on top of those of the machine's process before it."""
    counters = ("cpu_user_s", "cpu_system_s", "switches_voluntary", "switches_involuntary")
    sums: dict[str, Any] = {name: getattr(row, name) + getattr(before, name) for name in counters}
    for name in ("faults_minor", "faults_major"):
        known = getattr(row, name), getattr(before, name)
        sums[name] = None if None in known else sum(known)
    return row._replace(**sums)


def _look_at_host(sampling_s: float) -> list[Resources]:
    """The host and its CPUs, whose times add up to its own."""
    memory, time_ns = psutil.virtual_memory(), time.monotonic_ns()
    cpus = [_of_cpu(look) for look in look_at_cpus(time_ns)]
    times = ("cpu_user_s", "cpu_system_s", "steal_s", "irq_s", "softirq_s")
    sums: dict[str, Any] = {name: sum(getattr(cpu, name) for cpu in cpus) for name in times}
    host = Resources(
        machine=HOST,
        name="host",
        time_ns=time_ns,
        rss_bytes=memory.total - memory.available,
        switches_voluntary=psutil.cpu_stats().ctx_switches,
        load_1=psutil.getloadavg()[0],
        pressure_cpu_s=_pressure_s("cpu"),
        pressure_memory_s=_pressure_s("memory"),
        pressure_io_s=_pressure_s("io"),
        sampling_s=sampling_s,
        **sums,
    )
    return [host, *cpus]


def _of_cpu(its: CpuLook) -> Resources:
    return Resources(
        machine=FIRST_CPU - its.cpu,
        name=f"CPU {its.cpu}",
        time_ns=its.time_ns,
        cpu_user_s=its.user_ns / 1e9,
        cpu_system_s=(its.system_ns + its.irq_ns + its.softirq_ns) / 1e9,
        steal_s=its.steal_ns / 1e9,
        irq_s=its.irq_ns / 1e9,
        softirq_s=its.softirq_ns / 1e9,
    )


def _private_bytes(pid: int, mapped: bytes) -> int | None:
    """The pages of such mappings that only this process has (proc_pid_smaps(5)); psutil has them by path, and dear.

    None where a worker has no such mappings (yet), or the kernel does not say; a QEMU never has any.

    Raises:
        psutil.NoSuchProcess: it is gone.
    """
    try:
        text = Path(f"/proc/{pid}/smaps").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    except OSError:
        return None
    _, *mappings = text.split(mapped)
    if not mappings:
        return None if _is_interpreter(pid) else 0
    # Each but the first piece begins within the line of such a mapping: its own two figures come first.
    return 1024 * sum(int(size) for mapping in mappings for size in PRIVATE.findall(mapping)[:2])


def _is_interpreter(pid: int) -> bool:
    """Whether a process runs the program that this one runs, as each worker does."""
    try:
        return os.path.samefile(f"/proc/{pid}/exe", "/proc/self/exe")
    except OSError:
        return True


def _faults(pid: int) -> tuple[int, int]:
    """Page faults without and with a wait for the disk (proc_pid_stat(5), fields 10 and 12); psutil has none.

    Raises ``psutil.NoSuchProcess`` when it is gone.
    """
    fields = stat_fields(pid)
    if not fields:
        raise psutil.NoSuchProcess(pid)
    return int(fields[7]), int(fields[9])


def _pressure_s(what: str) -> float | None:
    """The time for which a task has waited for it since boot (Linux's psi.rst); None where the kernel does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        first = (PRESSURE / what).read_text().splitlines()[0]
        if first.startswith("some "):
            return int(first.rpartition("total=")[2]) / 1e6
    return None
