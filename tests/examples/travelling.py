"""Programs that migrate in the middle of what they do, and can tell whether they still are where they were."""

from __future__ import annotations

from nodes.guest import FOREVER, OTHERS, Guest, Peers, Program


def roam(guest: Guest, *, to: Peers = OTHERS, rate_hz: float = 500.0) -> Program:
    """Ring the others in turn; count interrupts in a local variable, and by vector in ``v0``, ``v1``, ..."""
    done = guest.statistics
    done["starts"] = done.get("starts", 0) + 1
    done["interrupts"] = interrupts = 0
    done.update({f"v{vector}": 0 for vector in range(guest.vectors)})
    word = guest.memory[:8].cast("Q")  # as a driver does: once
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


def hear(guest: Guest) -> Program:
    """Count interrupts, by vector in ``v0``, ``v1``, ...; ring nobody."""
    done = guest.statistics
    done.update({f"v{vector}": 0 for vector in range(guest.vectors)})
    while True:
        interrupt = yield FOREVER
        if interrupt is not None:
            done[f"v{interrupt.vector}"] += 1


def watch(guest: Guest) -> Program:
    """Look at the word that travellers count in: ``first`` is what it was when it began to move, ``last`` now."""
    word = guest.memory[:8].cast("Q")
    while not word[0]:
        yield guest.clock() + 1_000_000
    guest.statistics["first"] = word[0]
    while True:
        guest.statistics["last"] = word[0]
        yield guest.clock() + 1_000_000
