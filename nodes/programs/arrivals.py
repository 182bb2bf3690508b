"""When a program rings: due times, pauses, and waiting for either."""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator, Iterator
from itertools import chain

from nodes.guest import FOREVER, Guest, Interrupt, Program

SECOND_NS = 1_000_000_000
DRAWN_TOGETHER = 16
DUE_MAX_NS = 1 << 61
"""What is due 73 years after the start is never due; a clock of such a time still has 63 bits."""


def begin_ns(guest: Guest) -> int:
    """When the program was to start, in nanoseconds; the processor may have run it later."""
    return max(guest.start_ns, guest.joined_ns)


def due_times(guest: Guest, mean_ns: float, after_ns: int, *, poisson: bool = False) -> Iterator[int]:
    """The times at which an open loop is due.

    Regular times lie on one grid that begins at the start of the run, whenever the machine joined. No time depends on
    the clock: the same seed gives the same times.

    Args:
        guest: the machine of the program.
        mean_ns: the mean distance of two times under a load of 1.
        after_ns: times up to this one are left out.
        poisson: the times of a Poisson process instead of a grid.

    Returns:
        Times of ``guest.clock()``, in nanoseconds, ascending; they end when the load stays 0.
    """
    # Several times in one array: with very many machines each generator and each number is fetched from memory.
    return chain.from_iterable(_due_times(guest, mean_ns, after_ns, poisson=poisson))


def _due_times(guest: Guest, mean_ns: float, after_ns: int, *, poisson: bool) -> Iterator[array[int]]:
    start_ns, draw, log = guest.start_ns, guest.random.random, math.log
    stretch = None if guest.load.is_steady else guest.load.due
    work = guest.load.work(after_ns - start_ns)
    turn = work // mean_ns
    due = 0.0
    while due < DUE_MAX_NS:
        times = array("q")
        for _ in range(DRAWN_TOGETHER):
            if poisson:
                work -= mean_ns * log(1.0 - draw())  # as `expovariate`, without a call of Python
            else:
                turn += 1
                work = turn * mean_ns
            due = work if stretch is None else stretch(work)
            if due >= DUE_MAX_NS:
                break
            times.append(start_ns + int(due))
        yield times


def miss(guest: Guest, due_ns: int, mean_ns: float, doorbells: int = 1) -> None:
    """Report what an open loop has missed when its program ends.

    Later doorbells are counted by the integral of the load, not one by one: there may be millions, and the end of the
    run waits for this. For a Poisson process it is their mean number.

    Args:
        guest: the machine of the program.
        due_ns: when its next doorbells were due; 0: nothing was due any more.
        mean_ns: the mean distance of two times under a load of 1.
        doorbells: how many are due at each time.
    """
    end_ns, work = guest.end_ns, guest.load.work
    if 0 < due_ns < end_ns:
        span = work(end_ns - guest.start_ns) - work(due_ns - guest.start_ns)
        # Due times are cut to whole nanoseconds: what is due at the end itself is not due before it.
        guest.miss(doorbells * max(1, math.ceil((span - 1) / mean_ns)), due_ns)


def wait_until(guest: Guest, moment_ns: float) -> Program:
    """Wait until that time and ignore interrupts meanwhile; ``inf``: forever."""
    while moment_ns == math.inf:
        yield FOREVER
    at_ns = math.ceil(moment_ns)
    while guest.clock() < at_ns:
        yield at_ns


def rest(guest: Guest) -> Generator[int | None, Interrupt | None, float]:
    """Wait while the load is 0, for a program without a rate; returns when the load may have become 0 again."""
    now_ns = guest.clock() - guest.start_ns
    rises_ns = guest.load.rises(now_ns)
    if rises_ns > now_ns:
        yield from wait_until(guest, guest.start_ns + rises_ns)
    return guest.start_ns + guest.load.next_change(rises_ns)
