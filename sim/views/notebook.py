"""Results in a notebook: small tables that take their colours from the page, light or dark.

Importing this module registers the views with ``sim.results.display``; ``import sim`` does so. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nodes.errors import UsageError
from sim.results.analysis.flows import FlowMatrix
from sim.results.compare import Comparison
from sim.results.display import as_html
from sim.results.run import Run
from sim.sweeps.run_sweep import SweepResult
from sim.views import rows, sentences
from sim.views.html.svg import tag
from sim.views.rows import TextTable

LABELS_SHOWN = 32
SWEEP_SHOWN = (
    "seed",
    "host",
    "status",
    "rung_per_s",
    "coalescing",
    "delivery_p50_ns",
    "delivery_p99_ns",
    "total_p99_ns",
)
STYLE = (
    "<style>.ivsim table{border-collapse:collapse;margin:.3em 0 .8em;font-variant-numeric:tabular-nums;"
    "background:none;color:inherit;font-size:90%}"
    ".ivsim th,.ivsim td{padding:.15em .7em;text-align:right;border:0;background:none;color:inherit;"
    "white-space:nowrap}"
    ".ivsim tr:first-child th{border-bottom:1px solid currentColor;font-weight:600}"
    ".ivsim th:first-child{text-align:left;font-weight:normal}.ivsim tr:first-child th:first-child{font-weight:600}"
    ".ivsim .quiet{opacity:.65}.ivsim p{margin:.2em 0}.ivsim li{margin:0}</style>"
)


@as_html.register
def run_html(run: Run) -> str:
    """A run: the counts of each group, the latencies with their intervals, and the warnings."""
    try:
        figures = run.figures
    except UsageError as error:
        return _page(tag("p", tag("b", repr(run)), f" {error}"))
    title = tag("p", tag("b", figures.title), f": {run.status} {run.reason}")
    tables = (rows.hosts(figures), rows.doorbells(figures), rows.latencies(figures), rows.intervals(figures))
    facts = [sentences.setting(figures), *(f"{name}: {said}" for name, said in sentences.context(figures))]
    body = "".join(_table(table) for table in tables if table.rows)
    return _page(title, body, *map(_quiet, facts), _list(sentences.warnings(run)))


@as_html.register
def comparison_html(comparison: Comparison) -> str:
    """A comparison: the metrics of both runs, and what else differs."""
    table = rows.comparison(comparison)
    return _page(_table(table), _quiet(table.title), _list(comparison.notes))


@as_html.register
def sweep_html(sweep: SweepResult) -> str:
    """A sweep: its values and figures; latencies only where they can be compared."""
    table = sweep.table()
    kept = [name for name in table.column_names if name in sweep.varied or name in SWEEP_SHOWN]
    body = [(str(place), *(_cell(row[name]) for name in kept)) for place, row in enumerate(table.to_pylist(), start=1)]
    return _page(_table(TextTable("", ("run", *kept), body)), _quiet(f"{len(sweep)} runs in {sweep.path.name}"))


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)


@as_html.register
def matrix_html(matrix: FlowMatrix) -> str:
    """A matrix of flows; of more than 32 names the first ones."""
    head = (f"{matrix.what}: from ↓ to →", *matrix.columns[:LABELS_SHOWN])
    body = [
        (name, *("" if np.isnan(value) else f"{value:,.0f}" for value in row[:LABELS_SHOWN]))
        for name, row in zip(matrix.rows[:LABELS_SHOWN], matrix.values, strict=False)
    ]
    more = max(len(matrix.rows), len(matrix.columns)) - LABELS_SHOWN
    return _page(_table(TextTable(matrix.what, head, body)), _quiet(f"and {more} more") if more > 0 else "")


def _page(*parts: str) -> str:
    return f'<div class="ivsim">{STYLE}{"".join(parts)}</div>'


def _table(table: TextTable) -> str:
    lines = [tag("tr", *(tag("th", cell) for cell in table.head))]
    lines += [tag("tr", tag("th", name), *(tag("td", cell) for cell in cells)) for name, *cells in table.rows]
    return tag("table", *lines)


def _list(items: Sequence[str]) -> str:
    return tag("ul", *(tag("li", item) for item in items)) if items else ""


def _quiet(text: str) -> str:
    return tag("p", text, class_="quiet")
