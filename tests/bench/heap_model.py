"""The traffic of a ring with a heap and generators alone: what an engine in Python could reach at most.

There is no device, no CPU to wait for, no count, no sample: two events and two resumed generators for each doorbell.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Generator

from tests.bench.programs import SHARES

__all__ = ["ring_on_a_heap"]

WAKE_NS = 22_000
SECOND_NS = 1_000_000_000

Event = tuple[int, int, Generator[int, None, None]]


def ring_on_a_heap(machines: int, rate_hz: float, duration_s: float) -> float:
    """Each rings the next one at the times of a Poisson process; doorbells per second of CPU time."""
    order, events = itertools.count().__next__, list[Event]()
    now_ns = rung = 0

    def sender(own: int) -> Generator[int, None, None]:
        nonlocal rung
        draw, peer = random.Random(own).expovariate, (own + 1) % machines
        while True:
            yield round(draw(rate_hz) * SECOND_NS)
            rung += 1
            heapq.heappush(events, (now_ns + WAKE_NS, order(), receivers[peer]))

    def receiver() -> Generator[int, None, None]:
        while True:
            yield 0

    receivers = [receiver() for _ in range(machines)]
    for waiting in receivers:
        next(waiting)
    for own in range(machines):
        program = sender(own)
        heapq.heappush(events, (next(program), order(), program))
    looks = []
    for share in SHARES:
        until_ns = round(duration_s * share * SECOND_NS)
        while events[0][0] < until_ns:
            now_ns, _, program = heapq.heappop(events)
            if delay_ns := next(program):
                heapq.heappush(events, (now_ns + delay_ns, order(), program))
        looks.append((time.process_time(), rung))
    (begin_s, before), (end_s, after) = looks
    return (after - before) / (end_s - begin_s)
