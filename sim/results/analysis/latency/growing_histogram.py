"""A histogram that grows batch by batch and keeps its extremes, and its curves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sim.results.analysis.latency.histogram import BINS, bins_of, lower_edges, upper_edges

__all__ = ["GrowingHistogram", "middles"]

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def middles(bins: Integers) -> Floats:
    """The values that stand for bins."""
    low, high = lower_edges(bins), upper_edges(bins)
    return low + (high - low) / 2


class GrowingHistogram:
    """Counts of values, to 0.4 %, with exact extremes. Memory does not grow with the number of values."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.size = 0
        self.min = 0
        self.max = 0

    def add(self, values: Integers) -> None:
        if not len(values):
            return
        low, high = int(values.min()), int(values.max())
        self.min, self.max = (min(self.min, low), max(self.max, high)) if self.size else (low, high)
        self.counts += np.bincount(bins_of(values), minlength=BINS)
        self.size += len(values)

    def quantiles(self, shares: Floats) -> Floats:
        """The values that these shares (0 to 1) of all values do not exceed. There must be a value."""
        ranks = np.clip(np.ceil(shares * self.size), 1, self.size)
        at = np.searchsorted(np.cumsum(self.counts), ranks, side="left")
        return np.where(ranks == self.size, self.max, np.clip(middles(at), self.min, self.max))

    def shares(self) -> tuple[Floats, Floats]:
        """The values that occur, and the share of all that does not exceed each."""
        there = np.flatnonzero(self.counts)
        return np.clip(middles(there), self.min, self.max), np.cumsum(self.counts[there]) / max(1, self.size)
