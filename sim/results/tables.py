"""What `ivsim run` and `ivsim show` print of a run: doorbells, latencies, resources, warnings.

Plain columns without lines: readable in 80 columns, in a pipe, and by somebody who has only `less`.
Everything that comes out of a run's files is printed as text, without markup and without control characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from nodes.errors import UsageError
from sim.results import Run
from sim.results.latency import LATENCIES
from sim.results.summary import Group, Percentiles, Resources, Summary

__all__ = ["human_count", "human_ns", "render"]

STATUS_STYLES = {"finished": "bold green", "degraded": "bold yellow", "interrupted": "bold yellow"}
# Machines that take this share of all CPUs wait for each other (or for what else the host does), and
# latencies say more about the scheduler than about the interrupt.
SATURATED = 0.6
NOTHING = "-"

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
    for table in (_doorbells(figures), _latencies(figures), _resources(figures)):
        if len(table) > 1:
            console.print()
            _columns(table, console)
    console.print()
    for warning in _warnings(run, figures):
        _line(console, "! ", warning, style="yellow")
    _balance(figures, console)
    _place(run, console)


def human_ns(value_ns: int | None) -> str:
    """Nanoseconds in three digits and the unit that fits: ns, us, ms or s."""
    if value_ns is None:
        return NOTHING
    for size, unit in ((10**9, "s"), (10**6, "ms"), (10**3, "us")):
        # 999,500 ns would round to "1000 us".
        if abs(value_ns) >= size * 0.9995:
            return f"{_three_digits(value_ns / size)} {unit}"
    return f"{value_ns} ns"


def human_count(value: float | None) -> str:
    """A number in three digits and k, M or G."""
    if value is None:
        return NOTHING
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)} {unit}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{decimals}f}"


def _mebibytes(value_bytes: int | None) -> str:
    return NOTHING if value_bytes is None else f"{value_bytes / 2**20:.1f} MiB"


def _plain(text: str) -> str:
    """``text`` without control characters, which could drive the reader's terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _line(console: Console, text: str, rest: str = "", style: str = "") -> None:
    line = Text(_plain(text))
    line.append(_plain(rest), style or None)
    console.print(line, soft_wrap=not console.is_terminal)


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
    """All groups together; then, where there are several, what was delivered to each."""
    rows: list[tuple[str, ...]] = [("latency", "p50", "p90", "p99", "p99.9", "max", "samples")]
    rows += [_latency(name, getattr(figures.latency_ns, name)) for name in LATENCIES]
    groups = {name: its for name, its in figures.groups.items() if its.latency_ns.lag.samples}
    for name, its in groups.items() if len(groups) > 1 else ():
        rows.append(_latency(f"delivery {name}", its.latency_ns.delivery))
        rows.append(_latency(f"total {name}", its.latency_ns.total))
    return rows


def _latency(name: str, its: Percentiles) -> tuple[str, ...]:
    figures = (human_ns(value) for value in (its.p50, its.p90, its.p99, its.p99_9, its.max))
    return name, *figures, f"{its.samples:,}"


def _resources(figures: Summary) -> Rows:
    rows: list[tuple[str, ...]] = [("each machine of", "CPU", "CPU max", "private", "private max", "preempted/s")]
    rows += [_usage(name, group.resources) for name, group in figures.groups.items() if group.resources]
    if figures.coordinator:
        rows.append(_usage("(coordinator)", figures.coordinator))
    return rows


def _usage(name: str, its: Resources) -> tuple[str, ...]:
    return (
        name,
        f"{its.cpu_percent:.1f} %",
        f"{its.cpu_percent_max:.1f} %",
        _mebibytes(its.private_bytes),
        _mebibytes(its.private_bytes_max),
        human_count(its.switches_involuntary_per_s),
    )


def _warnings(run: Run, figures: Summary) -> Iterator[str]:
    """Everything that a reader of the figures has to know about them."""
    for name, how in list(figures.deaths.items())[:8]:
        yield f"{name} died: {how}"
    if len(figures.deaths) > 8:
        yield f"{len(figures.deaths) - 8} more machines died"
    if figures.settled:
        yield (
            f"{figures.settled:,} doorbells are settled: whoever died (or is no machine of this topology) "
            "had not put them on its books"
        )
    if figures.pending_derived:
        yield "pending is what was left over: nobody looked into the counters at the end"
    if figures.samples_refused or figures.drains_refused:
        yield (
            f"recordings were full: {figures.samples_refused:,} samples and {figures.drains_refused:,} "
            "drains have no stamps, the latencies stand for the time before; a larger sample_every helps"
        )
    if figures.unmatched:
        yield f"{figures.unmatched:,} of {figures.samples:,} samples are without a known delivery"
    if figures.overfull_drains:
        yield (
            f"{figures.overfull_drains:,} of {figures.drains:,} drains got more samples than doorbells: "
            "stamps taken across a preemption, off by one drain"
        )
    if figures.pended or figures.dropped:
        yield (
            f"without MSI-X: {figures.pended:,} delivered doorbells were left pending in the device, "
            f"{figures.dropped:,} dropped"
        )
    yield from _oversubscription(figures)
    yield from run.problems


def _oversubscription(figures: Summary) -> Iterator[str]:
    used = [(group.machines, group.resources) for group in figures.groups.values() if group.resources]
    busy = sum(machines * its.cpu_percent for machines, its in used) / 100
    if figures.machines > figures.cpus and busy > SATURATED * figures.cpus:
        preempted = sum(machines * its.switches_involuntary_per_s for machines, its in used)
        yield (
            f"oversubscribed: {figures.machines} machines kept {busy:.1f} of {figures.cpus} CPUs busy and "
            f"were preempted {human_count(preempted)} times a second; latencies include waiting for a CPU"
        )


def _balance(figures: Summary, console: Console) -> None:
    balanced = figures.balanced and figures.rung == figures.delivered + figures.pending + figures.refused
    sign = "=" if balanced else "is NOT"
    line = Text(
        f"rung {figures.rung:,} {sign} delivered {figures.delivered:,} + pending {figures.pending:,} "
        f"+ refused {figures.refused:,}",
        style="" if balanced else "bold red",
    )
    console.print(line, soft_wrap=not console.is_terminal)
