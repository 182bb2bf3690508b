"""`ivsim run --dry-run`: the demand of a topology, and whether this host can carry it. Starts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import click
import msgspec
from rich.console import Console

from sim.exit_codes import of_error
from topologies import Topology
from topologies.migration_check import failing_migrations
from topologies.qemu_check import endangered
from topologies.ringing_check import unreachable


def dry_run(topology: Topology, runs: Path, *, as_json: bool = False) -> int:
    """Print the demand of ``topology`` and what of it this host does not have; the exit code: 0, or 3."""
    from sim.host.preflight import preflight, render

    demand, failing, silent = preflight(topology, runs), failing_migrations(topology), unreachable(topology)
    ended = endangered(topology)
    if as_json:
        plain = msgspec.to_builtins(demand)
        sums = [{**each, "fits": it.fits} for each, it in zip(plain["sums"], demand.sums, strict=True)]
        plain |= {"sums": sums, "fits": not demand.problems, "problems": demand.problems, "warnings": demand.warnings}
        plain |= {
            "failing_migrations": msgspec.to_builtins(failing),
            "endangered": msgspec.to_builtins(ended),
            "unreachable": msgspec.to_builtins(silent),
        }
        click.echo(json.dumps(plain, indent=2))
    else:
        console = Console()
        render(demand, console)
        for note in (*failing, *ended, *silent):
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        if not demand.problems:
            console.print("this host can carry it", highlight=False)
    return of_error(demand.error(demand.problems)) if demand.problems else 0
