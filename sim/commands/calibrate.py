"""`ivsim calibrate`: the cost model of virtual time, read off real runs."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.parameters import FILE, PATH


@click.command("calibrate", short_help="Read the costs of virtual time off real runs.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option(
    "--base", metavar="FILE", default="default", help="The cost model whose figures are kept where no run shows any."
)
@click.option("-o", "--output", type=FILE, help="Write the model there, not to the terminal.")
def calibrate(runs: tuple[Path, ...], base: str, output: Path | None) -> None:
    """Write the cost model of the host that the runs in the directories RUN were made on.

    ring_ns is read off the run with the most doorbells that a machine rings in one go, burst_ring_ns likewise off a
    storm with sample_every = 64 or more. The others are read off the first run that shows them: handle_ns off
    interrupts, wake_ns off a run with no more machines than CPUs, expire_ns off an open loop. ring_ns, and handle_ns of
    machines that ring, need sample_every = 1; all need a quiet host. Notes on doubtful costs go to stderr and to the
    first lines of the file. Use the file as [run] cost_model.
    """
    from sim.calibration import as_toml
    from sim.calibration import calibrate as read_costs
    from sim.commands.output import write_file
    from sim.engines.virtual.cost_model import load_model
    from sim.results.store.opening import open as open_run

    found = read_costs([open_run(run) for run in runs], load_model(base))
    for doubt in found.doubts:
        click.echo(f"ivsim: warning: {doubt}", err=True)
    text = as_toml(found)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_file(output, text)
