"""The tables of a run, as text cells: terminal, notebook and HTML page draw the same rows.

Each function takes the summary (or the comparison) and returns one :class:`TextTable`; a table without rows is not
drawn. What stands beside the tables, in sentences, is in ``sentences``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from sim.results.analysis.latency.latencies import EVERY_LATENCY, QUANTILES
from sim.results.compare import Change, Comparison, ThresholdVerdict
from sim.results.summary import ExpectationVerdict, GroupFigures, MigrationOutcome, Percentiles, ProcessUse, Summary
from sim.views.units import NOTHING, human_bytes, human_count, human_interval, human_ns, percentile_title
from topologies.metrics import METRICS

TOO_FEW = "few"
LATENCY_MEANINGS = {
    "lag": "intended to rung",
    "delivery": "rung to drained by the receiver",
    "handling": "drained to handled",
    "raw": "rung to handled",
    "total": "intended to handled",
}
MIGRATIONS_SHOWN = 16
CPUS_SHOWN = 16
NOT_EXPLAINED = "nothing that was seen accounts for it"
OWN_POINTS = ("p50", "p90", "p99", "p99_9", "max")
COORDINATOR = "(coordinator)"
UNITS = {"ns": human_ns, "bytes": human_bytes}


@dataclass(frozen=True)
class TextTable:
    """One table.

    Attributes:
        title: what the table shows.
        head: the titles of the columns.
        rows: the cells, as many in each row as the head has.
        words: the columns that hold words; the others hold numbers.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: Collection[int] = field(default=(0,))


def doorbells(figures: Summary) -> TextTable:
    """The account of each group, and of all together."""
    head = ("group", "rung", "delivered", "pending", "refused", "interrupts", "per int.", "rung/s")
    accounts: list[tuple[str, GroupFigures | Summary]] = [
        (f"{name} ({group.machines})" if group.machines else name, group) for name, group in figures.groups.items()
    ]
    rows = []
    for name, account in [*accounts, ("all", figures)] if len(accounts) > 1 else accounts:
        counts = (account.rung, account.delivered, account.pending, account.refused, account.interrupts)
        per_interrupt = NOTHING if account.coalescing is None else f"{account.coalescing:,.2f}"
        rows.append((name, *(f"{it:,}" for it in counts), per_interrupt, human_count(account.doorbells_per_s)))
    return TextTable("Doorbells rung at the machines of each group", head, rows)


def hosts(figures: Summary) -> TextTable:
    """The part of each host, of a run over several."""
    head = ("host", "machines", "rung", "delivered", "pending", "refused", "rung/s", "status")
    rows = [
        (
            name,
            *(f"{it:,}" for it in (part.machines, part.rung, part.delivered, part.pending, part.refused)),
            human_count(part.doorbells_per_s),
            part.status,
        )
        for name, part in figures.parts.items()
    ]
    return TextTable("The part of each host", head, rows, words=(0, 7))


def latencies(figures: Summary) -> TextTable:
    """All groups together; then delivery and total of each group and each phase, where there are several.

    Of a run over several hosts: delivery and total of each host, and of each group that is on one host. The latencies
    that programs have measured themselves come last.
    """
    hosts = {f"on {name}": part.latency_ns for name, part in figures.parts.items()}
    wanted = EVERY_LATENCY if len(hosts) < 2 else ()
    rows = [_percentiles(name, getattr(figures.latency_ns, name), human_ns) for name in wanted]
    groups = {name: group.latency_ns for name, group in figures.groups.items() if group.latency_ns.raw.samples}
    for parts in (hosts, groups, figures.phases):
        for name, its in parts.items() if len(parts) > 1 else ():
            rows.append(_percentiles(f"delivery {name}", its.delivery, human_ns))
            rows.append(_percentiles(f"total {name}", its.total, human_ns))
    for machine, values in figures.statistics.items():
        rows += [
            _percentiles(f"{name} {machine}", percentiles, human_ns)
            for name, percentiles in own_latencies(values).items()
        ]
    return TextTable("Latencies, without the warm-up", ("latency", *_titles(), "samples"), rows)


def own_latencies(statistics: Mapping[str, int | float]) -> dict[str, Percentiles]:
    """The latencies among a program's statistics: ``NAME_p50_us`` to ``NAME_max_us``, by NAME with blanks.

    ``NAME_samples`` says how many there are; without it, their number is not known.
    """
    found = {}
    for name in [key.removesuffix("_p50_us") for key in statistics if key.endswith("_p50_us")]:
        values = [statistics.get(f"{name}_{point}_us") for point in OWN_POINTS]
        p50, p90, p99, p99_9, most = (None if value is None else round(1000 * value) for value in values)
        samples = int(statistics.get(f"{name}_samples", 0))
        found[name.replace("_", " ")] = Percentiles(p50=p50, p90=p90, p99=p99, p99_9=p99_9, max=most, samples=samples)
    return found


