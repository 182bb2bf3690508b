"""Frequent looks at processes and CPUs: who ran, who waited for a CPU, who was stopped, what it was blocked in.

A look at a process costs some 15 us: its files in /proc stay open and are read again (proc_pid_stat(5), fields 3, 10,
12, 24 and 39; schedstat: Linux's Documentation/scheduler/sched-stats.rst; wchan: proc_pid_wchan(5)).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from sim.host.limits import control_groups

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
FAULT_PAGES = 512
READ_BYTES = 4096
OTHERS_SHOWN = 8
STAT_BYTES = 1 << 16
SWITCHES = re.compile(rb"^(?:non)?voluntary_ctxt_switches:\t(\d+)$", re.MULTILINE)
FILES = ("stat", "schedstat", "status", "wchan")
LOOK_DESCRIPTORS = len(FILES)
"""How many descriptors `ProcessLooks` holds for each process."""


class ProcessLook(NamedTuple):
    """A process at one moment. Times and counts are totals since its start.

    Attributes:
        state: the letter of the kernel: R runs or waits for a CPU, S sleeps, D waits for a disk, T is stopped.
        cpu: the CPU that it runs on, or has run on last.
        ran_ns: on a CPU; of the main thread.
        waited_ns: ready to run and without a CPU; the time of a wait that goes on is not in it yet.
        preempted: how often it lost its CPU before it was done.
        faults: page faults without I/O.
        blocked_in: the function of the kernel that it sleeps in; "" for one that does not sleep.
    """

    time_ns: int
    state: str
    cpu: int
    ran_ns: int
    waited_ns: int
    preempted: int
    faults: int
    major_faults: int
    memory_bytes: int
    blocked_in: str


class CpuLook(NamedTuple):
    """One CPU at one moment: totals since boot, in whole ticks of the kernel's statistics (proc_stat(5))."""

    time_ns: int
    cpu: int
    user_ns: int
    system_ns: int
    idle_ns: int
    irq_ns: int
    softirq_ns: int
    steal_ns: int


