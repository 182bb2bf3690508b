"""What `ivsim run`, `ivsim show` and `ivsim compare` print: doorbells, latencies, resources, warnings.

Plain columns without lines: readable in 80 columns, in a pipe, and by somebody who has only `less`.
Everything that comes out of a run's files is printed as text, without markup and without control characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from nodes.errors import UsageError
from sim.results import Run
from sim.results.analysis.intervals import FEWEST, SLICES
from sim.results.analysis.latency import EVERY_LATENCY, QUANTILES
from sim.results.compare import Comparison
from sim.results.summary import Group, Percentiles, Resources, Summary
from sim.results.thresholds import Verdict
from sim.views.migration_outcomes import outcomes, reasons
from sim.views.units import NOTHING, human_bytes, human_count, human_interval, human_ns

__all__ = ["human_count", "human_ns", "render", "render_comparison"]

STATUS_STYLES = {"finished": "bold green", "degraded": "bold yellow", "interrupted": "bold yellow"}
TOO_FEW = "few"

Rows = Sequence[tuple[str, ...]]


def render(run: Run, console: Console) -> None:
    """Print ``run``: a title, the tables, warnings, the balance, the place. Says what is missing instead."""
    try:
        figures = run.figures
    except UsageError:
        _line(console, f"{run.path.name}: ", run.status, style=STATUS_STYLES.get(run.status, "bold red"))
        for problem in run.problems:
            _line(console, "! ", problem, style="yellow")
        _place(run, console)
        return
    _title(run, figures, console)
    tables = (_doorbells, _latencies, _certainty, _sharing, outcomes, _resources)
    for table in (make(figures) for make in tables):
        if len(table) > 1:
            console.print()
            _columns(table, console)
    console.print()
    for fact in (*_setting(figures), *_counted(run, figures)):
        _line(console, fact)
    for warning in _warnings(run):
        _line(console, "! ", warning, style="yellow")
    _balance(figures, console)
    _place(run, console)


def render_comparison(comparison: Comparison, verdicts: Sequence[Verdict], console: Console) -> None:
    """Print two runs side by side, what else differs, and how the thresholds fared."""
    for name, run in (("A", comparison.a), ("B", comparison.b)):
        console.print(Text(_plain(f"{name}: {run.figures.title}, {run.status}: {run.path}")), soft_wrap=True)
    console.print()
    _columns(comparison.rows(), console)
    console.print()
    for note in comparison.notes:
        _line(console, "! ", note, style="yellow")
    for verdict in verdicts:
        word, style = ("met", "green") if verdict.met else ("missed", "bold red")
        _line(console, f"{verdict.threshold}: {verdict.told}: ", word, style=style)


def _plain(text: str) -> str:
    """``text`` without control characters, which could drive the reader's terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _line(console: Console, text: str, rest: str = "", style: str = "") -> None:
    line = Text(_plain(text))
    line.append(_plain(rest), style or None)
    console.print(line, soft_wrap=not console.is_terminal)


def _counted(run: Run, figures: Summary) -> Iterator[str]:
    """A line for each group whose programs counted something: the sums over its machines."""
    group_of = {machine["name"]: machine["group"] for machine in run.machines}
    sums: dict[str, Counter[str]] = {}
    for machine, values in figures.statistics.items():
        if machine in group_of:
            sums.setdefault(group_of[machine], Counter()).update(values)
    for group, total in sums.items():
        yield f"{group} counted: " + ", ".join(f"{name} {value:,.10g}" for name, value in total.items())


def _place(run: Run, console: Console) -> None:
    """Where the run is, in one piece however narrow the terminal: people copy it."""
    console.print(Text(_plain(f"run: {run.path}")), soft_wrap=True)


def _columns(table: Rows, console: Console) -> None:
    """Print rows of cells, the head in bold: the first column to the left, all others to the right.

    Never cuts or wraps: a figure that lost a digit would lie. Where the width does not do, columns move closer.
    """
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    gap = "  " if sum(widths) + 2 * len(widths) - 2 <= console.width else " "
    for place, (name, *cells) in enumerate(table):
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        line = gap.join([name.ljust(widths[0]), *right])
        console.print(Text(_plain(line), "" if place else "bold"), soft_wrap=True)


def _title(run: Run, figures: Summary, console: Console) -> None:
    _line(console, f"{figures.title}: ", run.status, style=STATUS_STYLES.get(run.status, "bold red"))
    if run.reason:
        _line(console, "  ", run.reason)
    ready = "" if figures.ready_s is None else f", all ready after {figures.ready_s:.2f} s"
    _line(
        console,
        f"{figures.machines} machines on {figures.cpus} CPUs{ready}; ran {figures.duration_s:.2f} s, the "
        f"first {figures.warmup_s:g} s of it as warm-up; seed {figures.seed}",
    )


def _doorbells(figures: Summary) -> Rows:
    rows: list[tuple[str, ...]] = [
        ("group", "rung", "delivered", "pending", "refused", "interrupts", "per int.", "rung/s")
    ]
    accounts: list[tuple[str, Group | Summary]] = [
        (f"{name} ({group.machines})" if group.machines else name, group) for name, group in figures.groups.items()
    ]
    for name, its in [*accounts, ("all", figures)] if len(accounts) > 1 else accounts:
        counts = (its.rung, its.delivered, its.pending, its.refused, its.interrupts)
        coalescing = NOTHING if its.coalescing is None else f"{its.coalescing:,.2f}"
        rows.append((name, *(f"{it:,}" for it in counts), coalescing, human_count(its.doorbells_per_s)))
    return rows


