"""Guest programs for measuring: they do what no topology can say, such as to choose a CPU."""

from __future__ import annotations

import os
import time
from pathlib import Path

from nodes import programs
from nodes.guest import FOREVER, Guest, Peers, Program

__all__ = ["echo_on", "ping_on", "serve_on", "storm_timed"]


def serve_on(guest: Guest, *, to: Peers, cpu: int) -> Program:
    """Ring, wait for the answer however long it takes, ring again: the least that a wake-up can cost."""
    os.sched_setaffinity(0, {cpu})
    ring, (peer,) = guest.ring, to
    while True:
        ring(peer)
        yield FOREVER


def ping_on(guest: Guest, *, to: Peers, cpu: int) -> Program:
    """``ping`` as it is shipped."""
    os.sched_setaffinity(0, {cpu})
    return (yield from programs.ping(guest, to=to, vector=0))


def echo_on(guest: Guest, *, to: Peers, cpu: int) -> Program:
    """``echo`` as it is shipped."""
    os.sched_setaffinity(0, {cpu})
    return (yield from programs.echo(guest, to=to))


def storm_timed(guest: Guest, *, to: Peers, burst: int = 64, folder: str) -> Program:
    """``storm`` as it is shipped; leaves the time of CPU that it took, in nanoseconds, in a file of ``folder``."""
    begin_ns = time.process_time_ns()
    try:
        return (yield from programs.storm(guest, to=to, burst=burst))
    finally:
        spent_ns = time.process_time_ns() - begin_ns
        Path(folder, f"{guest.peer}.cpu").write_text(str(spent_ns))