class ProcessLooks:
    """Looks at a set of processes, each under a key of the caller. Close it to release the descriptors."""

    def __init__(self, clock: Callable[[], int], proc: Path = Path("/proc")) -> None:
        self._clock, self._proc = clock, proc
        self._files: dict[int, tuple[int, dict[str, int]]] = {}  # key -> the process, its descriptors

    def watch(self, key: int, pid: int | None) -> None:
        """Look at this process from now on; None: at none."""
        if (known := self._files.get(key)) is not None:
            if known[0] == pid:
                return
            self._forget(key)
        if pid is None:
            return
        opened: dict[str, int] = {}
        try:
            for name in FILES:
                opened[name] = os.open(self._proc / str(pid) / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            for descriptor in opened.values():
                os.close(descriptor)
            return
        self._files[key] = pid, opened

    def look(self) -> dict[int, ProcessLook]:
        """The processes that still exist, by key."""
        found = {}
        for key, (_, opened) in list(self._files.items()):
            try:
                found[key] = self._look(opened)
            except (OSError, ValueError, IndexError):  # it is gone
                self._forget(key)
        return found

    def pids(self) -> dict[int, int]:
        return {key: pid for key, (pid, _) in self._files.items()}

    def close(self) -> None:
        for key in list(self._files):
            self._forget(key)

    def _look(self, opened: dict[str, int]) -> ProcessLook:
        now_ns = self._clock()
        fields = os.pread(opened["stat"], READ_BYTES, 0).rpartition(b")")[2].split()
        ran, waited, _ = map(int, os.pread(opened["schedstat"], READ_BYTES, 0).split())
        _, preempted = map(int, SWITCHES.findall(os.pread(opened["status"], READ_BYTES, 0)))
        state = fields[0].decode()
        blocked_in = os.pread(opened["wchan"], READ_BYTES, 0).decode() if state in "SD" else ""
        return ProcessLook(
            now_ns,
            state.upper(),
            int(fields[36]),
            ran,
            waited,
            preempted,
            int(fields[7]),
            int(fields[9]),
            int(fields[21]) * mmap.PAGESIZE,
            "" if blocked_in == "0" else blocked_in,
        )

    def _forget(self, key: int) -> None:
        _, opened = self._files.pop(key)
        for descriptor in opened.values():
            os.close(descriptor)


def look_at_cpus(now_ns: int, proc: Path = Path("/proc")) -> list[CpuLook]:
    """Every CPU that is online."""
    with open(proc / "stat", "rb", buffering=0) as file:
        text = file.read(STAT_BYTES) or b""
    found = []
    for line in text.splitlines():
        name, *counts = line.split()
        if not name.startswith(b"cpu"):
            break
        if name != b"cpu":
            user, nice, system, idle, iowait, irq, softirq, steal = (int(count) * TICK_NS for count in counts[:8])
            row = (user + nice, system, idle + iowait, irq, softirq, steal)
            found.append(CpuLook(now_ns, int(name[3:]), *row))
    return found


class OtherProcess(NamedTuple):
    """A process beside those of the run: the CPU that it ran on last, and for how long it ran.

    A trace of the kernel tells how long (``is_traced``); looks, which are rare, tell only how long at most.
    """

    pid: int
    name: str
    cpu: int
    ran_ns: int
    is_traced: bool = False


class OtherProcesses:
    """The CPU time of all other processes, kernel threads included; a look costs some 10 us for each."""

    def __init__(self, clock: Callable[[], int], proc: Path = Path("/proc")) -> None:
        self._clock, self._proc = clock, proc
        self._looks: list[tuple[int, dict[int, int]]] = []

    def look(self, keep_ns: int) -> None:
        """Look at all of them, and forget looks that began more than ``keep_ns`` ago, but for one."""
        now_ns, ran = self._clock(), {}
        for name in os.listdir(self._proc):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    descriptor = os.open(self._proc / name / "schedstat", os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        ran[int(name)] = int(os.read(descriptor, READ_BYTES).split()[0])
                    finally:
                        os.close(descriptor)
        self._looks.append((now_ns, ran))
        while len(self._looks) > 2 and self._looks[1][0] < now_ns - keep_ns:
            self._looks.pop(0)

    def ran_since(self, begin_ns: int, without: Collection[int]) -> list[OtherProcess]:
        """Those that have run most between the last look before ``begin_ns`` and the latest one."""
        if len(self._looks) < 2:
            return []
        first = max((look for look in self._looks[:-1] if look[0] <= begin_ns), default=self._looks[0])
        _, last = self._looks[-1]
        # A process that is not in the first look has begun since, or has not run yet then.
        ran = {pid: total - first[1].get(pid, 0) for pid, total in last.items() if pid not in without}
        found = []
        for pid in sorted(ran, key=lambda each: -ran[each])[:OTHERS_SHOWN]:
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = (self._proc / str(pid) / "stat").read_text(errors="replace")
                name = text.partition("(")[2].rpartition(")")[0]
                if ran[pid]:
                    found.append(OtherProcess(pid, name, int(text.rpartition(")")[2].split()[36]), ran[pid]))
        return found


class Throttling:
    """How long the cgroups of processes were denied a CPU by their quota (Linux's cgroup-v2.rst and sched-bwc.rst)."""

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc, self._cgroups = proc, cgroups

    def groups_of(self, pid: int) -> list[Path]:
        """The files ``cpu.stat`` of its cgroup and of those above it, which can limit it too."""
        with contextlib.suppress(OSError):
            lines = (self._proc / str(pid) / "cgroup").read_text().splitlines()
            for is_unified, folders in control_groups(lines, "cpu", self._cgroups):
                files = [folder / "cpu.stat" for folder in folders if (folder / "cpu.stat").exists()]
                if files and (not is_unified or "nr_throttled" in files[0].read_text()):
                    return files
        return []

    @staticmethod
    def throttled(file: Path) -> tuple[int, int]:
        """How often, and for how many nanoseconds; (0, 0) where the kernel does not say."""
        counts = {}
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text().splitlines():
                name, value = line.split()
                counts[name] = int(value)
        return counts.get("nr_throttled", 0), counts.get("throttled_time", 0) or 1000 * counts.get("throttled_usec", 0)


def page_fault_ns() -> float:
    """CPU time of the first write to a page of fresh memory, the mean of some; takes less than a millisecond."""
    with mmap.mmap(-1, FAULT_PAGES * mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        begin_ns = time.thread_time_ns()
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1
        return (time.thread_time_ns() - begin_ns) / FAULT_PAGES
