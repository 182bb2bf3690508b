"""Programs that use the State of ivshmem v2."""

from __future__ import annotations

from nodes.guest import FOREVER, Guest, Program

MILLISECOND_NS = 1_000_000


def states(guest: Guest, *, period_ms: float = 0.0, last: int = 3) -> Program:
    """Count through States, and count the changes of the others.

    Every ``period_ms`` the machine writes its next State: 1 to ``last``, then 1 again; 0: it writes 1 once. Each
    interrupt makes it read the State Table. Its statistics: ``writes``, ``interrupts``, ``changes`` seen in the table,
    and ``zeros``: how often another's State became 0.

    Args:
        period_ms: the time between two writes, in milliseconds.
        last: the greatest State.
    """
    statistics = guest.statistics
    statistics.update(writes=0, interrupts=0, changes=0, zeros=0)
    sections = guest.sections
    others = [peer for peer in range(sections.layout.max_peers) if peer != guest.peer]
    known = {peer: sections.state(peer) for peer in others}
    state = 1
    guest.set_state(state)
    statistics["writes"] += 1
    period_ns = round(period_ms * MILLISECOND_NS)
    due_ns = guest.clock() + period_ns if period_ns else FOREVER
    while True:
        interrupt = yield due_ns
        if interrupt is not None:
            statistics["interrupts"] += 1
            for peer in others:
                now = sections.state(peer)
                if now != known[peer]:
                    known[peer] = now
                    statistics["changes"] += 1
                    statistics["zeros"] += not now
        if due_ns is not None and guest.clock() >= due_ns:
            state = state % last + 1
            guest.set_state(state)
            statistics["writes"] += 1
            due_ns += period_ns
