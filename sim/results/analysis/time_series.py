"""The time series that the charts of a run draw, computed in one pass over its large tables, batch by batch.

Times are seconds since the start of the run, where the warm-up begins. What a run lacks (it failed, it is damaged,
nothing was sampled) stays empty, and ``TimeSeries.missing`` says why.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np

from nodes.errors import UsageError
from sim.results import Run
from sim.results.analysis.latency.histogram import BINS as VALUE_BINS
from sim.results.analysis.latency.histogram import GrowingHistogram, bins_of, middles
from sim.results.analysis.latency.latencies import EVERY_LATENCY, Stamps, values
from sim.results.arrays import Floats, Integers
from sim.results.store.batches import batches, extent
from sim.results.store.events import Event

BINS = 240
MERGED_BINS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
SAMPLES_PER_BIN = 100
DRAINS_PER_BIN = 20
SIZE_BITS = 40
LEVELS = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
KINDS_NOT_SHOWN = {"ready", "statistics", "telemetry"}


@dataclass(frozen=True)
class RunEvent:
    """An event between the start and the stop of the machines, in seconds since the start."""

    time_s: float
    event: Event


@dataclass(frozen=True)
class Band:
    """A part of the run with a name, in seconds since the start; ``shaded`` if it is not measured (a warm-up)."""

    start: float
    end: float
    name: str
    shaded: bool = False


@dataclass
class TimeSeries:
    """The large tables of a run, reduced.

    ``measured_ns``: when the first sample after the warm-up was due. ``bands``: the warm-up and the phases.
    ``latencies``: the distributions in nanoseconds of lag, delivery, handling, total and raw, without the warm-up.
    ``time_s``: the middle of each bin of time; ``pending``: doorbells rung and not yet delivered at the end of the
    bin, estimated from the samples. ``delivered_per_s`` and ``interrupts_per_s``: doorbells and wake-ups around
    ``rates_s``. ``delivery_ns`` and ``total_ns``: for each of ``LEVELS``, that percentile of the doorbells rung (or
    due) around ``latency_s``; NaN where there were none.
    ``drain_sizes``: number of drains by the power of two of their doorbells (1, 2-3, 4-7, ...); ``drained``: the
    number of doorbells in these drains.
    """

    start_ns: int = 0
    measured_ns: int = 0
    stop_ns: int = 0
    bands: list[Band] = field(default_factory=list)
    latencies: dict[str, GrowingHistogram] = field(default_factory=dict)
    time_s: Floats = field(default_factory=lambda: np.zeros(0))
    rates_s: Floats = field(default_factory=lambda: np.zeros(0))
    delivered_per_s: Floats = field(default_factory=lambda: np.zeros(0))
    interrupts_per_s: Floats = field(default_factory=lambda: np.zeros(0))
    latency_s: Floats = field(default_factory=lambda: np.zeros(0))
    delivery_ns: dict[str, Floats] = field(default_factory=dict)
    total_ns: dict[str, Floats] = field(default_factory=dict)
    pending: Floats = field(default_factory=lambda: np.zeros(0))
    drain_sizes: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    drained: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    events: list[RunEvent] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9


def time_series(run: Run) -> TimeSeries:
    """Read the tables of ``run`` once. Never raises for missing parts: see ``TimeSeries.missing``."""
    data = TimeSeries()
    data.start_ns, data.stop_ns = span(run)
    data.time_s = (np.arange(BINS) + 0.5) * data.duration_s / BINS
    for part in (_samples, _drains, _bands, _run_events):
        try:
            part(run, data)
        except UsageError as error:
            data.missing.append(str(error))
    return data


def span(run: Run) -> tuple[int, int]:
    """When the machines were started and stopped, CLOCK_MONOTONIC in nanoseconds; (0, 0) if not known."""
    try:
        if run.figures.start_ns:
            return run.figures.start_ns, max(run.figures.start_ns + 1, run.figures.stop_ns)
    except UsageError:
        pass
    stamps = []
    for name, column in (("samples", "rung_ns"), ("drains", "delivered_ns")):
        with contextlib.suppress(UsageError):
            stamps += [extent(run.place, name, column)]
    there = [stamp for stamp in stamps if stamp]
    if not there:
        return 0, 0
    start_ns = min(first for first, _ in there)
    return start_ns, max(start_ns + 1, *(last for _, last in there))


def _bands(run: Run, data: TimeSeries) -> None:
    warmup_s = min(run.origin.warmup_s, data.duration_s)
    if data.measured_ns:
        # Without a summary the first time stamp counts as the start; it may lie in the warm-up or after it.
        warmup_s = min(warmup_s, (data.measured_ns - data.start_ns) / 1e9)
    if warmup_s > 0:
        data.bands.append(Band(0.0, warmup_s, "warm-up", shaded=True))
    for phase in run.origin.phases:
        start_s, end_s = ((at - data.start_ns) / 1e9 for at in (phase.start_ns, phase.end_ns))
        if start_s < data.duration_s and end_s > 0:
            data.bands.append(Band(max(0.0, start_s), min(data.duration_s, end_s), phase.name))


def _bin_of(data: TimeSeries, time_ns: Integers) -> Integers:
    """The bin of each time stamp, -1 for those outside of the run."""
    place = (time_ns - data.start_ns) * BINS // max(1, data.stop_ns - data.start_ns)
    return np.where((place >= 0) & (place < BINS), place, -1)


def _samples(run: Run, data: TimeSeries) -> None:
    data.latencies = {name: GrowingHistogram() for name in EVERY_LATENCY}
    delivery, total = np.zeros((BINS, VALUE_BINS), np.int64), np.zeros((BINS, VALUE_BINS), np.int64)
    pending = np.zeros(BINS, np.int64)
    for batch in batches(run.place, "samples", Stamps.__match_args__):
        stamps = Stamps(**{**batch, "warmup": batch["warmup"] != 0})
        _add_latencies(data, stamps)
        _add_over_time(data, delivery, stamps.rung_ns, stamps.delivered_ns)
        _add_over_time(data, total, stamps.due_ns, stamps.handled_ns)
        rung, came = _bin_of(data, stamps.rung_ns), _bin_of(data, stamps.delivered_ns)
        pending += np.bincount(rung[rung >= 0], minlength=BINS) - np.bincount(came[came >= 0], minlength=BINS)
    data.pending = np.maximum(0.0, np.cumsum(pending)) * run.origin.sample_every
    # With few samples, percentiles of many bins would be noise.
    merged = _merged_bins(int(delivery.sum()), SAMPLES_PER_BIN)
    data.latency_s = data.time_s.reshape(-1, merged).mean(axis=1)
    data.delivery_ns, data.total_ns = (
        _levels(counts.reshape(-1, merged, VALUE_BINS).sum(axis=1)) for counts in (delivery, total)
    )


def _add_over_time(data: TimeSeries, counts: Integers, begin_ns: Integers, end_ns: Integers) -> None:
    """Add the durations ``end_ns - begin_ns`` to ``counts``, in the bin of their begin; ``end_ns`` 0 means never."""
    at = _bin_of(data, begin_ns)
    known = (end_ns > 0) & (at >= 0)
    cells = at[known] * VALUE_BINS + bins_of(end_ns[known] - begin_ns[known])
    counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)


def _merged_bins(count: int, per_bin: int) -> int:
    """How many bins of time to merge so that each has about ``per_bin`` of ``count`` values."""
    wanted = -(-per_bin * BINS // max(1, count))
    return next((width for width in MERGED_BINS if width >= wanted), MERGED_BINS[-1])


def _add_latencies(data: TimeSeries, stamps: Stamps) -> None:
    counts = ~stamps.warmup
    if counts.any():
        first_ns = int(stamps.due_ns[counts].min())
        data.measured_ns = min(data.measured_ns or first_ns, first_ns)
    for name, histogram in data.latencies.items():
        numbers, there = values(stamps, name)
        histogram.add(numbers[counts & there])


def _levels(over_time: Integers) -> dict[str, Floats]:
    """Percentiles of every row of counts; NaN where a row has too few values, by the rule of the tables."""
    sums = np.cumsum(over_time, axis=1)
    total = sums[:, -1]
    levels = {}
    for name, share in LEVELS:
        rank = np.maximum(1, np.ceil(share * total))
        place = np.argmax(sums >= rank[:, None], axis=1)
        fewest = 1 if share in (0.5, 1.0) else round(1 / (1 - share))
        levels[name] = np.where(total >= fewest, middles(place), np.nan)
    return levels


def _drains(run: Run, data: TimeSeries) -> None:
    doorbells, wakes = np.zeros(BINS), np.zeros(BINS)
    sizes, drained = np.zeros(SIZE_BITS, np.int64), np.zeros(SIZE_BITS, np.int64)
    for batch in batches(run.place, "drains", ("count", "delivered_ns")):
        count = batch["count"]
        at = _bin_of(data, batch["delivered_ns"])
        known = at >= 0
        doorbells += np.bincount(at[known], weights=count[known].astype(np.float64), minlength=BINS)
        wakes += np.bincount(at[known], minlength=BINS)
        # frexp's exponent is the number of bits. A count of 2^53 or more can only come from a damaged file.
        bits = np.clip(np.frexp(count.astype(np.float64))[1] - 1, 0, SIZE_BITS - 1)
        sizes += np.bincount(bits, minlength=SIZE_BITS)
        drained += np.bincount(bits, weights=count.astype(np.float64), minlength=SIZE_BITS).astype(np.int64)
    used = int(np.flatnonzero(sizes).max(initial=-1)) + 1
    data.drain_sizes, data.drained = sizes[:used], drained[:used]
    merged = _merged_bins(int(wakes.sum()), DRAINS_PER_BIN)
    width_s = max(data.duration_s, 1e-9) / BINS * merged
    data.rates_s = data.time_s.reshape(-1, merged).mean(axis=1)
    data.delivered_per_s, data.interrupts_per_s = (
        counts.reshape(-1, merged).sum(axis=1) / width_s for counts in (doorbells, wakes)
    )


def _run_events(run: Run, data: TimeSeries) -> None:
    for event in run.events():
        time_ns, kind = event.get("time_ns"), event.get("kind")
        if not isinstance(time_ns, int) or not isinstance(kind, str) or kind in KINDS_NOT_SHOWN:
            continue
        at_s = (time_ns - data.start_ns) / 1e9
        if data.start_ns and -1e-3 <= at_s <= data.duration_s + 1e-3:
            data.events.append(RunEvent(max(0.0, at_s), event))
