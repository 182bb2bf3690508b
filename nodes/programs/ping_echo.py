"""Request and response: ``ping`` and ``echo``."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from operator import itemgetter

from nodes.guest import FOREVER, OTHERS, Guest, Peers, Program
from nodes.programs.arrivals import SECOND_NS, begin_ns, due_times, miss, rest, wait_until
from nodes.programs.targets import Targets


def ping(
    guest: Guest, *, to: Peers = OTHERS, vector: int | None = None, rate_hz: float | None = None, timeout_s: float = 1.0
) -> Program:
    """Ring one peer, wait for its answer, then ring the next one.

    ``vector`` is the vector to ring; without it, all vectors take turns. With ``rate_hz`` pings are due at that rate,
    times the load, whether or not the one before was answered (an open loop). Without it the next ping follows the
    answer at once (a closed loop), and none is rung while the load is 0. The program stops waiting for an answer after
    ``timeout_s``.
    """
    clock = guest.clock
    timeout_ns = round(timeout_s * SECOND_NS)
    targets = Targets(guest, to, None if vector is None else [vector])
    look_ns = inf if guest.load.is_steady else 0.0  # when the load may have become 0
    bells: list[Callable[..., None]] = []
    waited = yield from targets.wait()
    if rate_hz is not None:
        mean_ns = SECOND_NS / rate_hz
        due = due_times(guest, mean_ns, clock() if waited else begin_ns(guest))
        due_ns = next(due, 0)
    try:
        while True:
            if targets.generation != guest.generation or not bells:
                yield from targets.wait()
                # Every peer's first vector, then every peer's second one.
                turns = sorted((pair for row in targets.rows for pair in row), key=itemgetter(1))
                bells = [guest.bell(*pair) for pair in turns]
            for bell in bells:
                if rate_hz is None:
                    if look_ns < inf and clock() >= look_ns:
                        look_ns = yield from rest(guest)
                    bell()
                else:
                    yield from wait_until(guest, due_ns or inf)
                    bell(due_ns)
                    due_ns = next(due, 0)
                yield clock() + timeout_ns
    finally:
        if rate_hz is not None:
            miss(guest, due_ns, mean_ns)


def echo(guest: Guest, *, to: Peers = OTHERS) -> Program:
    """Answer each interrupt by one doorbell to each peer in ``to``, on the vector that was raised.

    An interrupt does not carry the ID of the peer that rang: ``to`` names the peers to answer.
    """
    answers: dict[int, list[Callable[..., None]]] = {}  # by vector
    generation = guest.generation
    while True:
        interrupt = yield FOREVER
        if interrupt is None:
            continue
        if generation != guest.generation:
            answers, generation = {}, guest.generation
        bells = answers.get(interrupt.vector)
        if bells is None:
            answers[interrupt.vector] = bells = [guest.bell(peer, interrupt.vector) for peer in to]
        for bell in bells:
            bell()
