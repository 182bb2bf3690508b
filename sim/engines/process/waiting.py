"""Waiting for an eventfd, and taking what it has counted."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable

from nodes.errors import GuestError
from sim.kernel.eventfd import drain
from sim.kernel.waiting import readable_within_ns

OWN_EVENTS = select.EPOLLIN | select.EPOLLET
"""How to wait for an own eventfd. A read takes all that it holds, so the edge is enough. A wait for the level asks the
eventfd that was read last once more, each time."""

# The last of a wait, for which epoll's whole milliseconds are too coarse: ppoll() on the epoll descriptor waits.
FINE_WAIT_NS = 3_000_000
# epoll takes at most 2^31 - 1 ms; a longer wait is one of these after another.
COARSE_WAIT_NS = 1_000_000_000_000
MILLISECOND_NS = 1_000_000


def register_all(epoll: select.epoll, own: Iterable[int], others: Iterable[int]) -> None:
    """Wait for these own eventfds and other descriptors. What one of them holds already is an event."""
    for descriptor in own:
        epoll.register(descriptor, OWN_EVENTS)
    for descriptor in others:
        epoll.register(descriptor, select.EPOLLIN)


def poll_until(epoll: select.epoll, deadline_ns: int, events_max: int) -> list[tuple[int, int]]:
    """Return events, or none at the deadline. ``epoll`` waits whole milliseconds; ppoll waits the rest.

    Raises:
        GuestError: the deadline, which the program has yielded, is no whole number.
    """
    if type(deadline_ns) is not int:
        raise GuestError(f"a program yields FOREVER, NOW or a time in whole nanoseconds, not {deadline_ns!r}")
    poll, descriptor = epoll.poll, epoll.fileno()
    while True:
        left_ns = deadline_ns - time.monotonic_ns()
        if left_ns <= 0:
            return poll(0, events_max)
        # Less than a whole millisecond beyond the fine wait would be none for epoll: a loop without a wait.
        if left_ns >= FINE_WAIT_NS + MILLISECOND_NS:
            events = poll(min(left_ns - FINE_WAIT_NS, COARSE_WAIT_NS) // MILLISECOND_NS / 1000, events_max)
        else:
            events = poll(0, events_max) if readable_within_ns(descriptor, left_ns) else []
        if events:
            return events


def drain_late(delay_s: float, descriptor: int) -> int:
    """Drain an eventfd as a slow machine does: with all doorbells that come during the delay."""
    time.sleep(delay_s)
    return drain(descriptor)
