"""``summary.json``: the figures of a run, as checked structures; and the sums that lead to them.

Counts are doorbells. A group's ``rung`` are those rung AT its machines, so that every group balances by itself: rung =
delivered + pending + refused; what its machines rang is ``sent``. Latencies are nanoseconds, without the warm-up; those
of a group are of the doorbells that it received. CPU is percent of one CPU and machine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sim.recording import Counters
from sim.results.store.events import Statistics

Natural = Annotated[int, Meta(ge=0, le=1 << 62)]
Figures = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]
Text = Annotated[str, Meta(max_length=1000)]


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Nearest-rank percentiles, in nanoseconds where nothing else is said; null with too few samples for it.

    ``intervals`` has the 95 % confidence interval of each of them (``latency.intervals``), null at an end
    that so few samples do not bound; it is empty where samples lie in too few slices of time.
    """

    p50: Figures | None
    p90: Figures | None
    p99: Figures | None
    p99_9: Figures | None
    p99_99: Figures | None = None
    max: Figures | None
    samples: Figures
    intervals: dict[str, tuple[Figures | None, Figures | None]] = {}


NONE = Percentiles(p50=None, p90=None, p99=None, p99_9=None, max=None, samples=0)


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """The latencies of ``latency.latencies``; ``total`` is corrected for coordinated omission, ``raw`` is not."""

    lag: Percentiles
    delivery: Percentiles
    handling: Percentiles
    raw: Percentiles = NONE
    total: Percentiles


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that processes used between start and stop; means and maxima are over machines, sums over all of them.

    ``private_bytes``: memory that would come back if the process ended, without its share of the instrument's
    own recording. ``pss_bytes`` counts shared pages in parts. Switches and faults are per second and machine.
    """

    cpu_percent: float
    cpu_percent_max: float
    cpu_percent_sum: float | None = None
    cpu_system_share: float
    private_bytes: int | None
    private_bytes_max: int | None
    private_bytes_sum: int | None = None
    uss_bytes: int | None
    pss_bytes: int | None = None
    pss_bytes_sum: int | None = None
    rss_bytes: int
    instrument_bytes: int | None
    switches_voluntary_per_s: float
    switches_involuntary_per_s: float
    faults_minor_per_s: float | None = None
    faults_major_per_s: float | None = None
    descriptors_max: int | None
    threads_max: int | None


class CpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """One CPU of the host, in percent of its time: in use, interrupts, and what the hypervisor gave to others."""

    cpu: Figures
    busy_percent: float
    irq_percent: float
    softirq_percent: float
    steal_percent: float


class HostUse(msgspec.Struct, frozen=True, kw_only=True):
    """The load of the whole host, other processes included; null where the kernel does not report it.

    CPU in percent of one CPU, ``steal_percent`` what the hypervisor gave to others of what was asked for here.
    Pressure: the share of time in which a task waited for it (/proc/pressure, "some"). ``sampling_percent``:
    what looking at the processes took of one CPU. ``cpus``: each CPU, interrupts included in what is busy.
    """

    cpu_percent: float
    steal_percent: float | None = None
    load_max: float | None = None
    pressure_cpu_percent: float | None = None
    pressure_memory_percent: float | None = None
    pressure_io_percent: float | None = None
    sampling_percent: float | None = None
    cpus: list[CpuUse] = []


class BaselineMeasurement(msgspec.Struct, frozen=True):
    """One measurement of the wake-up baseline (`sim.host.wake_up_baseline`)."""

    p50_ns: Natural
    p99_ns: Natural
    count: Natural
    placement: Annotated[str, Meta(max_length=200)]
    clock_ns: Annotated[float, Meta(ge=0, le=1e9)]


class BaselineFigures(BaselineMeasurement, frozen=True, kw_only=True):
    """The least that a wake-up costs here: bare eventfd and epoll between two processes (``wake_up_baseline``).

    The quieter one of what was measured before and after the run. ``times_baseline`` is delivery's percentile of
    the run divided by those of the baseline. ``clock_ns``: one reading of the clock; a sample needs three or four.
    """

    times_baseline: dict[str, float] = {}


class GroupFigures(Counters, frozen=True):
    """One group's figures. ``coalescing`` is doorbells delivered for each interrupt, ``drained`` how they were
    spread: doorbells for each logged drain. The counters are those that its own machines recorded.
    """

    machines: Figures
    sent: Figures
    rung: Figures
    delivered: Figures
    pending: Figures
    refused: Figures
    settled: Figures
    interrupts: Figures
    coalescing: float | None
    doorbells_per_s: float | None
    interrupts_per_s: float | None
    latency_ns: Latencies
    cpu_percent: float | None = None
    uss_bytes: int | None = None
    resources: ProcessUse | None = None
    drained: Percentiles = NONE
    unscheduled: Figures = 0


class ExpectationVerdict(msgspec.Struct, frozen=True):
    """The outcome of one expectation. ``got`` is None when the metric is not known; ``why`` says why."""

    metric: str
    of: str
    expected: str
    got: float | None
    met: bool
    why: str = ""

    def __str__(self) -> str:
        return f"{self.metric} {self.expected}" + (f" of {self.of}" if self.of else "")


class MigrationOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one migration; ``machine`` is one incarnation, ``reason`` says why the migration failed.

    ``downtime_ms``: how long the machine stood still, in a migration that failed too. ``pending_vectors`` had their
    pending bit set, and took it along. ``left_behind``: doorbells in the counters of the ID that it had before, at
    the end of the run; its peers went on ringing that until they had heard. ``delivered_before`` and
    ``delivered_after`` are doorbells since the pause before this one, and until the next one; null when not all
    drains were logged. ``sampled_during``: doorbells with a stamp that were rung at it while it stood still.
    """

    machine: str
    group: str
    verdict: Literal["moved", "refused", "failed"]
    reason: str = ""
    at_s: float = 0.0
    hand_over: bool = False
    fault: str = ""
    from_domain: str = ""
    to_domain: str = ""
    from_peer: Figures | None = None
    to_peer: Figures | None = None
    downtime_ms: float | None = None
    state_bytes: Figures = 0
    memory_bytes: Figures = 0
    pending_vectors: Figures = 0
    left_behind: Figures | None = None
    delivered_before: Figures | None = None
    delivered_after: Figures | None = None
    sampled_during: Figures | None = None


class PartFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of what one host ran of a run over several hosts; all others are in the summary of that part."""

    status: str
    reason: str
    machines: Figures
    rung: Figures
    delivered: Figures
    pending: Figures
    refused: Figures
    interrupts: Figures
    doorbells_per_s: float | None
    latency_ns: Latencies


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One reason for the time that a doorbell took.

    Attributes:
        kind: one of `sim.results.analysis.outlier.causes.KINDS`.
        machine: whose time it is.
        time_ns: how much of the doorbell's time it explains.
        share: the same as a share of the whole, 0 to 1.
        text: the evidence, in words.
    """

    kind: Annotated[str, Meta(max_length=40)]
    machine: Annotated[str, Meta(max_length=200)]
    time_ns: Natural
    share: Annotated[float, Meta(ge=0, le=1)]
    text: Text


class Outlier(msgspec.Struct, frozen=True, kw_only=True):
    """A doorbell that took longer than the limit of the run.

    Attributes:
        metric: the latency and the percentile that were limited, such as ``total.max``.
        limit_ns: the limit.
        reached_ns: what the metric had reached: the latency of this doorbell, or the percentile.
        took_ns: the latency of this doorbell, until now if it is not complete.
        is_complete: whether that latency has ended.
        source, target, vector: who rang whom.
        intended_ns, rung_ns, delivered_ns, handled_ns: CLOCK_MONOTONIC, 0 for what there was not.
        is_explained: whether the causes explain half of that time at least.
        causes: by the time that they explain, the longest first.
        kernel_trace: what is known of the kernel's scheduler, in words.
    """

    metric: Annotated[str, Meta(max_length=40)]
    limit_ns: Natural
    reached_ns: Natural
    took_ns: Natural
    is_complete: bool
    source: Annotated[str, Meta(max_length=200)]
    target: Annotated[str, Meta(max_length=200)]
    vector: Annotated[int, Meta(ge=0, le=1 << 16)]
    intended_ns: Natural
    rung_ns: Natural
    delivered_ns: Natural
    handled_ns: Natural
    is_explained: bool = False
    causes: list[Cause] = []
    kernel_trace: Text = ""


