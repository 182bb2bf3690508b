"""Ends a program that never yields: one thread runs all machines, so nothing else could."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from nodes.errors import GuestError
from sim.engines.virtual.host import VirtualHost

TICK_S = 1.0
TICKS_MAX = 10
"""CPU time in ticks that one slice of a machine may take of this process."""


@contextlib.contextmanager
def watching(host: VirtualHost) -> Iterator[None]:
    """While this lasts, a slice that takes too long is ended by an error in it; outside the main thread, none is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tick(_number: int, _frame: object) -> None:
        host.ticks += 1
        if host.running is not None and host.ticks > TICKS_MAX:
            host.ticks = 0
            raise GuestError(f"the program has not yielded for {TICKS_MAX * TICK_S:g} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, tick)
    signal.setitimer(signal.ITIMER_VIRTUAL, TICK_S, TICK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
