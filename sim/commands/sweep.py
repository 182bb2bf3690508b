"""`ivsim sweep`: runs of a topology with every combination of some values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nodes.errors import UsageError
from sim.commands import options
from sim.commands.cluster import cluster_options, where_from
from sim.commands.completion import complete_keys
from sim.commands.parameters import WholeNumber, split_values
from sim.exit_codes import FAILED, MISSED


def _axes(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, list[str]]:
    """``KEY=V1,V2`` to the values of each key; given twice, the last one counts."""
    axes = {}
    for key, values in options.split_pairs(given, "KEY=VALUE,VALUE, for instance machines.storm.count=1,2,4"):
        try:
            axes[key] = split_values(values)
        except UsageError as error:
            raise click.BadParameter(f"{key}: {error}") from None
    return axes


@click.command("sweep")
@options.optional_topology_argument
@click.option(
    "--set",
    "axes",
    multiple=True,
    metavar="KEY=V1,V2,...",
    callback=_axes,
    shell_complete=complete_keys,
    help="Values of one key of the topology, or a single one. Repeatable.",
)
@click.option("--repeat", type=WholeNumber(1, 1000), default=1, help="Runs of each; run r has the seed + r.")
@click.option(
    "--resume",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Continue an interrupted sweep: runs that are done are not repeated.",
)
@cluster_options
@click.option("--balance", is_flag=True, help="Give each host of a cluster the same number of the repeats.")
@click.option("--across-hosts", is_flag=True, help="Show latencies side by side also where hosts differ.")
@options.runs_option
@options.resources_every_option
@options.programs_option
@click.option("--dry-run", is_flag=True, help="Say what would be run, and whether this host is large enough.")
@click.option("--json", "as_json", is_flag=True, help="sweep.json on standard output, and no progress.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def sweep(
    topology: str | None,
    axes: dict[str, list[str]],
    repeat: int,
    directory: Path | None,
    balance: bool,
    across_hosts: bool,
    runs: Path,
    resources_every_s: float,
    programs: tuple[Path, ...],
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **cluster: Any,
) -> None:
    """Run TOPOLOGY with every combination of the values given, one run after the other, and compare them.

    Values are those of `ivsim run --set`, with commas between them:

    \b
      ivsim sweep fan_in --set machines.sender.count=1,2,4,8 --set run.duration_s=2
      ivsim sweep t.toml --set 'machines.a.parameters.to=["b","c"],"all"' --repeat 3

    A comma within quotes, brackets or braces separates nothing: a value with a comma is written as a TOML string
    ("a,b") or array. Without --set, the [matrix] of the topology says what varies; --set replaces its keys.

    With --scheduler, the runs are carried out by the workers of that scheduler, one run at a time on each; with
    --workers, by so many workers on this host. The directory and the table are the same.

    Ctrl-C ends the current runs and says how to resume. The exit code is the worst of the runs: 1 when one
    failed or did not balance, else 99 when an expectation was missed, else 0.
    """
    if topology is None and (directory is None or axes or repeat > 1 or programs):
        raise click.UsageError(
            "TOPOLOGY is missing" + (": --set, --repeat and --program go with it" if directory else "")
        )
    if balance and cluster["scheduler"] is None:
        raise click.UsageError("--balance goes with --scheduler")
    where = where_from(cluster)
    from sim.commands import sweep_runs
    from sim.sweeps import Sweep

    its = sweep_runs.new_sweep(topology, axes, repeat, programs, directory, runs)
    if dry_run:
        raise click.exceptions.Exit(sweep_runs.show_demand(its, directory or runs))
    if not (where and where.scheduler) and (refusal := sweep_runs.refusal(its, directory or runs)) is not None:
        raise refusal
    if directory is None:
        its = Sweep.create(runs, its.plan)
    stopped = sweep_runs.run_all(its, resources_every_s, where, balance=balance, quiet=as_json or quiet)
    its.finish()
    if as_json:
        click.echo((its.path / "sweep.json").read_text(), nl=False)
    else:
        sweep_runs.show(its, across_hosts=across_hosts)
    codes = {row.exit_code for row in its.rows}
    raise click.exceptions.Exit(stopped or next((code for code in (FAILED, MISSED) if code in codes), 0))
