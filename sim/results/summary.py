"""``summary.json``: the figures of a run, as checked structures; and the sums that lead to them.

Counts are doorbells. A group's ``rung`` are those rung AT its machines, so that every group balances by
itself: rung = delivered + pending + refused; what its machines rang is ``sent``. Latencies are nanoseconds,
without the warm-up; those of a group are of the doorbells that it received. CPU is percent of one CPU and
machine.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Group", "Latencies", "Percentiles", "Resources", "Summary"]

Figures = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]


class Percentiles(msgspec.Struct, frozen=True):
    """Nearest-rank percentiles in nanoseconds, null when there is no sample."""

    p50: Figures | None
    p90: Figures | None
    p99: Figures | None
    p99_9: Figures | None
    max: Figures | None
    samples: Figures


class Latencies(msgspec.Struct, frozen=True):
    """The four latencies of ``sim.results.latency``."""

    lag: Percentiles
    delivery: Percentiles
    handling: Percentiles
    total: Percentiles


class Resources(msgspec.Struct, frozen=True):
    """What processes used between start and stop; means and maxima are over machines.

    ``private_bytes``: memory that would come back if the process ended, without its share of the instrument's
    own recording. Switches are per second.
    """

    cpu_percent: float
    cpu_percent_max: float
    cpu_system_share: float
    private_bytes: int | None
    private_bytes_max: int | None
    uss_bytes: int | None
    rss_bytes: int
    instrument_bytes: int | None
    switches_voluntary_per_s: float
    switches_involuntary_per_s: float
    descriptors_max: int | None
    threads_max: int | None


class Group(msgspec.Struct, frozen=True):
    """One group's figures. ``coalescing`` is doorbells delivered for each interrupt."""

    machines: Figures
    sent: Figures
    rung: Figures
    delivered: Figures
    pending: Figures
    refused: Figures
    settled: Figures
    interrupts: Figures
    pended: Figures
    dropped: Figures
    coalescing: float | None
    doorbells_per_s: float | None
    interrupts_per_s: float | None
    latency_ns: Latencies
    cpu_percent: float | None = None
    uss_bytes: int | None = None
    resources: Resources | None = None


class Summary(msgspec.Struct, frozen=True):
    """``summary.json``.

    ``samples`` stands for all sampled doorbells, ``unmatched`` for those of which no drain is known (pending
    at the end, their target died, or nobody recorded it), ``samples_refused`` for those the recordings had no
    room for. ``overfull_drains`` would be above 0 if stamps had been matched wrongly (``sim.results.latency``).
    ``pending_derived``: nobody looked into the counters at the end, so pending is what was left over.
    """

    schema_version: int
    version: str
    title: str
    status: str
    reason: str
    balanced: bool
    machines: Figures
    rung: Figures
    delivered: Figures
    pending: Figures
    refused: Figures
    interrupts: Figures
    settled: Figures
    samples: Figures
    samples_refused: Figures
    unmatched: Figures
    drains: Figures
    drains_refused: Figures
    overfull_drains: Figures
    pending_derived: bool
    pended: Figures
    dropped: Figures
    seed: int
    duration_s: float
    warmup_s: float
    ready_s: float | None
    coalescing: float | None
    doorbells_per_s: float | None
    interrupts_per_s: float | None
    cpus: int
    latency_ns: Latencies
    groups: dict[str, Group]
    coordinator: Resources | None
    deaths: dict[str, str]
    problems: list[str]