class Summary(Counters, frozen=True):
    """``summary.json``.

    ``samples`` stands for all sampled doorbells, ``unmatched`` for those of which no drain is known (pending
    at the end, their target died, or it has no recording), ``samples_refused`` for those the recordings had no
    room for. ``overfull_drains`` is above 0 if stamps were matched wrongly; ``short_deliveries``, below a quarter of
    the baseline's median, are those that may have been (``latency.latencies``). ``missed`` doorbells were due when
    their program ended, and are in no figure; ``missed_oldest_ns`` is how long the oldest had been due.
    ``pending_derived``: the counters were not read at the end, so pending is what was left over.
    ``cpu_ns_per_doorbell``: what all machines used of CPUs for each doorbell rung. ``warnings`` says in words
    what a reader of the figures has to know about them. ``phases`` has the latencies of each phase, when there
    are several; ``statistics`` are what programs counted.
    ``unscheduled``: measured samples that were rung without a schedule; of a group those that its machines rang.
    ``guest_difference``: doorbells that guests of their own say to have rung, less those that came from them; None if
    one does not say.
    ``start_ns``, ``measure_start_ns`` and ``stop_ns`` are CLOCK_MONOTONIC, 0 when the run never got there.
    ``parts`` are those of a run over several hosts, by host: counts are sums over all of them, latencies of machines on
    several hosts are left out (``analysis.joint``).
    ``outlier`` is the doorbell that ended the run (``[run] stop_above``), if one did.
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
    unmatched: Figures
    drains: Figures
    overfull_drains: Figures
    pending_derived: bool
    seed: int
    duration_s: float
    elapsed_s: float
    warmup_s: float
    ready_s: float | None
    coalescing: float | None
    doorbells_per_s: float | None
    interrupts_per_s: float | None
    cpus: int
    latency_ns: Latencies
    groups: dict[str, GroupFigures]
    coordinator: ProcessUse | None
    deaths: dict[str, str]
    problems: list[str]
    drained: Percentiles = NONE
    phases: dict[str, Latencies] = msgspec.field(default_factory=dict)
    resources: ProcessUse | None = None
    cpu_ns_per_doorbell: float | None = None
    host: HostUse | None = None
    wake_up_baseline: BaselineFigures | None = None
    clock_source: str = ""
    warnings: list[str] = msgspec.field(default_factory=list)
    expectations: list[ExpectationVerdict] = msgspec.field(default_factory=list)
    migrations: list[MigrationOutcome] = msgspec.field(default_factory=list)
    statistics: Statistics = msgspec.field(default_factory=dict)
    missed_oldest_ns: Figures = 0
    short_deliveries: Figures = 0
    unscheduled: Figures = 0
    guest_difference: int | None = None
    start_ns: Figures = 0
    measure_start_ns: Figures = 0
    stop_ns: Figures = 0
    parts: dict[str, PartFigures] = msgspec.field(default_factory=dict)
    outlier: Outlier | None = None


def value_at(figures: Summary | GroupFigures, source: str) -> float | None:
    """The number at a place with dots, such as ``resources.cpu_percent``; None where there is none."""
    found: Any = figures
    for step in source.split("."):
        found = found.get(step) if isinstance(found, dict) else getattr(found, step, None)
    return None if found is None else float(found)
