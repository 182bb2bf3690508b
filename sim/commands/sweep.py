"""`ivsim sweep`: the same topology with every combination of some values."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from nodes.errors import HostError, IvshmemError, UsageError
from sim.commands.options import BadTopology, programs_option, resources_every_option, runs_option
from sim.exit_codes import FAILED, MISSED, of_error, of_signal
from sim.sweep import Cell, Plan, Sweep, make_plan, split_values
from sim.views.columns import print_columns
from sim.views.units import human_count, human_ns
from topologies import Topology, TopologyError

__all__ = ["sweep"]


def _axes(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, list[str]]:
    """``KEY=V1,V2`` to the values of each key; given twice, the last one counts."""
    axes = {}
    for text in given:
        key, equals, values = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"expected KEY=VALUE,VALUE, for instance machines.storm.count=1,2,4, got {text!r}")
        try:
            axes[key.strip()] = split_values(values)
        except UsageError as error:
            raise click.BadParameter(f"{key.strip()}: {error}") from None
    return axes


@click.command("sweep", short_help="Run a topology with every combination of some values.")
@click.argument("topology", required=False)
@click.option(
    "--set",
    "axes",
    multiple=True,
    metavar="KEY=V1,V2,...",
    callback=_axes,
    help="Values of one key of the topology, or a single one. Repeatable.",
)
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs of each; run r has the seed + r."
)
@click.option(
    "--resume",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Continue an interrupted sweep: runs that are done are not repeated.",
)
@runs_option
@resources_every_option
@programs_option
@click.option("--dry-run", is_flag=True, help="Say what would be run, and whether this host is large enough.")
@click.option("--json", "as_json", is_flag=True, help="sweep.json on standard output, and no progress.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def sweep(
    topology: str | None,
    axes: dict[str, list[str]],
    repeat: int,
    directory: Path | None,
    runs: Path,
    resources_every_s: float,
    programs: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run TOPOLOGY with every combination of the values given, one run after the other, and compare them.

    Values are those of `ivsim run --set`, with commas between them:

    \b
      ivsim sweep fan_in --set machines.sender.count=1,2,4,8 --set run.duration_s=2
      ivsim sweep t.toml --set 'machines.a.parameters.to=["b","c"],"all"' --repeat 3

    A comma within quotes, brackets or braces separates nothing: a value with a comma is written as a TOML string
    ("a,b") or array. Without --set, the [matrix] of the topology says what varies; --set replaces its keys.

    Ctrl-C ends the current run and says how to resume. The exit code is the worst of the runs: 1 when one
    failed or did not balance, else 99 when an expectation was missed, else 0.
    """
    if topology is None and (directory is None or axes or repeat > 1 or programs):
        raise click.UsageError(
            "TOPOLOGY is missing" + (": --set, --repeat and --program go with it" if directory else "")
        )
    plan = _plan(topology, axes, repeat, programs) if topology is not None else None
    its = Sweep.resume(directory, plan) if directory is not None else None
    if its is None:
        assert plan is not None
        its = Sweep(runs, plan)
    if dry_run:
        raise click.exceptions.Exit(_dry_run(its, directory or runs))
    if (refusal := _refusal(its, directory or runs)) is not None:
        raise refusal
    if directory is None:
        its = Sweep.create(runs, its.plan)
    stopped = _run_all(its, Console(stderr=True, quiet=as_json or quiet), resources_every_s)
    its.finish()
    if as_json:
        click.echo((its.path / "sweep.json").read_text(), nl=False)
    else:
        _render(its, Console())
    codes = {row.exit_code for row in its.rows}
    raise click.exceptions.Exit(stopped or next((code for code in (FAILED, MISSED) if code in codes), 0))


def _plan(topology: str, axes: dict[str, list[str]], repeat: int, programs: tuple[Path, ...]) -> Plan:
    fixed = {key: values[0] for key, values in axes.items() if len(values) == 1}
    varied = {key: values for key, values in axes.items() if len(values) > 1}
    try:
        return make_plan(topology, fixed, varied, repeat, programs)
    except TopologyError as error:
        raise BadTopology(error) from None


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


