"""Two runs side by side: what changed, by how much, and whether that is more than chance.

A percentile's change has an interval of its own: both runs are bootstrapped (``latency.intervals``), each resample of
one is divided by one of the other, and 95 % of the quotients lie in it. Where it holds 0, the two runs do not show a
difference: there may be none, or they are too short to tell it, which is called unclear. It knows what varied within
the two runs, not what varies from run to run: a host that was busy throughout one of them looks like a change.

A threshold such as ``p99:+10%`` says how much worse a run may be than the one before. It is judged by the metric, not
by its interval: a run so short that its intervals are open would miss no threshold otherwise. The verdict says if the
interval of the change contains 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.results.analysis.latency.histogram import middles
from sim.results.analysis.latency.intervals import FEWEST, SLICES, Interval, Slices, replicates
from sim.results.analysis.latency.latencies import EVERY_LATENCY, QUANTILES
from sim.results.arrays import Floats
from sim.results.display import as_html, require_pandas
from sim.results.run import Run
from sim.results.store.opening import open as open_run
from sim.results.summary import Percentiles, Summary, value_at
from topologies.metrics import METRICS
from topologies.schedule import UNITS_NS

EXPECTED = "expected METRIC:+LIMIT or METRIC:-LIMIT such as p99:+10%, delivery.p99:+5us or doorbells_per_s:-5%"

TAIL = 0.025
UNCLEAR = "unclear"
Share = tuple[float | None, float | None]


@dataclass(frozen=True)
class Change:
    """One metric of both runs, None where a run does not have it (too few samples, not looked at).

    ``change`` is relative (0.1: B is a tenth above A), None when A is 0; intervals are of 95 %, None where there
    are none, and an end is None where it is not bounded.
    """

    name: str
    unit: str
    a: float | None
    b: float | None
    difference: float | None = None
    change: float | None = None
    change_interval: Share | None = None
    a_interval: Interval | None = None
    b_interval: Interval | None = None

    @property
    def title(self) -> str:
        """Its name as people write it: delivery.p99.9."""
        return self.name.replace("9_", "9.")

    def verdict(self) -> str:
        """higher or lower where the interval of the change says so, unclear where it holds 0; empty without one."""
        if self.change_interval is None:
            return ""
        low, high = self.change_interval
        return "higher" if low is not None and low > 0 else "lower" if high is not None and high < 0 else UNCLEAR

    def row(self) -> dict[str, Any]:
        """Everything known of it, the verdict among it."""
        return asdict(self) | {"verdict": self.verdict()}


@dataclass(frozen=True)
class Comparison:
    """All metrics of two runs, by name: ``comparison["total.p99"]``. ``notes`` say what else differs."""

    a: Run
    b: Run
    metrics: dict[str, Change]
    notes: list[str]

    def __getitem__(self, name: str) -> Change:
        """A metric: total.p99 (p99 alone means that), delivery.p99_9 or p99.9, doorbells_per_s, ..."""
        wanted = name if name in self.metrics else _full_name(name)
        if wanted not in self.metrics:
            quantiles = ", ".join(quantile.replace("_", ".") for quantile, _ in QUANTILES)
            others = [metric for metric in self.metrics if metric in METRICS and METRICS[metric].compared]
            raise UsageError(
                f"no metric {name!r}: expected {quantiles}, of total or of another latency "
                f"({', '.join(EVERY_LATENCY)}) as in delivery.p99, or one of {', '.join(others)}, "
                f"or another metric of a summary (`ivsim list --metrics`){did_you_mean(name, self._names())}"
            )
        return self.metrics[wanted]

    def _names(self) -> Iterator[str]:
        """All names that `__getitem__` takes, in the spelling of the command line."""
        for name in self.metrics:
            latency, _, quantile = name.rpartition(".")
            if latency in EVERY_LATENCY:
                yield f"{latency}.{quantile.replace('_', '.')}"
                if latency == "total":
                    yield quantile.replace("_", ".")
            else:
                yield name

    def __repr__(self) -> str:
        return f"<Comparison of {self.a.path.name} and {self.b.path.name}: {len(self.metrics)} metrics>"

    def table(self) -> pa.Table:
        """One row for each metric."""
        ends = ("a_interval", "b_interval", "change_interval")
        rows = []
        for metric in self.metrics.values():
            row = metric.row()
            for name in ends:
                row[f"{name}_low"], row[f"{name}_high"] = row.pop(name) or (None, None)
            rows.append(row)
        kinds = {"name": pa.string(), "unit": pa.string(), "verdict": pa.string()}
        return pa.table(
            {name: pa.array([row[name] for row in rows], kinds.get(name, pa.float64())) for name in rows[0]}
        )

    def frame(self) -> Any:
        """As a ``pandas.DataFrame`` by name. Raises ``UsageError`` without pandas."""
        require_pandas()
        return self.table().to_pandas().set_index("name")

    def _repr_html_(self) -> str | None:
        return as_html(self)


@dataclass(frozen=True)
class Threshold:
    """``metric`` of B may be ``limit`` above A (``sign`` +1) or below (-1); ``unit``: %, ns, us, ms, s or none."""

    text: str
    metric: str
    sign: int
    limit: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """The threshold in ``text``. Raises ``UsageError``."""
        match = re.fullmatch(r"([a-z0-9_.]{1,64}):([+-])([0-9]{1,9}(?:\.[0-9]{1,9})?)(%|ns|us|ms|s|)", text)
        if match is None:
            raise UsageError(f"{text[:80]!r} is no threshold: {EXPECTED}")
        return cls(text, match[1], 1 if match[2] == "+" else -1, float(match[3]), match[4])

    def judge(self, comparison: Comparison) -> ThresholdVerdict:
        """Hold the threshold against a comparison. A metric that a run does not have is a threshold missed.

        Raises:
            UsageError: there is no such metric, or it has another unit.
        """
        its = comparison[self.metric]
        if self.unit in UNITS_NS and its.unit != "ns":
            raise UsageError(f"{self.text}: {its.name} is no time, {EXPECTED}")
        lacking = tuple(name for name, value in (("A", its.a), ("B", its.b)) if value is None)
        if its.a is None or its.b is None:
            return ThresholdVerdict(self, its, met=False, lacking=lacking)
        limit = abs(its.a) * self.limit / 100 if self.unit == "%" else self.limit * UNITS_NS.get(self.unit, 1.0)
        met = self.sign * (its.b - its.a) <= limit
        return ThresholdVerdict(self, its, met=met, unclear=its.verdict() == UNCLEAR)


@dataclass(frozen=True)
class ThresholdVerdict:
    """Whether a threshold is met.

    Attributes:
        threshold: what was allowed.
        change: the metric in both runs.
        met: whether B is within the limit.
        lacking: the runs (A, B) that do not have the metric; then it is not met.
        unclear: whether the interval of the change holds 0.
    """

    threshold: Threshold
    change: Change
    met: bool
    lacking: tuple[str, ...] = ()
    unclear: bool = False


def compare(
    a: Run | str | os.PathLike[str], b: Run | str | os.PathLike[str], *, across_hosts: bool = False
) -> Comparison:
    """Compare two runs, opened or named by their directories; ``a`` is the one before.

    Raises ``UsageError`` when one has no summary, or when a cluster has run them on different hosts, whose latencies
    differ for other reasons, unless ``across_hosts``. Without its samples there are no intervals, and a note says so.
    """
    runs = [given if isinstance(given, Run) else open_run(given) for given in (a, b)]
    before, after = runs
    ours, theirs = (_host(run) for run in runs)
    if ours != theirs and not across_hosts:
        raise UsageError(
            f"A was run {ours} and B {theirs}: their latencies differ with the hosts; --across-hosts "
            "(across_hosts=True) compares them nevertheless"
        )
    notes = list(_settings(before, after))
    drawn: list[dict[str, Slices] | None] = []
    for name, run in zip("AB", runs, strict=True):
        try:
            drawn.append(cut := run.latency_slices())
            if 0 < (filled := cut["total"].filled) < FEWEST:
                notes.append(
                    f"{name} without intervals: its drains lie in {filled} of {SLICES} slices of the measured time, "
                    f"an interval needs {FEWEST}"
                )
        except UsageError as error:
            drawn.append(None)
            notes.append(f"{name} without intervals: {error}")
    metrics = [*_latencies(before.figures, after.figures, *drawn), *_others(before.figures, after.figures)]
    return Comparison(before, after, {metric.name: metric for metric in metrics}, notes)


def _host(run: Run) -> str:
    """Where a run was carried out, in words; runs without a readable manifest are treated as of this host."""
    try:
        name = " and ".join(row.host for row in run.origin.parts) or run.origin.host.name
    except UsageError:
        name = ""
    return f"on {name}" if name else "outside a cluster"


def _full_name(name: str) -> str:
    latency, dot, rest = name.partition(".")
    if dot and latency in EVERY_LATENCY:
        return f"{latency}.{rest.replace('.', '_')}"
    return f"total.{name.replace('.', '_')}"


def _latencies(
    a: Summary, b: Summary, a_slices: dict[str, Slices] | None, b_slices: dict[str, Slices] | None
) -> Iterator[Change]:
    for latency in EVERY_LATENCY:
        ours: Percentiles = getattr(a.latency_ns, latency)
        theirs: Percentiles = getattr(b.latency_ns, latency)
        changes: dict[str, Floats] = {}
        if a_slices is not None and b_slices is not None:
            changes = _changes(a_slices[latency], b_slices[latency])
        for name, _ in QUANTILES:
            before, after = getattr(ours, name), getattr(theirs, name)
            intervals = ours.intervals.get(name), theirs.intervals.get(name)
            yield Change(
                name=f"{latency}.{name}",
                unit="ns",
                a=before,
                b=after,
                difference=_difference(before, after),
                change=_change(before, after),
                change_interval=_share(changes.get(name), *intervals),
                a_interval=intervals[0],
                b_interval=intervals[1],
            )


def _changes(a: Slices, b: Slices) -> dict[str, Floats]:
    """The relative change of each percentile in each pair of resamples."""
    found = {}
    # Drawn apart: with one seed for both, the same slices would come up in both.
    ours, theirs = replicates(a, seed=1), replicates(b, seed=2)
    for name in ours.keys() & theirs.keys():
        before, after = (middles(its.bins[drawn]) for its, drawn in ((a, ours[name]), (b, theirs[name])))
        if before.all():
            found[name] = after / before - 1
    return found


def _share(changes: Floats | None, a: Interval | None, b: Interval | None) -> Share | None:
    """95 % of the changes; an end that rests on a percentile without an upper bound is open."""
    if changes is None or a is None or b is None:
        return None
    low, high = (round(float(end), 4) for end in np.quantile(changes, (TAIL, 1 - TAIL)))
    return (low if a[1] is not None else None), (high if b[1] is not None else None)


def _others(a: Summary, b: Summary) -> Iterator[Change]:
    """The metrics without samples, which have no intervals."""
    for metric in METRICS.values():
        if metric.source and not metric.source.startswith("latency_ns."):
            before, after = value_at(a, metric.source), value_at(b, metric.source)
            yield Change(metric.name, metric.unit, before, after, _difference(before, after), _change(before, after))


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else round(b - a, 6)


def _change(a: float | None, b: float | None) -> float | None:
    return None if b is None or not a else round(b / a - 1, 6)


def _settings(a: Run, b: Run) -> Iterator[str]:
    """Differences of the runs besides their figures, and the warnings of each."""
    yield from _unequal(a.figures, b.figures, "title", "machines", "cpus", "warmup_s", "seed", "version")
    try:
        yield from _unequal(a.origin.host, b.origin.host, "name", "cpu_model", "kernel", "python")
        yield from _unequal(a.origin, b.origin, "engine", "sample_every")
    except UsageError as error:
        yield str(error)
    for name, run in (("A", a), ("B", b)):
        if run.status != "finished":
            yield f"{name} is {run.status}"
        yield from (f"{name}: {warning}" for warning in run.warnings)


def _unequal(a: object, b: object, *names: str) -> Iterator[str]:
    for name in names:
        ours, theirs = (value if (value := getattr(its, name)) != "" else "-" for its in (a, b))
        if ours != theirs:
            yield f"{'host' if name == 'name' else name}: {ours} in A, {theirs} in B"
