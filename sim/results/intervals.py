"""How sure a percentile is: 95 % confidence intervals by a bootstrap of slices of time. Pure, seeded.

Samples that follow one another are not independent: one stall holds up many, and one drain delivers several.
So not samples are drawn but slices of the run (a block bootstrap: Künsch 1989, The jackknife and the bootstrap
for general stationary observations; Efron and Tibshirani 1993, chapters 8 and 13): its time is cut into 32 equal
slices, each becomes a histogram (``sim.results.histogram``), 400 times as many slices are drawn with
replacement, merged, and read. The cost is one pass over the samples and 400 sums of histograms, however many
samples there are; ends are those of the bins, so an interval is at most 1 % too wide.

A bootstrap cannot see beyond the largest sample. Where so few samples say nothing about how much higher a
percentile may be, that end is None: with n samples all below the quantile q with a chance q^n above 2.5 %
(order statistics: Hahn and Meeker 1991, Statistical Intervals, chapter 5). p99 takes 368 samples to be bounded
from above, p99_9 3,688, p99_99 36,887.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.results.histogram import BINS, counted, lower_edges, upper_edges
from sim.results.latency import QUANTILES, WHOLE, place_of

__all__ = ["SLICES", "Interval", "Slices", "intervals", "replicates", "slice_of", "sliced"]

Integers = npt.NDArray[np.int64]
Interval = tuple[int | None, int | None]

SLICES = 32
RESAMPLES = 400
TAIL = 0.025
"""What is left out at either end: the intervals are of 95 %."""
SEED = 1989


@dataclass(frozen=True)
class Slices:
    """A histogram of each slice: ``counts[slice, place]`` of the bins ``bins[place]``, those that are not empty."""

    bins: Integers
    counts: Integers

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    @classmethod
    def merged(cls, parts: Sequence[Slices]) -> Slices:
        """All of them together; they must be cut at the same times."""
        bins = np.unique(np.concatenate([np.zeros(0, np.int64), *(its.bins for its in parts)]))
        counts = np.zeros((SLICES, len(bins)), np.int64)
        for its in parts:
            counts[:, np.searchsorted(bins, its.bins)] += its.counts
        return cls(bins, counts)


def slice_of(times_ns: Integers) -> Integers:
    """Which of ``SLICES`` equal slices, from the first of these moments to the last, each one is in."""
    if len(times_ns) == 0:
        return np.zeros(0, np.int64)
    first, last = int(times_ns.min()), int(times_ns.max())
    # A quotient of doubles may round up to the end: the last moment belongs to the last slice.
    places = ((times_ns - first) * (SLICES / (last - first + 1))).astype(np.int64)
    return np.minimum(places, SLICES - 1, out=places)


def sliced(bins: Integers, cells: Integers, groups: int = 1) -> list[Slices]:
    """The samples of each group by slice and bin; their cell is group * ``SLICES`` + slice."""
    there, counts = counted(cells, bins, groups * SLICES)
    ends = np.searchsorted(there, np.arange(groups + 1) * (SLICES * BINS))
    found = []
    for code in range(groups):
        mine = slice(int(ends[code]), int(ends[code + 1]))
        rest = there[mine] - code * (SLICES * BINS)
        filled, column = np.unique(rest % BINS, return_inverse=True)
        table = np.zeros((SLICES, len(filled)), np.int64)
        table[rest // BINS, column] = counts[mine]
        found.append(Slices(filled, table))
    return found


def replicates(its: Slices, seed: int = SEED) -> dict[str, Integers]:
    """Each percentile of each resample, as the place of its bin in ``its.bins``; too few samples: not there."""
    size = its.samples
    wanted = [(name, rank) for name, rank in QUANTILES if name != "max" and place_of(size, name, rank) is not None]
    filled = its.counts[its.counts.any(axis=1)]
    if not wanted:
        return {}
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(filled), np.full(len(filled), 1 / len(filled)), RESAMPLES)
    # Doubles, because their product is fast; below 2^53 they are exact.
    cumulated = np.cumsum(weights.astype(np.float64) @ filled.astype(np.float64), axis=1)
    totals = cumulated[:, -1]
    found = {}
    for name, rank in wanted:
        places = np.ceil(totals * rank / WHOLE)
        found[name] = np.argmax(cumulated >= np.maximum(places, 1)[:, None], axis=1)
    return found


def intervals(its: Slices, figures: dict[str, int | None], seed: int = SEED) -> dict[str, Interval]:
    """The interval of each percentile in ``figures`` that is not None, p50 to p99_99; it holds the percentile."""
    found: dict[str, Interval] = {}
    size = its.samples
    drawn = replicates(its, seed)
    for name, rank in QUANTILES:
        value = figures.get(name)
        if value is None or name not in drawn:
            continue
        low, high = np.quantile(drawn[name], (TAIL, 1 - TAIL), method="closest_observation")
        edges = its.bins[[int(low), int(high)]]
        bottom, top = int(lower_edges(edges)[0]), int(upper_edges(edges)[1])
        found[name] = (min(bottom, value), max(top, value) if bounded_above(size, rank) else None)
    return found


def bounded_above(size: int, rank: int) -> bool:
    """Whether so many samples say anything about how much higher the percentile may be."""
    return size * math.log(rank / WHOLE) <= math.log(TAIL)
