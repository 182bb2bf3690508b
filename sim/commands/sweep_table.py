"""The table at the end of `ivsim sweep`."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from sim.sweeps import Row, Sweep, hosts_are_comparable
from sim.views.columns import print_columns
from sim.views.units import human_count, human_ns


def short_names(keys: list[str]) -> dict[str, str]:
    """The last parts of dotted keys; the whole of those that end alike."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def render_sweep(its: Sweep, console: Console, *, across_hosts: bool) -> None:
    """Print one table of all runs that are done, and the directory of the sweep.

    Latencies of different hosts cannot be compared. Where several hosts have run parts of a sweep, the table has no
    latencies; where each has run every combination, it has the rows of one host after the other.
    """
    varied = its.plan.varied
    names = short_names(varied)
    repeats = bool(its.plan.cells[-1].repeat)
    hosts = sorted({row.host for row in its.rows})
    balanced = len(hosts) > 1 and hosts_are_comparable(varied, its.rows)
    shown = across_hosts or balanced or len(hosts) < 2
    rows = sorted(its.rows, key=lambda row: row.host) if balanced and not across_hosts else its.rows
    head = ["run", *(names[key] for key in varied), *(["seed"] if repeats else []), *(["host"] if any(hosts) else [])]
    head += ["status", "rung/s", "per int.", "delivery p50", "p99", "total p50", "p99", "USS", "ready", "missed"]
    lines, styles = [head], {}
    for place, row in enumerate(rows, start=1):
        cells = [str(row.place), *(row.values[key] for key in varied), *([str(row.seed)] if repeats else [])]
        cells += [row.host or "-"] if any(hosts) else []
        lines.append(cells + _figures(row, latencies=shown))
        if row.exit_code:
            styles[place] = "bold red" if row.exit_code == 1 else "yellow"
    print_columns(lines, console, left=(), styles=styles)
    for row in its.rows:
        for text in filter(None, (row.reason, *row.missed)):
            console.print(Text(f"! run {row.place}: {text}", "yellow"), soft_wrap=True)
    if not shown:
        ran = ", ".join(host or "this host" for host in hosts)
        text = f"! {ran} have run parts of it, and latencies of different hosts cannot be compared: --across-hosts "
        text += "shows them (with --resume), --balance with --repeat lets each host run every combination"
        console.print(Text(text, "yellow"), soft_wrap=True)
    console.print(Text(f"sweep: {its.path}"), soft_wrap=True)


def _figures(row: Row, *, latencies: bool) -> list[str]:
    cells = [row.status, human_count(row.rung_per_s), "-" if row.coalescing is None else f"{row.coalescing:,.2f}"]
    figures = (row.delivery_p50_ns, row.delivery_p99_ns, row.total_p50_ns, row.total_p99_ns)
    cells += [human_ns(value if latencies else None) for value in figures]
    cells += ["-" if row.uss_bytes is None else f"{row.uss_bytes / 2**20:.1f} MiB"]
    cells += ["-" if row.ready_s is None else f"{row.ready_s:.2f} s"]
    return [*cells, f"{len(row.missed)} of {row.expectations}" if row.expectations else "-"]
