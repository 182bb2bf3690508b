"""Counts of whole numbers in bins of a fixed relative width: small, exact in its counts, and mergeable. Pure.

Log-linear, as HdrHistogram (hdrhistogram.org) has it: numbers below 128 have a bin each, above that every
power of two is cut into 128 bins, so that a bin is never wider than 1/128 of what it holds. A figure read from
it, the middle of a bin, is off by 0.4 % at the most; counts are exact, and merging adds them, in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sim.results.analysis.latency.latencies import QUANTILES, place_of
from sim.results.arrays import Floats, Integers, sums_at

BITS = 7
LINEAR = 1 << BITS
BINS = (63 - BITS + 1) * LINEAR
"""As many bins as 63 bits need."""
RELATIVE_ERROR = 1 / (2 * LINEAR)
"""The most by which the middle of a bin is off, as a share of what was counted in it."""

MANTISSA_BITS, BIAS = 52, 1023  # of an IEEE 754 double
# Intermediate columns are made in pieces of this many values, which stay in the cache.
CHUNK = 1 << 15


def bins_of(values: Integers) -> Integers:
    """The bin of each value; what is below 0 counts as 0.

    A double's exponent and the first bits of its mantissa are the number of its bin, but for an offset. Beyond
    2^53 a value may be rounded up into the next bin, whose edge it is then as near to as a double can tell.
    """
    places = np.empty(len(values), np.int64)
    for at in range(0, len(values), CHUNK):
        its = values[at : at + CHUNK]
        lowest, highest = int(its.min()), int(its.max())
        if lowest < 0:
            its = np.maximum(its, 0)
        as_words = places[at : at + CHUNK]
        as_words[:] = its.astype(np.float64).view(np.int64)
        as_words >>= MANTISSA_BITS - BITS
        as_words -= ((BIAS + BITS) << BITS) - LINEAR
        if highest >> MANTISSA_BITS:
            np.minimum(as_words, BINS - 1, out=as_words)
        if lowest < LINEAR:
            np.copyto(as_words, its, where=its < LINEAR)
    return places


def lower_edges(bins: Integers) -> Integers:
    """The smallest value of each bin."""
    shift = np.maximum((bins >> BITS) - 1, 0)
    edges: Integers = np.where(bins < LINEAR, bins, ((bins & (LINEAR - 1)) | LINEAR) << shift)
    return edges


def upper_edges(bins: Integers) -> Integers:
    """The largest value of each bin."""
    width: Integers = 1 << np.maximum((bins >> BITS) - 1, 0)
    return lower_edges(bins) + width - 1


def middles(bins: Integers) -> Floats:
    """The values that stand for bins."""
    low, high = lower_edges(bins), upper_edges(bins)
    return low + (high - low) / 2


@dataclass(frozen=True, eq=False)
class Histogram:
    """``counts`` of every bin 0 .. ``BINS`` - 1."""

    counts: Integers

    @classmethod
    def of(cls, values: Integers) -> Histogram:
        """The histogram of ``values`` (whole numbers, in nanoseconds where they are times)."""
        return cls(np.bincount(bins_of(np.asarray(values, np.int64)), minlength=BINS))

    @classmethod
    def sparse(cls, bins: Integers, counts: Integers) -> Histogram:
        """A histogram from the bins that are not empty."""
        return cls(sums_at(bins, counts, BINS))

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash(self.counts.tobytes())

    def __len__(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def __repr__(self) -> str:
        return f"<Histogram of {len(self):,} values: {self.percentiles()}>"

    def percentiles(self) -> dict[str, int | None]:
        """As ``latency.percentiles``, to within ``RELATIVE_ERROR``: all are middles of bins.

        So is ``max``, which the largest value may be below or above; of 10,000 alone it is 10,015.
        """
        size = len(self)
        cumulated = np.cumsum(self.counts)
        figures: dict[str, int | None] = {}
        for name, rank in QUANTILES:
            place = place_of(size, name, rank)
            figures[name] = None if place is None else self._middle(int(np.searchsorted(cumulated, place, "right")))
        return figures | {"samples": size}

    def quantile(self, share: float) -> int | None:
        """The value that this share of all does not exceed; None when there is none.

        Raises:
            ValueError: the share is not from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a share is from 0 to 1, not {share}")
        size = len(self)
        if size == 0:
            return None
        place = max(0, math.ceil(size * share - 1e-9) - 1)  # 0.07 * 100 is a little more than 7
        return self._middle(int(np.searchsorted(np.cumsum(self.counts), place, "right")))

    def columns(self) -> dict[str, Integers]:
        """``low``, ``high`` (both inclusive) and ``count`` of every bin that is not empty."""
        there = np.flatnonzero(self.counts)
        return {"low": lower_edges(there), "high": upper_edges(there), "count": self.counts[there]}

    def _middle(self, place: int) -> int:
        at = np.array([place])
        low, high = int(lower_edges(at)[0]), int(upper_edges(at)[0])
        return low + (high - low) // 2


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
