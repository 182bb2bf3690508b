"""What a notebook shows of results: small tables that take their colours from the page, light or dark.

All that is given is text, and escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from sim.results.summary import Group, Latencies, Percentiles, Summary
from sim.views.units import NOTHING, human_count, human_ns

__all__ = ["note_html", "summary_html", "table_html"]

TOO_FEW = "too few"
STYLE = (
    "<style>.ivsim table{border-collapse:collapse;margin:.3em 0 .8em;font-variant-numeric:tabular-nums;"
    "background:none;color:inherit;font-size:90%}"
    ".ivsim th,.ivsim td{padding:.15em .7em;text-align:right;border:0;background:none;color:inherit;"
    "white-space:nowrap}"
    ".ivsim tr:first-child th{border-bottom:1px solid currentColor;font-weight:600}"
    ".ivsim th:first-child{text-align:left;font-weight:normal}.ivsim tr:first-child th:first-child{font-weight:600}"
    ".ivsim .quiet{opacity:.65}.ivsim p{margin:.2em 0}.ivsim li{margin:0}</style>"
)
NAMES = (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99_9", "p99.9"), ("p99_99", "p99.99"), ("max", "max"))


def summary_html(figures: Summary, status: str, reason: str, warnings: Sequence[str]) -> str:
    """A run: counts by group, latencies with intervals, and what a reader has to know."""
    counts = ("rung", "delivered", "pending", "refused", "interrupts")
    rows: list[Sequence[str]] = [("group", *counts, "per int.")]
    accounts: list[tuple[str, Group | Summary]] = [*figures.groups.items(), ("all", figures)]
    for name, its in accounts if len(accounts) > 2 else accounts[:1]:
        per = NOTHING if its.coalescing is None else f"{its.coalescing:,.2f}"
        rows.append((name, *(f"{getattr(its, it):,}" for it in counts), per))
    title = f"<p><b>{html.escape(figures.title)}</b>: {html.escape(status)} {html.escape(reason)}</p>"
    setting = f"{figures.machines} machines on {figures.cpus} CPUs, {figures.duration_s:.2f} s, seed {figures.seed}"
    if figures.floor:
        times = figures.floor.times_floor.get("p50")
        beyond = "" if times is None else f"; delivery's median is {human_count(times)} times that"
        setting += f"; bare wake-up here {human_ns(figures.floor.p50_ns)}{beyond}"
    body = title + _quiet(setting) + _table(rows) + _latencies(figures.latency_ns)
    return f'<div class="ivsim">{STYLE}{body}{_list(warnings)}</div>'


def _latencies(its: Latencies) -> str:
    rows: list[Sequence[str]] = [("latency", *(shown for _, shown in NAMES), "samples")]
    for latency in ("lag", "delivery", "handling", "raw", "total"):
        figures: Percentiles = getattr(its, latency)
        cells = [_cell(figures, name) for name, _ in NAMES]
        rows.append((latency, *cells, f"{figures.samples:,}"))
    said = "total counts from the intended time, raw from the ring; 95 % intervals where the pointer rests"
    return _table(rows, its) + _quiet(said)


def _cell(its: Percentiles, name: str) -> str:
    value = getattr(its, name)
    if value is None:
        return TOO_FEW if its.samples else NOTHING
    return human_ns(value)


def note_html(text: str, what: str) -> str:
    """Something that cannot be shown, and why."""
    return f'<div class="ivsim">{STYLE}<p><b>{html.escape(text)}</b> {html.escape(what)}</p></div>'


def table_html(rows: Sequence[Sequence[str]], note: str = "", warnings: Sequence[str] = ()) -> str:
    """Rows of text, the first one as head and the first cell of each as its name; the others stand below."""
    return f'<div class="ivsim">{STYLE}{_table(rows)}{_quiet(note) if note else ""}{_list(warnings)}</div>'


def _table(rows: Sequence[Sequence[str]], latencies: Latencies | None = None) -> str:
    """With ``latencies``, cells of that table tell their interval when the pointer rests on them."""
    head, *body = rows
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    for name, *cells in body:
        hints = _hints(getattr(latencies, name)) if latencies is not None else {}
        shown = (f"<td{hints.get(place, '')}>{html.escape(cell)}</td>" for place, cell in enumerate(cells))
        lines.append(f"<th>{html.escape(name)}</th>{''.join(shown)}")
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _hints(its: Percentiles) -> dict[int, str]:
    hints = {}
    for place, (name, _) in enumerate(NAMES):
        if name in its.intervals:
            low, high = ("open" if end is None else human_ns(end) for end in its.intervals[name])
            hints[place] = f' title="{html.escape(f"95 %: {low} to {high}")}"'
    return hints


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>" if items else ""


def _quiet(text: str) -> str:
    return f'<p class="quiet">{html.escape(text)}</p>'
