"""Programs that count what happens to them."""

from __future__ import annotations

import os

from nodes.guest import FOREVER, Guest, Program


def count(guest: Guest) -> Program:
    """How often the program began, and how many interrupts it got."""
    guest.statistics["starts"] = guest.statistics.get("starts", 0) + 1
    guest.statistics.setdefault("interrupts", 0)
    while True:
        interrupt = yield FOREVER
        guest.statistics["interrupts"] += interrupt is not None


def where(guest: Guest) -> Program:
    """Where and how the kernel runs this machine."""
    cpus = os.sched_getaffinity(0)
    guest.statistics.update(
        cpu=min(cpus), cpus=len(cpus), policy=os.sched_getscheduler(0), nice=os.getpriority(os.PRIO_PROCESS, 0)
    )
    yield FOREVER
