"""Sends each machine the IDs of the machines that its program works with."""

from __future__ import annotations

import itertools

from sim.coordination.incarnation import Incarnation, named_machines
from sim.coordination.machines import LiveMachines
from sim.engines.messages import PeerIds

KNOWN_AT_ONCE = 4096


def send_peer_ids(machines: LiveMachines, incarnation: Incarnation, *, anew: bool) -> None:
    """Tell a machine the IDs of the machines that it works with."""
    ids: dict[int, int] = {}
    alone = len(machines.topology.domains) == 1
    for machine in sorted(named_machines(incarnation.machine)):
        other = machines.current[machine]
        if alone:
            if other.peers[0] is not None:
                ids[machine] = other.peers[0]
            continue
        domain = _first_shared(incarnation, other)
        peer = next((other.peers[place] for place, row in enumerate(other.rows) if row.domain == domain), None)
        if peer is not None:
            ids[machine] = peer
    pairs = iter(ids.items())
    if anew:
        incarnation.live.tell(PeerIds({}, anew=True))
    while chunk := dict(itertools.islice(pairs, KNOWN_AT_ONCE)):
        incarnation.live.tell(PeerIds(chunk))
    peers = iter(machines.foreign[incarnation.rows[0].domain] if incarnation.machine.foreign else ())
    while there := dict.fromkeys(itertools.islice(peers, KNOWN_AT_ONCE), True):
        incarnation.live.tell(PeerIds({}, foreign=there))


def announce_new_id(machines: LiveMachines, incarnation: Incarnation, place: int) -> None:
    """Tell a machine's new ID to the machines that work with it."""
    domain, peer = incarnation.rows[place].domain, incarnation.peers[place]
    assert peer is not None
    index = incarnation.machine.index
    for machine in machines.naming(index):
        other = machines.current[machine]
        if other.ready and _first_shared(other, incarnation) == domain:
            other.live.tell(PeerIds({index: peer}))


def announce_foreign_peer(machines: LiveMachines, domain: int, peer: int, *, is_there: bool) -> None:
    """A foreign peer has joined a domain, or left it: tell the machines that work with such peers."""
    foreign = machines.foreign[domain]
    if is_there:
        foreign[peer] = None
    elif peer in foreign:
        del foreign[peer]
    else:
        return  # it was a machine
    for each in machines.current:
        if each.machine.foreign and each.ready and each.rows[0].domain == domain:
            each.live.tell(PeerIds({}, foreign={peer: is_there}))


def _first_shared(incarnation: Incarnation, other: Incarnation) -> int | None:
    """The first domain of ``incarnation`` that ``other`` is in, too."""
    theirs = {row.domain for row in other.rows}
    return next((row.domain for row in incarnation.rows if row.domain in theirs), None)
