"""The charts of a run: their axes and lines, from its time series."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from sim.results.analysis.time_series import LEVELS, TimeSeries
from sim.results.arrays import Floats
from sim.views.html.lines import Axis, Chart, Line, Mark, percentile_name, round_ticks
from sim.views.html.usage import COORDINATOR_NAME, Usage
from sim.views.units import short_bytes as size
from sim.views.units import short_count as count
from sim.views.units import short_ns as time
from sim.views.units import short_seconds as seconds

POINTS = 240
LEAST_SHARE = 0.002
# The latencies that are drawn, and their names in words.
# Where handling is short, total and delivery nearly coincide: the dashes of the later one let both be seen.
CURVES = (
    ("total", "total, corrected", 2),
    ("raw", "total, raw", 4),
    ("delivery", "delivery", 10),
    ("handling", "handling", 3),
)
# One of groups is a colour and a dash; the coordinator is grey.
GROUP_STYLES = (1, 2, 3, 4, 7, 8, 6)
COORDINATOR_STYLE = 9


def late(data: TimeSeries) -> bool:
    """Whether a sender was ever behind its schedule, so that corrected and raw latencies differ."""
    return "lag" in data.latencies and data.latencies["lag"].max > 0


def _shown(data: TimeSeries) -> list[tuple[str, str, int]]:
    """The latencies that have samples for a curve; raw only where it differs from corrected."""
    there = {name for name, latency in data.latencies.items() if latency.max > 0 and latency.size > 1}
    names = [curve for curve in CURVES if curve[0] in there]
    if late(data):
        return names
    return [(name, name, style) for name, _, style in names if name != "raw"]


def percentiles(data: TimeSeries) -> Chart | None:
    """Latency over percentile, the percentiles by their nines; None with fewer than two samples."""
    lines, most, low, high = [], 10, np.inf, 0.0
    for name, said, style in _shown(data):
        its = data.latencies[name]
        shares = 1 - np.geomspace(1, 1 / its.size, POINTS)
        levels = its.quantiles(shares)
        levels[-1] = its.max
        lines.append(Line(said, 1 / (1 - shares), np.maximum(levels, 1), style))
        # The picture begins at the latency that hardly any doorbell was below.
        quick = float(its.quantiles(np.array([LEAST_SHARE]))[0])
        most, low, high = max(most, its.size), min(low, quick), max(high, float(its.max))
    if not lines:
        return None
    lines = [Line(line.name, line.xs, np.where(line.ys >= low, line.ys, np.nan), line.style) for line in lines]
    nines = int(np.log10(most) + 1e-9)
    ticks = [(2.0, "p50"), *((10.0**place, percentile_name(place)) for place in range(1, nines + 1))]
    x = Axis("percentile, by its nines", 1, float(most), _rarity_word, logarithmic=True, make_ticks=lambda _: ticks)
    said = ", ".join(f"{line.name} reaches {time(float(line.ys[-1]))}" for line in lines)
    description = f"Latency over percentile, both logarithmic. At the maximum {said}."
    return Chart("Latency by percentile", description, x, _latency_axis(low, high), lines)


def _rarity_word(rarity: float) -> str:
    share = 100 - 100 / max(rarity, 1)
    return f"p{share:.{max(0, int(np.log10(max(rarity, 1))) - 1)}f}"


def cumulative(data: TimeSeries) -> Chart | None:
    """The share of doorbells that took no longer; None with fewer than two samples.

    Each line ends where there are too few.
    """
    every = np.unique(np.r_[np.linspace(0, 1, POINTS), 0.995, 0.999])
    lines, low, high, medians, most = [], np.inf, 0.0, [], 1
    for name, said, style in _shown(data):
        found = data.latencies[name]
        shares = every[every <= 1 - 1 / found.size] if found.size > 1 else every
        levels = np.maximum(found.quantiles(shares), 1)
        lines.append(Line(said, levels, 100 * shares, style))
        low, high = min(low, float(levels[shares >= LEAST_SHARE][0])), max(high, float(levels[shares <= 0.999][-1]))
        most = max(most, found.size)
        medians.append(f"{said} {time(float(np.interp(0.5, shares, levels)))}")
    if not lines:
        return None
    its = _latency_axis(low, high)
    end = "up to p99.9" if most >= 1000 else f"of {most:,} samples"
    x = dataclasses.replace(its, label=f"latency, {end}")
    y = Axis("doorbells", 0, 100, _percent, make_ticks=lambda most: round_ticks(0, 100, min(most, 5), _percent))
    # A line that ended outside would be drawn over the margin.
    lines = [
        Line(line.name, np.where((line.xs >= low) & (line.xs <= x.high), line.xs, np.nan), line.ys, line.style)
        for line in lines
    ]
    return Chart("Cumulative distribution", f"Half of all doorbells: {', '.join(medians)}.", x, y, lines)


def _percent(value: float) -> str:
    return f"{value:.3g} %"


def _latency_axis(low: float, high: float) -> Axis:
    return Axis("latency", max(1.0, low) / 1.15, max(2.0, high) * 1.15, time, logarithmic=True)


def _time_axis(data: TimeSeries) -> Axis:
    return Axis("time since the start", 0, data.duration_s, seconds)


def levels_over_time(title: str, levels: Mapping[str, Floats], data: TimeSeries, marks: Sequence[Mark]) -> Chart | None:
    """The percentiles of one latency in each moment."""
    if not levels or not _make_a_curve(levels["p50"]):
        return None
    # The median last, on top of what would hide it.
    styles = reversed([*enumerate(LEVELS, start=5)])
    lines = [
        Line(name, data.latency_s, np.maximum(levels[name], 1), style)
        for style, (name, _) in styles
        if np.isfinite(levels[name]).any()
    ]
    low, high = float(np.nanmin(levels["p50"])), float(np.nanmax(levels["max"]))
    typical, worst = float(np.nanmedian(levels["p50"])), int(np.nanargmax(levels["max"]))
    description = (
        f"The median is {time(typical)} in a typical moment; the longest, {time(high)}, began at "
        f"{seconds(float(data.latency_s[worst]))}."
    )
    y = _latency_axis(low, high)
    return Chart(title, description, _time_axis(data), y, lines, marks, data.bands)


def rates(data: TimeSeries, marks: Sequence[Mark]) -> Chart | None:
    """Doorbells and wake-ups in each moment, as the receivers logged them."""
    if not data.delivered_per_s.any() or not _make_a_curve(data.delivered_per_s):
        return None
    lines = [Line("doorbells delivered", data.rates_s, data.delivered_per_s, 1)]
    lines.append(Line("interrupts", data.rates_s, data.interrupts_per_s, 11))
    # Many doorbells for each interrupt: on a linear scale one of the two would lie on the axis.
    there = data.interrupts_per_s[data.interrupts_per_s > 0]
    top = float(data.delivered_per_s.max()) * 1.1
    apart = float(np.median(data.delivered_per_s[data.interrupts_per_s > 0])) > 8 * float(np.median(there))
    if apart:
        low = float(np.percentile(there, 2)) / 3
        lines = [Line(line.name, line.xs, np.where(line.ys >= low, line.ys, np.nan), line.style) for line in lines]
        y = Axis("per second", low, top * 1.5, count, logarithmic=True)
    else:
        y = Axis("per second", 0, top, count)
    mean = [count(float(its.mean())) for its in (data.delivered_per_s, data.interrupts_per_s)]
    description = f"On average {mean[0]} doorbells and {mean[1]} interrupts a second."
    return Chart("Rates over time", description, _time_axis(data), y, lines, marks, data.bands)


def _make_a_curve(values: Floats) -> bool:
    return int(np.isfinite(values).sum()) > 1


def usage_charts(found: Sequence[Usage], data: TimeSeries, marks: Sequence[Mark]) -> list[Chart]:
    """CPU and memory of one machine of each group over time; of many groups, the busiest."""
    groups = [process for process in found if process.name != COORDINATOR_NAME]
    busiest = sorted(groups, key=lambda process: -float(process.cpu_percent.mean()))[: len(GROUP_STYLES)]
    drawn = [process for process in found if process in busiest or process.name == COORDINATOR_NAME]
    if not drawn:
        return []
    places = iter(GROUP_STYLES)
    styles = [COORDINATOR_STYLE if process.name == COORDINATOR_NAME else next(places) for process in drawn]
    x = _time_axis(data)
    charts = []
    for title, what, xs, ys, word in (
        ("CPU over time", "% of one CPU, each machine", "cpu_time_s", "cpu_percent", _percent),
        ("Memory over time", "private memory, each machine", "memory_time_s", "memory_bytes", size),
    ):
        lines = [
            Line(process.name, *_until(x.high, getattr(process, xs), getattr(process, ys)), style)
            for process, style in zip(drawn, styles, strict=True)
        ]
        top = max(float(line.ys.max()) for line in lines) * 1.1 or 1.0
        y = Axis(what, 0, top, word, make_ticks=partial(_binary_ticks, top) if word is size else None)
        means = ", ".join(f"{line.name} {word(float(line.ys.mean()))}" for line in lines)
        charts.append(Chart(title, f"On average: {means}.", x, y, lines, marks, data.bands))
    return charts


def _until(end: float, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    """The points of a line up to ``end``, with one there if it goes on."""
    before = xs <= end
    if before.all():
        return xs, ys
    return np.append(xs[before], end), np.append(ys[before], np.interp(end, xs, ys))


def _binary_ticks(high: float, most: int) -> list[tuple[float, str]]:
    """Round in the unit that is shown: 512 KiB and 2 MiB are, 2,000,000 bytes are not."""
    unit = next(2.0**power for power in (40, 30, 20, 10, 0) if high >= 2**power)
    return [(value * unit, size(value * unit)) for value, _ in round_ticks(0.0, high / unit, most, str)]
