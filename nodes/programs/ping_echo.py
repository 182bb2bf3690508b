"""Question and answer: ``ping`` and ``echo``."""

from __future__ import annotations

from math import inf
from operator import itemgetter

from nodes.guest import FOREVER, OTHERS, Guest, Peers, Program
from nodes.programs.arrivals import SECOND_NS, begin_ns, due_times, miss, rest, wait_until
from nodes.programs.targets import Targets

__all__ = ["echo", "ping"]


def ping(
    guest: Guest,
    *,
    to: Peers = OTHERS,
    vector: int | None = None,
    rate_hz: float | None = None,
    timeout_s: float = 1.0,
) -> Program:
    """Ring one peer, wait for its answer, ring the next.

    Without ``vector`` all vectors take turns. With ``rate_hz`` a ping is due that often, times the load, whether or
    not the one before it was answered in time (an open loop); without it, the next follows the answer at once, but
    none while the load is 0. A ping that is not answered within ``timeout_s`` is given up.
    """
    clock, ring = guest.clock, guest.ring
    timeout_ns = round(timeout_s * SECOND_NS)
    targets = Targets(guest, to, None if vector is None else [vector])
    look_ns = inf if guest.load.is_steady else 0.0  # when the load may have become 0
    turns: list[tuple[int, int]] = []
    waited = yield from targets.wait()
    if rate_hz is not None:
        mean_ns = SECOND_NS / rate_hz
        due = due_times(guest, mean_ns, clock() if waited else begin_ns(guest))
        due_ns = next(due, 0)
    try:
        while True:
            if targets.generation != guest.generation or not turns:
                yield from targets.wait()
                # Every peer's first vector, then every peer's second one.
                turns = sorted((pair for row in targets.rows for pair in row), key=itemgetter(1))
            for peer, each in turns:
                if rate_hz is None:
                    if look_ns < inf and clock() >= look_ns:
                        look_ns = yield from rest(guest)
                    ring(peer, each)
                else:
                    yield from wait_until(guest, due_ns or inf)
                    ring(peer, each, due_ns)
                    due_ns = next(due, 0)
                yield clock() + timeout_ns
    finally:
        if rate_hz is not None:
            miss(guest, due_ns, mean_ns)


def echo(guest: Guest, *, to: Peers = OTHERS) -> Program:
    """Ring back whoever may have rung, on the vector that was rung: one doorbell for each interrupt.

    An interrupt does not say who rang, so ``to`` does; every one of them is rung.
    """
    while True:
        interrupt = yield FOREVER
        if interrupt is not None:
            for peer in to:
                guest.ring(peer, interrupt.vector)
