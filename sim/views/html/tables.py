"""The tables of a report: what stands beside the pictures, from the summary and the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sim.views.html import scales
from sim.views.html.svg import Markup, tag

__all__ = ["doorbells", "expectations", "facts", "latencies", "resources", "surroundings", "table", "usage"]

LATENCIES = {
    "lag": "meant to ring → rang",
    "delivery": "rung → drained by the peer",
    "handling": "drained → dealt with",
    "raw": "rung → dealt with",
    "total": "meant to ring → dealt with",
}
PERCENTILES = ("p50", "p90", "p99", "p99_9", "p99_99", "max")
NOTHING = "–"
# Of the processes: how a figure is said, and the figures (``sim.results.summary.Resources``).
USAGE: Mapping[Callable[[float], str], tuple[str, ...]] = {
    scales.size: ("rss_bytes", "uss_bytes", "pss_bytes", "instrument_bytes"),
    scales.count: (
        "switches_voluntary_per_s",
        "switches_involuntary_per_s",
        "faults_minor_per_s",
        "faults_major_per_s",
    ),
    str: ("descriptors_max", "threads_max"),
}
HEAD = (
    "each machine of",
    "CPU user",
    "CPU system",
    "RSS",
    "USS",
    "PSS",
    "of it recording",
    "waits/s",
    "preempted/s",
    "minor faults/s",
    "major faults/s",
    "descriptors, most",
    "threads, most",
)


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], texts: int = 1) -> Markup:
    """A table that scrolls by itself where it is too wide; the first ``texts`` columns are words."""
    heads = [tag("th", each, scope="col", class_="words" if at < texts else None) for at, each in enumerate(head)]
    lines = []
    for first, *rest in rows:
        cells = [tag("td", each, class_="words" if at + 1 < texts else None) for at, each in enumerate(rest)]
        lines.append(tag("tr", tag("th", first, scope="row", class_="words"), *cells))
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *heads)), tag("tbody", *lines))
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex="0")


def facts(caption: str, rows: Iterable[tuple[str, object]]) -> Markup:
    """Names and what is true of them."""
    lines = [tag("tr", tag("th", name, scope="row"), tag("td", value, class_="words")) for name, value in rows]
    return tag("table", tag("caption", caption), tag("tbody", *lines), class_="facts")


def doorbells(summary: Mapping[str, Any]) -> Markup:
    """The account of every group."""
    head = ("group", "rung", "delivered", "pending", "refused", "interrupts", "per interrupt", "rung/s")
    lines = [
        (f"{name} ({its['machines']})" if its["machines"] else name, its) for name, its in summary["groups"].items()
    ]
    rows = []
    for name, its in [*lines, ("all", summary)] if len(lines) > 1 else lines:
        counts = [f"{its[key]:,}" for key in ("rung", "delivered", "pending", "refused", "interrupts")]
        each = NOTHING if its["coalescing"] is None else f"{its['coalescing']:,.2f}"
        rate = NOTHING if its["doorbells_per_s"] is None else scales.count(its["doorbells_per_s"])
        rows.append((name, *counts, each, rate))
    return table("Doorbells rung at the machines of each group", head, rows)


def latencies(summary: Mapping[str, Any], raw: Mapping[str, int | None] | None) -> list[Markup]:
    """All latencies by percentile, delivery and total of each group and phase, and how sure they are.

    ``raw`` is for summaries that have none.
    """
    known = {name: its for name, its in summary["latency_ns"].items() if name in LATENCIES and its["samples"]}
    if not known:
        return []
    names = [name for name in PERCENTILES if any(its.get(name) is not None for its in known.values())]
    if raw and "raw" not in known:
        known["raw"] = raw
    rows = [
        (tag("span", name, " ", tag("small", what)), *_percentiles(known[name], names))
        for name, what in LATENCIES.items()
        if name in known
    ]
    groups = {f"to {name}": its["latency_ns"] for name, its in summary["groups"].items()}
    groups = {name: its for name, its in groups.items() if its["lag"]["samples"]}
    parts_of = groups if len(groups) > 1 else {}
    parts_of |= {f"in phase {name}": its for name, its in (summary.get("phases") or {}).items()}
    for name, its in parts_of.items():
        rows += [(f"{latency} {name}", *_percentiles(its[latency], names)) for latency in ("delivery", "total")]
    head = ("latency", *(name.replace("_", ".") for name in names), "samples")
    made = [table("Latencies, without the warm-up", head, rows)]
    sure = [(name, *_interval(known[name], names)) for name in LATENCIES if (known.get(name) or {}).get("intervals")]
    if sure:
        inner = table("95 % confidence intervals of the percentiles above", head[:-1], sure)
        made.append(tag("details", tag("summary", "How sure these are"), inner))
    return made


def _percentiles(its: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    values = [its.get(name) for name in names]
    return [NOTHING if value is None else scales.time(value) for value in values] + [f"{its.get('samples') or 0:,}"]


def _interval(its: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """From where to where each percentile may lie; an end that nothing bounds is left open."""
    said = []
    for name in names:
        ends = its["intervals"].get(name) or (None, None)
        low, high = ("" if end is None else scales.time(end) for end in ends)
        said.append(f"{low} – {high}".strip() if low or high else NOTHING)
    return said


def surroundings(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the rest of the host did, and the least that a wake-up costs on it; nothing for older runs."""
    floor, host = summary.get("floor"), summary.get("host")
    if floor:
        times = floor["times_floor"].get("p50")
        less = f"; delivery's median is {times:,.1f} times that" if times else ""
        yield (
            "bare wake-up",
            f"{scales.time(floor['p50_ns'])} (p99 {scales.time(floor['p99_ns'])}), {floor['placement']}{less}",
        )
    if host:
        words = (
            ("cpu_percent", "{:.0f} % of one CPU in all"),
            ("steal_percent", "{:.1f} % taken by the hypervisor"),
            ("load_max", "load {:.1f}"),
            ("pressure_cpu_percent", "waiting for a CPU {:.0f} % of the time"),
        )
        yield "host meanwhile", ", ".join(say.format(host[key]) for key, say in words if host.get(key) is not None)


