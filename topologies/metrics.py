"""The figures that conditions compare: what each is called, what it means, of whom there is one.

refused              a count
delivery.p99_us      a latency: which of the four, which percentile (or max, mean), which unit
p99_us               the same of ``total``
statistics.NAME      what programs put into ``guest.statistics`` under that name, added up
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass

from topologies.language.problems import nearest
from topologies.language.values import MisfitError
from topologies.resolve.names import RESERVED_NAMES
from topologies.resolve.references import References
from topologies.schedule import Condition

__all__ = [
    "FIGURES",
    "LATENCIES",
    "POINTS",
    "UNITS_NS",
    "Figure",
    "check_of",
    "parse_condition",
    "parse_edge",
    "parse_figure",
]

LATENCIES = ("lag", "delivery", "handling", "raw", "total")
POINTS = ("p50", "p90", "p99", "p99_9", "p99_99", "max", "mean")
UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000}

LIVE_FIGURES = ("rung", "delivered", "interrupts", "refused", "pending", "coalescing", "up", "died", "elapsed_s")
"""The figures that are known while the run lasts: conditions may use these, and expectations that abort it."""

RUN, MACHINES, EDGES = "the run", "machines", "edges"
_EVERYWHERE = (RUN, MACHINES, EDGES)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. ``of``: the run, groups and machines, edges; ``live``: whether it is known while the run lasts."""

    name: str
    unit: str
    meaning: str
    of: tuple[str, ...] = (RUN, MACHINES)
    live: bool = False


def _figures() -> dict[str, Figure]:
    rows = (
        ("rung", "doorbells", "rung at these machines", _EVERYWHERE),
        ("delivered", "doorbells", "of those, taken", _EVERYWHERE),
        ("interrupts", "interrupts", "wake-ups that took one doorbell or more", (RUN, MACHINES)),
        ("refused", "doorbells", "that reached nobody, or found a counter full", _EVERYWHERE),
        ("pending", "doorbells", "still in a counter at the end", _EVERYWHERE),
        ("pba_pending", "doorbells", "taken while their vector was masked, and left pending", (RUN, MACHINES)),
        ("dropped", "doorbells", "taken, and lost by the device", (RUN, MACHINES)),
        ("settled", "doorbells", "whose ringer's own books were lost", (RUN, MACHINES)),
        ("lost", "doorbells", "neither delivered nor pending nor refused; 0 when the books balance", _EVERYWHERE),
        ("died", "machines", "that ended before they were told to", (RUN, MACHINES)),
        ("up", "machines", "that are there", (RUN, MACHINES)),
        ("migrated", "migrations", "that brought a machine into a fresh process", (RUN, MACHINES)),
        ("migrations_refused", "migrations", "that a blocker forbade", (RUN, MACHINES)),
        ("migrations_failed", "migrations", "that came to nothing: the machine went on or died", (RUN, MACHINES)),
        ("downtime_ms", "ms", "that a machine stood still for a migration, at most", (RUN, MACHINES)),
        ("coalescing", "doorbells", "delivered for each interrupt", (RUN, MACHINES)),
        ("rate_hz", "1/s", "doorbells rung per second", _EVERYWHERE),
        ("ready_s", "s", "from the birth of the machines until all are ready", (RUN, MACHINES)),
        ("duration_s", "s", "how long the programs ran, warm-up included", (RUN,)),
        ("elapsed_s", "s", "since the programs began", (RUN,)),
        ("uss_mib", "MiB", "memory that is theirs alone, at most, of all together", (RUN, MACHINES)),
        ("rss_mib", "MiB", "resident memory, at most, of all together", (RUN, MACHINES)),
        ("cpu_s", "s", "processor time, of all together", (RUN, MACHINES)),
    )
    found = {name: Figure(name, unit, meaning, of, name in LIVE_FIGURES) for name, unit, meaning, of in rows}
    for latency in LATENCIES:
        for point in POINTS:
            for unit in UNITS_NS:
                name = f"{latency}.{point}_{unit}"
                found[name] = Figure(name, unit, f"{point.replace('_', '.')} of the latency {latency}", _EVERYWHERE)
    return found