def intervals(figures: Summary, without: Collection[str] = ()) -> TextTable:
    """The 95 % confidence intervals of delivery and total; ``without``: percentiles to leave out."""
    known = figures.latency_ns
    there = known.total.intervals | known.delivery.intervals
    names = [name for name, _ in QUANTILES if name in there and name not in without]
    rows = []
    for latency in ("delivery", "total") if names else ():
        its: Percentiles = getattr(known, latency)
        rows.append((latency, *(human_interval(its.intervals.get(name)) for name in names)))
    head = ("95 % CI", *map(percentile_title, names))
    return TextTable("95 % confidence intervals of the percentiles", head, rows)


def coalescing(figures: Summary) -> TextTable:
    """How many doorbells shared a wake-up, for the groups where any did."""
    groups = {name: group.drained for name, group in figures.groups.items() if (group.drained.max or 0) > 1}
    rows = [_percentiles(name, drained, lambda count: f"{count:,}") for name, drained in groups.items()]
    return TextTable("Doorbells that shared a wake-up", ("doorbells a wake", *_titles(), "wakes"), rows)


def _titles() -> list[str]:
    return [percentile_title(name) for name, _ in QUANTILES]


def _percentiles(name: str, its: Percentiles, word: type[str] | object) -> tuple[str, ...]:
    few = TOO_FEW if its.samples else NOTHING
    values = [getattr(its, quantile) for quantile, _ in QUANTILES]
    return name, *(few if value is None else word(value) for value in values), f"{its.samples:,}"  # type: ignore[operator]


def resources(figures: Summary) -> TextTable:
    """CPU and memory of one machine of each group, of all machines together, and of the coordinator."""
    rows = [_usage(name, group.resources) for name, group in figures.groups.items() if group.resources]
    if (its := figures.resources) and its.cpu_percent_sum is not None and figures.machines > 1:
        preempted = human_count(figures.machines * its.switches_involuntary_per_s)
        together = (f"{its.cpu_percent_sum:.1f} %", NOTHING, human_bytes(its.private_bytes_sum), NOTHING, preempted)
        rows.append((f"(all {figures.machines} together)", *together))
    if figures.coordinator:
        rows.append(_usage(COORDINATOR, figures.coordinator))
    head = ("each machine of", "CPU", "CPU max", "private", "private max", "preempted/s")
    return TextTable("Resources between start and stop", head, rows)


def _usage(name: str, its: ProcessUse) -> tuple[str, ...]:
    cpu = (f"{its.cpu_percent:.1f} %", f"{its.cpu_percent_max:.1f} %")
    memory = (human_bytes(its.private_bytes), human_bytes(its.private_bytes_max))
    return name, *cpu, *memory, human_count(its.switches_involuntary_per_s)


PROCESS_COLUMNS = {
    "RSS": ("rss_bytes", human_bytes),
    "USS": ("uss_bytes", human_bytes),
    "PSS": ("pss_bytes", human_bytes),
    "recording": ("instrument_bytes", human_bytes),
    "waits/s": ("switches_voluntary_per_s", human_count),
    "preempted/s": ("switches_involuntary_per_s", human_count),
    "minor faults/s": ("faults_minor_per_s", human_count),
    "major faults/s": ("faults_major_per_s", human_count),
    "descriptors max": ("descriptors_max", human_count),
    "threads max": ("threads_max", human_count),
}


def cpus(figures: Summary, most: int = CPUS_SHOWN) -> TextTable:
    """The load of each CPU of the host, of many the busiest ones."""
    known = figures.host.cpus if figures.host else []
    shown = sorted(sorted(known, key=lambda its: -its.busy_percent - its.steal_percent)[:most], key=lambda its: its.cpu)
    columns = ("busy_percent", "irq_percent", "softirq_percent", "steal_percent")
    rows = [(f"CPU {its.cpu}", *(f"{getattr(its, name):.1f} %" for name in columns)) for its in shown]
    title = f"CPUs of the host between start and stop, the {most} busiest" if len(known) > most else ""
    head = ("CPU", "busy", "irq", "softirq", "steal")
    return TextTable(title or "CPUs of the host between start and stop", head, rows)


def processes(figures: Summary) -> TextTable:
    """The further resources of the processes of each group."""
    used = {name: group.resources for name, group in figures.groups.items()} | {COORDINATOR: figures.coordinator}
    rows = []
    for name, usage in used.items():
        if usage:
            system = usage.cpu_percent * usage.cpu_system_share
            cpu = (f"{usage.cpu_percent - system:.1f} %", f"{system:.1f} %")
            rows.append((name, *cpu, *(word(getattr(usage, key)) for key, word in PROCESS_COLUMNS.values())))
    head = ("each machine of", "CPU user", "CPU system", *PROCESS_COLUMNS)
    return TextTable("CPU, memory and kernel counts of one machine of each group", head, rows)


def outlier(figures: Summary) -> TextTable:
    """The causes of the outlier that ended the run."""
    its = figures.outlier
    rows = [
        (cause.kind.replace("_", " "), f"{cause.share:.0%}", human_ns(cause.time_ns), cause.text)
        for cause in (its.causes if its else ())
    ]
    if its and not its.is_explained:
        share = max(0.0, 1 - sum(cause.share for cause in its.causes))
        rows.append(("not explained", f"{share:.0%}", human_ns(share * its.took_ns), NOT_EXPLAINED))
    return TextTable("What the time was spent on", ("cause", "share", "time", "evidence"), rows, words=(0, 3))


