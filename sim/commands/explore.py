"""`ivsim explore`: many seeds under virtual time, invariants, and the shortest schedule that breaks one."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import topologies
from sim.commands.cluster import cluster_options, where_from
from sim.commands.options import overrides_option, programs_option, topology_argument
from sim.commands.parameters import FILE, WholeNumber
from sim.distributed.where import Where
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
    type=FILE,
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
    overrides: dict[str, str],
    programs: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    **cluster: Any,
) -> None:
    """Run TOPOLOGY under virtual time with each seed, with the delays and faults of its [chaos].

    The invariants of every run and those of the topology ([[invariant]]) are checked after each event. A schedule that
    breaks one is made as short as possible and written to a file; the exit code is 99.

    With --scheduler or --workers, batches of seeds are run by the workers of a cluster, each with --jobs processes.
    """
    import msgspec

    where = where_from(cluster)
    loaded = topologies.load(topology, overrides, programs)
    say: Callable[[str], None] = (lambda text: None) if as_json else click.echo
    begin = time.monotonic()
    found, stopped = _run_seeds(loaded, seeds, jobs, keep_going, programs, where, quiet=quiet or as_json)
    elapsed_s = time.monotonic() - begin
    figures: dict[str, Any] = {name: getattr(found, name) for name in ("seeds", "events", "doorbells", "decisions")}
    figures |= {"elapsed_s": round(elapsed_s, 3), "seeds_per_s": round(found.seeds / elapsed_s, 1)}
    figures["broken"] = [{"seed": outcome.seed, **msgspec.to_builtins(outcome.broken)} for outcome in found.broken]
    say(
        "{seeds} seeds in {elapsed_s:.1f} s ({seeds_per_s:g} a second): {events} events, {doorbells} doorbells, "
        "{decisions} decisions of chaos".format(**figures)
    )
    for outcome in found.broken:
        say(f"broken with seed {outcome.seed}: {outcome.broken}")
    if found.broken and not no_shrink:
        figures["schedule"] = _write_shortest(loaded, programs, found.broken[0], output, say)
    elif not found.broken and not stopped:
        say("all invariants hold")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
    raise click.exceptions.Exit(of_signal(stopped) if stopped else MISSED if found.broken else 0)


def _write_shortest(
    topology: topologies.Topology, programs: tuple[Path, ...], first: Any, output: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the shortest schedule that breaks an invariant as the outcome ``first`` does; returns what was written."""
    from sim.explore import shrink, write_replay

    shortest = shrink(topology, first)
    write_replay(output, topology, [str(program) for program in programs], shortest)
    was, now = len(first.decisions), len(shortest.decisions)
    say(f"the shortest schedule has {now} of the {was} decisions of seed {first.seed}:")
    for line in (*shortest.decisions, shortest.broken):
        say(f"    {line}")
    say(f"every event of it: ivsim run --replay {output}")
    return {"file": str(output), "decisions": now}


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

    warn = functools.partial(click.echo, err=True)
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
