"""From a schedule that breaks an invariant to the shortest one that still breaks it: delta debugging.

The algorithm is ddmin: A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE Transactions
on Software Engineering 28(2), 2002.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.engines.virtual.chaos import Decision
from sim.explore.outcome import Outcome
from sim.explore.seed import run_seed
from topologies import Topology

RUNS_MAX = 2000
SHRINK_BALANCE_EVERY = 16
"""Closer than when exploring: the shortest run may end before the next comparison."""


def shrink(topology: Topology, outcome: Outcome, *, runs_max: int = RUNS_MAX) -> Outcome:
    """The outcome of the shortest schedule found that breaks the same invariant as ``outcome`` does.

    No decision of it can be left out, unless ``runs_max`` runs were not enough to show that.
    """
    assert outcome.broken is not None
    invariant = outcome.broken.invariant
    best, runs = outcome, 0

    def breaks(schedule: Sequence[Decision]) -> bool:
        nonlocal best, runs
        runs += 1
        found = run_seed(topology, outcome.seed, schedule, balance_every=SHRINK_BALANCE_EVERY)
        if found.broken is None or found.broken.invariant != invariant:
            return False
        best = found
        return True

    left: list[Decision] = list(outcome.decisions)
    if not left or breaks([]):
        return best
    parts = 2
    while runs < runs_max:
        size = max(1, len(left) // parts)
        for at in range(0, len(left), size):
            shorter = left[:at] + left[at + size :]
            if runs < runs_max and breaks(shorter):
                left, parts = shorter, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(left))
    return best
