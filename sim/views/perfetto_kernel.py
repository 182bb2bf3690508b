"""The part of a trace for Perfetto that shows the host: who ran on each CPU, interrupts, and the load of CPUs.

The scheduler's events are those of the last second before an outlier, where there was a kernel trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nodes.errors import UsageError
from sim.host.kernel_trace import KernelEvent
from sim.host.resource_row import FIRST_CPU
from sim.results import Run
from sim.results.analysis.outlier.evidence import Evidence
from sim.results.store import files
from sim.results.store.schemas import read_kernel_events

CPUS = 1 << 17
"""The process of all CPUs in the trace; those of machines have smaller numbers."""
LOADS = (("busy", ("cpu_user_s", "cpu_system_s")), ("irq", ("irq_s", "softirq_s")), ("steal", ("steal_s",)))
THREADS = ("", "irq", "softirq")

Event = dict[str, Any]


def event(name: str, phase: str, pid: int, tid: int, **more: object) -> Event:
    """An event of the format; ``phase``: M (a name), X (a slice), C (a counter), i (an instant), s and f (a flow)."""
    return {"name": name, "ph": phase, "pid": pid, "tid": tid, **more}


def slice_of(
    name: str, category: str, pid: int, tid: int, begin_ns: int, end_ns: int, args: Mapping[str, object]
) -> Event:
    """A slice; its times are nanoseconds since the start."""
    times_us = {"ts": begin_ns / 1e3, "dur": (end_ns - begin_ns) / 1e3}
    return event(name, "X", pid, tid, cat=category, **times_us, args=dict(args))


def host_events(run: Run, start_ns: int) -> Iterator[Event]:
    """The events of the host, with times from ``start_ns`` on; none for a run without any."""
    try:
        kernel = read_kernel_events(run.place)
    except UsageError:
        kernel = []
    events = [*_turns(kernel, start_ns), *_interrupts(kernel, start_ns), *_loads(run, start_ns)]
    cpus = sorted({each["tid"] for each in events})
    if cpus:
        yield event("process_name", "M", CPUS, cpus[0], args={"name": "CPUs of the host"})
    for tid in cpus:
        cpu, place = divmod(tid - 1, len(THREADS))
        what = f"CPU {cpu} {THREADS[place]}".strip()
        yield event("thread_name", "M", CPUS, tid, args={"name": what})
    yield from events
    yield from _outlier(run, start_ns)


def _thread(cpu: int, what: str = "") -> int:
    """The thread of a CPU, from 1: Perfetto takes 0 for the idle task of a kernel."""
    return len(THREADS) * cpu + 1 + THREADS.index(what)


def _turns(kernel: Sequence[KernelEvent], start_ns: int) -> Iterator[Event]:
    """Each stay of a process on a CPU; the idle task is left out."""
    on: dict[int, KernelEvent] = {}
    for its in kernel:
        if its.kind == "switch":
            before = on.get(its.cpu)
            if before is not None and before.next_pid and before.time_ns >= start_ns:
                name = f"{before.next_name} ({before.next_pid})"
                span = before.time_ns - start_ns, its.time_ns - start_ns
                args = {"pid": before.next_pid, "left in state": its.state}
                yield slice_of(name, "sched", CPUS, _thread(its.cpu), *span, args)
            on[its.cpu] = its


def _interrupts(kernel: Sequence[KernelEvent], start_ns: int) -> Iterator[Event]:
    begun: dict[tuple[int, str], KernelEvent] = {}
    for its in kernel:
        if its.kind in ("irq", "softirq"):
            begun[its.cpu, its.kind] = its
        elif its.kind.endswith("_end"):
            kind = its.kind.removesuffix("_end")
            if (begin := begun.pop((its.cpu, kind), None)) is not None and begin.time_ns >= start_ns:
                span = begin.time_ns - start_ns, its.time_ns - start_ns
                yield slice_of(f"{kind} {begin.next_name}", kind, CPUS, _thread(its.cpu, kind), *span, {})


def _loads(run: Run, start_ns: int) -> Iterator[Event]:
    """The load of each CPU between two looks at resources, in percent of its time."""
    try:
        rows = [row for row in run.resources().to_pylist() if row["machine"] <= FIRST_CPU]
    except UsageError:
        return
    last: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["time_ns"]):
        before = last.get(row["machine"])
        last[row["machine"]] = row
        if before is None or before["time_ns"] < start_ns or row["time_ns"] == before["time_ns"]:
            continue
        span_s = (row["time_ns"] - before["time_ns"]) / 1e9
        for what, columns in LOADS:
            used_s = sum((row[name] or 0.0) - (before[name] or 0.0) for name in columns)
            name, tid = f"{row['name']} {what} %", _thread(FIRST_CPU - row["machine"])
            at_us, value = (before["time_ns"] - start_ns) / 1e3, round(100 * used_s / span_s, 1)
            yield event(name, "C", CPUS, tid, ts=at_us, args={"value": value})


def _outlier(run: Run, start_ns: int) -> Iterator[Event]:
    """The parts of the outlier's time, as slices of a thread of their own in the process of the run."""
    try:
        evidence = files.read_json(run.path / files.OUTLIER, Evidence)
        its = run.figures.outlier
    except UsageError:
        return
    if its is None:
        return
    told = {f"{cause.share:.0%} {cause.kind}": cause.text for cause in its.causes}
    yield event("thread_name", "M", 1, 2, args={"name": "the outlier"})
    for part in evidence.parts:
        span = part.begin_ns - start_ns, part.end_ns - start_ns
        yield slice_of(f"{part.name}: {part.machine}", "outlier", 1, 2, *span, told)