def _latencies(figures: Summary) -> Rows:
    """All groups together; then, where there are several, what was delivered to each, and what in each phase."""
    rows: list[tuple[str, ...]] = [("latency", *(name.replace("_", ".") for name, _ in QUANTILES), "samples")]
    rows += [_latency(name, getattr(figures.latency_ns, name)) for name in EVERY_LATENCY]
    groups = {name: its.latency_ns for name, its in figures.groups.items() if its.latency_ns.lag.samples}
    for parts in (groups, figures.phases):
        for name, its in parts.items() if len(parts) > 1 else ():
            rows.append(_latency(f"delivery {name}", its.delivery))
            rows.append(_latency(f"total {name}", its.total))
    return rows


def _latency(name: str, its: Percentiles) -> tuple[str, ...]:
    figures = (getattr(its, quantile) for quantile, _ in QUANTILES)
    few = TOO_FEW if its.samples else NOTHING
    return name, *(few if value is None else human_ns(value) for value in figures), f"{its.samples:,}"


def _certainty(figures: Summary) -> Rows:
    """The 95 % intervals of what people quote."""
    # Without p90: five of them do not fit into 80 columns.
    names = [name for name, _ in QUANTILES if name in figures.latency_ns.total.intervals and name != "p90"]
    rows: list[tuple[str, ...]] = [("95 % CI", *(name.replace("_", ".") for name in names))]
    for latency in ("delivery", "total") if names else ():
        its: Percentiles = getattr(figures.latency_ns, latency)
        rows.append((latency, *(human_interval(its.intervals.get(name)) for name in names)))
    return rows


def _sharing(figures: Summary) -> Rows:
    """How many doorbells shared a wake-up, where any did."""
    rows: list[tuple[str, ...]] = [("doorbells a wake", *(name.replace("_", ".") for name, _ in QUANTILES), "wakes")]
    for name, its in figures.groups.items():
        if (its.drained.max or 0) > 1:
            counts = (getattr(its.drained, quantile) for quantile, _ in QUANTILES)
            shown = (TOO_FEW if count is None else f"{count:,}" for count in counts)
            rows.append((name, *shown, f"{its.drained.samples:,}"))
    return rows


def _resources(figures: Summary) -> Rows:
    rows: list[tuple[str, ...]] = [("each machine of", "CPU", "CPU max", "private", "private max", "preempted/s")]
    rows += [_usage(name, group.resources) for name, group in figures.groups.items() if group.resources]
    if (its := figures.resources) and its.cpu_percent_sum is not None and figures.machines > 1:
        preempted = human_count(figures.machines * its.switches_involuntary_per_s)
        together = (f"{its.cpu_percent_sum:.1f} %", NOTHING, human_bytes(its.private_bytes_sum), NOTHING, preempted)
        rows.append((f"(all {figures.machines} together)", *together))
    if figures.coordinator:
        rows.append(_usage("(coordinator)", figures.coordinator))
    return rows


def _usage(name: str, its: Resources) -> tuple[str, ...]:
    return (
        name,
        f"{its.cpu_percent:.1f} %",
        f"{its.cpu_percent_max:.1f} %",
        human_bytes(its.private_bytes),
        human_bytes(its.private_bytes_max),
        human_count(its.switches_involuntary_per_s),
    )


def _setting(figures: Summary) -> Iterator[str]:
    """What the figures are to be held against: the floor, the host, the price of a doorbell."""
    yield from reasons(figures)
    if any(TOO_FEW in row for row in _latencies(figures)):
        yield f"{TOO_FEW}: too few samples for that percentile"
    if figures.latency_ns.delivery.p50 is not None and not figures.latency_ns.delivery.intervals:
        yield f"no 95 % CI: samples in fewer than {FEWEST} of {SLICES} slices of the run's time"
    if its := figures.floor:
        times = ", ".join(f"its {name} {human_count(times)} times that" for name, times in its.times_floor.items())
        yield (
            f"floor: a bare wake-up takes {human_ns(its.p50_ns)} here (p99 {human_ns(its.p99_ns)}; {its.placement}), "
            f"a look at the clock {human_ns(its.clock_ns)}{'; delivery has ' + times if times else ''}"
        )
    if figures.cpu_ns_per_doorbell is not None:
        yield f"cost: {human_ns(figures.cpu_ns_per_doorbell)} of CPU time for each doorbell rung, all machines together"
    if host := figures.host:
        facts = [f"{host.cpu_percent:.0f} % of {figures.cpus} CPUs in use"] if host.cpu_percent else []
        facts += [f"load {host.load_max:g}"] if host.load_max is not None else []
        pressures = (("CPUs", "cpu"), ("memory", "memory"), ("disks", "io"))
        waits = [(name, getattr(host, f"pressure_{field}_percent")) for name, field in pressures]
        waited = ", ".join(f"{name} {share:.0f} %" for name, share in waits if share and share >= 0.5)
        facts += [f"of the time, somebody waited for {waited}"] if waited else []
        facts += [f"sampling took {host.sampling_percent:.1f} % of a CPU"] if host.sampling_percent is not None else []
        yield f"host: {'; '.join(facts)}"


def _warnings(run: Run) -> Iterator[str]:
    """Everything that a reader of the figures has to know about them."""
    yield from run.warnings
    yield from run.problems


def _balance(figures: Summary, console: Console) -> None:
    balanced = figures.balanced and figures.rung == figures.delivered + figures.pending + figures.refused
    sign = "=" if balanced else "is NOT"
    line = Text(
        f"rung {figures.rung:,} {sign} delivered {figures.delivered:,} + pending {figures.pending:,} "
        f"+ refused {figures.refused:,}",
        style="" if balanced else "bold red",
    )
    console.print(line, soft_wrap=not console.is_terminal)
