"""Doorbells that a machine rings together under virtual time: most only store their times, in loops of C."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import filterfalse, repeat

from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.loop import VirtualClock


class CounterBatch:
    """A `nodes.bursts.Batch`: counters that are rung one after the other, each ``ring_ns`` later than the one before.

    Args:
        counters: in that order.
        holding: those of the run that hold doorbells without a time: only these can be full.
    """

    __slots__ = ("ring", "ring_from")

    def __init__(
        self,
        counters: Sequence[VirtualCounter],
        clock: VirtualClock,
        ring_ns: int,
        holding: Collection[VirtualCounter],
    ) -> None:
        self.ring_from = None
        self.ring = _make_ring(counters, clock, ring_ns, holding)

    def close(self) -> None:
        """There is nothing to release."""


def _make_ring(
    counters: Sequence[VirtualCounter], clock: VirtualClock, ring_ns: int, holding: Collection[VirtualCounter]
) -> Callable[[int, int], Sequence[int]]:
    append = VirtualCounter.append

    def ring(start: int, stop: int) -> Sequence[int]:
        if holding:
            return ring_each(start, stop)
        part, begin_ns = counters[start:stop], clock.ns
        end_ns = begin_ns + ring_ns * len(part)
        empty = list(filterfalse(None, part))
        times = range(begin_ns + ring_ns, end_ns + 1, ring_ns) if ring_ns else repeat(begin_ns)
        deque(map(append, part, times), 0)
        for counter in dict.fromkeys(empty):  # a counter can be there twice
            counter.owner.rung(counter, counter[0])
        clock.ns = end_ns
        return ()

    def ring_each(start: int, stop: int) -> list[int]:
        refused = []
        for place, counter in enumerate(counters[start:stop], start):
            clock.ns = now_ns = clock.ns + ring_ns
            try:
                counter.ring(now_ns)
            except BlockingIOError:
                refused.append(place)
            else:
                if counter.value == 1:
                    counter.owner.rung(counter, now_ns)
        return refused

    return ring
