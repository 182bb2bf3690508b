"""The states of a process from a kernel trace: running, waiting for a CPU, asleep, stopped. Pure.

The trace also tells which other processes ran meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from sim.host.kernel_trace import KernelEvent
from sim.host.process_looks import OtherProcess, ProcessLook
from sim.results.analysis.outlier.evidence import Evidence
from sim.results.analysis.outlier.time_use import DISK, IDLE, RAN, SLEPT, STOPPED, UNKNOWN, WAITED, TimeUse, reason_of

OTHERS_MAX = 32
STATES = {"R": WAITED, "S": IDLE, "D": DISK, "T": STOPPED, "t": STOPPED, "I": IDLE, "X": UNKNOWN, "Z": UNKNOWN}
"""What a process does after it has left the CPU in that state."""


def with_trace(evidence: Evidence, events: Sequence[KernelEvent]) -> tuple[Evidence, dict[tuple[str, str], TimeUse]]:
    """The evidence with the processes that a trace saw, and how machines spent the parts of the doorbell's time."""
    traced: dict[tuple[str, str], TimeUse] = {}
    others: list[OtherProcess] = []
    for part in evidence.parts:
        its = evidence.machines.get(part.machine)
        if its is None or its.pid is None:
            continue
        within = [event for event in events if event.time_ns < part.end_ns]
        span = part.begin_ns, part.end_ns
        use = traced_use(within, its.pid, its.looks, span, in_handler=part.name == "handling")
        if use is not None:
            traced[part.name, part.machine] = use
            others += who_ran(within, its.pid, *span)
    # What ran in the parts of the time together, by process.
    ran: Counter[tuple[int, str, int]] = Counter()
    for other in others:
        ran[other.pid, other.name, other.cpu] += other.ran_ns
    known = {its.pid for its in evidence.machines.values()}
    seen = [
        OtherProcess(pid, name, cpu, spent, True) for (pid, name, cpu), spent in ran.most_common() if pid not in known
    ]
    return (msgspec.structs.replace(evidence, others=seen[:OTHERS_MAX]) if seen else evidence), traced


class StateSpan(NamedTuple):
    """A process in one state, from one event to the next; ``cpu`` is the one that it runs on or waits for."""

    begin_ns: int
    end_ns: int
    what: str
    cpu: int


def state_spans(events: Sequence[KernelEvent], pid: int, begin_ns: int, end_ns: int) -> Iterator[StateSpan]:
    """The states of a process in a span, in order; what is not known before its first event is left out."""
    since_ns, what, cpu = begin_ns, UNKNOWN, -1
    for event in events:
        if event.time_ns >= end_ns or pid not in (event.pid, event.next_pid):
            continue
        before = what
        match event.kind:
            case "switch" if event.next_pid == pid:
                now, before = RAN, WAITED if what == UNKNOWN else what
            case "switch" if event.pid == pid:
                now, before = STATES.get(event.state, UNKNOWN), RAN
            case "wakeup" if event.next_pid == pid and what != RAN:
                now, before = WAITED, IDLE if what in (UNKNOWN, WAITED) else what
            case _:
                continue
        if event.time_ns > since_ns:
            yield StateSpan(since_ns, event.time_ns, before, cpu if cpu >= 0 else event.cpu)
        since_ns, what, cpu = max(begin_ns, event.time_ns), now, event.cpu
    if what != UNKNOWN:
        yield StateSpan(since_ns, end_ns, what, cpu)


def traced_use(
    events: Sequence[KernelEvent], pid: int, looks: Sequence[ProcessLook], span: tuple[int, int], *, in_handler: bool
) -> TimeUse | None:
    """How a process spent a span; None if the trace does not cover it.

    Looks tell what a sleep was. Without one, a sleep ``in_handler`` is the program's; else the wait for doorbells.
    """
    begin_ns, end_ns = span
    found = list(state_spans(events, pid, begin_ns, end_ns))
    if not found or not events or events[0].time_ns > begin_ns:
        return None
    use = TimeUse()
    for part in found:
        what = part.what
        seen = [look for look in looks if part.begin_ns <= look.time_ns <= part.end_ns]
        if what == IDLE:
            slept = [look for look in seen if reason_of(look) == SLEPT]
            use.blocked_in.update(look.blocked_in for look in slept)
            if slept or (in_handler and not any(reason_of(look) == IDLE for look in seen)):
                what = SLEPT
        use.add(what, part.end_ns - part.begin_ns)
        if part.cpu not in use.cpus:
            use.cpus.append(part.cpu)
    use.unknown += max(0, end_ns - begin_ns - sum(part.end_ns - part.begin_ns for part in found))
    use.looks = sum(begin_ns <= look.time_ns <= end_ns for look in looks)
    use.preempted = sum(
        event.kind == "switch" and event.pid == pid and event.state == "R" and begin_ns <= event.time_ns < end_ns
        for event in events
    )
    before = [look for look in looks if look.time_ns <= begin_ns]
    after = [look for look in looks if look.time_ns >= end_ns] or looks[-1:]  # the doorbell may not be handled yet
    if before and after:
        first, last = before[-1], after[0]
        use.faults, use.major_faults = last.faults - first.faults, last.major_faults - first.major_faults
        use.grown_bytes = max(0, last.memory_bytes - first.memory_bytes)
    return use


def who_ran(events: Sequence[KernelEvent], pid: int, begin_ns: int, end_ns: int) -> list[OtherProcess]:
    """The processes that ran on the CPU that a process waited for, while it did, the longest first."""
    waits = [span for span in state_spans(events, pid, begin_ns, end_ns) if span.what == WAITED]
    ran: Counter[tuple[int, str, int]] = Counter()

    def add(turn: KernelEvent, until_ns: int) -> None:
        for wait in waits:
            overlap = min(until_ns, wait.end_ns) - max(turn.time_ns, wait.begin_ns)
            if overlap > 0 and wait.cpu == turn.cpu and turn.next_pid:
                ran[turn.next_pid, turn.next_name, turn.cpu] += overlap

    turns: dict[int, KernelEvent] = {}  # by CPU: what runs there now
    for event in events:
        if event.kind == "switch":
            if (before := turns.get(event.cpu)) is not None:
                add(before, event.time_ns)
            turns[event.cpu] = event
    for turn in turns.values():
        add(turn, end_ns)
    return [
        OtherProcess(other, name, cpu, spent, True) for (other, name, cpu), spent in ran.most_common() if other != pid
    ]
