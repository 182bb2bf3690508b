"""`ivsim run` and `ivsim show`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

import sim
import topologies
from sim.commands import options
from sim.commands.cluster import cluster_options, where_from
from sim.commands.output import echo_json, write_file, write_result
from sim.commands.parameters import FILE, PATH, STREAM, NameChoice, WholeNumber
from sim.exit_codes import INTERRUPTED, MISSED, of_error, of_run
from topologies.metrics import LATENCIES
from topologies.model import EngineName


@click.command("run")
@options.optional_topology_argument
@options.overrides_option
@click.option("--seed", type=WholeNumber(0, 2**63 - 1), help="The same as --set seed=N.")
@click.option("--engine", type=NameChoice(get_args(EngineName)), help="The same as --set run.engine=NAME.")
@click.option(
    "--stop-above",
    metavar="LIMIT",
    help="End the run when a latency is above LIMIT (5ms, p99_9=500us, delivery.max=2ms), and say what it was. "
    "The same as --set run.stop_above=LIMIT.",
)
@options.runs_option
@click.option(
    "--socket",
    "socket_path",
    type=PATH,
    help="The path of the server's socket, for others to join (a real QEMU, `ivsim attach`).",
)
@cluster_options
@click.option(
    "--domains",
    metavar="NAME,...",
    callback=lambda _context, _option, given: tuple(filter(None, (given or "").split(","))),
    help="Run the machines of these domains only.",
)
@click.option(
    "--start-fd",
    type=WholeNumber(min=3),
    metavar="FD",
    help="A connected socket that gets the line `ready` when all machines are; a line from it starts them.",
)
@options.resources_every_option
@options.programs_option
@click.option(
    "--prometheus", type=FILE, metavar="FILE", help="Keep the latest snapshot in FILE, in Prometheus' text format."
)
@click.option(
    "--replay",
    type=FILE,
    metavar="FILE",
    help="Print every event of a schedule that `ivsim explore` has written; without TOPOLOGY.",
)
@click.option("--dry-run", is_flag=True, help="Show what the run needs of this host, and start nothing.")
@click.option(
    "--junit", "junit_file", type=FILE, help="Write the verdicts on the expectations to this file, as JUnit XML."
)
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON on standard output, and no progress.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def run(
    context: click.Context,
    /,
    topology: str | None,
    overrides: dict[str, str],
    seed: int | None,
    engine: str | None,
    stop_above: str | None,
    runs: Path,
    socket_path: Path | None,
    domains: tuple[str, ...],
    start_fd: int | None,
    resources_every_s: float,
    programs: tuple[Path, ...],
    prometheus: Path | None,
    replay: Path | None,
    dry_run: bool,
    junit_file: Path | None,
    as_json: bool,
    quiet: bool,
    **cluster: Any,
) -> None:
    """Run TOPOLOGY, a file or the name of a shipped one (`ivsim list`), and print its result.

    Ctrl-C ends it early and keeps what was measured; a second one does not wait for the machines. The exit code is 99
    when an expectation of the topology is not met, and 98 when --stop-above has ended it.

    With --replay FILE, take a schedule again under virtual time that breaks an invariant, event by event.

    A topology whose domains have hosts runs on the workers of --scheduler, or with --workers in parts on this host.
    """
    if replay is not None:
        raise click.exceptions.Exit(_replay_schedule(context, replay))
    if topology is None:
        raise click.MissingParameter(param_hint="'TOPOLOGY' (or --replay FILE)", param_type="argument")
    settings = {"seed": seed, "run.engine": engine, "run.stop_above": stop_above}
    overrides |= {key: str(value) for key, value in settings.items() if value is not None}
    for file in filter(None, (junit_file, prometheus)):
        if not file.parent.is_dir():
            raise click.UsageError(f"{file} cannot be written: there is no directory {file.parent}")
    if dry_run:
        from topologies.hosts import part_of

        loaded = topologies.load(topology, overrides, programs)
        code = write_demand(part_of(loaded, domains) if domains else loaded, runs, as_json=as_json)
        raise click.exceptions.Exit(code)
    where = where_from(cluster)
    common: dict[str, Any] = {"runs": runs, "overrides": overrides, "programs": programs}
    common["resources_every_s"] = resources_every_s
    if where is not None:
        given = {"--socket": socket_path, "--prometheus": prometheus, "--domains": domains, "--start-fd": start_fd}
        if wrong := [name for name, value in given.items() if value]:
            raise click.UsageError(f"{wrong[0]} goes with a run on this host, without --scheduler and --workers")
        from sim.distributed.run_hosts import run_on_hosts

        tell = (lambda line: None) if as_json or quiet else partial(click.echo, err=True)
        result = run_on_hosts(where, topology, tell=tell, **common)
    else:
        common |= {"socket_path": socket_path, "domains": domains, "start_fd": start_fd}
        result = _run_here(topology, common, prometheus, quiet=as_json or quiet)
    echo_json(result.figures) if as_json else _print(result)
    if junit_file is not None:
        from sim.views.junit import junit

        write_file(junit_file, junit(result.figures.expectations, result))
    raise click.exceptions.Exit(_exit_code(result))


def _run_here(topology: str, arguments: dict[str, Any], prometheus: Path | None, *, quiet: bool) -> sim.Run:
    """Run a topology with these arguments of `sim.run`, with a progress line unless ``quiet``."""
    from rich.console import Console

    from sim.commands.progress import progress
    from sim.runner import Begun

    stderr = Console(stderr=True)
    socket_path = arguments["socket_path"]
    with contextlib.ExitStack() as stack:

        def begin(begun: Begun) -> None:
            stack.enter_context(_kept(begun.path))
            if not quiet:
                stderr.print(f"{begun.topology.title}: {begun.path}", markup=False, highlight=False, soft_wrap=True)
                stack.enter_context(progress(begun.telemetry, stderr))
            if prometheus is not None:
                from sim.views.prometheus import exporting

                stack.enter_context(exporting(begun.telemetry, prometheus, partial(click.echo, err=True)))
            for line in _how_to_join(begun, socket_path, quiet=quiet):
                stderr.print(line, markup=False, highlight=False, soft_wrap=True)

        return sim.run(topology, on_begin=begin, **arguments)


def _how_to_join(begun: Any, socket_path: Path | None, *, quiet: bool) -> list[str]:
    """The lines that say what other programs need to take part in the run; ``begun`` is a `sim.runner.Begun`."""
    from sim.access import external_lines, qemu_lines, shown

    lines = external_lines(begun.topology, begun.access)
    if socket_path is not None or not quiet:
        lines += shown(begun.access)
    if socket_path is not None:
        lines += qemu_lines(begun.topology, begun.access)
    return lines


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[None]:
    """After a third signal, say how to get the results of the run that was given up."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"ivsim: given up; its results are made of what was recorded by: ivsim show {path}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def write_demand(topology: topologies.Topology, runs: Path, *, as_json: bool = False) -> int:
    """Print the demand of ``topology`` and what of it this host does not have; the exit code: 0, or 3."""
    import msgspec
    from rich.console import Console

    from sim.commands.topology import notes_on
    from sim.host.preflight import preflight, render

    demand, notes = preflight(topology, runs), notes_on(topology)
    if as_json:
        plain = msgspec.to_builtins(demand)
        sums = [{**each, "fits": it.fits} for each, it in zip(plain["sums"], demand.sums, strict=True)]
        plain |= {"sums": sums, "fits": not demand.problems, "problems": demand.problems, "warnings": demand.warnings}
        echo_json(plain | notes)
    else:
        console = Console()
        render(demand, console)
        for note in itertools.chain.from_iterable(notes.values()):
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        if not demand.problems:
            console.print("this host can carry it", highlight=False)
    return of_error(demand.error(demand.problems)) if demand.problems else 0


