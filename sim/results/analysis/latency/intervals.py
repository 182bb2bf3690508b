"""Confidence intervals (95 %) of percentiles, by a bootstrap of slices of time. Pure, seeded.

Samples that follow one another are not independent: one stall delays many, and one drain delivers several. So slices
of time are drawn instead of samples (a block bootstrap: Künsch 1989, The jackknife and the bootstrap for general
stationary observations; Efron and Tibshirani 1993, chapters 8 and 13). The measured time of the run, or of the phase,
is cut into 32 equal slices. A sample belongs to the slice of its drain, so the samples of one drain are never in two.
Each slice becomes a histogram (``latency.histogram``); 400 times as many slices are drawn with
replacement, merged, and read. The cost is one pass over the samples and 400 sums of histograms, however many samples
there are. Ends are those of the bins, so an interval is at most 1 % too wide.

A bootstrap cannot see beyond the largest sample, nor tell more than its slices do:

* With samples in fewer than 6 slices there is no interval. So there are 6 distinct drains at the least: the range of 5
  independent values holds their median in only 94 % of all cases (2 * 0.5^5 is 6 %).
* The upper end is None, open, unless samples at or above the percentile lie in 6 slices or more: one stall makes
  many slow samples, but is one.
* It is open as well with n drains all below the quantile q with a chance q^n above 2.5 % (order statistics: Hahn
  and Meeker 1991, Statistical Intervals, chapter 5): p99 takes 368 drains at least, p99_9 3,688, p99_99 36,887.

They are meant to hold 95 %. Measured in 150 made-up runs of 4 s of each kind, an open end holding all above it:

* independent samples, 4,000 and 40,000: 93 to 99 %; stalls of 20 ms, one a second: 100 %;
* 32 bursts of 100, each with a speed of its own: p50 91 %, p90 93 %, p99 88 %; with one drain for each burst p50 91 %,
  p90 96 %, and p99 always open;
* with slices by intended time, one such stall in 4 s on the average: p90 82 %, p99 and p99_9 65 % in 400 runs. A third
  of those runs saw none, and a run cannot tell what did not happen in it.

6 slices were chosen among 4 to 10, on other seeds: with 10, many more ends are open, and coverage is no better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.results.analysis.latency.histogram import BINS, bins_of, lower_edges, upper_edges
from sim.results.analysis.latency.latencies import QUANTILES, WHOLE, Samples, place_of
from sim.results.arrays import Floats, Integers

Interval = tuple[int | None, int | None]

SLICES = 32
FEWEST = 6
"""The fewest slices with samples for an interval, and for its upper end."""
RESAMPLES = 400
TAIL = 0.025
"""The share left out at either end: the intervals are of 95 %."""
SEED = 1989


@dataclass(frozen=True)
class Slices:
    """A histogram of each slice: ``counts[slice, place]`` of the bins ``bins[place]``, those that are not empty.

    ``drains``: the number of independent samples.
    """

    bins: Integers
    counts: Integers
    drains: float

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    @property
    def filled(self) -> int:
        """How many slices hold samples."""
        return int(np.count_nonzero(self.counts.any(axis=1)))

    def at_or_above(self, value: int) -> int:
        """How many slices hold samples at or above ``value``, as near as its bin tells."""
        (first,) = np.searchsorted(self.bins, bins_of(np.array([value])))
        return int(np.count_nonzero(self.counts[:, first:].any(axis=1)))


@dataclass(frozen=True)
class MeasuredTime:
    """The time that a run, or one phase of it, measured: parts of CLOCK_MONOTONIC that do not overlap, in order."""

    starts_ns: Integers
    ends_ns: Integers

    @classmethod
    def of(cls, parts: Sequence[tuple[int, int]]) -> MeasuredTime:
        """The union of parts (start, end)."""
        merged: list[list[int]] = []
        for start_ns, end_ns in sorted(parts):
            if merged and start_ns <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end_ns)
            elif end_ns > start_ns:
                merged.append([start_ns, end_ns])
        both = np.array(merged or [[0, 1]], np.int64)
        return cls(both[:, 0], both[:, 1])

    def slice_of(self, times_ns: Integers) -> Integers:
        """Which of ``SLICES`` equal slices of this time each moment is in; moments outside belong to the nearest."""
        lengths = self.ends_ns - self.starts_ns
        before = np.concatenate(([0], np.cumsum(lengths)))
        part = np.maximum(np.searchsorted(self.starts_ns, times_ns, side="right") - 1, 0)
        passed = before[part] + np.clip(times_ns - self.starts_ns[part], 0, lengths[part])
        # A quotient of doubles may round up to the end: the last moment belongs to the last slice.
        slices: Integers = np.minimum((passed * (SLICES / int(before[-1]))).astype(np.int64), SLICES - 1)
        return slices


def moments(samples: Samples, latency: str) -> Integers:
    """The time that decides the slice of each sample: that of its drain, or of its ring for lag.

    Samples of one drain are one thing, so they must be in one slice: slices that hold samples hold as many drains.
    """
    return samples.rung_ns if latency == "lag" else samples.delivered_ns


def independent(samples: Samples, latency: str, sample_every: int) -> Floats:
    """The weight of each sample among independent ones: all samples of one drain weigh one together."""
    if latency == "lag":
        return np.ones(len(samples))
    return np.minimum(1.0, max(1, sample_every) / np.maximum(samples.count, 1))


def sliced(cells: Integers, counts: Integers, drains: Floats) -> list[Slices]:
    """The slices of each group.

    Args:
        cells: (group * ``SLICES`` + slice) * ``BINS`` + bin of those that occur, in order.
        counts: how often each occurs.
        drains: the independent things of each group.
    """
    ends = np.searchsorted(cells, np.arange(len(drains) + 1) * (SLICES * BINS))
    found = []
    for code, its_drains in enumerate(drains.tolist()):
        mine = slice(int(ends[code]), int(ends[code + 1]))
        rest = cells[mine] - code * (SLICES * BINS)
        filled, column = np.unique(rest % BINS, return_inverse=True)
        table = np.zeros((SLICES, len(filled)), np.int64)
        table[rest // BINS, column] = counts[mine]
        found.append(Slices(filled, table, its_drains))
    return found


def replicates(its: Slices, seed: int = SEED) -> dict[str, Integers]:
    """Each percentile of each resample, as the place of its bin in ``its.bins``; none of too few samples or slices."""
    size = its.samples
    wanted = [(name, rank) for name, rank in QUANTILES if name != "max" and place_of(size, name, rank) is not None]
    filled = its.counts[its.counts.any(axis=1)]
    if not wanted or len(filled) < FEWEST:
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
    """The interval of each percentile in ``figures`` that is not None, p50 to p99_99; it holds the percentile.

    With samples in fewer than ``FEWEST`` slices there are none.
    """
    found: dict[str, Interval] = {}
    drawn = replicates(its, seed)
    for name, rank in QUANTILES:
        value = figures.get(name)
        if value is None or name not in drawn:
            continue
        low, high = np.quantile(drawn[name], (TAIL, 1 - TAIL), method="closest_observation")
        edges = its.bins[[int(low), int(high)]]
        bottom, top = int(lower_edges(edges)[0]), int(upper_edges(edges)[1])
        bounded = bounded_above(min(its.samples, its.drains), rank) and its.at_or_above(value) >= FEWEST
        found[name] = (min(bottom, value), max(top, value) if bounded else None)
    return found


def bounded_above(size: float, rank: int) -> bool:
    """Whether so many independent samples bound the percentile from above."""
    return size * math.log(rank / WHOLE) <= math.log(TAIL)
