"""`ivsim compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nodes.errors import UsageError
from sim.commands.completion import complete_runs
from sim.commands.output import echo_json
from sim.commands.parameters import FILE, PATH
from sim.exit_codes import MISSED

PICTURES = (".png", ".svg")


@click.command("compare")
@click.argument("a", metavar="A", type=PATH, shell_complete=complete_runs)
@click.argument("b", metavar="B", type=PATH, shell_complete=complete_runs)
@click.option(
    "--fail-if",
    "limits",
    multiple=True,
    metavar="METRIC:+LIMIT",
    help="Exit 99 when B is worse than that: p99:+10%, delivery.p99:+5us, doorbells_per_s:-5%. Several times. "
    "The metric itself is judged, not its interval: an unclear change may miss the limit by chance.",
)
@click.option("--across-hosts", is_flag=True, help="Compare runs of different hosts of a cluster, too.")
@click.option("--json", "as_json", is_flag=True, help="All metrics as JSON on standard output.")
@click.option("--plot", "picture", type=FILE, help="Draw both into a file, .png or .svg (needs matplotlib).")
def compare(a: Path, b: Path, limits: tuple[str, ...], across_hosts: bool, as_json: bool, picture: Path | None) -> None:
    """Print what differs between the runs in the directories A (before) and B (after).

    A percentile's change has a 95 % interval. Where it holds 0 the change is unclear: there may be none, or the
    runs are too short to tell. METRIC is p50, p90, p99, p99.9,
    p99.99 or max of total, or of another latency (delivery.p99), or any other name in the table.
    """
    from rich.console import Console

    from sim.results.compare import Threshold
    from sim.results.compare import compare as compare_runs
    from sim.views import rows
    from sim.views.terminal import render_comparison

    thresholds = [Threshold.parse(limit) for limit in limits]
    if picture is not None and picture.suffix not in PICTURES:
        raise UsageError(f"--plot {picture}: expected a file that ends in {' or '.join(PICTURES)}")
    found = compare_runs(a, b, across_hosts=across_hosts)
    verdicts = [threshold.judge(found) for threshold in thresholds]
    if as_json:
        content: dict[str, Any] = {
            "a": str(found.a.path),
            "b": str(found.b.path),
            "notes": found.notes,
            "metrics": [metric.row() for metric in found.metrics.values()],
            "thresholds": [
                {"threshold": verdict.threshold.text, "met": verdict.met, "told": rows.threshold(verdict)}
                for verdict in verdicts
            ],
        }
        echo_json(content)
    else:
        render_comparison(found, verdicts, Console())
    if picture is not None:
        from sim.views.plots import save_comparison

        save_comparison(found, picture)
    missed = [verdict for verdict in verdicts if not verdict.met]
    for verdict in missed:
        click.echo(f"ivsim: missed {verdict.threshold.text}: {rows.threshold(verdict)}", err=True)
    if missed:
        raise click.exceptions.Exit(MISSED)
