"""`ivsim top`: the state of a run from its telemetry, on a terminal, as JSON, or for Prometheus."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.completion import complete_runs
from sim.commands.parameters import FILE, PATH, WholeNumber


@click.command("top")
@click.argument("run", required=False, type=PATH, shell_complete=complete_runs)
@click.option("--once", is_flag=True, help="Show the present state as lines, and end.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing (with --prometheus).")
@click.option(
    "--prometheus",
    type=FILE,
    metavar="FILE",
    help="Write every snapshot to FILE in Prometheus' text format, whole at any moment; for node_exporter name "
    "it *.prom in its textfile directory. The file stays when the run is over.",
)
@click.option("--web", is_flag=True, help="Serve a page with live pictures on the loopback, and print its address.")
@click.option("--port", type=WholeNumber(0, 65535), default=0, help="The port of --web; 0: any.")
def top(
    run: Path | None, once: bool, as_json: bool, quiet: bool, prometheus: Path | None, web: bool, port: int
) -> None:
    """Show the groups of a run while it lasts: rates over the last second, interrupts, pending doorbells, events.

    RUN is a run directory or a telemetry socket; without it, the run that this user began last. A live table on a
    terminal, elsewhere a line every second. Ends with the run, or by Ctrl-C: exit code 0. 1: the run broke
    off; 2: there is none.
    """
    from sim.commands.top_screen import show_top

    if web and (once or as_json):
        raise click.UsageError("--web goes on until the run ends: neither --once nor --json")
    show_top(run, once=once, as_json=as_json, quiet=quiet, prometheus=prometheus, port=port if web else None)
