"""What `ivsim run`, `ivsim show` and `ivsim compare` print: tables, sentences, warnings, the balance.

Plain columns without lines: readable in 80 columns, in a pipe, and in a pager. All text from a run's files is printed
without markup and without control characters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from nodes.errors import UsageError
from sim.results import Run
from sim.results.compare import Comparison, ThresholdVerdict
from sim.results.summary import ExpectationVerdict, Summary
from sim.views import rows, sentences
from sim.views.columns import print_columns
from sim.views.printable import printable
from sim.views.rows import TextTable

STATUS_STYLES = {"finished": "bold green", "degraded": "bold yellow", "interrupted": "bold yellow"}


def render(run: Run, console: Console) -> None:
    """Print a run: title, tables, sentences, warnings, balance, directory. What the run lacks is named instead."""
    try:
        figures = run.figures
    except UsageError:
        _line(console, f"{run.path.name}: ", run.status, style=STATUS_STYLES.get(run.status, "bold red"))
        for problem in run.problems:
            _line(console, "! ", problem, style="yellow")
        _directory(run, console)
        return
    _title(run, figures, console)
    for table in (
        rows.hosts(figures),
        rows.doorbells(figures),
        rows.latencies(figures),
        rows.intervals(figures, without=("p90",)),  # five intervals do not fit into 80 columns
        rows.coalescing(figures),
        rows.migrations(figures),
        rows.resources(figures),
        *([rows.cpus(figures)] if figures.outlier else ()),
    ):
        if table.rows:
            console.print()
            _table(table, console)
    console.print()
    for line in sentences.outlier(figures):
        _line(console, line, style="")
    facts = [*sentences.migration_reasons(figures)]
    facts += [f"{name}: {said}" for name, said in sentences.context(figures)]
    with contextlib.suppress(UsageError):  # without a manifest the groups are not known
        facts += sentences.counted(run)
    for fact in facts:
        _line(console, fact)
    for warning in sentences.warnings(run):
        _line(console, "! ", warning, style="yellow")
    _balance(figures, console)
    _directory(run, console)


def render_comparison(comparison: Comparison, verdicts: Sequence[ThresholdVerdict], console: Console) -> None:
    """Print two runs side by side, what else differs, and the verdicts on the thresholds."""
    for name, run in (("A", comparison.a), ("B", comparison.b)):
        console.print(Text(printable(f"{name}: {run.figures.title}, {run.status}: {run.path}")), soft_wrap=True)
    console.print()
    _table(rows.comparison(comparison), console)
    console.print()
    for note in comparison.notes:
        _line(console, "! ", note, style="yellow")
    for verdict in verdicts:
        word, style = ("met", "green") if verdict.met else ("missed", "bold red")
        _line(console, f"{verdict.threshold.text}: {rows.threshold(verdict)}: ", word, style=style)


def render_expectations(verdicts: Sequence[ExpectationVerdict], console: Console) -> None:
    """Print a line for each verdict; nothing without any."""
    if not verdicts:
        return
    console.print(Text("expectations", "bold"))
    width = max(len(str(verdict)) for verdict in verdicts)
    for verdict, (word, expected, got, why) in zip(verdicts, rows.expectations(verdicts).rows, strict=True):
        line = Text(word.ljust(7), "green" if verdict.met else "bold red")
        said = got if verdict.got is None else f"got {got}"
        line.append(printable(f"{expected.ljust(width)}  {said}" + (f": {why}" if why else "")), "default")
        console.print(line, soft_wrap=True)


def _line(console: Console, text: str, rest: str = "", style: str = "") -> None:
    line = Text(printable(text))
    line.append(printable(rest), style or None)
    console.print(line, soft_wrap=not console.is_terminal)


def _table(table: TextTable, console: Console) -> None:
    print_columns([table.head, *table.rows], console)


def _directory(run: Run, console: Console) -> None:
    """The path of the run, on one line at any width, so that it can be copied."""
    console.print(Text(printable(f"run: {run.path}")), soft_wrap=True)


def _title(run: Run, figures: Summary, console: Console) -> None:
    _line(console, f"{figures.title}: ", run.status, style=STATUS_STYLES.get(run.status, "bold red"))
    if run.reason:
        _line(console, "  ", run.reason)
    _line(console, sentences.setting(figures))


def _balance(figures: Summary, console: Console) -> None:
    balanced = figures.balanced and figures.rung == figures.delivered + figures.pending + figures.refused
    sign = "=" if balanced else "is NOT"
    line = Text(
        f"rung {figures.rung:,} {sign} delivered {figures.delivered:,} + pending {figures.pending:,} "
        f"+ refused {figures.refused:,}",
        style="" if balanced else "bold red",
    )
    console.print(line, soft_wrap=not console.is_terminal)
