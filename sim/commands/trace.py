"""`ivsim trace`: a run for Perfetto."""

from __future__ import annotations

import gzip
from pathlib import Path

import click

from sim.commands.options import run_argument
from sim.commands.output import write_result
from sim.commands.parameters import STREAM, WholeNumber, duration_ns


@click.command("trace")
@run_argument
@click.option(
    "-o",
    "--output",
    type=STREAM,
    help="The file to write, compressed when it ends in .gz; or - for standard output.  [default: RUN/trace.json.gz]",
)
@click.option(
    "--events",
    type=WholeNumber(1, 10_000_000),
    default=100_000,
    help="The most slices and flows to write, in order of time; what is cut is said.",
)
@click.option(
    "--from",
    "from_ns",
    callback=duration_ns,
    metavar="TIME",
    help="Begin so long after the start (2s, 150ms).  [default: the end of the warm-up, or a second before an outlier]",
)
def trace(run_directory: Path, output: Path | None, events: int, from_ns: int | None) -> None:
    """Write the run directory RUN in the Trace Event Format, for https://ui.perfetto.dev or chrome://tracing.

    A process for each machine: what it rang, and how it dealt with each vector; flows lead from a doorbell to the
    interrupt that delivered it. Doorbells are those that were sampled (sample_every), interrupts are all.
    """
    from sim.results import open as open_run
    from sim.views.perfetto import trace as make_trace

    made = make_trace(open_run(run_directory), events, None if from_ns is None else from_ns / 1e9)
    if made.cut:
        click.echo(f"cut to {made.cut}; --events and --from choose others", err=True)
    if made.before and from_ns is None:
        click.echo(f"without {made.before}; --from 0s has them too", err=True)
    output = output or run_directory / "trace.json.gz"
    # The same run gives the same bytes: no time stamp in the header.
    write_result(output, gzip.compress(made.content(), 6, mtime=0) if output.suffix == ".gz" else made.content())
