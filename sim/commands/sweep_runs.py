"""Carries out the remaining runs of `ivsim sweep`, here or on a cluster, and shows all runs as a table."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

import sim
from nodes.errors import HostError, IvshmemError, UsageError
from sim.commands.sweep_table import render_sweep, short_names
from sim.distributed.where import Where
from sim.exit_codes import FAILED, MISSED, of_error, of_signal
from sim.sweeps import Cell, Plan, Row, Sweep, make_plan
from sim.views.columns import print_columns
from sim.views.units import human_count, human_ns
from topologies import Topology


def new_sweep(
    topology: str | None,
    axes: dict[str, list[str]],
    repeat: int,
    programs: tuple[Path, ...],
    directory: Path | None,
    runs: Path,
) -> Sweep:
    """The sweep to run: a new one, or that in ``directory``, which is continued."""
    plan = _plan(topology, axes, repeat, programs) if topology is not None else None
    if directory is not None:
        return Sweep.resume(directory, plan)
    assert plan is not None
    return Sweep(runs, plan)


def carry_out(
    its: Sweep,
    directory: Path | None,
    runs: Path,
    where: Where | None,
    *,
    resources_every_s: float,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    balance: bool,
    across_hosts: bool,
) -> int:
    """Run what is left of a sweep, here or on a cluster, and show all of it. Returns the exit code.

    Raises:
        UsageError, HostError: a run that is left cannot be run.
    """
    if dry_run:
        return _dry_run(its, directory or runs)
    if not (where and where.scheduler) and (refusal := _refusal(its, directory or runs)) is not None:
        raise refusal
    if directory is None:
        its = Sweep.create(runs, its.plan)
    stopped = _run_all(its, Console(stderr=True, quiet=as_json or quiet), resources_every_s, where, balance=balance)
    its.finish()
    if as_json:
        click.echo((its.path / "sweep.json").read_text(), nl=False)
    else:
        render_sweep(its, Console(), across_hosts=across_hosts)
    codes = {row.exit_code for row in its.rows}
    return stopped or next((code for code in (FAILED, MISSED) if code in codes), 0)


def _plan(topology: str, axes: dict[str, list[str]], repeat: int, programs: tuple[Path, ...]) -> Plan:
    fixed = {key: values[0] for key, values in axes.items() if len(values) == 1}
    varied = {key: values for key, values in axes.items() if len(values) > 1}
    return make_plan(topology, fixed, varied, repeat, programs)


def _refusal(its: Sweep, runs: Path) -> HostError | UsageError | None:
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


def _dry_run(its: Sweep, runs: Path) -> int:
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
    refusal = _refusal(its, runs)
    for problem in str(refusal).splitlines() if refusal else ():
        console.print(Text(f"! {problem}", "yellow"), soft_wrap=True)
    return of_error(refusal) if refusal else 0


def _run_all(its: Sweep, stderr: Console, resources_every_s: float, where: Where | None, *, balance: bool) -> int:
    """Run what is left until it is done or interrupted. Returns 0, or the exit code of the interrupt."""
    try:
        if where is None:
            stopped = _run_here(its, stderr, resources_every_s)
        else:
            stopped = _run_there(its, stderr, resources_every_s, where, balance=balance)
    except KeyboardInterrupt:
        stopped = "SIGINT"
    except IvshmemError:
        _say_how_to_resume(its, "stopped")
        raise
    if stopped:
        _say_how_to_resume(its, stopped)
        return of_signal(stopped)
    return 0


def _run_here(its: Sweep, stderr: Console, resources_every_s: float) -> str:
    """Run the cells one after the other; returns the reason of an interrupt, "" for none."""
    for cell in its.left:
        with contextlib.ExitStack() as stack:

            def begin(begun: Any, stack: contextlib.ExitStack = stack) -> None:
                if stderr.is_terminal and not stderr.quiet:
                    from sim.commands.progress import progress

                    stack.enter_context(progress(begun.telemetry, stderr))

            def run(topology: Topology, runs: Path, begin: Any = begin) -> sim.Run:
                return sim.run(topology, runs=runs, resources_every_s=resources_every_s, on_begin=begin)

            row, stopped = its.run(cell, run)
        _tell_row(its, cell, row, stderr)
        if stopped:
            return stopped
    return ""


def _run_there(its: Sweep, stderr: Console, resources_every_s: float, where: Where, *, balance: bool) -> str:
    """Run the cells on a cluster; returns the name of the signal that interrupted it, "" for none."""
    from sim.distributed.sweep import ClusterSweep

    if not its.left:
        return ""

    def tell(cell: Cell, host: str, row: Row | None) -> None:
        if row is not None:
            _tell_row(its, cell, row, stderr)
        elif host:
            stderr.print(Text(f"{cell.place}/{len(its.plan.cells)}  {_values(its, cell)}: on {host}"), soft_wrap=True)

    def warn(line: str) -> None:
        click.echo(line, err=True)

    with where.open() as cluster:
        return ClusterSweep(
            its, cluster, resources_every_s=resources_every_s, balance=balance, tell=tell, warn=warn
        ).run()


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
    names = short_names(its.plan.varied)
    told = [f"{names[key]}={cell.overrides[key]}" for key in its.plan.varied]
    if its.plan.cells[-1].repeat:
        told.append(f"#{cell.repeat}")
    return " ".join(told)
