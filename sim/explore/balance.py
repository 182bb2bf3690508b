"""The counts of every line of a run, compared: rung = delivered + pending + refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sim.coordination.machines import LiveMachines
from sim.recording import header
from sim.recording.reader import vectors_so_far

__all__ = ["unbalanced_line"]

PEER_BITS = VECTOR_BITS = 16
LOW = (1 << VECTOR_BITS) - 1


def unbalanced_line(machines: LiveMachines, held: Callable[[int, int, int], int | None]) -> str:
    """The first line whose counts differ, in words; empty when there is none.

    ``held(domain, peer, vector)`` is what the counter of a line holds; None: it cannot be told now.
    """
    rung, reached = _rung(machines), _delivered(machines)
    unknown: set[tuple[int, int]] = set()
    for incarnation in machines.incarnations:
        for row, domain, peer in incarnation.identities:
            if (last := machines.row_of[domain, peer]) != row:  # an ID that is reused: all is counted at the last row
                for vector in range(incarnation.machine.vectors):
                    reached[last, vector] += reached.pop((row, vector), 0)
                continue
            for vector in range(incarnation.machine.vectors):
                if (value := held(domain, peer, vector)) is None:
                    unknown.add((row, vector))
                else:
                    reached[row, vector] += value
    for line in rung | reached:
        if line not in unknown and rung[line] != reached[line]:
            name = next(
                row.name for incarnation in machines.incarnations for row in incarnation.rows if row.row == line[0]
            )
            return f"{rung[line]} doorbells were rung at {name}:{line[1]}, and {reached[line]} were delivered or wait"
    return ""


def _rung(machines: LiveMachines) -> Counter[tuple[int, int]]:
    """How many doorbells were rung at each (row, vector), without those that were refused."""
    rung: Counter[tuple[int, int]] = Counter()
    row_of = machines.row_of
    for incarnation in machines.incarnations:
        for recording in incarnation.recordings:
            words, at = recording.words, recording.layout.edges_at
            for edge in range(at, at + 3 * words[header.EDGES_USED], 3):
                key = words[edge]
                row = row_of.get((key >> VECTOR_BITS + PEER_BITS, key >> VECTOR_BITS & LOW))
                if row is not None:
                    rung[row, key & LOW] += words[edge + 1] - words[edge + 2]
    return rung


def _delivered(machines: LiveMachines) -> Counter[tuple[int, int]]:
    """How many doorbells were delivered at each (row, vector)."""
    delivered: Counter[tuple[int, int]] = Counter()
    for incarnation in machines.incarnations:
        for row, recording in zip(incarnation.rows, incarnation.recordings, strict=True):
            for vector, count in enumerate(vectors_so_far(recording)[:, 0].tolist()):
                delivered[row.row, vector] = count
    return delivered