FIGURES: dict[str, Figure] = _figures()
"""By name; beside these there is ``statistics.NAME``, for any name."""

_STATISTIC = re.compile(r"statistics\.[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*", re.ASCII)
_EDGE = re.compile(r"\s*([\w.-]+)\s*->\s*([\w.-]+?)\s*(?::\s*([0-9]{1,4})\s*)?", re.ASCII)


def parse_figure(name: str) -> Figure:
    """The figure of that name, under its full name (``p99_us`` is ``total.p99_us``); raises `MisfitError`."""
    figure = FIGURES.get(name) or FIGURES.get(f"total.{name}")
    if figure is not None:
        return figure
    if _STATISTIC.fullmatch(name):
        return Figure(name, "", "what programs count under this name")
    counts = [known for known in FIGURES if "." not in known]
    latencies = f"a latency such as delivery.p99_us (of {', '.join(LATENCIES)}; {', '.join(POINTS)})"
    expected = f"one of the figures {', '.join(counts)}, statistics.NAME, or {latencies}"
    bare = [known.partition(".")[2] for known in FIGURES if known.startswith("total.")]
    raise MisfitError(expected, nearest(name, [*FIGURES, *bare]))


def parse_condition(text: str, *, live: bool = False) -> Condition:
    """``"delivery.p99_us < 500"`` as a `Condition`, of nobody yet; ``live``: of a figure that is known meanwhile.

    Raises `MisfitError`.
    """
    found = _CONDITION.fullmatch(text)
    bound = math.nan
    if found is not None:
        with contextlib.suppress(ValueError):
            bound = float(found[3])
    if found is None or not math.isfinite(bound):
        raise MisfitError('a figure compared to a number, like "p99_us < 500" or "refused == 0"')
    figure = parse_figure(found[1])
    if live and not figure.live:
        expected = f"a figure that is known while the run lasts: {', '.join(LIVE_FIGURES)}"
        raise MisfitError(expected, nearest(found[1], LIVE_FIGURES))
    return Condition(figure=figure.name, comparison=found[2], bound=bound)  # type: ignore[arg-type]


def parse_edge(of: str) -> tuple[str, str, int | None] | None:
    """(source, target, vector or None for all) of ``"a -> b:2"``; None when ``of`` is no edge."""
    found = _EDGE.fullmatch(of)
    return None if found is None else (found[1], found[2], None if found[3] is None else int(found[3]))


def check_of(condition: Condition, of: str, references: References) -> Condition:
    """The condition with its ``of``: a group, a machine, or an edge between such; raises `MisfitError`."""
    figure, edge, names = parse_figure(condition.figure), parse_edge(of), references.names
    for name in (of.strip(),) if edge is None else edge[:2]:
        if name not in names.groups and name not in names.machines:
            if references.is_missing(name):
                return condition
            hint = "without `of` it is all of them" if name in RESERVED_NAMES else references.hint_of(name)
            raise MisfitError('a group, a machine, or an edge like "a -> b" or "a -> b:2"', hint)
    if (MACHINES if edge is None else EDGES) not in figure.of:
        raise MisfitError(f"nothing else: {figure.name} is a figure of {' and of '.join(figure.of)}")
    if edge is not None and edge[2] is not None and edge[2] >= (known_vectors := references.most_vectors(edge[1])):
        raise MisfitError(f"a vector of {edge[1]}, which has {known_vectors}")
    written = of.strip() if edge is None else f"{edge[0]} -> {edge[1]}" + ("" if edge[2] is None else f":{edge[2]}")
    return Condition(figure=condition.figure, comparison=condition.comparison, bound=condition.bound, of=written)
