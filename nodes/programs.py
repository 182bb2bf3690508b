"""The guest programs that are shipped: generator functions, each a page at most.

A topology names one by its name here, or any other as ``package.module:function``. Keyword parameters become
the keys of ``parameters`` in the topology; their annotations are checked there.
"""

from __future__ import annotations

from typing import Literal

from nodes.guest import FOREVER, NOW, OTHERS, Guest, Peers, Program

__all__ = ["echo", "idle", "ping", "poll", "storm"]

SECOND_NS = 1_000_000_000


def idle(guest: Guest) -> Program:
    """Take every interrupt and do nothing."""
    while True:
        yield FOREVER


def ping(
    guest: Guest,
    *,
    to: Peers = OTHERS,
    vector: int | None = None,
    rate_hz: float | None = None,
    timeout_s: float = 1.0,
) -> Program:
    """Ring one peer, wait for its answer, ring the next.

    Without ``vector`` all vectors take turns. With ``rate_hz`` a ping is due that often, whether or not the one
    before it was answered in time (an open loop); without it, the next follows the answer at once. A ping that
    is not answered within ``timeout_s`` is given up.
    """
    turns = [(peer, v) for v in range(guest.vectors) if vector in (None, v) for peer in to]
    due_ns = guest.clock()
    timeout_ns = round(timeout_s * SECOND_NS)
    while turns:
        for peer, v in turns:
            if rate_hz is None:
                guest.ring(peer, v)
            else:
                due_ns += round(SECOND_NS / rate_hz)
                while guest.clock() < due_ns:
                    yield due_ns
                guest.ring(peer, v, due_ns)
            yield guest.clock() + timeout_ns


def echo(guest: Guest, *, to: Peers = OTHERS) -> Program:
    """Ring back whoever may have rung, on the vector that was rung: one doorbell for each interrupt.

    An interrupt does not say who rang, so ``to`` does; every one of them is rung.
    """
    while True:
        interrupt = yield FOREVER
        if interrupt is not None:
            for peer in to:
                guest.ring(peer, interrupt.vector)


def storm(
    guest: Guest,
    *,
    to: Peers = OTHERS,
    rate_hz: float | None = None,
    burst: int = 64,
    arrivals: Literal["regular", "poisson"] = "regular",
) -> Program:
    """Ring every vector of every peer, again and again, in an order drawn once from the seed.

    Without ``rate_hz``: as fast as it goes, ``burst`` doorbells between two looks at the own interrupts. With
    it: an open loop, so many doorbells a second, each due at its own time however late the one before it was.
    """
    vectors = guest.peers
    pairs = [(peer, vector) for peer in to for vector in range(vectors.get(peer, 0))]
    pairs = guest.random.sample(pairs, len(pairs))
    if not pairs:
        while True:
            yield FOREVER
    if rate_hz is None:
        # Whole rounds, cut to bursts of equal size, so that every edge is rung equally often.
        rounds = pairs * max(1, burst // len(pairs))
        bursts = [guest.burst(rounds[at : at + burst]) for at in range(0, len(rounds), burst)]
        while True:
            for batch in bursts:
                batch.ring()
                while (yield NOW) is not None:
                    pass
    due_ns = float(guest.clock())
    mean_ns = SECOND_NS / rate_hz
    while True:
        for peer, vector in pairs:
            due_ns += mean_ns * guest.random.expovariate(1.0) if arrivals == "poisson" else mean_ns
            while guest.clock() < due_ns:
                yield int(due_ns)
            guest.ring(peer, vector, int(due_ns))


def poll(guest: Guest, *, to: Peers = OTHERS, offset: int = 0, interval_s: float = 0.0) -> Program:
    """Watch a 64-bit word of the shared memory instead of waiting for interrupts; answer a change by a doorbell.

    With ``interval_s`` it looks that often, without it always: a core is then this machine's alone.
    """
    word = guest.memory[offset : offset + 8].cast("Q")
    seen = word[0]
    while True:
        if word[0] != seen:
            seen = word[0]
            for peer in to:
                guest.ring(peer)
        yield guest.clock() + round(interval_s * SECOND_NS) if interval_s else NOW
