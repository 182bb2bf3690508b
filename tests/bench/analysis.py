"""What is made of ten million samples, and in how much memory: the tables, the percentiles, the report."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests.bench.figure import Bar, Figure
from tests.bench.setting import Setting

__all__ = ["measure_analysis"]

LATENCY = Bar(2.0, 1.5)
REPORT = Bar(20.0, 5.0)
MEMORY = Bar(500.0, 300.0)
SAMPLES = 10_000_000
MEBIBYTE = 1 << 20
# The percentiles take the CPU time of their second computation: the first one also loads libraries.
# Around a command: ru_maxrss begins with what the parent had at the most, and this parent has next to nothing.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, *sys.argv[1:]])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, file=sys.stderr)
sys.exit(code)
"""
MAKE = """
import pathlib, sys
from tests.synthetic import long_run
long_run(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
"""
LATENCIES = """
import sys, time
import sim
run = sim.open(sys.argv[1])
run.latency()
begin_s = time.process_time()
run.latency()
print(time.process_time() - begin_s)
"""


def measure_analysis(setting: Setting) -> Iterator[Figure]:
    """A run of one sender and one receiver; CPU time and the most memory of a process for each step."""
    samples = setting.size(SAMPLES, 2000)
    _run(["-c", MAKE, str(setting.folder), str(samples)])
    [path] = setting.folder.glob("long-*")
    steps = {
        "tables": ["-m", "sim", "show", str(path)],
        "latency()": ["-c", LATENCIES, str(path)],
        "report": ["-m", "sim", "report", str(path)],
    }
    figures = {name: _run(command) for name, command in steps.items()}
    shutil.rmtree(path)
    spent_s = {name: (float(said) if name == "latency()" else cpu_s) for name, (said, cpu_s, _) in figures.items()}
    for name, bar in (("tables", None), ("latency()", LATENCY), ("report", REPORT)):
        yield Figure("analysis", f"{samples:.0e}: {name}, CPU", "s", [(spent_s[name], 0.0)], bar, absolute=True)
    for name, bar in (("tables", None), ("latency()", MEMORY), ("report", MEMORY)):
        memory = figures[name][2] / MEBIBYTE
        yield Figure("analysis", f"{samples:.0e}: {name}, at most", "MiB", [(memory, 0.0)], bar, absolute=True)


def _run(arguments: Sequence[str]) -> tuple[str, float, int]:
    """Run Python: what it prints, its CPU time in seconds, and the most memory it had, in bytes."""
    command = [sys.executable, "-c", MEASURED, *arguments]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)[:80]}: exit code {process.returncode}: {process.stderr[-400:]}")
    cpu_s, most_bytes = process.stderr.split()[-2:]
    return process.stdout, float(cpu_s), int(most_bytes)
