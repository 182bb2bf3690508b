"""Sums over the drains of a recording. Needs numpy; workers do not load it.

A worker stores no totals of what it drains: they are sums over the entries. While a run lasts, each look adds only the
entries that are new since the last one.
"""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt

from sim.recording.file import Recording
from sim.recording.layout import DRAIN_WORDS

VECTOR_BITS = 16
FEW, MANY = 32, 1 << 14
"""Entries that are added one by one, and the most that are read at once."""


class DrainTally:
    """What the drains that were looked at add up to.

    Attributes:
        delivered: the doorbells of each vector.
        interrupts: the drains of each vector.
        used: how many drains there are.
        doorbells: the sum over all vectors.
    """

    __slots__ = ("delivered", "doorbells", "interrupts", "used")

    def __init__(self, vectors: int) -> None:
        self.delivered, self.interrupts = [0] * vectors, [0] * vectors
        self.used = self.doorbells = 0

    @property
    def sums(self) -> npt.NDArray[np.int64]:
        """(vectors, 2): doorbells and drains of each vector."""
        return np.array((self.delivered, self.interrupts), np.int64).T


def add_drains(tally: DrainTally, entries: npt.NDArray[np.int64]) -> None:
    """Add entries, (n, 3) int64. Those of a vector that the device does not have are only in ``used``."""
    vectors, counts = entries[:, 0] & (1 << VECTOR_BITS) - 1, entries[:, 0] >> VECTOR_BITS
    tally.used += len(entries)
    known = vectors < len(tally.delivered)
    if not known.all():
        vectors, counts = vectors[known], counts[known]
    drains = np.bincount(vectors)
    doorbells = np.zeros(len(drains), np.int64)
    np.add.at(doorbells, vectors, counts)
    for vector in np.flatnonzero(drains).tolist():
        delivered, interrupts = int(doorbells[vector]), int(drains[vector])
        tally.delivered[vector] += delivered
        tally.interrupts[vector] += interrupts
        tally.doorbells += delivered


_tallies: weakref.WeakKeyDictionary[Recording, DrainTally] = weakref.WeakKeyDictionary()


def tally_of(recording: Recording) -> DrainTally:
    """The sums over the drains of a recording that is still written, as they stand now."""
    tally = _tallies.get(recording)
    if tally is None:
        _tallies[recording] = tally = DrainTally(recording.layout.vectors)
    layout, words = recording.layout, recording.words
    few = min(layout.drains, tally.used + FEW)
    at = layout.drains_at + DRAIN_WORDS * tally.used
    while tally.used < few and words[at + 1]:
        key = words[at]
        count, vector = key >> VECTOR_BITS, key & (1 << VECTOR_BITS) - 1
        tally.delivered[vector] += count
        tally.interrupts[vector] += 1
        tally.doorbells += count
        tally.used += 1
        at += DRAIN_WORDS
    if tally.used == few:
        _add_many(tally, recording)
    return tally


def _add_many(tally: DrainTally, recording: Recording) -> None:
    layout = recording.layout
    stored = np.frombuffer(recording.words, np.uint64)[layout.drains_at :].reshape(-1, DRAIN_WORDS)
    many = FEW
    while tally.used < layout.drains:
        many = min(8 * many, MANY)  # few are new, mostly: a look at each of thousands of machines copies little
        entries = stored[tally.used : tally.used + many].astype(np.int64)
        there = entries[:, 1] != 0
        count = len(entries) if there.all() else int(there.argmin())
        add_drains(tally, entries[:count])
        if count < len(entries):
            return
