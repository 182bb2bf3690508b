"""Who is told which IDs machines have: those whose programs work with them."""

from __future__ import annotations

import itertools

from sim.coordination.machines import Crew
from sim.engines.process import control
from sim.engines.process.handle import Hand

__all__ = ["introduce", "make_known"]

KNOWN_AT_ONCE = 4096


def introduce(crew: Crew, hand: Hand, *, anew: bool) -> None:
    """Tell a machine which IDs those have that it works with."""
    ids: dict[int, int] = {}
    alone = len(crew.topology.domains) == 1
    for machine in sorted({each for machines in _named(hand) for each in machines}):
        other = crew.current[machine]
        if alone:
            if other.peers[0] is not None:
                ids[machine] = other.peers[0]
            continue
        domain = _first_shared(hand, other)
        peer = next((other.peers[place] for place, row in enumerate(other.rows) if row.domain == domain), None)
        if peer is not None:
            ids[machine] = peer
    pairs = iter(ids.items())
    if anew:
        hand.tell(control.Known({}, anew=True))
    while chunk := dict(itertools.islice(pairs, KNOWN_AT_ONCE)):
        hand.tell(control.Known(chunk))


def make_known(crew: Crew, hand: Hand, place: int) -> None:
    """Tell those who work with a machine which ID it has now."""
    domain, peer = hand.rows[place].domain, hand.peers[place]
    assert peer is not None
    for other in crew.current:
        if other.ready and _first_shared(other, hand) == domain and _names(other, hand.machine.index):
            other.tell(control.Known({hand.machine.index: peer}))


def _named(hand: Hand) -> list[tuple[int, ...]]:
    """The machines that a hand's program works with."""
    return [*hand.plan.peers.values(), *(machines for machines, _ in hand.plan.traces.values())]


def _names(hand: Hand, machine: int) -> bool:
    return any(machine in machines for machines in _named(hand))


def _first_shared(hand: Hand, other: Hand) -> int | None:
    """The first domain of ``hand`` that ``other`` is in, too."""
    theirs = {row.domain for row in other.rows}
    return next((row.domain for row in hand.rows if row.domain in theirs), None)
