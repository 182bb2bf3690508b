"""Guest programs that the tests run: they report where they run, and whether a migration lost anything."""

from __future__ import annotations

import os

from nodes.guest import FOREVER, OTHERS, Guest, Peers, Program


def count(guest: Guest) -> Program:
    """Count how often the program started, and the interrupts it received."""
    guest.statistics["starts"] = guest.statistics.get("starts", 0) + 1
    guest.statistics.setdefault("interrupts", 0)
    while True:
        interrupt = yield FOREVER
        guest.statistics["interrupts"] += interrupt is not None


def ring_at_sight(guest: Guest) -> Program:
    """Ring each other peer once, on vector 0, as soon as it is there."""
    rung = {guest.peer}
    while True:
        for peer in guest.peers.keys() - rung:
            guest.ring(peer)
            rung.add(peer)
        yield guest.clock() + 100_000


def ring_nobody(guest: Guest, *, doorbells: int = 100) -> Program:
    """Ring an absent peer, by the fast way and by the register; ``took_ns`` is how long that took."""
    begin_ns = guest.clock()
    for _ in range(doorbells):
        guest.ring(999)
    for _ in range(doorbells):
        guest.write(0, 12, 999 << 16)
    guest.statistics["took_ns"] = guest.clock() - begin_ns
    yield FOREVER


def placement(guest: Guest) -> Program:
    """Report the CPUs, the scheduling policy and the nice value of this machine's process."""
    cpus = os.sched_getaffinity(0)
    guest.statistics.update(
        cpu=min(cpus), cpus=len(cpus), policy=os.sched_getscheduler(0), nice=os.getpriority(os.PRIO_PROCESS, 0)
    )
    yield FOREVER


def ring_in_turn(guest: Guest, *, to: Peers = OTHERS, rate_hz: float = 500.0) -> Program:
    """Ring the peers of ``to`` in turn; count interrupts in a local variable, and by vector in ``v0``, ``v1``, ...

    Each round adds 1 to the first 64-bit word of the shared memory, through a view that is made once.
    """
    done = guest.statistics
    done["starts"] = done.get("starts", 0) + 1
    done["interrupts"] = interrupts = 0
    done.update({f"v{vector}": 0 for vector in range(guest.vectors)})
    word = guest.memory[:8].cast("Q")  # made once, as a driver maps its BAR once
    due_ns, turn = guest.clock(), 0
    while True:
        due_ns += round(1e9 / rate_hz)
        while (interrupt := (yield due_ns)) is not None:
            interrupts += 1
            done["interrupts"] = interrupts
            done[f"v{interrupt.vector}"] += 1
        word[0] += 1
        if to:
            turn += 1
            guest.ring(to[turn % len(to)], turn % guest.vectors)


def count_by_vector(guest: Guest) -> Program:
    """Count interrupts by vector in ``v0``, ``v1``, ...; ring no peer."""
    done = guest.statistics
    done.update({f"v{vector}": 0 for vector in range(guest.vectors)})
    while True:
        interrupt = yield FOREVER
        if interrupt is not None:
            done[f"v{interrupt.vector}"] += 1


def watch_word(guest: Guest) -> Program:
    """Poll the word that `ring_in_turn` increments: ``first`` is its first value other than 0, ``last`` the latest."""
    word = guest.memory[:8].cast("Q")
    while not word[0]:
        yield guest.clock() + 1_000_000
    guest.statistics["first"] = word[0]
    while True:
        guest.statistics["last"] = word[0]
        yield guest.clock() + 1_000_000
