"""`ivsim explore`: many seeds under virtual time, invariants, and the shortest schedule that breaks one."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

import topologies
from sim.commands.cluster import cluster_options
from sim.commands.options import overrides_option, programs_option, topology_argument
from sim.commands.parameters import WholeNumber
from sim.distributed.addresses import make_tls
from sim.distributed.where import Where, where_of
from sim.exit_codes import MISSED, of_signal

PROGRESS_S = 1.0


def _seeds(_context: click.Context, _option: click.Parameter, given: str) -> range:
    """``FIRST..LAST`` or ``COUNT``."""
    if (found := re.fullmatch(r"(?:(\d{1,18})\.\.)?(\d{1,18})", given, re.ASCII)) is None:
        raise click.BadParameter(f"expected FIRST..LAST or a number of seeds, got {given!r}")
    first, last = int(found[1] or 0), int(found[2]) if found[1] else int(found[2]) - 1
    if last < first:
        raise click.BadParameter(f"expected at least one seed, got {given!r}")
    return range(first, last + 1)


@click.command("explore")
@topology_argument
@click.option("--seeds", default="0..999", callback=_seeds, help="FIRST..LAST, or how many from 0.")
@click.option("--jobs", type=WholeNumber(1, 4096), default=1, help="How many processes.")
@click.option("--keep-going", is_flag=True, help="Run all seeds, also after one that breaks an invariant.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    default=Path("schedule.json"),
    help="Where the shortest schedule is written, for `ivsim run --replay`.",
)
@click.option("--no-shrink", is_flag=True, help="Look for no shorter schedule, and write none.")
@cluster_options
@overrides_option
@programs_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def explore(
    topology: str,
    seeds: range,
    jobs: int,
    keep_going: bool,
    output: Path,
    no_shrink: bool,
    scheduler: str | None,
    workers: int | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    overrides: dict[str, str],
    programs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Run TOPOLOGY under virtual time with each seed, with the delays and faults of its [chaos].

    The invariants of every run and those of the topology ([[invariant]]) are checked after each event. A schedule that
    breaks one is made as short as possible and written to a file; the exit code is 99.

    With --scheduler or --workers, batches of seeds are run by the workers of a cluster, each with --jobs processes.
    """
    where = where_of(scheduler, workers, make_tls(tls_ca, tls_cert, tls_key))
    to_shrink = None if no_shrink else output
    loaded = topologies.load(topology, overrides, programs)
    code = _explore(loaded, seeds, jobs, keep_going, to_shrink, programs, where, as_json=as_json, quiet=quiet)
    raise click.exceptions.Exit(code)


def _explore(
    topology: topologies.Topology,
    seeds: range,
    jobs: int,
    keep_going: bool,
    output: Path | None,
    programs: tuple[Path, ...],
    where: Where | None,
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    import msgspec

    from sim.explore import shrink, write_replay

    begin = time.monotonic()
    found, stopped = _run_seeds(topology, seeds, jobs, keep_going, programs, where, quiet=quiet or as_json)
    elapsed_s = time.monotonic() - begin
    figures: dict[str, Any] = {
        "seeds": found.seeds,
        "events": found.events,
        "doorbells": found.doorbells,
        "decisions": found.decisions,
        "elapsed_s": round(elapsed_s, 3),
        "seeds_per_s": round(found.seeds / elapsed_s, 1),
        "broken": [{"seed": outcome.seed, **msgspec.to_builtins(outcome.broken)} for outcome in found.broken],
    }
    if not as_json:
        click.echo(
            "{seeds} seeds in {elapsed_s:.1f} s ({seeds_per_s:g} a second): {events} events, {doorbells} doorbells, "
            "{decisions} decisions of chaos".format(**figures)
        )
        for outcome in found.broken:
            click.echo(f"broken with seed {outcome.seed}: {outcome.broken}")
    if found.broken and output is not None:
        first = found.broken[0]
        shortest = shrink(topology, first)
        write_replay(output, topology, [str(program) for program in programs], shortest)
        figures["schedule"] = {"file": str(output), "decisions": len(shortest.decisions)}
        if not as_json:
            was, now = len(first.decisions), len(shortest.decisions)
            click.echo(f"the shortest schedule has {now} of the {was} decisions of seed {first.seed}:")
            for decision in shortest.decisions:
                click.echo(f"    {decision}")
            click.echo(f"    {shortest.broken}")
            click.echo(f"every event of it: ivsim run --replay {output}")
    elif not as_json and not found.broken and not stopped:
        click.echo("all invariants hold")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
    if stopped:
        return of_signal(stopped)
    return MISSED if found.broken else 0


def _run_seeds(
    topology: topologies.Topology,
    seeds: range,
    jobs: int,
    keep_going: bool,
    programs: tuple[Path, ...],
    where: Where | None,
    *,
    quiet: bool,
) -> tuple[Any, str]:
    """Run the seeds, here or on a cluster: an `Exploration`, and the name of the signal that ended it, "" for none."""
    from sim.explore import explore as run_seeds

    told = time.monotonic()

    def tell(exploration: Any) -> None:
        nonlocal told
        if not quiet and time.monotonic() - told > PROGRESS_S:
            told = time.monotonic()
            click.echo(f"{exploration.seeds} of {len(seeds)} seeds, {len(exploration.broken)} broken", err=True)

    def warn(line: str) -> None:
        click.echo(line, err=True)

    if where is None:
        return run_seeds(topology, seeds, jobs=jobs, keep_going=keep_going, progress=tell), ""
    from sim.distributed.explore import explore_on

    with where.open() as cluster:
        found, stopped = explore_on(
            cluster, topology, programs, seeds, jobs=jobs, keep_going=keep_going, progress=tell, warn=warn
        )
    if stopped:
        warn(f"{stopped}: the batches that were running are not counted")
    return found, stopped
