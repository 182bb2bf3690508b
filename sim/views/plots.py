"""Pictures of a run: each function draws one and returns its matplotlib axes.

``latency`` is one of ``latency.latencies.LATENCIES`` or ``raw``; ``by`` splits it by group, machine, vector or source.
The warm-up is left out. Needs matplotlib, from the extra ``ivshmem-sim[notebook]``; it is imported when the first
picture is drawn. Whatever cannot be drawn raises ``UsageError``.
"""

from __future__ import annotations

import importlib
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.kernel.shortage import error_of_path
from sim.results import Run
from sim.results.analysis.latency.latencies import LATENCIES, QUANTILES, values
from sim.results.analysis.latency.samples import numbered
from sim.results.analysis.time_series import LEVELS, RunEvent, TimeSeries, time_series
from sim.results.arrays import Floats, Integers
from sim.results.compare import Comparison
from sim.views.event_text import brief
from sim.views.html.heat_map import between_groups, between_machines
from sim.views.html.usage import usage
from sim.views.units import percentile_title, short_ns

# More lines than this are a tangle.
SERIES_LIMIT = 16
EVENTS_LISTED = 16
LETTER, BADGE = 5.2, 28.0  # points: a letter of a small font, and what a mark's number needs


def histogram(run: Run, latency: str = "delivery", *, by: str | None = None, axes: Any = None, bins: int = 120) -> Any:
    """How often each latency occurs, in ``bins`` of equal width on a logarithmic scale."""
    axes = _axes(axes)
    series = _series(run, latency, by)
    top = max(int(values_ns.max()) for _, values_ns in series)
    bottom = min(int(values_ns.min()) for _, values_ns in series)
    edges = np.geomspace(max(1, bottom) * 0.95, max(2, top) * 1.05, bins + 1)
    for label, values_ns in series:
        counts, _ = np.histogram(np.maximum(values_ns, 1), edges)
        axes.stairs(counts, edges, label=label, linewidth=1.2, fill=len(series) == 1, alpha=0.85)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_ylabel("doorbells")
    _latency_scale(axes, "x")
    axes.set_xlabel(latency)
    return _finished(axes, by, len(series))


def cumulative(run: Run, latency: str = "delivery", *, by: str | None = None, axes: Any = None) -> Any:
    """The share of doorbells, in percent, that took no longer than that."""
    axes = _axes(axes)
    series = _series(run, latency, by)
    for label, values_ns in series:
        shares = np.unique(np.r_[np.linspace(0, 1, 512), 1 - np.geomspace(1e-6, 1, 256)])
        axes.plot(np.maximum(_quantiles(values_ns, shares), 1), 100 * shares, label=label, linewidth=1.5)
    axes.set_ylabel("doorbells [%]")
    axes.set_ylim(0, 101)
    _latency_scale(axes, "x")
    axes.set_xlabel(latency)
    return _finished(axes, by, len(series))


def percentiles(
    run: Run, latencies: str | Sequence[str] = LATENCIES, *, by: str | None = None, axes: Any = None
) -> Any:
    """Latency over percentile, the percentiles by their nines; several latencies in one picture."""
    axes = _axes(axes)
    wanted = (latencies,) if isinstance(latencies, str) else tuple(latencies)
    drawn, most = 0, 10
    for latency in wanted:
        for label, values_ns in _series(run, latency, by):
            if not values_ns.any():
                # A closed loop is never late: its lag is 0 throughout, which no logarithm can show.
                continue
            most = max(most, len(values_ns))
            shares = 1 - np.geomspace(1, 1 / len(values_ns), 400)
            name = " ".join(filter(None, (latency if len(wanted) > 1 else "", label)))
            # Latencies that nearly coincide (total and delivery, where handling is short) stay both visible.
            style = ("-", "--", "-.", ":")[wanted.index(latency) % 4]
            levels = np.maximum(_quantiles(values_ns, shares), 1)
            levels[-1] = values_ns.max()
            axes.plot(1 / (1 - shares), levels, style, label=name, linewidth=1.5)
            drawn += 1
    axes.set_xscale("log")
    nines = [10.0**power for power in range(int(np.log10(most)) + 1)]
    labels = [f"{100 - 100 / nine:.{max(0, place - 2)}f} %" for place, nine in enumerate(nines)]
    axes.set_xticks([1, 2, *nines[1:]], ["min", "50 %", *labels[1:]])
    axes.get_xticklabels()[0].set_horizontalalignment("right")  # or it would touch the next one
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_xlabel("percentile")
    _latency_scale(axes, "y")
    axes.set_ylabel(wanted[0] if len(wanted) == 1 else "latency")
    return _finished(axes, by, drawn)


