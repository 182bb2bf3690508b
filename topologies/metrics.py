"""The metrics of a run, one row each: what conditions compare, what a result holds, what two runs differ in.

``[[expect]]`` and ``when``, `ivsim compare --fail-if`, the glossary of `ivsim show --json` and the reference derive
from these rows. A new metric is one row, if its value is in ``summary.json``; a computed one also takes a function in
`sim.results.expectations`. Conditions name metrics so:

refused              a count
delivery.p99_us      a latency: which one, which percentile (or max, mean), which unit; p99.9 and p99_9 are the same
p99_us               the same of ``total``
statistics.NAME      what programs put into ``guest.statistics`` under that name, added up
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from nodes.spelling import nearest
from topologies.language.values import MisfitError
from topologies.schedule import UNITS_NS, Condition

LATENCIES = {
    "lag": "from the intended time of a doorbell to its ring",
    "delivery": "from the ring to the moment at which the target's process takes the doorbell",
    "handling": "from that moment until the program has handled the interrupt and waits again",
    "raw": "from the ring until the interrupt is handled, not corrected for coordinated omission",
    "total": "from the intended time until the interrupt is handled, corrected for coordinated omission",
}
POINTS = {"p50": "median", "p90": "", "p99": "", "p99_9": "", "p99_99": "", "max": "maximum", "mean": "mean"}

RUN, GROUPS, MACHINES, VECTORS, EDGES = "the run", "groups", "machines", "vectors", "edges"
OF_RUN, OF_GROUPS, OF_MACHINES = (RUN,), (RUN, GROUPS), (RUN, GROUPS, MACHINES)
OF_EVERYTHING = (RUN, GROUPS, MACHINES, VECTORS, EDGES)
COUNTED_UNITS = ("doorbells", "interrupts", "machines", "migrations", "lines", "drains")
ADDED_UP = ("doorbells_per_s", "interrupts_per_s", "uss_mib", "rss_mib", "cpu_s")
_GROWS: dict[str, Any] = {"live": True, "grows": True}


class Metric(Struct, frozen=True, kw_only=True):
    """One row.

    Attributes:
        of: what has such a value: the run, groups, machines, vectors, edges.
        source: the place of the run's value in ``summary.json``, with dots; "" for one that is computed on demand.
            Groups have it at the same place of ``groups.NAME``.
        live: known during the run, for ``when`` and for expectations with ``abort``.
        grows: never becomes less during the run.
        needs: what an expectation of the value 0 takes to have something to judge: doorbells "rung" at the owner or
            "sent" by it, "machines" that were ready, "migrations" that were begun.
        compared: listed by `ivsim compare` even if it is no latency.
    """

    name: str
    unit: str
    doc: str
    of: tuple[str, ...] = OF_RUN
    source: str = ""
    aliases: tuple[str, ...] = ()
    live: bool = False
    grows: bool = False
    needs: str = ""
    compared: bool = False

    @property
    def adds_up(self) -> bool:
        """Whether the value of several hosts is the sum of theirs: counts, rates and sizes, and no times."""
        is_count = self.unit in COUNTED_UNITS and self.name != "coalescing" and not self.name.startswith("drained.")
        return is_count or self.name in ADDED_UP or self.name.startswith("statistics.")


def _row(name: str, unit: str, of: tuple[str, ...], doc: str, source: str | None = None, **others: Any) -> Metric:
    """A metric whose value is in the summary, under its own name where no other place is given."""
    return Metric(name=name, unit=unit, of=of, doc=doc, source=name if source is None else source, **others)


def _doorbells() -> Iterator[Metric]:
    for name, of, doc, others in (
        ("rung", OF_EVERYTHING, "rung at the machines", _GROWS | {"needs": ""}),
        ("delivered", OF_EVERYTHING, "of those, taken by the target's process", _GROWS),
        (
            "refused",
            OF_EVERYTHING,
            "of those, not delivered: no such peer or vector, or its counter is full",
            _GROWS | {"compared": True},
        ),
        ("pending", OF_EVERYTHING, "of those, still in an eventfd counter at the end", {"live": True}),
        (
            "lost",
            OF_EVERYTHING,
            "of those, neither delivered nor refused nor pending; 0 if the counts balance, else the run has failed",
            {"source": ""},
        ),
        ("dropped", OF_GROUPS, "of those delivered, dropped by the device: it raises no interrupt for them", {}),
        (
            "pba_pending",
            OF_GROUPS,
            "of those delivered, came while MSI-X could not deliver them; the PBA keeps one bit for each vector",
            {},
        ),
        ("settled", OF_EVERYTHING, "delivered, but rung by a process whose own counts are not known", {}),
        (
            "guest_difference",
            OF_RUN,
            "rung by guests of their own, as they say, less what came from them",
            {"needs": ""},
        ),
        (
            "missed",
            OF_GROUPS,
            "due by an open-loop program, and not rung when it ended",
            {"aliases": ("unrung",), "needs": "sent"},
        ),
        ("sent", (GROUPS,), "rung by the machines, at any target", {"needs": ""}),
        ("rung_nowhere", OF_GROUPS, "rung at a peer or vector that was never connected; refused", {"needs": "sent"}),
    ):
        yield _row(name, "doorbells", of, doc, **{"needs": "rung", **others})


def _interrupts() -> Iterator[Metric]:
    of = (RUN, GROUPS, MACHINES, VECTORS)
    yield _row("interrupts", "interrupts", of, "wake-ups that took one doorbell or more", needs="rung", **_GROWS)
    yield _row("coalescing", "doorbells", OF_EVERYTHING, "delivered for each interrupt", live=True, compared=True)
    aliases = ("rate_hz",)
    yield _row("doorbells_per_s", "1/s", OF_EVERYTHING, "doorbells rung per second", aliases=aliases, compared=True)
    yield _row("interrupts_per_s", "1/s", OF_GROUPS, "interrupts per second", compared=True)
    for point in POINTS:
        if point != "mean":
            yield _row(f"drained.{point}", "doorbells", OF_GROUPS, f"{_of_point(point)} of the doorbells in a drain")


def _machines() -> Iterator[Metric]:
    yield _row("machines", "machines", OF_GROUPS, "machines of the topology")
    for name, unit, doc, others in (
        ("up", "machines", "present at the end, or now", {"live": True}),
        ("died", "machines", "ended without being told to", {**_GROWS, "needs": "machines"}),
        ("migrated", "migrations", "migrations to a new process that succeeded", {**_GROWS}),
        ("migrations_refused", "migrations", "migrations that a blocker forbade", {**_GROWS, "needs": "migrations"}),
        (
            "migrations_failed",
            "migrations",
            "migrations that failed: the machine went on in its old process, or died",
            {**_GROWS, "needs": "migrations"},
        ),
        ("downtime_ms", "ms", "the longest that a machine stood still to migrate", {}),
    ):
        yield _row(name, unit, OF_MACHINES, doc, "", **others)
    doc = "lines on the consoles of guests that contain the regular expression `console` of the expectation"
    yield _row("console_lines", "lines", OF_MACHINES, doc, "")


def _times() -> Iterator[Metric]:
    yield _row("ready_s", "s", OF_RUN, "from the start of the processes until all machines are ready")
    yield _row("duration_s", "s", OF_RUN, "the measured time: how long the programs ran after the warm-up")
    yield _row("warmup_s", "s", OF_RUN, "the time before that, which latencies leave out")
    yield _row("elapsed_s", "s", OF_RUN, "how long the programs ran, warm-up included", **_GROWS)
    yield _row("missed_oldest_ns", "ns", OF_RUN, "how long the oldest missed doorbell had been due")


def _samples() -> Iterator[Metric]:
    for name, unit, of, doc in (
        ("samples", "doorbells", OF_RUN, "doorbells with time stamps"),
        ("samples_refused", "doorbells", OF_GROUPS, "due for a time stamp, for which the recording had no room"),
        ("unmatched", "doorbells", OF_RUN, "samples without a known drain: pending at the end, or their target died"),
        ("unscheduled", "doorbells", OF_GROUPS, "samples rung without a schedule, by a closed loop or as replies"),
        ("short_deliveries", "doorbells", OF_RUN, "samples delivered in a quarter of the wake-up baseline's median"),
        ("drains", "drains", OF_RUN, "logged drains of an eventfd counter"),
        ("drains_refused", "drains", OF_GROUPS, "drains for which the recording had no room"),
        ("overfull_drains", "drains", OF_RUN, "drains with more samples than doorbells: stamps are mismatched"),
    ):
        yield _row(name, unit, of, doc)


_RESOURCES = (
    ("cpu_percent", "%", "CPU time of each machine, in percent of one CPU"),
    ("cpu_percent_max", "%", "the same of the machine with the most"),
    ("cpu_percent_sum", "%", "the same of all machines together"),
    ("cpu_system_share", "", "the kernel's share of that CPU time, 0 to 1"),
    ("private_bytes", "bytes", "memory of each machine that its end would free, recordings excluded"),
    ("private_bytes_max", "bytes", "the same of the machine with the most"),
    ("private_bytes_sum", "bytes", "the same of all machines together"),
    ("uss_bytes", "bytes", "unique set size of each machine"),
    ("pss_bytes", "bytes", "proportional set size of each machine: shared pages count in parts"),
    ("pss_bytes_sum", "bytes", "the same of all machines together"),
    ("rss_bytes", "bytes", "resident set size of each machine"),
    ("instrument_bytes", "bytes", "the share of each machine's memory that its recordings take"),
    ("switches_voluntary_per_s", "1/s", "context switches of each machine that waited"),
    ("switches_involuntary_per_s", "1/s", "context switches of each machine that was preempted"),
    ("faults_minor_per_s", "1/s", "page faults of each machine without I/O"),
    ("faults_major_per_s", "1/s", "page faults of each machine with I/O"),
    ("descriptors_max", "descriptors", "open file descriptors of the machine with the most"),
    ("threads_max", "threads", "threads of the machine with the most"),
)


def _resources() -> Iterator[Metric]:
    for name, of_each in (("uss_mib", "unique"), ("rss_mib", "resident")):
        yield _row(name, "MiB", OF_MACHINES, f"{of_each} set size: the most of each machine, added up", "")
    yield _row("cpu_s", "s", OF_MACHINES, "CPU time, of all machines together", "")
    yield _row("cpu_ns_per_doorbell", "ns", OF_RUN, "CPU time of all machines for each doorbell rung", compared=True)
    for name, unit, doc in _RESOURCES:
        is_compared = name in ("cpu_percent_sum", "private_bytes")
        yield _row(name, unit, OF_GROUPS, doc, f"resources.{name}", compared=is_compared)
    for name, unit, doc in _RESOURCES:
        if not name.endswith(("_sum", "cpu_percent_max", "bytes_max")):
            its = re.sub("each machine|the machine with the most", "the coordinator", doc)
            yield _row(f"coordinator.{name}", unit, OF_RUN, its)


def _host() -> Iterator[Metric]:
    for name, unit, doc in (
        ("host.cpu_percent", "%", "CPU time of the whole host, in percent of one CPU"),
        ("host.steal_percent", "%", "CPU time that the hypervisor gave to others, in percent of one CPU"),
        ("host.load_max", "", "the highest load average of one minute"),
        ("host.pressure_cpu_percent", "%", "share of time in which a task of the host waited for a CPU"),
        ("host.pressure_memory_percent", "%", "share of time in which a task of the host waited for memory"),
        ("host.pressure_io_percent", "%", "share of time in which a task of the host waited for I/O"),
        ("host.sampling_percent", "%", "CPU time of sampling the processes, in percent of one CPU"),
        ("wake_up_baseline.p50_ns", "ns", "median of a bare wake-up between two processes"),
        ("wake_up_baseline.p99_ns", "ns", "p99 of a bare wake-up between two processes"),
        ("wake_up_baseline.count", "wake-ups", "wake-ups that were measured for the baseline"),
        ("wake_up_baseline.clock_ns", "ns", "one reading of the clock"),
        ("wake_up_baseline.times_baseline.p50", "", "the median of delivery, in units of that of the baseline"),
        ("wake_up_baseline.times_baseline.p99", "", "the p99 of delivery, in units of that of the baseline"),
        ("outlier.took_ns", "ns", "the latency of the doorbell that ended the run (`stop_above`)"),
        ("outlier.reached_ns", "ns", "what the limited metric had reached when that ended the run"),
        ("outlier.limit_ns", "ns", "the limit of it"),
    ):
        yield _row(name, unit, OF_RUN, doc)


def _latencies() -> Iterator[Metric]:
    for latency, doc in LATENCIES.items():
        for point in POINTS:
            for unit in UNITS_NS:
                source = "" if point == "mean" else f"latency_ns.{latency}.{point}"
                text = f"{_of_point(point)} of the time {doc}"
                yield _row(f"{latency}.{point}_{unit}", unit, OF_EVERYTHING, text, source)


def _of_point(point: str) -> str:
    return POINTS[point] or point.replace("_", ".")


METRICS: dict[str, Metric] = {
    row.name: row
    for rows in (_doorbells, _interrupts, _machines, _times, _samples, _resources, _host, _latencies)
    for row in rows()
}
"""By name; besides these there is ``statistics.NAME``, for any name."""

LIVE: tuple[str, ...] = tuple(row.name for row in METRICS.values() if row.live)
"""The names of the metrics that are known during the run."""

_BY_NAME = METRICS | {alias: row for row in METRICS.values() for alias in row.aliases}
_POINT = re.compile(r"(.*\bp99)\.(9{1,2}(?:_.*)?)")
_STATISTIC = re.compile(r"statistics\.[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*", re.ASCII)
_EDGE = re.compile(r"\s*([\w.-]+)\s*->\s*([\w.-]+?)\s*(?::\s*([0-9]{1,4})\s*)?", re.ASCII)
_VECTOR = re.compile(r"\s*([\w.-]+?)\s*:\s*([0-9]{1,4})\s*", re.ASCII)


def find_metric(name: str) -> Metric:
    """The metric of that name, under its full name (``p99_us`` is ``total.p99_us``). Raises `MisfitError`."""
    spelled = _POINT.sub(r"\1_\2", name)
    if (found := _BY_NAME.get(spelled) or _BY_NAME.get(f"total.{spelled}")) is not None:
        return found
    if _STATISTIC.fullmatch(name):
        doc = "what programs count under this name in `guest.statistics`, added up"
        return Metric(name=name, unit="", doc=doc, of=OF_MACHINES)
    plain = [known for known in METRICS if "." not in known]
    latencies = f"a latency such as delivery.p99_us (of {', '.join(LATENCIES)}; {', '.join(POINTS)})"
    expected = f"one of the metrics {', '.join(plain)}, statistics.NAME, or {latencies}"
    bare = [known.removeprefix("total.") for known in METRICS if known.startswith("total.")]
    hint = f'did you mean "{name}_us"?' if {f"{spelled}_us", f"total.{spelled}_us"} & METRICS.keys() else ""
    raise MisfitError(expected, hint or nearest(name, [*_BY_NAME, *bare]))


def parse_condition(text: str, *, live: bool = False) -> Condition:
    """``"delivery.p99_us < 500"`` as a `Condition` of the whole run; ``live``: of a metric that is known meanwhile.

    Raises:
        MisfitError: the text is no condition, or not of such a metric.
    """
    found = _CONDITION.fullmatch(text)
    bound = math.nan
    if found is not None:
        with contextlib.suppress(ValueError):
            bound = float(found[3])
    if found is None or not math.isfinite(bound):
        raise MisfitError('a metric compared to a number, like "p99_us < 500" or "refused == 0"')
    metric = find_metric(found[1])
    if live and not metric.live:
        expected = f"a metric that is known during the run: {', '.join(LIVE)}"
        raise MisfitError(expected, nearest(found[1], LIVE))
    return Condition(metric=metric.name, comparison=found[2], bound=bound)  # type: ignore[arg-type]


def parse_owner(of: str) -> tuple[str | None, str, int | None]:
    """Source, target and vector in ``of``: ("a", "b", 2) of ``"a -> b:2"``, (None, "b", None) of ``"b"``."""
    if (edge := _EDGE.fullmatch(of)) is not None:
        return edge[1], edge[2], None if edge[3] is None else int(edge[3])
    if (vector := _VECTOR.fullmatch(of)) is not None:
        return None, vector[1], int(vector[2])
    return None, of.strip(), None


def glossary() -> dict[str, dict[str, str]]:
    """Unit and meaning of the numbers in ``summary.json``, by their place in it; latencies once for all percentiles."""
    found = {}
    for row in METRICS.values():
        latency = row.source.startswith("latency_ns.")
        place = row.source.rpartition(".")[0] if latency else row.source
        if place and place not in found:
            doc = f"the time {LATENCIES[place.rpartition('.')[2]]}" if latency else row.doc
            found[place] = {"unit": "ns" if latency else row.unit, "doc": doc}
    return found