def _replay_schedule(context: click.Context, file: Path) -> int:
    """Print every event of the schedule in a file; returns the exit code.

    Raises:
        click.UsageError: the command line has anything beside ``--replay``: the file holds the topology and all else.
        TopologyError: the topology of the schedule, or a program of it, is no longer there.
    """
    from sim.explore import read_replay
    from sim.explore.seed import trace_seed

    for parameter in context.command.get_params(context):
        name = str(parameter.name)
        if name != "replay" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            given = parameter.opts[0] if isinstance(parameter, click.Option) else "a topology"
            raise click.UsageError(f"expected --replay alone, got {given} beside it: the schedule holds the topology")
    replay = read_replay(file)
    outcome = trace_seed(replay.topology(), replay.seed, replay.decisions, click.echo)
    if outcome.broken is None:
        click.echo(f"all invariants hold; when the schedule was written: {replay.broken}")
        return 0
    click.echo(f"broken: {outcome.broken}")
    return MISSED


@click.command("show")
@options.run_argument
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON, with a glossary of its numbers.")
@click.option(
    "--hgrm", type=STREAM, metavar="FILE", help="Write the percentiles of one latency (--latency) for HdrHistogram."
)
@click.option("--hlog", type=STREAM, metavar="FILE", help="Write the histograms of all latencies for HdrHistogram.")
@click.option(
    "--cyclictest", type=STREAM, metavar="FILE", help="Write one latency by machine, as cyclictest --json does."
)
@click.option(
    "--latency", type=NameChoice(LATENCIES), default="delivery", help="The latency of --hgrm and --cyclictest."
)
def show(
    run_directory: Path, as_json: bool, hgrm: Path | None, hlog: Path | None, cyclictest: Path | None, latency: str
) -> None:
    """Print what `ivsim run` printed for the run directory RUN.

    The results of a run whose coordinator was killed are made from what its machines had recorded. With --hgrm, --hlog
    or --cyclictest, those files are written instead, in nanoseconds; - is standard output.
    """
    from topologies.metrics import glossary

    result = sim.open(run_directory)
    if hgrm is not None or hlog is not None or cyclictest is not None:
        _export(result, hgrm, hlog, cyclictest, latency)
    elif as_json:
        echo_json({**result.summary, "glossary": glossary()})
    else:
        _print(result)


