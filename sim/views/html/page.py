"""A run as one HTML page without other files: no network, no fonts. It is complete without its script.

All text from a run's files is escaped (``sim.views.html.svg``). What is missing or damaged is named in its place, and
the rest is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from nodes.errors import UsageError
from sim.results import Run
from sim.results.analysis.time_series import RunEvent, TimeSeries, time_series
from sim.results.store import files
from sim.results.summary import Percentiles, Summary
from sim.views import rows, sentences
from sim.views.event_text import sentence
from sim.views.html import curves, tables, topology
from sim.views.html.lines import Chart, Mark, bars
from sim.views.html.svg import Markup, block, document, tag
from sim.views.html.usage import usage
from sim.views.rows import TextTable
from sim.views.units import NOTHING, short_bytes, short_count, short_ns, short_seconds

WIDE, HALF, NARROW = 1000, 490, 360
MARKS_DRAWN, LISTED = 40, 60
SOURCE_LIMIT_BYTES = 1 << 20


def page(run: Run) -> str:
    """Return the report of ``run``, which may be damaged, as the text of an HTML file."""
    data = TimeSeries() if run.parts else time_series(run)
    try:
        figures: Summary | None = run.figures
    except UsageError:
        figures = None
    try:
        title = run.origin.title
    except UsageError:
        title = figures.title if figures else run.path.name
    marks, marked = _marks(data.events)
    parts = [_header(run, title, figures)]
    if figures:
        parts += [_balance(figures), _tiles(figures), _expected(figures)]
    parts.append(_notices(run, figures, data))
    if run.parts:
        parts.append(_section("Hosts", "hosts", lambda: _hosts(run, figures)))
    else:
        parts += [
            *_outlier(figures),
            _section("Latency", "latency", lambda: _latency(figures, data)),
            _section("Over time", "time", lambda: _over_time(data, marks, marked)),
            *_migrations(figures),
        ]
    parts.append(_section("Senders and receivers", "topology", lambda: _topology(run, figures)))
    if not run.parts:
        parts.append(_section("Coalescing", "coalescing", lambda: _coalescing(figures, data)))
        parts.append(_section("Resources", "resources", lambda: _resources(run, figures, data, marks)))
    parts.append(_section("Run" if run.parts else "Host and run", "host", lambda: _host(run, figures)))
    generator = Markup('<meta name="generator" content="ivsim report">\n')
    return document([generator], f"{title} – ivsim", "report.js", [block(parts)], "img-src data:")


def _section(title: str, name: str, make: Callable[[], list[Markup]]) -> Markup:
    """A section, or the sentence that says why there is none."""
    try:
        inner = make()
    except UsageError as error:
        inner = [tag("p", f"Not shown: {error}", class_="note")]
    heading = tag("h2", title, id=name)
    return tag("section", heading, block(inner), aria_labelledby=name)


def _header(run: Run, title: str, figures: Summary | None) -> Markup:
    status = tag("span", run.status, class_=f"status {run.status}")
    facts = [sentences.setting(figures)] if figures else []
    with contextlib.suppress(UsageError):
        facts.append(run.origin.started[:19].replace("T", " ") + " UTC")
    lines = [tag("p", " · ".join(facts), class_="meta")] if facts else []
    if run.reason:
        lines.append(tag("p", run.reason, class_="reason"))
    return tag("header", tag("h1", title, " ", status), *lines)


def _balance(figures: Summary) -> Markup:
    holds = figures.balanced and figures.rung == figures.delivered + figures.pending + figures.refused
    terms = []
    for sign, key in (("", "rung"), ("=" if holds else "≠", "delivered"), ("+", "pending"), ("+", "refused")):
        said = tag("span", sign, class_="sign") if sign else ""
        term = tag("span", tag("b", f"{getattr(figures, key):,}"), tag("small", key), class_="term")
        terms.append(tag("span", said, term, class_="pair"))
    verdict = tag("span", "balances" if holds else "does not balance", class_="met" if holds else "missed")
    return tag("p", *terms, verdict, class_="balance")


def _tiles(figures: Summary) -> Markup:
    delivery, total, lag = figures.latency_ns.delivery, figures.latency_ns.total, figures.latency_ns.lag
    each = NOTHING if figures.coalescing is None else f"{figures.coalescing:,.2f}"
    tiles = [
        ("doorbells a second", short_count(figures.doorbells_per_s)),
        ("interrupts a second", short_count(figures.interrupts_per_s)),
        ("doorbells per interrupt", each),
        ("delivery, median", _or_few(delivery, delivery.p50)),
        ("delivery, p99", _or_few(delivery, delivery.p99)),
        ("delivery, p99.9", _or_few(delivery, delivery.p99_9)),
    ]
    if len(figures.parts) > 1:
        del tiles[3:]  # latencies are known within a host
    late = bool(lag.max)
    if late:  # delivery alone would hide how long the doorbells waited to be rung
        tiles.append(("total, corrected, p99", _or_few(total, total.p99)))
        tiles.append(("total, corrected, p99.9", _or_few(total, total.p99_9)))
    shown = [tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles]
    return tag("dl", *shown, class_="tiles eight" if late else "tiles")


def _or_few(its: Percentiles, value_ns: float | None) -> str:
    """A percentile, or why there is none, in the words of the tables."""
    return rows.TOO_FEW if value_ns is None and its.samples else short_ns(value_ns)


def _expected(figures: Summary) -> Markup:
    found = figures.expectations
    return tag("section", tag("h2", "Expectations"), tables.table(rows.expectations(found))) if found else Markup()


def _notices(run: Run, figures: Summary | None, data: TimeSeries) -> Markup:
    said = sentences.warnings(run) if figures else run.problems
    said = [*said, *(text.removeprefix(f"{run.path}: ") for text in data.missing)]
    lines = [tag("li", fromkey) for fromkey in dict.fromkeys(said)]
    if not lines:
        return Markup()
    return tag("aside", tag("h2", "To know about these figures"), tag("ul", *lines), class_="notices")


def _figure(chart: Chart, note: str, wide: int = WIDE) -> Markup:
    """A chart with its legend, drawn for wide pages and for narrow ones."""
    keys = [
        tag("li", tag("svg", tag("path", d="M1 5H25", class_=f"line s{line.style}"), viewBox="0 0 26 10"), line.name)
        for line in chart.lines
    ]
    legend = tag("ul", *keys, class_="legend") if len(keys) > 1 else Markup()
    caption = tag("figcaption", tag("h3", chart.title), tag("p", note))
    height = 320 if wide == WIDE else 290
    return tag("figure", caption, legend, chart.draw(wide, height, "wide"), chart.draw(NARROW, 275, "narrow"))


def _latency(figures: Summary | None, data: TimeSeries) -> list[Markup]:
    parts = []
    nines, shares = curves.percentiles(data), curves.cumulative(data)
    if nines is None or shares is None:
        few = any(latency.size for latency in data.latencies.values())
        said = "One doorbell was sampled, too few" if few else "Nothing was sampled, so that there is nothing"
        parts.append(tag("p", f"{said} to draw.", class_="note"))
    else:
        note = "the tail; every step to the right is one doorbell in ten times as many"
        pair = [_figure(nines, note, HALF), _figure(shares, "the bulk; how many took no longer", HALF)]
        parts.append(tag("div", *pair, class_="pair-of"))
        parts.append(tag("p", _about_lateness(data), class_="note"))
    if figures and figures.latency_ns.raw.samples + figures.latency_ns.delivery.samples:
        parts.append(tables.table(rows.latencies(figures)))
        meanings = "; ".join(f"{name}: {meaning}" for name, meaning in rows.LATENCY_MEANINGS.items())
        parts.append(tag("p", meanings, class_="note"))
        parts += tables.folded("Confidence intervals", rows.intervals(figures))
    return parts


def _about_lateness(data: TimeSeries) -> str:
    if curves.late(data):
        return (
            "Corrected latencies count from the moment the doorbell was meant to ring, raw ones from the moment it "
            "rang: where they differ, the senders were late, and the raw ones flatter."
        )
    return "No sender was late: corrected and raw latencies are the same."


def _marks(events: Sequence[RunEvent]) -> tuple[list[Mark], list[tuple[str, RunEvent]]]:
    """Numbered lines for the charts, and the event of each number."""
    marked = [(str(number), event) for number, event in enumerate(events, start=1)]
    return [Mark(event.time_s, number) for number, event in marked[:MARKS_DRAWN]], marked


def _over_time(data: TimeSeries, marks: list[Mark], marked: list[tuple[str, RunEvent]]) -> list[Markup]:
    late = curves.late(data)
    charts = (
        (
            curves.levels_over_time("Total over time, corrected", data.total_ns if late else {}, data, marks),
            "of the doorbells meant to be rung in each moment",
        ),
        (
            curves.levels_over_time("Delivery over time", data.delivery_ns, data, marks),
            "of the doorbells rung in each moment",
        ),
        (curves.rates(data, marks), "as the receivers logged them"),
    )
    parts = [_figure(chart, note) for chart, note in charts if chart is not None]
    if not parts:
        said = "Nothing was delivered, or no drain was logged."
        if data.delivered_per_s.any():
            said = "All doorbells fall into one moment: too few for a curve over time."
        parts.append(tag("p", said, class_="note"))
    if marked:
        listed = [(number, short_seconds(event.time_s), sentence(event.event)) for number, event in marked[:LISTED]]
        more = len(marked) - len(listed)
        caption = "What happened meanwhile" + (f"; {more:,} more events are in the run's events.jsonl" if more else "")
        parts.append(tables.table(TextTable(caption, ("", "at", "what happened"), listed, words=(0, 1, 2))))
    return parts


def _migrations(figures: Summary | None) -> list[Markup]:
    """The outcomes of migrations; nothing where there were none."""
    table = rows.migrations(figures, LISTED) if figures else None
    if table is None or not table.rows or figures is None:
        return []
    notes = [tag("p", reason, class_="note") for reason in sentences.migration_reasons(figures, LISTED)]
    return [_section("Migrations", "migrations", lambda: [tables.table(table), *notes])]


def _outlier(figures: Summary | None) -> list[Markup]:
    """The doorbell that ended the run, and its causes; nothing for a run that ended otherwise."""
    if figures is None or figures.outlier is None:
        return []
    first, *_ = sentences.outlier(figures)
    trace = figures.outlier.kernel_trace
    notes = [tag("p", f"Kernel trace: {trace}", class_="note")] if trace else []
    table = tables.table(rows.outlier(figures))
    return [_section("Outlier", "outlier", lambda: [tag("p", first), table, *notes])]


def _hosts(run: Run, figures: Summary | None) -> list[Markup]:
    """The part of each host, its latencies, and where its own page is."""
    links = [
        tag("li", tag("a", host, href=f"{files.PARTS}/{part.path.name}/report.html"))
        for host, part in run.parts.items()
    ]
    pages = [tag("p", "The page of each host, with its latencies over time and its resources:"), tag("ul", *links)]
    if figures is None:
        return pages
    return [tables.table(rows.hosts(figures)), tables.table(rows.latencies(figures)), *pages]


def _topology(run: Run, figures: Summary | None) -> list[Markup]:
    parts = [tables.table(rows.doorbells(figures))] if figures else []
    *shown, listed = topology.pictures(run, figures.elapsed_s if figures else 0.0)
    return [*([tag("div", *shown, class_="pair-of")] if shown else []), *parts, listed]


def _coalescing(figures: Summary | None, data: TimeSeries) -> list[Markup]:
    sizes, drained = data.drain_sizes, data.drained
    if not len(sizes):
        return [tag("p", "Nothing was drained, or no drain was logged.", class_="note")]
    if len(sizes) == 1:
        return [tag("p", f"Each interrupt brought one doorbell ({int(sizes[0]):,} in all).", class_="note")]
    names = ["1", *(f"{2**place}–{2 ** (place + 1) - 1}" for place in range(1, min(len(sizes), 7)))]
    names += [f"{2**place}+" for place in range(7, len(sizes))]
    series = {"of interrupts": 100 * sizes / sizes.sum(), "of doorbells": 100 * drained / max(1, drained.sum())}
    alone = float(series["of interrupts"][0])
    description = f"{alone:.3g} % of all interrupts brought one doorbell alone; the most that one brought is "
    description += f"{names[-1]}."
    labels = ("doorbells that one interrupt brought", "share")
    frames = ((WIDE, 280, "wide"), (NARROW, 250, "narrow"))
    drawn = [bars(names, series, labels, "Doorbells for each interrupt", description, frame) for frame in frames]
    keys = [tag("li", tag("i", class_=f"swatch f{place}"), name) for place, name in enumerate(series, start=1)]
    each = figures.coalescing if figures else None
    mean = "" if each is None else f"; {each:,.2f} on average"
    caption = tag("figcaption", tag("h3", "Doorbells for each interrupt"), tag("p", f"an eventfd counts{mean}"))
    table = [tables.table(rows.coalescing(figures))] if figures and rows.coalescing(figures).rows else []
    return [tag("figure", caption, tag("ul", *keys, class_="legend"), *drawn), *table]


def _resources(run: Run, figures: Summary | None, data: TimeSeries, marks: list[Mark]) -> list[Markup]:
    looked_at = usage(run, data.start_ns, data.stop_ns)
    # A group whose memory was never summed up has nothing for the second curve.
    found = [process for process in looked_at if len(process.cpu_time_s) > 1 and len(process.memory_time_s)]
    charts = curves.usage_charts(found, data, marks)
    note = "the mean of a group's machines"
    parts = [tag("div", *(_figure(chart, note, HALF) for chart in charts), class_="pair-of")] if charts else []
    listed = rows.resources(figures) if figures else None
    names = {process.name for process in found}
    left_out = [process.name for process in looked_at if process.name not in names] if charts else ["each process"]
    if listed and listed.rows and left_out:
        said = f"Too few looks at {', '.join(left_out)} for its use over time."
        parts.append(tag("p", said, class_="note"))
    if figures and listed and listed.rows:
        parts += [tables.table(listed), *tables.folded("Details of the processes", rows.processes(figures))]
    return parts or [tag("p", "The processes were not sampled.", class_="note")]


def _host(run: Run, figures: Summary | None) -> list[Markup]:
    origin = run.origin
    host = origin.host
    limits = ", ".join(f"{name.removesuffix('_bytes')} {_limit(name, limit)}" for name, limit in host.limits.items())
    command = " ".join(["ivsim", *origin.argv[1:]]) if origin.argv else NOTHING
    listed: list[tuple[str, object]] = [
        ("CPU", f"{host.cpu_model or 'unknown'}; {host.cpus} of {host.cpus_online} used"),
        ("memory", short_bytes(host.memory_bytes)),
        ("kernel", f"Linux {host.kernel} ({host.machine}), clock {host.clock_source or 'unknown'}"),
        ("software", f"ivsim {origin.version}, {host.python}"),
        ("limits", limits),
        *(sentences.context(figures) if figures else ()),
        ("sampling", f"one doorbell in {origin.sample_every}" if origin.sample_every else "none"),
        ("command", tag("code", command)),
        ("run", tag("code", run.path.name)),
    ]
    parts = [tables.facts("What the figures depend on", listed)]
    if figures:
        parts += tables.folded("CPUs", rows.cpus(figures))
    try:
        source = files.read_bytes(run.path / files.TOPOLOGY, SOURCE_LIMIT_BYTES).decode(errors="replace")
    except UsageError as error:
        return [*parts, tag("p", str(error), class_="note")]
    return [*parts, tag("details", tag("summary", "The topology as given"), tag("pre", source, tabindex="0"))]


def _limit(name: str, value: int | None) -> str:
    if value is None:
        return "unlimited"
    return short_bytes(value) if name.endswith("_bytes") else f"{value:,}"