def resources(summary: Mapping[str, Any]) -> Markup | None:
    """What one machine of each group used; None when nobody looked."""
    used = {name: its["resources"] for name, its in summary["groups"].items() if its.get("resources")}
    if summary.get("coordinator"):
        used["(coordinator)"] = summary["coordinator"]
    if not used:
        return None
    rows = []
    for name, its in used.items():
        private = [its["private_bytes"], its["private_bytes_max"]]
        memory = [NOTHING if value is None else scales.size(value) for value in private]
        cpu = [f"{its['cpu_percent']:.1f} %", f"{its['cpu_percent_max']:.1f} %"]
        switches = [its["switches_voluntary_per_s"], its["switches_involuntary_per_s"]]
        rows.append((name, *cpu, *memory, *map(scales.count, switches)))
    head = ("each machine of", "CPU", "CPU, most", "private", "private, most", "waits/s", "preempted/s")
    return table("Resources between start and stop", head, rows)


def usage(summary: Mapping[str, Any] | None) -> list[Markup]:
    """The rest of what is known of the processes of each group, to be unfolded; nothing when nobody looked."""
    used = {name: its["resources"] for name, its in summary["groups"].items()} if summary else {}
    used |= {"(coordinator)": summary.get("coordinator")} if summary else {}
    rows = []
    for name, its in used.items():
        if its:
            percent, system = its["cpu_percent"], its["cpu_system_share"]
            cpu = [f"{percent * share:.1f} %" for share in (1 - system, system)]
            figures = [
                NOTHING if its.get(key) is None else word(its[key]) for word, keys in USAGE.items() for key in keys
            ]
            rows.append((name, *cpu, *figures))
    if not rows:
        return []
    inner = table(
        "CPU, memory and the kernel's counts of one machine of each group: means, most where it says", HEAD, rows
    )
    return [tag("details", tag("summary", "Details of the processes"), inner)]


def expectations(found: Sequence[Mapping[str, Any]]) -> Markup:
    """What the topology expected, and what came."""
    rows = []
    for each in found:
        met = bool(each.get("met"))
        verdict = tag("span", "✓ met" if met else "✗ missed", class_="met" if met else "missed")
        figure = str(each.get("figure", "?")) + (f" of {each['of']}" if each.get("of") else "")
        got = each.get("got")
        said = each.get("why") or NOTHING if got is None else f"{got:,.6g}" if isinstance(got, int | float) else got
        rows.append((figure, each.get("expected", "?"), said, verdict))
    missed = sum(not each.get("met") for each in found)
    caption = f"{missed} of {len(rows)} missed" if missed else "All met"
    return table(caption, ("figure", "expected", "got", ""), rows, texts=4)
