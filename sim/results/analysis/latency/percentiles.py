"""Exact nearest-rank percentiles of a stream that is read twice, in memory that does not grow with its length. Pure.

The first pass counts the bins of ``histogram``. That gives for each percentile the bin that holds it, and its rank in
that bin. The second pass collects the values of those bins only, as counts of distinct values, and the rank picks one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from sim.results.analysis.latency.histogram import BINS, bins_of, lower_edges, upper_edges
from sim.results.analysis.latency.latencies import QUANTILES, place_of
from sim.results.arrays import Integers, sums_at

Figures = dict[str, int | None]

DENSE = 1 << 20
"""Up to so many cells a table of all is quicker than a sort of those that occur."""
PENDING = 1 << 21
OFFSET_BITS = 40
HALF = 1 << (OFFSET_BITS - 1)


class SparseCounts:
    """How often each cell occurs, added batch by batch; cells are 0 .. ``size`` - 1."""

    def __init__(self, size: int) -> None:
        self._dense = np.zeros(size, np.int64) if size <= DENSE else None
        self._parts: list[tuple[Integers, Integers]] = []
        self._pending = 0

    def add(self, cells: Integers) -> None:
        if self._dense is not None:
            self._dense += np.bincount(cells, minlength=len(self._dense))
            return
        keys, counts = np.unique(cells, return_counts=True)
        self._parts.append((keys, counts))
        self._pending += len(keys)
        if self._pending > PENDING:
            self._parts = [self._merged()]
            self._pending = 0

    def occurring(self) -> tuple[Integers, Integers]:
        """The cells that occur, in order, and how often each does."""
        if self._dense is not None:
            there = np.flatnonzero(self._dense)
            return there, self._dense[there]
        return self._merged()

    def _merged(self) -> tuple[Integers, Integers]:
        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        keys, place = np.unique(np.concatenate([part for part, _ in self._parts]), return_inverse=True)
        return keys, sums_at(place, np.concatenate([part for _, part in self._parts]), len(keys))


class Ranks:
    """The percentiles of groups 0 .. ``groups`` - 1: :meth:`count` every batch, then :meth:`collect` them all again."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._cells = SparseCounts(groups * BINS)
        self._negative = False
        self._sums = np.zeros(groups)
        self._places: list[dict[str, tuple[int, int]]] = []
        self._needed: Integers | None = None
        self._place_of: Integers | None = None  # the place in ``needed`` of each cell, -1 of the others
        self._collected = SparseCounts(1 << 62)
        self.sizes: Integers = np.zeros(groups, np.int64)

    def count(self, groups: Integers, bins: Integers, values: Integers) -> None:
        """First pass: a batch of values, their bins, and the group of each."""
        self._cells.add(groups * BINS + bins)
        self._negative |= bool(len(values)) and int(values.min()) < 0
        self._sums += np.bincount(groups, weights=values, minlength=self._groups)

    def collect(self, groups: Integers, bins: Integers, values: Integers) -> None:
        """Second pass: the same batches."""
        needed = self._plan()
        if not len(needed):
            return
        cells = groups * BINS + bins
        if self._place_of is None and self._groups * BINS <= DENSE:
            self._place_of = np.full(self._groups * BINS, -1, np.int64)
            self._place_of[needed] = np.arange(len(needed))
        if self._place_of is not None:
            place = self._place_of[cells]
            hit = place >= 0
        else:
            place = np.minimum(np.searchsorted(needed, cells), len(needed) - 1)
            hit = needed[place] == cells
        if hit.any():
            self._collected.add(place[hit] << OFFSET_BITS | self._offsets(bins[hit], values[hit]))

    def figures(self) -> list[Figures]:
        """For each group, as ``latency.percentiles``: by name, None for too few values; and ``samples``."""
        needed = self._plan()
        codes, counts = self._collected.occurring()
        cumulated, starts = np.cumsum(counts), np.searchsorted(codes, np.arange(len(needed) + 1) << OFFSET_BITS)
        found: list[Figures] = []
        for group in range(self._groups):
            figures: Figures = {name: None for name, _ in QUANTILES}
            for name, (cell, rank) in self._places[group].items():
                bin_ = np.array([cell % BINS])
                low, place = int(lower_edges(bin_)[0]), int(np.searchsorted(needed, cell))
                if place < len(needed) and needed[place] == cell:
                    before = int(cumulated[starts[place] - 1]) if starts[place] else 0
                    code = int(codes[np.searchsorted(cumulated, before + rank, side="right")])
                    offset = code & (1 << OFFSET_BITS) - 1
                    low += (offset - HALF) if cell % BINS == 0 else offset << int(_shift(bin_)[0])
                figures[name] = low
            found.append(figures | {"samples": int(self.sizes[group])})
        return found

    def means(self) -> list[float | None]:
        """The mean of each group; None without a value."""
        return [
            float(total) / size if size else None for total, size in zip(self._sums, self.sizes.tolist(), strict=True)
        ]

    def _plan(self) -> Integers:
        """The cells whose values are to be collected, in order."""
        if self._needed is not None:
            return self._needed
        cells, counts = self._cells.occurring()
        ends = np.searchsorted(cells, np.arange(self._groups + 1) * BINS)
        cumulated = np.concatenate(([0], np.cumsum(counts)))
        needed: set[int] = set()
        for group in range(self._groups):
            first, end = int(ends[group]), int(ends[group + 1])
            size = int(cumulated[end] - cumulated[first])
            self.sizes[group] = size
            places = {}
            for name, share in QUANTILES:
                rank = place_of(size, name, share)
                if rank is None:
                    continue
                at = int(np.searchsorted(cumulated[first + 1 : end + 1], cumulated[first] + rank, side="right"))
                cell = int(cells[first + at])
                places[name] = (cell, rank - int(cumulated[first + at] - cumulated[first]))
                bin_ = np.array([cell % BINS])
                if int(upper_edges(bin_)[0]) > int(lower_edges(bin_)[0]) or (self._negative and cell % BINS == 0):
                    needed.add(cell)
            self._places.append(places)
        self._needed = np.array(sorted(needed), np.int64)
        return self._needed

    @staticmethod
    def _offsets(bins: Integers, values: Integers) -> Integers:
        """The place of each value in its bin; beyond 2^47 the lowest bits do not fit and are dropped."""
        # Beyond 2^53 a value may be just below the bin that its double is in.
        offsets = np.maximum(values - lower_edges(bins), 0) >> _shift(bins)
        return np.where(bins == 0, np.clip(values + HALF, 0, (1 << OFFSET_BITS) - 1), offsets)


def _shift(bins: Integers) -> Integers:
    """The bits of an offset into each bin that do not fit into a code."""
    widths = upper_edges(bins) - lower_edges(bins)
    shift: Integers = np.maximum(np.frexp(widths.astype(np.float64))[1].astype(np.int64) - OFFSET_BITS, 0)
    return shift


def ranked(read: Callable[[], Iterable[tuple[Integers, Integers]]], groups: int = 1) -> Ranks:
    """The ranks of a stream of (group of each value, values), which ``read`` gives as often as it is asked."""
    ranks = Ranks(groups)
    for codes, values, bins in _binned(read()):
        ranks.count(codes, bins, values)
    for codes, values, bins in _binned(read()):
        ranks.collect(codes, bins, values)
    return ranks


def _binned(batches: Iterable[tuple[Integers, Integers]]) -> Iterator[tuple[Integers, Integers, Integers]]:
    for codes, values in batches:
        yield codes, values, bins_of(values)