def _export(result: sim.Run, hgrm: Path | None, hlog: Path | None, cyclictest: Path | None, latency: str) -> None:
    from sim.views import hdr_histogram
    from sim.views.cyclictest import cyclictest_json

    origin = result.origin
    start = datetime.fromisoformat(origin.started)
    texts = []
    if hgrm is not None:
        texts.append((hgrm, hdr_histogram.hgrm(result.histogram(latency))))
    if hlog is not None:
        histograms = {name: result.histogram(name) for name in LATENCIES}
        texts.append((hlog, hdr_histogram.hlog(histograms, start.timestamp(), origin.duration_s)))
    if cyclictest is not None:
        text = cyclictest_json(
            result.histogram(latency, by="machine"),
            command=" ".join(["ivsim", *origin.argv[1:]]),
            start=start,
            duration_s=origin.duration_s,
            release=origin.host.kernel,
        )
        texts.append((cyclictest, text))
    for path, text in texts:
        write_result(path, text)


def _print(result: sim.Run) -> None:
    from rich.console import Console

    from sim.views.terminal import render, render_expectations

    console = Console()
    render(result, console)
    render_expectations(result.figures.expectations, console)


def _exit_code(result: sim.Run) -> int:
    return of_run(
        result.status,
        result.reason,
        balanced=result.balanced,
        aborted=result.aborted,
        missed=any(not verdict.met for verdict in result.figures.expectations),
        stopped_above=result.figures.outlier is not None,
    )
