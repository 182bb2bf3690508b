"""Runs as tasks of a cluster on this host: what a task costs beside its run, and what a second worker brings."""

from __future__ import annotations

import importlib.util
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figure import Bar, Figure
from tests.bench.setting import Setting
from tests.clusters import IVSIM, Part, cluster, descendants

__all__ = ["measure_cluster"]

TASK = Bar(1.0, 0.75)
TWO_WORKERS = Bar(0.6, 0.55)
BEYOND_S = 0.5
"""What a task may cost beyond its run."""
TICKS = os.sysconf("SC_CLK_TCK")
SHORT = """
title = "Short"
[run]
duration_s = 0.5
warmup_s = 0.1
[machines.ringer]
count = 2
program = "storm"
parameters = { to = "others", rate_hz = 1000.0 }
"""
"""Half a second that two machines mostly wait."""


def measure_cluster(setting: Setting) -> Iterator[Figure]:
    """A scheduler, workers and sweeps as in docs/distributed.md, on all CPUs; nothing without Dask."""
    if importlib.util.find_spec("distributed") is None:
        return
    (setting.folder / "short.toml").write_text(SHORT)
    with cluster(setting.folder, ["alpha"]) as (address, scheduler, workers):
        parts, there = [scheduler, *workers.values()], ["--scheduler", address]
        _sweep(setting, 2, there, parts)  # so that the worker has loaded what it needs
        runs = setting.size(10, 2)
        both = [(_sweep(setting, runs, there, parts), _sweep(setting, runs, [], [])) for _ in range(setting.size(5, 1))]
        for place, what in enumerate(("time", "CPU time")):
            beside = [(task[place] / runs, run[place] / runs + BEYOND_S) for task, run in both]
            yield Figure("cluster", f"a task, {what} / its run + {BEYOND_S:g}", "s", beside, TASK)
        runs = setting.size(100, 2)
        shared = []
        for _ in range(setting.size(2, 1)):
            one_s, _ = _sweep(setting, runs, there, parts)
            beta = Part(["worker", address, "--name", "beta"], setting.folder / "beta.log")
            try:
                beta.until_it_says("worker beta: tcp://")
                two_s, _ = _sweep(setting, runs, there, parts)
            finally:
                beta.end()
            shared.append((two_s, one_s))
        yield Figure("cluster", f"{runs} short runs, two workers / one", "s", shared, TWO_WORKERS)


def _sweep(setting: Setting, runs: int, where: list[str], parts: list[Part]) -> tuple[float, float]:
    """A sweep of so many runs: the time that it takes, and the CPU time of the command and these parts, in seconds."""
    begin_s, cpu_s = time.monotonic(), _cpu_s(parts)
    words = [*IVSIM, "sweep", str(setting.folder / "short.toml"), "--repeat", str(runs), *where, "--quiet"]
    subprocess.run([*words, "--runs", str(setting.folder / "sweeps")], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin_s, _cpu_s(parts) - cpu_s


def _cpu_s(parts: list[Part]) -> float:
    """The CPU time of these processes and of the children of this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    total_s = used.ru_utime + used.ru_stime
    for pid in [pid for part in parts for pid in (part.process.pid, *descendants(part.process.pid))]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total_s += sum(map(int, fields[11:15])) / TICKS  # utime, stime, cutime, cstime, proc_pid_stat(5)
    return total_s
