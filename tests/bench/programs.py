"""Guest programs for the benchmarks: they do what a topology cannot ask for, such as choosing a CPU."""

from __future__ import annotations

import os
import time
from pathlib import Path

from nodes import programs
from nodes.guest import FOREVER, Guest, Peers, Program

__all__ = ["echo_on", "ping_on", "resident_gib", "serve_on", "stopwatch", "storm_timed", "watch_start"]

SHARES = 0.3, 0.8
"""A stopwatch looks at these shares of the run."""


def serve_on(guest: Guest, *, to: Peers, cpu: int) -> Program:
    """Ring, wait for the answer without a limit, ring again: the lowest cost of a wake-up."""
    os.sched_setaffinity(0, {cpu})
    (peer,) = to
    bell = guest.bell(peer)
    while True:
        bell()
        yield FOREVER


def ping_on(guest: Guest, *, to: Peers, cpu: int) -> Program:
    """The included ``ping``, pinned to a CPU."""
    os.sched_setaffinity(0, {cpu})
    return (yield from programs.ping(guest, to=to, vector=0))


def echo_on(guest: Guest, *, to: Peers, cpu: int) -> Program:
    """The included ``echo``, pinned to a CPU."""
    os.sched_setaffinity(0, {cpu})
    return (yield from programs.echo(guest, to=to))


def storm_timed(guest: Guest, *, to: Peers, burst: int = 64, folder: str) -> Program:
    """The included ``storm``; writes the CPU time that it took, in nanoseconds, to a file in ``folder``."""
    begin_ns = time.process_time_ns()
    try:
        return (yield from programs.storm(guest, to=to, burst=burst))
    finally:
        spent_ns = time.process_time_ns() - begin_ns
        Path(folder, f"{guest.peer}.cpu").write_text(str(spent_ns))


def watch_start(guest: Guest, *, path: str) -> Program:
    """Write what this process has used when all machines are up: CPU time in seconds, memory in GiB."""
    Path(path).write_text(f"{time.process_time()} {resident_gib('VmRSS')}")
    yield FOREVER


def resident_gib(key: str) -> float:
    """A row of this process's status (proc(5)), in GiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / (1 << 20) for line in status.splitlines() if line.startswith(f"{key}:"))


def stopwatch(guest: Guest, *, path: str) -> Program:
    """Write the CPU time of this process between two shares of the run, in seconds, and what share that was."""
    span_ns = guest.stop_ns - guest.start_ns
    looks = []
    for share in SHARES:
        yield guest.start_ns + round(span_ns * share)
        looks.append((time.process_time(), guest.clock()))
    (begin_s, begin_ns), (end_s, end_ns) = looks
    Path(path).write_text(f"{end_s - begin_s} {(end_ns - begin_ns) / span_ns}")
