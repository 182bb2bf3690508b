"""The latest samples of the processes and CPUs of a run: the evidence about the time before an outlier."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sim.host import process_looks

Row = TypeVar("Row", bound=tuple[Any, ...])
"""What was seen at a time, which is the first of it."""

MILLISECOND_NS = 1_000_000
CPUS_NS, OTHERS_NS, GROUPS_NS = 20 * MILLISECOND_NS, 200 * MILLISECOND_NS, 100 * MILLISECOND_NS
"""How often CPUs, other processes and cgroups are looked at, at most."""
COST_SHARE = 50


class HostHistory:
    """Looks at a set of processes, each under a key, and keeps what is younger than ``keep_ns``."""

    def __init__(self, clock: Callable[[], int], cpu_clock: Callable[[], int], keep_ns: int) -> None:
        self._clock, self._cpu_clock, self._keep_ns = clock, cpu_clock, keep_ns
        self._processes, self._others = process_looks.ProcessLooks(clock), process_looks.OtherProcesses(clock)
        self._throttling = process_looks.Throttling()
        self._looks: deque[tuple[int, dict[int, process_looks.ProcessLook]]] = deque()
        self._groups: dict[int, tuple[Path, ...]] = {}
        self._throttled: dict[Path, deque[tuple[int, int, int]]] = {}
        self._due_ns = {CPUS_NS: 0, OTHERS_NS: 0, GROUPS_NS: 0}
        self.cpus: deque[tuple[int, list[process_looks.CpuLook]]] = deque()

    def look(self, pids: Mapping[int, int | None], *, at_all: bool = False) -> None:
        """Look at these processes now, and at all the rest where its time has come, or if ``at_all``."""
        for key, pid in pids.items():
            self._processes.watch(key, pid)
        now_ns = self._clock()
        self._looks.append((now_ns, self._processes.look()))
        for every_ns, look in ((CPUS_NS, self._look_at_cpus), (OTHERS_NS, self._look_at_others)):
            if at_all or now_ns >= self._due_ns[every_ns]:
                begin_ns = self._cpu_clock()
                look(now_ns)
                cost_ns = self._cpu_clock() - begin_ns
                self._due_ns[every_ns] = now_ns + max(every_ns, COST_SHARE * cost_ns)
        if at_all or now_ns >= self._due_ns[GROUPS_NS]:
            self._groups = {key: tuple(self._throttling.groups_of(pid)) for key, pid in self._processes.pids().items()}
            self._due_ns[GROUPS_NS] = now_ns + GROUPS_NS
        for file in {file for files in self._groups.values() for file in files}:
            rows = self._throttled.setdefault(file, deque())
            rows.append((now_ns, *self._throttling.throttled(file)))
            _prune(rows, now_ns - self._keep_ns)
        _prune(self._looks, now_ns - self._keep_ns)

    def _look_at_cpus(self, now_ns: int) -> None:
        self.cpus.append((now_ns, process_looks.look_at_cpus(now_ns)))
        _prune(self.cpus, now_ns - self._keep_ns)

    def _look_at_others(self, _now_ns: int) -> None:
        self._others.look(self._keep_ns)

    def pid(self, key: int) -> int | None:
        return self._processes.pids().get(key)

    def looks(self, key: int) -> list[process_looks.ProcessLook]:
        return [looks[key] for _, looks in self._looks if key in looks]

    def throttled(self, key: int, begin_ns: int, end_ns: int) -> tuple[int, int]:
        """How often, and for how many nanoseconds, the quotas of a process stopped it in that span."""
        most = (0, 0)
        for file in self._groups.get(key, ()):
            rows = self._throttled[file]
            before = next((row for row in reversed(rows) if row[0] <= begin_ns), rows[0])
            after = next((row for row in rows if row[0] >= end_ns), rows[-1])
            most = max(most, (after[1] - before[1], after[2] - before[2]), key=lambda its: its[1])
        return most

    def others(self, begin_ns: int, keys: Collection[int]) -> list[process_looks.OtherProcess]:
        """The processes that ran most since then, without these."""
        pids = self._processes.pids()
        return self._others.ran_since(begin_ns, {pids[key] for key in keys if key in pids})

    def close(self) -> None:
        self._processes.close()


def _prune(rows: deque[Row], before_ns: int) -> None:
    """Forget rows from before that time, but for the last of them."""
    while len(rows) > 1 and rows[1][0] < before_ns:
        rows.popleft()
