"""All that is computed from the samples of a run: percentiles with intervals, by group and phase, and histograms. Pure.

The samples are a stream that is read twice (``ranks``), so memory does not grow with a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.results.analysis.labels import group_of_machines, phase_names, phases_of
from sim.results.analysis.latency.histogram import BINS, bins_of, lower_edges, upper_edges
from sim.results.analysis.latency.intervals import SLICES, MeasuredTime, Slices, independent, intervals, moments, sliced
from sim.results.analysis.latency.latencies import EVERY_LATENCY, Samples, values
from sim.results.analysis.latency.percentiles import Figures, Ranks, SparseCounts, ranked
from sim.results.arrays import Floats, Integers, Mask
from sim.results.store.manifest import Manifest, Phase
from sim.results.summary import NONE, Latencies, Percentiles

Read = Callable[[], Iterable[Samples]]

NOTHING = Latencies(**dict.fromkeys(EVERY_LATENCY, NONE))
"""The latencies of no sample at all."""


@dataclass(frozen=True)
class LatencyDistribution:
    """``groups`` by the number of the group, the last one is of foreign peers; ``phases`` is empty for one alone.

    ``histograms`` are the columns of the table of that name; machine -1: no machine of the topology.
    """

    all: Latencies
    groups: list[Latencies]
    phases: dict[str, Latencies]
    histograms: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Measured:
    """One latency of a batch: of those samples ``there`` that have it and are measured.

    What only intervals need is computed when it is asked for, once.
    """

    there: Mask | slice
    values: Integers
    bins: Integers
    of_samples: Samples = field(repr=False)
    latency: str
    sample_every: int

    @classmethod
    def of(cls, samples: Samples, latency: str, sample_every: int) -> Measured:
        numbers, mask = values(samples, latency)
        mask = mask & ~samples.warmup
        there = slice(None) if mask.all() else mask  # all of a batch need no copy
        its = numbers[there]
        return cls(there, its, bins_of(its), samples, latency, sample_every)

    @functools.cached_property
    def moments_ns(self) -> Integers:
        return moments(self.of_samples, self.latency)[self.there]

    @functools.cached_property
    def weights(self) -> Floats:
        return independent(self.of_samples, self.latency, self.sample_every)[self.there]


class LatencyOfGroups:
    """The percentiles of one latency, with intervals, of groups 0 .. ``groups`` - 1 of a stream.

    ``times`` has the measured time of each group, or one for all; without any there are no intervals.
    """

    def __init__(self, groups: int, times: Sequence[MeasuredTime] = ()) -> None:
        self.ranks = Ranks(groups)
        self._times = times
        self._slices = SparseCounts(groups * SLICES * BINS)
        self._drains = np.zeros(groups)

    def count(self, its: Measured, codes: Integers) -> None:
        """First pass. ``codes``: the group of each sample of ``its``, -1 for none."""
        codes, its_values, bins, known = _known(its, codes)
        self.ranks.count(codes, bins, its_values)
        if not self._times:
            return
        self._drains += np.bincount(codes, weights=its.weights[known], minlength=len(self._drains))
        moments_ns = its.moments_ns[known]
        slices = np.zeros(len(codes), np.int64)
        for group, time in enumerate(self._times):
            own = codes == group if len(self._times) > 1 else slice(None)
            slices[own] = time.slice_of(moments_ns[own])
        self._slices.add((codes * SLICES + slices) * BINS + bins)

    def collect(self, its: Measured, codes: Integers) -> None:
        """Second pass: the same batches."""
        codes, its_values, bins, _ = _known(its, codes)
        self.ranks.collect(codes, bins, its_values)

    def slices(self) -> list[Slices]:
        """The slices of each group."""
        return sliced(*self._slices.occurring(), self._drains)

    def percentiles(self) -> list[Percentiles]:
        """The percentiles of each group."""
        found = self.ranks.figures()
        if not self._times:
            return [_as_struct(figures) for figures in found]
        return [
            _as_struct(figures, intervals(part, figures)) for figures, part in zip(found, self.slices(), strict=True)
        ]


def _known(its: Measured, codes: Integers) -> tuple[Integers, Integers, Integers, Mask | slice]:
    if not len(codes) or codes.min() >= 0:  # the usual case needs no copies
        return codes, its.values, its.bins, slice(None)
    known = codes >= 0
    return codes[known], its.values[known], its.bins[known], known


def _as_struct(figures: Figures, known: dict[str, tuple[int | None, int | None]] | None = None) -> Percentiles:
    return Percentiles(**figures, intervals=known or {})  # type: ignore[arg-type]


def measured_times(
    phases: Sequence[Phase], measure_start_ns: int, stop_ns: int
) -> tuple[MeasuredTime, list[MeasuredTime]]:
    """The measured time of the whole run, and of each phase in the order of ``phase_names``."""
    measured = [phase for phase in phases if phase.measured]
    whole = [(phase.start_ns, phase.end_ns) for phase in measured] or [(measure_start_ns, stop_ns)]
    names = phase_names(phases)
    if not measured:
        return MeasuredTime.of(whole), [MeasuredTime.of(whole)]
    its = [[(phase.start_ns, phase.end_ns) for phase in measured if phase.name == name] for name in names]
    return MeasuredTime.of(whole), [MeasuredTime.of(parts) for parts in its]


def distribution(read: Read, manifest: Manifest, measure_start_ns: int, stop_ns: int) -> LatencyDistribution:
    """The latencies of a run, the warm-up left out. ``read`` gives its samples, as often as it is asked."""
    foreign = len(manifest.groups)
    of_machine = group_of_machines(manifest, foreign)
    phases, machines = phase_names(manifest.phases), len(manifest.machines) + 1
    several = len(phases) if len(phases) > 1 else 0
    whole, of_phases = measured_times(manifest.phases, measure_start_ns, stop_ns)
    every = {name: LatencyOfGroups(1, [whole]) for name in EVERY_LATENCY}
    by_group = {name: LatencyOfGroups(foreign + 1, [whole]) for name in EVERY_LATENCY}
    by_phase = {name: LatencyOfGroups(several, of_phases) for name in EVERY_LATENCY}
    # By phase and machine; what is in no phase comes behind the last one, and is not kept.
    cells = {name: SparseCounts((len(phases) + 1) * machines * BINS) for name in EVERY_LATENCY}
    for passed in ("count", "collect"):
        for samples in read():
            group, phase = of_machine[samples.target], phases_of(samples, manifest.phases)
            at = np.where(phase < 0, len(phases), phase) * machines + samples.target + 1
            for name in EVERY_LATENCY:
                its = Measured.of(samples, name, manifest.sample_every)
                getattr(every[name], passed)(its, np.zeros(len(its.values), np.int64))
                getattr(by_group[name], passed)(its, group[its.there])
                if several:
                    getattr(by_phase[name], passed)(its, phase[its.there])
                if passed == "count":
                    cells[name].add(at[its.there] * BINS + its.bins)
    groups = {name: latency.percentiles() for name, latency in by_group.items()}
    of_phase = {name: latency.percentiles() for name, latency in by_phase.items()} if several else {}
    kept = [_histogram(name, *counts.occurring(), phases, machines) for name, counts in cells.items()]
    return LatencyDistribution(
        all=Latencies(**{name: latency.percentiles()[0] for name, latency in every.items()}),
        groups=[Latencies(**{name: groups[name][code] for name in groups}) for code in range(foreign + 1)],
        phases={
            phase: Latencies(**{name: of_phase[name][code] for name in of_phase})
            for code, phase in enumerate(phases[:several])
        },
        histograms={name: np.concatenate([columns[name] for columns in kept]) for name in kept[0]},
    )


def _histogram(latency: str, there: Integers, counts: Integers, phases: list[str], machines: int) -> dict[str, Any]:
    """Histograms of one latency, of every phase and machine, one below the other."""
    known = there < len(phases) * machines * BINS
    there, counts = there[known], counts[known]
    bins, of = there % BINS, there // BINS
    return {
        "latency": np.full(len(there), latency, object),
        "phase": np.array(phases, object)[of // machines],
        "machine": of % machines - 1,
        "bin": bins,
        "low_ns": lower_edges(bins),
        "high_ns": upper_edges(bins),
        "count": counts,
    }


def sizes_of_drains(
    read: Callable[[], Iterable[dict[str, Integers]]], manifest: Manifest
) -> tuple[Percentiles, list[Percentiles]]:
    """Doorbells for each drain: of all, and of each group. ``read`` gives machine and count of the drains."""
    codes, count = group_of_machines(manifest), len(manifest.groups)

    def of_groups() -> Iterable[tuple[Integers, Integers]]:
        return ((codes[batch["machine"]], batch["count"]) for batch in read())

    def of_all() -> Iterable[tuple[Integers, Integers]]:
        return ((np.zeros(len(batch["count"]), np.int64), batch["count"]) for batch in read())

    groups = ranked(of_groups, max(1, count)).figures()[:count]
    return _as_struct(ranked(of_all).figures()[0]), [_as_struct(figures) for figures in groups]
