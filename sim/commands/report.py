"""`ivsim report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from sim.commands.options import run_argument
from sim.commands.output import write_result, write_whole
from sim.commands.parameters import STREAM

REPORT = "report.html"


@click.command("report")
@run_argument
@click.option(
    "-o", "--output", type=STREAM, help="The file to write, or - for standard output.  [default: RUN/report.html]"
)
def report(run_directory: Path, output: Path | None) -> None:
    """Write figures, curves, time lines and pictures of the run directory RUN to one HTML file.

    The file needs no network, no other file and no fonts, and is complete without its script. Where the run lacks
    data (it was interrupted or damaged, or nothing was sampled), the page says so. Each host of a run over several
    gets a page of its own.
    """
    from sim.results import open as open_run
    from sim.views.html.page import page

    run = open_run(run_directory)
    output = output or run_directory / REPORT
    for part in run.parts.values() if str(output) != "-" else ():
        write_whole(part.path / REPORT, page(part).encode())
    write_result(output, page(run))