def _run_all(its: Sweep, stderr: Console, resources_every_s: float) -> int:
    """Run what is left until it is done or interrupted. Returns 0, or the exit code of the interrupt."""
    import sim

    stopped = ""
    try:
        for cell in its.left:
            with contextlib.ExitStack() as stack:

                def begin(begun: Any, stack: contextlib.ExitStack = stack) -> None:
                    if stderr.is_terminal and not stderr.quiet:
                        from sim.commands.progress import progress

                        stack.enter_context(progress(begun.telemetry, stderr))

                def run(topology: Topology, runs: Path, begin: Any = begin) -> sim.Run:
                    return sim.run(topology, runs=runs, resources_every_s=resources_every_s, on_begin=begin)

                row, stopped = its.run(cell, run)
            told = f"{cell.place}/{len(its.plan.cells)}  {_values(its, cell)}: {row.status}"
            figures = f", {human_count(row.rung_per_s)} rung/s, delivery p50 {human_ns(row.delivery_p50_ns)}"
            stderr.print(Text(told + (f": {row.reason}" if row.reason else figures)), soft_wrap=True)
            if stopped:
                break
    except KeyboardInterrupt:
        stopped = "SIGINT"
    except IvshmemError:
        _say_how_to_resume(its, "stopped")
        raise
    if stopped:
        _say_how_to_resume(its, stopped)
        return of_signal(stopped)
    return 0


def _say_how_to_resume(its: Sweep, why: str) -> None:
    done, total = len(its.rows), len(its.plan.cells)
    click.echo(f"{why}: {done} of {total} runs are done; go on with: ivsim sweep --resume {its.path}", err=True)


def _values(its: Sweep, cell: Cell) -> str:
    """The keys that distinguish cells, shortened unless two of them end alike."""
    names = _short(its.plan.varied)
    told = [f"{names[key]}={cell.overrides[key]}" for key in its.plan.varied]
    if its.plan.cells[-1].repeat:
        told.append(f"#{cell.repeat}")
    return " ".join(told)


def _short(keys: list[str]) -> dict[str, str]:
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def _render(its: Sweep, console: Console) -> None:
    """One table of all that is done, and where it is."""
    names = _short(its.plan.varied)
    repeats = bool(its.plan.cells[-1].repeat)
    head = ["run", *(names[key] for key in its.plan.varied), *(["seed"] if repeats else []), "status", "rung/s"]
    head += ["per int.", "delivery p50", "p99", "total p50", "p99", "USS", "ready", "missed"]
    rows, styles = [head], {}
    for place, row in enumerate(its.rows, start=1):
        cells = [str(row.place), *(row.values[key] for key in its.plan.varied), *([str(row.seed)] if repeats else [])]
        cells += [row.status, human_count(row.rung_per_s), "-" if row.coalescing is None else f"{row.coalescing:,.2f}"]
        figures = (row.delivery_p50_ns, row.delivery_p99_ns, row.total_p50_ns, row.total_p99_ns)
        cells += [human_ns(value) for value in figures]
        cells += ["-" if row.uss_bytes is None else f"{row.uss_bytes / 2**20:.1f} MiB"]
        cells += ["-" if row.ready_s is None else f"{row.ready_s:.2f} s"]
        cells += [f"{len(row.missed)} of {row.expectations}" if row.expectations else "-"]
        rows.append(cells)
        if row.exit_code:
            styles[place] = "bold red" if row.exit_code == 1 else "yellow"
    print_columns(rows, console, left=(), styles=styles)
    for row in its.rows:
        for text in filter(None, (row.reason, *row.missed)):
            console.print(Text(f"! run {row.place}: {text}", "yellow"), soft_wrap=True)
    console.print(Text(f"sweep: {its.path}"), soft_wrap=True)
