"""Doorbells that a machine rings together under virtual time: most only store their times, in loops of C."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import filterfalse, repeat

from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.loop import VirtualClock


class CounterBatch:
    """A `nodes.bursts.Batch`: counters that are rung one after the other.

    Args:
        counters: in that order.
        ring_ns: what the first doorbell of those that are rung together costs.
        burst_ring_ns: what each further one of them costs.
        holding: those of the run that hold doorbells without a time: only these can be full.
    """

    __slots__ = ("ring", "ring_from")

    def __init__(
        self,
        counters: Sequence[VirtualCounter],
        clock: VirtualClock,
        ring_ns: int,
        burst_ring_ns: int,
        holding: Collection[VirtualCounter],
    ) -> None:
        self.ring_from = None
        self.ring = _make_ring(counters, clock, ring_ns, burst_ring_ns, holding)

    def close(self) -> None:
        """There is nothing to release."""


def _make_ring(
    counters: Sequence[VirtualCounter],
    clock: VirtualClock,
    ring_ns: int,
    burst_ring_ns: int,
    holding: Collection[VirtualCounter],
) -> Callable[[int, int], Sequence[int]]:
    append = VirtualCounter.append

    def ring(start: int, stop: int) -> Sequence[int]:
        if holding:
            return ring_each(start, stop)
        part = counters[start:stop]
        if not part:
            return ()
        first_ns = clock.ns + ring_ns
        last_ns = first_ns + burst_ring_ns * (len(part) - 1)
        empty = list(filterfalse(None, part))
        times = range(first_ns, last_ns + 1, burst_ring_ns) if burst_ring_ns else repeat(first_ns)
        deque(map(append, part, times), 0)
        for counter in dict.fromkeys(empty):  # a counter can be there twice
            counter.owner.rung(counter, counter[0])
        clock.ns = last_ns
        return ()

    def ring_each(start: int, stop: int) -> list[int]:
        refused = []
        for place, counter in enumerate(counters[start:stop], start):
            clock.ns = now_ns = clock.ns + (burst_ring_ns if place > start else ring_ns)
            try:
                counter.ring(now_ns)
            except BlockingIOError:
                refused.append(place)
            else:
                if counter.value == 1:
                    counter.owner.rung(counter, now_ns)
        return refused

    return ring