def spread(run: Run, latency: str = "delivery", *, by: str = "vector", axes: Any = None) -> Any:
    """p50 to the maximum of each vector, group, machine or source, one column each."""
    axes = _axes(axes)
    table = run.latency(by=by, latencies=(latency,))
    if table.num_rows == 0:
        raise UsageError(f"{run.path}: no samples of {latency} to draw")
    places = np.arange(table.num_rows)
    columns = {name: table[name].cast("float64").to_numpy() for name, _ in QUANTILES}
    axes.vlines(places, columns["p50"], columns["max"], color="0.8", linewidth=4, zorder=1)
    for marker, (name, column) in zip("oDs^*v", columns.items(), strict=True):
        axes.scatter(places, np.maximum(column, 1), marker=marker, label=percentile_title(name), zorder=2)
    names = [str(name) for name in table[by].to_pylist()]
    axes.set_xticks(places, names, rotation=0 if max(map(len, names)) < 5 else 60)
    axes.set_xlim(-0.7, len(places) - 0.3)
    axes.set_xlabel(by)
    _latency_scale(axes, "y")
    axes.set_ylabel(latency)
    _finished(axes, None, len(columns))
    # Beside the picture: wherever it stood inside, some column would be behind it.
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return axes


def confidence(runs: Run | Mapping[str, Run], latency: str = "delivery", *, axes: Any = None) -> Any:
    """Every percentile with its 95 % confidence interval; several runs, by what they are called, side by side.

    An arrow upwards: so few samples do not say how much higher the percentile may be.
    """
    named = {"": runs} if isinstance(runs, Run) else dict(runs)
    if not named or len(named) > SERIES_LIMIT:
        raise UsageError(f"{len(named)} runs to draw: expected 1 to {SERIES_LIMIT}")
    axes = _axes(axes)
    names = [name for name, _ in QUANTILES if name != "max"]
    for index, (label, run) in enumerate(named.items()):
        (row,) = run.latency(latencies=(latency,), intervals=True).to_pylist()
        if not row["samples"]:
            raise UsageError(f"{run.path}: no samples of {latency} to draw")
        if row["p50_low"] is None:
            raise UsageError(f"{run.path}: samples of {latency} in too few slices of time for intervals")
        known = [(place, name) for place, name in enumerate(names) if row[f"{name}_low"] is not None]
        at = np.array([place for place, _ in known]) + (index - (len(named) - 1) / 2) * 0.7 / len(named)
        levels = np.array([row[name] for _, name in known])
        low = levels - [row[f"{name}_low"] for _, name in known]
        high = np.array([row[f"{name}_high"] or np.nan for _, name in known]) - levels
        bars = axes.errorbar(at, levels, (low, np.nan_to_num(high)), fmt="o", label=label, capsize=3, markersize=5)
        for place in np.flatnonzero(np.isnan(high)):
            # No upper end: the length is only the arrow's.
            color = bars.lines[0].get_color()
            axes.errorbar(at[place], levels[place], levels[place] / 2, fmt="none", lolims=True, ecolor=color)
    axes.set_xticks(range(len(names)), [percentile_title(name) for name in names])
    axes.set_xlabel("percentile, with its 95 % interval")
    _latency_scale(axes, "y")
    axes.set_ylabel(latency)
    _finished(axes, None, len(named))
    axes.grid(visible=False, axis="x")
    return axes


def timeline(run: Run, *, axes: Any = None) -> Any:
    """Percentiles of delivery of the doorbells rung in each moment, in seconds since the start."""
    data = time_series(run)
    if not data.delivery_ns or not np.isfinite(data.delivery_ns["p50"]).any():
        raise UsageError(f"{run.path}: no samples of delivery to draw")
    axes = _axes(axes)
    # The median last, on top of what would hide it.
    for (level, _), style in zip(reversed(LEVELS), (":", "-", "--", "-"), strict=True):
        if np.isfinite(data.delivery_ns[level]).any():  # moments have enough samples for it
            axes.plot(data.latency_s, np.maximum(data.delivery_ns[level], 1), style, label=level, linewidth=1.3)
    _latency_scale(axes, "y")
    axes.set_ylabel("delivery")
    return _over_time(axes, data)


