"""Exact accounts: rung = delivered + pending + refused, on every line, by group and in sum. Pure.

A line is one eventfd: a vector of a machine, or of a peer that is no machine of the topology (foreign). What
machines rang on it (their edges), what arrived (the target's vectors) and what lies in its counter (the
coordinator reads it at the end) are counted in different processes, and in a clean run they agree exactly.

A machine that was killed may not have stored its last counts, a foreign peer stores none, and a coordinator that died
has not read the counters. Then the difference is settled: it is added to the only account that can have lost it, and
counted as a correction. A difference that no death explains stays, and the run has failed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

COUNTED = ("rung", "delivered", "interrupts", "refused", "pending", "settled")
"""The counts of a line (a vector of a machine)."""


@dataclass
class LineAccount:
    """One eventfd's account. ``machine`` is -1 for a foreign peer, whose ID is ``peer``.

    ``settled`` counts the doorbells by which ``delivered`` or ``rung`` was corrected; ``missing`` is the
    difference that nothing explains: delivered + pending + refused - rung.
    """

    machine: int
    peer: int
    vector: int
    rung: int = 0
    refused: int = 0
    delivered: int = 0
    interrupts: int = 0
    pending: int = 0
    settled: int = 0
    missing: int = 0
    senders: set[int] = field(default_factory=set)


def balance(lines: Sequence[LineAccount], *, dead: Collection[int], foreign: bool, pending_known: bool) -> None:
    """Settle every line in place.

    ``dead`` are machines whose last counts may be missing; ``foreign``: a process without a recording took part and may
    have rung any machine; without ``pending_known`` the pending is what is left over.
    """
    for line in lines:
        on_its_way = line.rung - line.refused - line.delivered
        if not pending_known:
            line.pending = max(0, on_its_way)
        difference = line.pending - on_its_way
        dead_sender = any(sender in dead for sender in line.senders)
        if difference < 0 and (line.machine < 0 or line.machine in dead):
            line.delivered -= difference
            line.settled = -difference
        elif (difference > 0 and (dead_sender or foreign)) or (difference < 0 and dead_sender):
            line.rung += difference
            line.settled = abs(difference)
        else:
            line.missing = difference


def totals(lines: Sequence[LineAccount]) -> dict[str, int]:
    """The sums over ``lines`` of everything that adds up."""
    return {name: sum(getattr(line, name) for line in lines) for name in COUNTED}
