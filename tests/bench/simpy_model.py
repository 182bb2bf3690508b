"""The traffic of a virtual run in SimPy, as its documentation writes such models: processes, timeouts, a resource."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from typing import Any

import simpy

from tests.bench.programs import SHARES

__all__ = ["ring", "storm"]

RING_NS, BURST_RING_NS, DRAIN_NS, HANDLE_NS, WAKE_NS, SLICE_NS = 700, 357, 900, 1_400, 22_000, 3_000_000
CPUS = 2
SECOND_NS = 1_000_000_000

Steps = Generator[simpy.Event, Any, None]


def _timed(env: simpy.Environment, duration_s: float, rung: Callable[[], int]) -> float:
    """Doorbells per second of CPU time, between the same two shares of the run as of ours."""
    looks = []
    for share in SHARES:
        env.run(until=round(duration_s * share * SECOND_NS))
        looks.append((time.process_time(), rung()))
    (begin_s, before), (end_s, after) = looks
    return (after - before) / (end_s - begin_s)


def storm(machines: int, vectors: int, burst: int, duration_s: float) -> float:
    """All ring all in bursts, and take their own interrupts after each; doorbells per second of CPU time."""
    env = simpy.Environment()
    cpus = simpy.Resource(env, CPUS)
    counters = [[0] * vectors for _ in range(machines)]
    rung = [0] * machines

    def machine(own: int) -> Steps:
        targets = [(peer, vector) for peer in range(machines) if peer != own for vector in range(vectors)]
        random.Random(own).shuffle(targets)
        at = 0
        while True:
            with cpus.request() as cpu:
                yield cpu
                begin_ns = env.now
                while env.now - begin_ns < SLICE_NS:
                    for place in range(burst):
                        peer, vector = targets[at]
                        at = (at + 1) % len(targets)
                        yield env.timeout(BURST_RING_NS if place else RING_NS)
                        counters[peer][vector] += 1
                        rung[own] += 1
                    for vector, count in enumerate(counters[own]):
                        if count:
                            counters[own][vector] = 0
                            yield env.timeout(DRAIN_NS + HANDLE_NS)

    for own in range(machines):
        env.process(machine(own))
    return _timed(env, duration_s, lambda: sum(rung))


def ring(machines: int, rate_hz: float, duration_s: float) -> float:
    """Each rings the next one at the times of a Poisson process; doorbells per second of CPU time."""
    env = simpy.Environment()
    cpus = simpy.Resource(env, CPUS)
    pending = [0] * machines
    wake = [env.event() for _ in range(machines)]
    rung = [0]

    def sender(own: int) -> Steps:
        draw, peer = random.Random(own).expovariate, (own + 1) % machines
        while True:
            yield env.timeout(draw(rate_hz) * SECOND_NS)
            with cpus.request() as cpu:
                yield cpu
                yield env.timeout(RING_NS)
                rung[0] += 1
                pending[peer] += 1
                if not wake[peer].triggered:
                    wake[peer].succeed()

    def receiver(own: int) -> Steps:
        while True:
            yield wake[own]
            yield env.timeout(WAKE_NS)
            with cpus.request() as cpu:
                yield cpu
                wake[own] = env.event()
                pending[own] = 0
                yield env.timeout(DRAIN_NS + HANDLE_NS)

    for own in range(machines):
        env.process(sender(own))
        env.process(receiver(own))
    return _timed(env, duration_s, lambda: rung[0])