def migrations(figures: Summary, most: int = MIGRATIONS_SHOWN) -> TextTable:
    """The outcome of each machine's migrations; those with one outcome share a row, ``most`` rows.

    Downtime is the longest of the row; copied and left behind are sums. "PBA bits": vectors that were pending.
    """
    head = ("migration", "verdict", "times", "from", "to", "downtime", "copied", "PBA bits", "left behind")
    rows = [_outcome(outcomes) for outcomes in alike(figures)[:most]]
    return TextTable("Downtime: the longest of a row; copied, left behind: its sums", head, rows, words=(0, 1))


def alike(figures: Summary) -> list[list[MigrationOutcome]]:
    """The migrations by machine and outcome."""
    found: dict[tuple[object, ...], list[MigrationOutcome]] = {}
    for migration in figures.migrations:
        found.setdefault(
            (migration.machine, migration.verdict, migration.reason, migration.hand_over, migration.to_domain), []
        ).append(migration)
    return list(found.values())


def _outcome(its: Sequence[MigrationOutcome]) -> tuple[str, ...]:
    first, last = its[0], its[-1]
    downtimes = [outcome.downtime_ms for outcome in its if outcome.downtime_ms is not None]
    behind = [outcome.left_behind for outcome in its if outcome.left_behind is not None]
    memory_bytes, state_bytes = (
        sum(outcome.memory_bytes for outcome in its),
        sum(outcome.state_bytes for outcome in its),
    )
    moved = first.verdict == "moved"
    return (
        first.machine,
        first.verdict,
        f"{len(its)}",
        NOTHING if first.from_peer is None else f"{first.from_domain} {first.from_peer}",
        NOTHING if last.to_peer is None else f"{last.to_domain} {last.to_peer}",
        human_ns(max(downtimes) * 1e6) if downtimes else NOTHING,
        human_bytes(memory_bytes) if memory_bytes else f"{state_bytes:,} B" if state_bytes else NOTHING,
        f"{sum(outcome.pending_vectors for outcome in its)}" if moved else NOTHING,
        f"{sum(behind):,}" if behind else NOTHING,
    )


def expectations(verdicts: Sequence[ExpectationVerdict]) -> TextTable:
    """The expectations of the topology, and their outcome."""
    rows = []
    for verdict in verdicts:
        got = (
            "not known"
            if verdict.got is None
            else f"{verdict.got:,.0f}"
            if verdict.got.is_integer()
            else f"{verdict.got:,.6g}"
        )
        rows.append(("met" if verdict.met else "UNMET", str(verdict), got, verdict.why))
    return TextTable("Expectations", ("verdict", "expected", "got", ""), rows, words=(0, 1, 3))


def comparison(its: Comparison) -> TextTable:
    """The metrics of two runs, without those that neither has, and raw where it equals total."""
    rows = []
    for metric in its.metrics.values():
        if metric.name in METRICS and not METRICS[metric.name].compared:
            continue
        same = its.metrics.get(metric.name.replace("raw.", "total."), metric)
        if (metric.a or metric.b) and (same is metric or (same.a, same.b) != (metric.a, metric.b)):
            rows.append(
                (metric.title, shown_metric(metric, metric.a), shown_metric(metric, metric.b), *_change(metric))
            )
    head = ("metric", "A", "B", "change", "95 % of the change", "verdict")
    return TextTable(f"A: {PurePath(its.a.path).name}; B: {PurePath(its.b.path).name}", head, rows)


def shown_metric(its: Change, value: float | None) -> str:
    """A value of that metric, in its unit."""
    return UNITS.get(its.unit, human_count)(value)


def _change(its: Change) -> Iterator[str]:
    yield NOTHING if its.change is None else _percent(its.change)
    if its.change_interval is None:
        yield from (NOTHING, NOTHING)
        return
    low, high = ("open" if end is None else _percent(end) for end in its.change_interval)
    yield f"{low} to {high}"
    yield its.verdict()


def _percent(share: float) -> str:
    return f"{100 * share:+,.1f} %"


def threshold(its: ThresholdVerdict) -> str:
    """The change that a threshold is compared with, on one line."""
    change, limit = its.change, its.threshold
    if its.lacking:
        has = "has" if len(its.lacking) == 1 else "have"
        return f"{change.title}: {' and '.join(its.lacking)} {has} too few samples, or no such metric"
    moved = "" if change.change is None else f" ({_percent(change.change)})"
    doubt = " (the interval of the change holds 0)" if its.unclear else ""
    allowed = f"{limit.limit:g}{' ' if limit.unit else ''}{limit.unit} {'higher' if limit.sign > 0 else 'lower'}"
    both = f"{shown_metric(change, change.a)} to {shown_metric(change, change.b)}"
    return f"{change.title}: {both}{moved}, at most {allowed} allowed{doubt}"
