"""Patterns of peers instead of a list: ``to = { ring = "storm" }``.

A pattern orders the machines that it names. A machine that is one of them has a place in the pattern. Another machine
can be paired with it, by the place in its own group, or draw from it at random; a ring and a star are only for machines
in the pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from msgspec import Struct

from topologies.model import Machines

DEGREE = "degree"


class Pattern(Struct, frozen=True):
    """One kind of pattern: ``peers(place, size)`` are the places that the machine at ``place`` rings."""

    meaning: str
    peers: Callable[[int, int], Sequence[int]]
    for_others: bool


def _ring(place: int, size: int) -> Sequence[int]:
    return ((place + 1) % size,) if size > 1 else ()


def _pairs(place: int, size: int) -> Sequence[int]:
    return (place ^ 1,) if place ^ 1 < size else ()


def _star(place: int, size: int) -> Sequence[int]:
    return (0,) if place else range(1, size)


PATTERNS: dict[str, Pattern | None] = {
    "all": None,
    "ring": Pattern("Each rings the next, the last one the first.", _ring, for_others=False),
    "pairs": Pattern("0 and 1 ring each other, 2 and 3, and so on; an odd last one has none.", _pairs, for_others=True),
    "star": Pattern("The first is the hub: it rings all, all ring it.", _star, for_others=False),
    "random": None,
}
"""By the key in a topology. ``all`` is the same as the plain name, ``random`` draws."""


MachineChoice = Callable[[int], Machines]
"""The machines that a value names, for a machine that has the value."""


def apply_pattern(
    pattern: Pattern, machines: Machines, members: Sequence[tuple[int, int]]
) -> dict[int, Machines] | None:
    """The peers of ``members``, each an (index, place in its group); None when one has no place in the pattern."""
    places = dict(zip(machines, count()))
    peers = {}
    for index, own_place in members:
        place = places.get(index)
        if place is not None:
            peers[index] = Machines(machines[at] for at in pattern.peers(place, len(machines)))
        elif pattern.for_others:
            peers[index] = Machines(machines[own_place : own_place + 1])
        else:
            return None
    return peers


def draw(machines: Machines, members: Sequence[tuple[int, int]], degree: int, seed: str) -> dict[int, Machines] | None:
    """``degree`` different machines for each member, never itself; None when there are too few.

    The draws are bytes of a hash, so that the same seed gives the same peers with any Python.
    """
    places = dict(zip(machines, count()))
    import hashlib  # loads OpenSSL, which only random patterns need

    peers = {}
    for index, _ in members:
        own = places.get(index)
        size = len(machines) - (own is not None)
        if degree > size:
            return None
        data = hashlib.shake_128(f"{seed}/{index}".encode()).digest(8 * degree)
        chosen: dict[int, None] = {}
        # Floyd's algorithm draws without replacement.
        for at, last in enumerate(range(size - degree, size)):
            place = int.from_bytes(data[8 * at : 8 * at + 8], "little") % (last + 1)
            chosen[last if place in chosen else place] = None
        peers[index] = Machines(machines[at + (own is not None and at >= own)] for at in chosen)
    return peers