def rates(run: Run, *, axes: Any = None) -> Any:
    """Doorbells delivered and interrupts a second, as the receivers logged them."""
    data = time_series(run)
    if not data.delivered_per_s.any():
        raise UsageError(f"{run.path}: no drains to draw")
    axes = _axes(axes)
    axes.plot(data.rates_s, data.delivered_per_s, label="doorbells", linewidth=1.3)
    axes.plot(data.rates_s, data.interrupts_per_s, "--", label="interrupts", linewidth=1.3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("per second")
    return _over_time(axes, data)


def matrix(run: Run, *, by: str = "machine", axes: Any = None) -> Any:
    """Doorbells rung from each row to each column; ``by`` machine (neighbours share a row beyond 64) or group."""
    if by not in ("machine", "group"):
        raise UsageError(f"by {by}: expected machine or group")
    cells = between_machines(run) if by == "machine" else between_groups(run)
    if not cells.rung.any():
        raise UsageError(f"{run.path}: no doorbells to draw")
    axes = _axes(axes)
    image = axes.imshow(np.ma.masked_equal(cells.rung, 0), cmap="viridis", aspect="equal")
    image.set_clim(0, int(cells.rung.max()))
    for names, set_ticks, set_label, label in (
        (cells.sources, axes.set_yticks, axes.set_ylabel, "ringing"),
        (cells.targets, axes.set_xticks, axes.set_xlabel, "rung"),
    ):
        every = max(1, -(-len(names) // SERIES_LIMIT))
        upright = label == "ringing" or max(map(len, names)) * len(names) < 60
        slanted = {} if upright else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        set_ticks(range(0, len(names), every), names[::every], **slanted)
        set_label(label)
    axes.figure.colorbar(image, ax=axes, label="doorbells")
    return axes


def drain_sizes(run: Run, *, axes: Any = None) -> Any:
    """The share of interrupts that brought so many doorbells, and of the doorbells that came with them."""
    data = time_series(run)
    if not len(data.drain_sizes):
        raise UsageError(f"{run.path}: no drains to draw")
    axes = _axes(axes)
    places = np.arange(len(data.drain_sizes))
    for shift, counts, label in ((-0.2, data.drain_sizes, "interrupts"), (0.2, data.drained, "doorbells")):
        axes.bar(places + shift, 100 * counts / max(1, counts.sum()), 0.4, label=label)
    names = ["1", *(f"{2**place}-{2 ** (place + 1) - 1}" for place in places[1:].tolist())]
    axes.set_xticks(places, names, rotation=0 if len(names) < 9 else 60)
    axes.set_xlabel("doorbells that one interrupt brought")
    axes.set_ylabel("share [%]")
    return _finished(axes, None, 2)


def resources(run: Run, what: str = "cpu", *, axes: Any = None) -> Any:
    """``cpu`` (percent of one CPU) or ``memory`` (private MiB) of one machine of each group, over time."""
    if what not in ("cpu", "memory"):
        raise UsageError(f"no resource {what!r}: expected cpu or memory")
    data = time_series(run)
    found = usage(run, data.start_ns, data.stop_ns)
    if not found:
        raise UsageError(f"{run.path}: the processes were not sampled twice")
    if len(found) > SERIES_LIMIT:
        raise UsageError(f"{len(found)} lines are a tangle, {SERIES_LIMIT} the most: try run.frame('resources')")
    axes = _axes(axes)
    for process in found:
        if what == "cpu":
            axes.plot(process.cpu_time_s, process.cpu_percent, ".-", label=process.name, linewidth=1.3)
        else:
            axes.plot(process.memory_time_s, process.memory_bytes / 2**20, ".-", label=process.name, linewidth=1.3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("CPU [% of one]" if what == "cpu" else "private memory [MiB]")
    return _over_time(axes, data)


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the percentiles of both runs, delivery and total, into a file, whose ending says which kind (.png, .svg).

    Raises ``UsageError`` without matplotlib or without samples, ``HostError`` when it cannot be written.
    """
    figure = _matplotlib("figure").Figure(figsize=(9, 4), layout="constrained")
    for axes, latency in zip(figure.subplots(1, 2, sharey=True), ("delivery", "total"), strict=True):
        for name, run in (("A", comparison.a), ("B", comparison.b)):
            before = len(axes.lines)
            percentiles(run, latency, axes=axes)
            for line in axes.lines[before:]:
                line.set_label(f"{name}: {run.path.name}")
        axes.set_title(latency, fontsize="medium")
        axes.set_ylabel("")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise error_of_path(error, f"{path}: the picture cannot be written") from error


def _over_time(axes: Any, data: TimeSeries) -> Any:
    """The axis of time, with phases and with what happened: numbered marks, told below."""
    span_s = max(data.duration_s, 1e-3)
    wide = axes.get_window_extent().width / axes.figure.dpi * 72  # points
    for band in data.bands:
        axes.axvspan(band.start, band.end, color="0.5" if band.shaded else "none", alpha=0.12, linewidth=0)
        if len(band.name) * LETTER < (band.end - band.start) / span_s * wide:
            place = {"xytext": (2, -2), "textcoords": "offset points"}
            axes.annotate(
                band.name, (band.start, 1), xycoords=("data", "axes fraction"), **place, va="top", fontsize="small"
            )
    shown = data.events[:EVENTS_LISTED]
    for first, last, at_s in _together(data.events, BADGE / wide * span_s):
        name = f"{first}" if first == last else f"{first}\N{EN DASH}{last}"
        box = {"boxstyle": "round,pad=0.2", "facecolor": "0.25", "edgecolor": "none"}
        axes.annotate(
            name, (at_s, 1), xycoords=("data", "axes fraction"), ha="center", va="center", color="1", bbox=box,
            fontsize="x-small", annotation_clip=False,
        )  # fmt: skip
    for event in data.events:
        axes.axvline(event.time_s, color="0.4", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, span_s)
    listed = [f"{number} {brief(event.event)}" for number, event in enumerate(shown, start=1)]
    more = len(data.events) - len(shown)
    listed += [f"and {more:,} more events"] if more else []
    whole = [text.replace(" ", "\N{NO-BREAK SPACE}") for text in listed]
    lines = textwrap.wrap(" \N{MIDDLE DOT} ".join(whole), max(40, int(wide / LETTER)))
    axes.set_xlabel("\n".join(["time since the start [s]", *lines]))
    return _finished(axes, None, 2)


def _together(events: Sequence[RunEvent], least_s: float) -> Iterator[tuple[int, int, float]]:
    """The numbers of the entries that share a badge for lack of space, and its place: first, last, seconds."""
    firsts: list[int] = []
    for place, event in enumerate(events):
        if not firsts or event.time_s - events[firsts[-1]].time_s >= least_s:
            firsts.append(place)
    for first, following in itertools.pairwise([*firsts, len(events)]):
        yield first + 1, following, events[first].time_s


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    return _matplotlib("pyplot").subplots(figsize=(7.5, 3.6), layout="constrained")[1]


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise UsageError("pictures need matplotlib: pip install 'ivshmem-sim[notebook]'") from error


def _series(run: Run, latency: str, by: str | None) -> list[tuple[str, Integers]]:
    """One latency of all samples, or of those of each label: (label, values in ns), without empty ones."""
    columns = run.columns
    try:
        figures, there = values(columns, latency)
    except KeyError:
        hint = did_you_mean(latency, (*LATENCIES, "raw"))
        raise UsageError(f"no latency {latency!r}: expected {', '.join(LATENCIES)} or raw{hint}") from None
    there = there & ~columns.warmup
    if by is None:
        series = [("", figures[there])]
    else:
        numbers, labels = numbered(run.origin, columns, by)
        series = [(str(label), figures[there & (numbers == place)]) for place, label in enumerate(labels)]
    series = [(label, values_ns) for label, values_ns in series if len(values_ns)]
    if not series:
        raise UsageError(f"{run.path}: no samples of {latency} to draw")
    if len(series) > SERIES_LIMIT:
        raise UsageError(f"{len(series)} lines by {by} are a tangle, {SERIES_LIMIT} the most: try spread()")
    return series


def _quantiles(its: Integers, shares: Floats) -> Integers:
    """Nearest-rank quantiles, as in the tables."""
    ordered = np.sort(its)
    ranks = np.ceil(shares * len(its)).astype(np.int64) - 1
    return ordered[np.clip(ranks, 0, len(its) - 1)]


def _latency_scale(axes: Any, which: str) -> None:
    """A logarithmic axis of nanoseconds, labelled in the unit that fits."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    bottom, top = axis.get_data_interval()
    if top < 100 * bottom:
        # Less than two decades: the powers of ten alone might label nothing.
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    elif top > 1e6 * bottom:
        # So many powers of ten do not fit beside each other.
        axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value_ns, _: short_ns(value_ns)))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _finished(axes: Any, by: str | None, series: int) -> Any:
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if series > 1:
        axes.legend(title=by, frameon=False, fontsize="small")
    return axes
