"""Carries out the remaining runs of `ivsim sweep`, here or on a cluster, and shows all runs as a table."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from nodes.errors import HostError, IvshmemError, UsageError
from sim.distributed.where import Where
from sim.exit_codes import of_error, of_signal
from sim.sweeps import Cell, Row, Sweep, hosts_are_comparable, make_plan
from sim.sweeps.run_sweep import run_cells
from sim.views.columns import print_columns
from sim.views.units import human_count, human_ns


def new_sweep(
    topology: str | None,
    axes: dict[str, list[str]],
    repeat: int,
    programs: tuple[Path, ...],
    directory: Path | None,
    runs: Path,
) -> Sweep:
    """The sweep to run: a new one, or that in ``directory``, which is continued."""
    fixed = {key: values[0] for key, values in axes.items() if len(values) == 1}
    varied = {key: values for key, values in axes.items() if len(values) > 1}
    plan = make_plan(topology, fixed, varied, repeat, programs) if topology is not None else None
    if directory is not None:
        return Sweep.resume(directory, plan)
    assert plan is not None
    return Sweep(runs, plan)


def refusal(its: Sweep, runs: Path) -> HostError | UsageError | None:
    """Why cells that are still to be run cannot: each reason once, in a line, with the first cell that has it."""
    from sim.host.preflight import preflight

    cells: dict[str, list[Cell]] = {}
    mistaken = True
    for cell in its.left:
        demand = preflight(its.plan.topology(cell), runs)
        mistaken &= demand.problems == demand.mistaken
        for problem in demand.problems:
            cells.setdefault(problem, []).append(cell)
    problems = [
        f"run {first.place} ({_values(its, first)})" + (f" and {len(more)} more" if more else "") + f": {problem}"
        for problem, (first, *more) in cells.items()
    ]
    return (UsageError if mistaken else HostError)("\n".join(problems)) if problems else None


def show_demand(its: Sweep, runs: Path) -> int:
    """Print what is left to be run, and what this host has too little of for it. Returns the exit code."""
    rows = [("run", "values", "machines", "vectors", "time")]
    total_s = 0.0
    for cell in its.left:
        topology = its.plan.topology(cell)
        time_s = sum(phase.duration_s for phase in topology.phases)
        total_s += time_s
        counts = (str(len(topology.machines)), str(topology.eventfds))
        rows.append((str(cell.place), _values(its, cell), *counts, f"{time_s:g} s"))
    console = Console()
    print_columns(rows, console, left=(1,))
    console.print(f"{len(its.left)} runs of {len(its.plan.cells)}, {total_s:g} s beside coming up", highlight=False)
    error = refusal(its, runs)
    for problem in str(error).splitlines() if error else ():
        console.print(Text(f"! {problem}", "yellow"), soft_wrap=True)
    return of_error(error) if error else 0


def run_all(its: Sweep, resources_every_s: float, where: Where | None, *, balance: bool, quiet: bool) -> int:
    """Run what is left until it is done or interrupted. Returns 0, or the exit code of the interrupt."""
    stderr = Console(stderr=True, quiet=quiet)

    def tell(cell: Cell, host: str, row: Row | None) -> None:
        if row is not None:
            _tell_row(its, cell, row, stderr)
        elif host:
            stderr.print(Text(f"{cell.place}/{len(its.plan.cells)}  {_values(its, cell)}: on {host}"), soft_wrap=True)

    def watch(telemetry: str) -> contextlib.AbstractContextManager[None]:
        from sim.commands.progress import progress

        return progress(telemetry, stderr) if stderr.is_terminal and not quiet else contextlib.nullcontext()

    warn = functools.partial(click.echo, err=True)
    try:
        stopped = run_cells(
            its, where, resources_every_s=resources_every_s, balance=balance, tell=tell, warn=warn, watch=watch
        )
    except KeyboardInterrupt:
        stopped = "SIGINT"
    except IvshmemError:
        _say_how_to_resume(its, "stopped")
        raise
    if stopped:
        _say_how_to_resume(its, stopped)
        return of_signal(stopped)
    return 0


def _tell_row(its: Sweep, cell: Cell, row: Row, stderr: Console) -> None:
    told = f"{cell.place}/{len(its.plan.cells)}  {_values(its, cell)}: {row.status}"
    told += f" on {row.host}" if row.host else ""
    figures = f", {human_count(row.rung_per_s)} rung/s, delivery p50 {human_ns(row.delivery_p50_ns)}"
    stderr.print(Text(told + (f": {row.reason}" if row.reason else figures)), soft_wrap=True)


def _say_how_to_resume(its: Sweep, why: str) -> None:
    done, total = len(its.rows), len(its.plan.cells)
    click.echo(f"{why}: {done} of {total} runs are done; go on with: ivsim sweep --resume {its.path}", err=True)


def _values(its: Sweep, cell: Cell) -> str:
    """The keys that distinguish cells, shortened unless two of them end alike."""
    names = _short_names(its.plan.varied)
    told = [f"{names[key]}={cell.overrides[key]}" for key in its.plan.varied]
    if its.plan.cells[-1].repeat:
        told.append(f"#{cell.repeat}")
    return " ".join(told)


def _short_names(keys: list[str]) -> dict[str, str]:
    """The last parts of dotted keys; the whole of those that end alike."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def show(its: Sweep, *, across_hosts: bool) -> None:
    """Print one table of all runs that are done, and the directory of the sweep.

    Latencies of different hosts cannot be compared. Where several hosts have run parts of a sweep, the table has no
    latencies; where each has run every combination, it has the rows of one host after the other.
    """
    console = Console()
    varied = its.plan.varied
    names = _short_names(varied)
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
