"""Clusters for tests: a scheduler, workers and clients as real processes, in network namespaces where asked for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sim.distributed.job_server import JOB_SERVER
from sim.kernel.processes import process_name, work_ticks

__all__ = [
    "IVSIM",
    "Part",
    "alive",
    "cluster",
    "descendants",
    "end_all",
    "job_directories",
    "jobs",
    "left_below",
    "table",
    "until",
]

IVSIM = [sys.executable, "-m", "sim"]
PATIENCE_S = 120.0
TIMING = {
    *("rung_per_s", "coalescing", "delivery_p50_ns", "delivery_p99_ns", "total_p50_ns", "total_p99_ns"),
    *("uss_bytes", "ready_s", "host"),
}
"""The columns of a sweep's table that differ from one time and place to the next."""


def until(holds: Callable[[], object], progress: Callable[[], object] = lambda: None, *, what: str) -> None:
    """Wait until something holds; two minutes without progress are too long."""
    seen, since_s = progress(), time.monotonic()
    while not holds():
        time.sleep(0.02)
        if (now := progress()) != seen:
            seen, since_s = now, time.monotonic()
        assert time.monotonic() - since_s < PATIENCE_S, what


class Part:
    """A process of a cluster, with its output in a file."""

    def __init__(self, arguments: Sequence[str], log: Path, prefix: Sequence[str] = ()) -> None:
        self.log = log
        self.errors = log.with_suffix(".err")
        with log.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen([*prefix, *IVSIM, *arguments], stdout=output, stderr=errors)

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def complained(self) -> str:
        return self.errors.read_text()

    def until_it_says(self, text: str) -> None:
        """Wait for a text in its output."""

        def says() -> bool:
            assert self.process.poll() is None or text in self.said + self.complained, self.complained
            return text in self.said + self.complained

        until(says, lambda: len(self.said + self.complained), what=f"{text!r} in {self.said}{self.complained}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for its end; returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end, while it or what it starts still works; returns the exit code."""
        until(lambda: self.process.poll() is not None, self._work, what=f"its end: {self.said}{self.complained}")
        return self.process.returncode

    def _work(self) -> tuple[int, int]:
        return len(self.said + self.complained), work_ticks(self.process.pid)


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


@contextlib.contextmanager
def cluster(place: Path, workers: Sequence[str]) -> Iterator[tuple[str, Part, dict[str, Part]]]:
    """A scheduler and workers on the loopback: the address, and the processes; all have ended afterwards."""
    parts: dict[str, Part] = {}
    try:
        parts["scheduler"] = scheduler = Part(["scheduler", "--port", "0"], place / "scheduler.log")
        scheduler.until_it_says("scheduler: tcp://")
        address = scheduler.said.split()[1]
        for name in workers:
            parts[name] = Part(["worker", address, "--name", name], place / f"{name}.log")
        for name in workers:
            parts[name].until_it_says(f"worker {name}: tcp://")
        yield address, scheduler, {name: parts[name] for name in workers}
    finally:
        end_all(list(parts.values()))


def end_all(parts: Sequence[Part]) -> None:
    """End all parts, the latest first."""
    for part in reversed(parts):
        with contextlib.suppress(ProcessLookupError):
            part.process.send_signal(signal.SIGTERM)
    for part in reversed(parts):
        part.wait()


def table(directory: Path) -> list[dict[str, object]]:
    """The table of a sweep without what time or place decide."""
    rows = json.loads((directory / "sweep.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def left_below(place: Path) -> list[str]:
    """The directories of workers and runs that are left below a place of temporary files."""
    return [path.name for path in place.glob("ivsim-*")]


def alive(pids: Sequence[int]) -> list[int]:
    """Those of the processes that have not ended; zombies have."""
    left = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                os.kill(pid, 0)
                left.append(pid)
    return left


def jobs(worker: Part) -> list[int]:
    """The processes of the run that a worker carries out now."""
    return [pid for pid in descendants(worker.process.pid) if not is_worker(pid)]


def is_worker(pid: int) -> bool:
    """Whether a process is a worker, or the one from which its jobs are forked, or one that keeps a job."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"\0worker\0" in words or process_name(pid) == JOB_SERVER
    return True


def job_directories() -> list[Path]:
    """The directories of jobs of all workers."""
    return list(Path(tempfile.gettempdir()).glob("ivsim-*/dask-scratch-space/worker-*/job-*"))
