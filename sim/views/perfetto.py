"""A run in the Trace Event Format, for Perfetto (ui.perfetto.dev) and chrome://tracing.

A process for each machine, in it a thread for each vector with a slice for every drain (drained until dealt
with) and a thread with what the machine rang; a flow leads from a ring to the drain that delivered it. Process 1 is
the run: what happened, and counters. Times are microseconds since the start.

The format: "Trace Event Format" (Google, "Chrome Trace Event Format" document), the JSON object form.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nodes.errors import UsageError
from sim.results import Run
from sim.results.analysis.time_series import RunEvent, TimeSeries, time_series
from sim.results.arrays import Integers
from sim.results.store.batches import batches
from sim.results.store.manifest import Manifest
from sim.views.event_text import brief, sentence
from sim.views.perfetto_kernel import Event, event, host_events, slice_of

EVENTS = 100_000
# Perfetto takes process and thread 0 for the idle task of a kernel.
RUN, RUN_THREAD = 1, 1
RINGS = 1
# A slice that is to be seen has a length; how long a ring took is not recorded.
RING_NS = 1_000
SECOND_NS = 1_000_000_000
WINDOW_BINS = 1 << 16
FOREVER = np.iinfo(np.int64).max
SAMPLE_COLUMNS = ("source", "target", "vector", "intended_ns", "rung_ns", "delivered_ns", "count")
DRAIN_COLUMNS = ("machine", "vector", "count", "delivered_ns", "handled_ns")
# A ring is a slice and both ends of a flow, a drain is a slice.
SAMPLE_EVENTS, DRAIN_EVENTS = 3, 1


@dataclass(frozen=True)
class PerfettoTrace:
    """The lines of a JSON file, and in words what it leaves out: ``cut`` for lack of space, ``before`` it begins.

    Each is empty where nothing is left out.
    """

    lines: list[str]
    events: int
    cut: str
    before: str

    def content(self) -> bytes:
        return ("\n".join(self.lines) + "\n").encode()


def trace(run: Run, events_max: int = EVENTS, from_s: float | None = None) -> PerfettoTrace:
    """The rings and drains from ``from_s`` seconds on, as many as fit.

    By default from the end of the warm-up; of a run that ended at an outlier, from a second before that.
    Names, counters and what happened come on top of ``events_max``, and are of the whole run. Raises
    ``UsageError`` when the run has no manifest, or nothing that could be shown.
    """
    manifest = run.origin
    data = time_series(run)
    run.check_one_host("times of doorbells")
    if not data.start_ns:
        raise UsageError(f"{run.path}: nothing was rung or drained, there is nothing to trace")
    begin_ns = data.start_ns + round(from_s * 1e9) if from_s is not None else _default_begin_ns(run, data)
    begin_s = (begin_ns - data.start_ns) / 1e9
    end_ns, rows, earlier = _window(run, begin_ns, data.stop_ns, events_max)
    samples = _rows(run, "samples", SAMPLE_COLUMNS, "rung_ns", begin_ns, end_ns)
    drains = _rows(run, "drains", DRAIN_COLUMNS, "delivered_ns", begin_ns, end_ns)
    slices = [*_drains(drains, data.start_ns, manifest), *_rings(samples, data.start_ns, manifest)]
    if not slices:
        raise UsageError(f"{run.path}: nothing was rung or drained from {begin_s:g} s on")
    # The last bin of the window may hold more than there is room for: the latest go.
    slices.sort(key=lambda pair: pair[0])
    kept = [group for _, group in slices[: _room(slices, events_max)]]
    last_us = kept[-1][0]["ts"]
    cut = before = ""
    if len(kept) < len(slices) or end_ns < data.stop_ns:
        # A flow ends in the slice of its drain: where that is cut off, it goes with it.
        kept = [group if group[-1]["ts"] < last_us else group[:1] for group in kept]
        cut = f"{len(kept):,} of {rows:,} doorbells and interrupts, "
        cut += f"from {begin_s:.6g} s to {last_us / 1e6:.6g} s of {data.duration_s:.6g} s"
    if earlier:
        what = "the warm-up, " if from_s is None else ""
        before = f"{what}the first {begin_s:.6g} s with {earlier:,} doorbells and interrupts"
    there = sum(map(len, kept))
    others = [*_names(manifest), *_run_events(data.events), *_counters(data), *host_events(run, data.start_ns)]
    about = {
        "title": manifest.title,
        "run": run.path.name,
        "version": manifest.version,
        "status": run.status,
        "sample_every": manifest.sample_every,
        "events": there,
        "cut": cut,
        "left_out": before,
        "rings": f"drawn {RING_NS} ns long to be seen; how long a ring took is not recorded",
    }
    events = [*others, *itertools.chain.from_iterable(kept)]
    lines = ['{"displayTimeUnit": "ns", "otherData": ' + _json(about) + ', "traceEvents": [']
    lines += [_json(each) + "," for each in events[:-1]] + [_json(events[-1]), "]}"]
    return PerfettoTrace(lines, there, cut, before)


def _default_begin_ns(run: Run, data: TimeSeries) -> int:
    begin_ns = max(data.start_ns, data.measured_ns)
    with contextlib.suppress(UsageError):
        if (its := run.figures.outlier) is not None:
            return max(begin_ns, (its.intended_ns or its.rung_ns) - SECOND_NS)
    return begin_ns


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _room(slices: list[tuple[int, list[Event]]], events_max: int) -> int:
    sizes = np.cumsum([len(group) for _, group in slices])
    return max(1, int(np.searchsorted(sizes, events_max, side="right")))


def _window(run: Run, begin_ns: int, stop_ns: int, events_max: int) -> tuple[int, int, int]:
    """Until when rings and drains fit, how many of them the run has from ``begin_ns`` on, and how many before."""
    span = max(1, stop_ns - begin_ns)
    counts = np.zeros(WINDOW_BINS, np.int64)
    rows = earlier = 0
    for name, column, events in (("samples", "rung_ns", SAMPLE_EVENTS), ("drains", "delivered_ns", DRAIN_EVENTS)):
        for batch in batches(run.place, name, (column,)):
            # Seconds as floats: nanoseconds times bins would not fit 64 bits in a long run.
            place = ((batch[column] - begin_ns) * (WINDOW_BINS / span)).astype(np.int64)
            inside = (place >= 0) & (place < WINDOW_BINS)
            counts += events * np.bincount(place[inside], minlength=WINDOW_BINS)
            before = int(np.count_nonzero(batch[column] < begin_ns))
            rows, earlier = rows + len(place) - before, earlier + before
    if counts.sum() <= events_max:
        return FOREVER, rows, earlier  # the last drains may be dealt with when the time is up
    end = int(np.searchsorted(np.cumsum(counts), events_max, side="right")) + 1
    return begin_ns + min(span, -(-end * span // WINDOW_BINS)) + 1, rows, earlier


def _rows(run: Run, name: str, columns: tuple[str, ...], at: str, begin_ns: int, end_ns: int) -> dict[str, Integers]:
    """The rows of a table whose stamp ``at`` lies in the window."""
    parts: dict[str, list[Integers]] = {column: [np.zeros(0, np.int64)] for column in columns}
    for batch in batches(run.place, name, columns):
        inside = (batch[at] >= begin_ns) & (batch[at] < end_ns)
        for column in columns:
            parts[column].append(batch[column][inside])
    return {column: np.concatenate(pieces) for column, pieces in parts.items()}


def _until_next(thread: Integers, start_ns: Integers, end_ns: Integers) -> Integers:
    """The ends of slices, cut where the next one of their thread begins: those of a thread must not overlap."""
    order = np.lexsort((start_ns, thread))
    following = np.full(len(order), np.iinfo(np.int64).max)
    same = thread[order][1:] == thread[order][:-1]
    following[:-1][same] = start_ns[order][1:][same]
    ends = end_ns.copy()
    ends[order] = np.minimum(end_ns[order], following)
    return np.maximum(ends, start_ns)


def _pid(machine: int) -> int:
    return machine + 2


def _tid(vector: int) -> int:
    return vector + 2


def _drains(rows: dict[str, Integers], start_ns: int, manifest: Manifest) -> Iterator[tuple[int, list[Event]]]:
    known = rows["machine"] < len(manifest.machines)
    machine, vector, count, delivered, handled = (rows[name][known] for name in DRAIN_COLUMNS)
    ends = _until_next(machine << 16 | vector, delivered, np.maximum(handled, delivered))
    columns = (machine, vector, count, delivered, ends, handled)
    for its_machine, its_vector, its_count, at, end, done in zip(*(column.tolist() for column in columns), strict=True):
        args = {"doorbells": its_count} | ({} if done else {"dealt with": "never"})
        place, span = (_pid(its_machine), _tid(its_vector)), (at - start_ns, end - start_ns)
        yield at, [slice_of(f"vector {its_vector}", "interrupt", *place, *span, args)]


def _rings(rows: dict[str, Integers], start_ns: int, manifest: Manifest) -> Iterator[tuple[int, list[Event]]]:
    size = len(manifest.machines)
    known = (rows["source"] < size) & (rows["target"] < size)
    columns = [rows[name][known] for name in SAMPLE_COLUMNS]
    rung = columns[4]
    ends = _until_next(columns[0], rung, rung + RING_NS)
    names = [machine.name for machine in manifest.machines]
    for number, (source, target, vector, intended, at, delivered, count, end) in enumerate(
        zip(*(column.tolist() for column in (*columns, ends)), strict=True), start=1
    ):
        to = names[target] if target >= 0 else "others"
        late = {"late_us": (at - intended) / 1e3} if intended else {}
        span = at - start_ns, end - start_ns
        ring = slice_of(f"ring {to} {vector}", "doorbell", _pid(source), RINGS, *span, late)
        if not delivered or target < 0:
            yield at, [ring]
            continue
        ring["args"] |= {"delivered_after_us": (delivered - at) / 1e3, "drained_together": count}
        flow = {"cat": "doorbell", "id": number}
        start = event("doorbell", "s", _pid(source), RINGS, ts=ring["ts"], **flow)
        end_at = (delivered - start_ns) / 1e3
        yield at, [ring, start, event("doorbell", "f", _pid(target), _tid(vector), ts=end_at, bp="e", **flow)]


def _names(manifest: Manifest) -> Iterator[Event]:
    def named(what: str, pid: int, tid: int, **its: object) -> Event:
        return event(what, "M", pid, tid, args=its)

    yield named("process_name", RUN, RUN_THREAD, name="the run")
    yield named("process_sort_index", RUN, RUN_THREAD, sort_index=-1)
    yield named("thread_name", RUN, RUN_THREAD, name="what happened")
    for machine in manifest.machines:
        pid = _pid(machine.index)
        yield named("process_name", pid, RINGS, name=f"{machine.name} ({machine.group})")
        yield named("process_sort_index", pid, RINGS, sort_index=machine.index)
        yield named("thread_name", pid, RINGS, name="rings")
        for vector in range(machine.vectors):
            yield named("thread_name", pid, _tid(vector), name=f"vector {vector}")


def _run_events(events: list[RunEvent]) -> Iterator[Event]:
    for run_event in events:
        args, at_us = {"what": sentence(run_event.event)}, round(run_event.time_s * 1e6, 3)
        yield event(brief(run_event.event), "i", RUN, RUN_THREAD, cat="event", s="g", ts=at_us, args=args)


def _counters(data: TimeSeries) -> Iterator[Event]:
    """Rates of the whole run, and how many doorbells were on their way, from the stamps of samples."""
    series = (
        ("doorbells delivered/s", data.delivered_per_s),
        ("interrupts/s", data.interrupts_per_s),
        ("pending (estimated)", data.pending),
    )
    for name, values in series:
        width_us = data.duration_s * 1e6 / max(1, len(values))
        for place, value in enumerate(values.tolist()):
            at_us = round(place * width_us, 3)
            yield event(name, "C", RUN, RUN_THREAD, ts=at_us, args={"value": round(value, 1)})
