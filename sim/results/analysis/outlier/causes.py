"""Ranks the causes of an outlier by how much of its time each explains. Pure.

Every cause rests on an observation: a state of a process, a count of the kernel or of the device, an action
of the timeline. Time without an observation stays unexplained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sim.results.analysis.outlier.evidence import ActionSpan, Evidence, LatencyPart, MachineEvidence
from sim.results.analysis.outlier.time_use import WAITS_FOR_EVENTS, TimeUse, time_use
from sim.results.summary import Cause

KINDS = {
    "timeline": "an action of the timeline",
    "stopped": "its process was stopped by a signal (SIGSTOP)",
    "masked": "its vector was masked",
    "dropped": "its device dropped the doorbell",
    "full_counter": "its counter was full",
    "throttled": "the CPU quota of its cgroup was used up",
    "stolen": "the hypervisor gave its CPU to others",
    "no_cpu": "it waited for a CPU on which others ran",
    "garbage_collection": "its Python collected garbage",
    "page_faults": "it waited for memory pages",
    "disk": "it waited for a disk",
    "slept": "its program slept",
    "backlog": "it handled the interrupts before this one",
    "computed": "its program computed",
}
"""The kinds of causes, with what each means."""

EXPLAINED_SHARE = 0.5
LISTED_SHARE = 0.05
BACKLOG = 4
SHOWN = 3
PAGE_BYTES = 4096
Uses = Mapping[tuple[str, str], TimeUse]
"""How a machine spent a part, by the names of the part and the machine."""


@dataclass(frozen=True)
class _Found:
    kind: str
    machine: str
    time_ns: float
    text: str


def is_explained(found: Sequence[Cause]) -> bool:
    """Whether the causes explain enough of the time."""
    return sum(cause.share for cause in found) >= EXPLAINED_SHARE


def causes(evidence: Evidence, traced: Uses | None = None) -> list[Cause]:
    """The causes of an outlier, the one that explains most first.

    Args:
        evidence: what was seen.
        traced: how machines spent their parts according to a kernel trace, which is more exact than looks.
    """
    whole = sum(part.span_ns for part in evidence.parts)
    sums: dict[tuple[str, str], _Found] = {}
    for part in evidence.parts:
        for its in _of_part(evidence, part, traced or {}):
            before = sums.get((its.kind, its.machine))
            spent = its.time_ns + (before.time_ns if before else 0)
            longest = before.text if before and before.time_ns > its.time_ns else its.text
            sums[its.kind, its.machine] = _Found(its.kind, its.machine, spent, longest)
    ranked = sorted(sums.values(), key=lambda its: -its.time_ns)
    return [
        Cause(
            kind=its.kind,
            machine=its.machine,
            time_ns=round(its.time_ns),
            share=round(min(1.0, its.time_ns / whole), 4),
            text=its.text[:1000],
        )
        for its in ranked
        if whole and its.time_ns >= LISTED_SHARE * whole
    ]


def _of_part(evidence: Evidence, part: LatencyPart, traced: Uses) -> Iterator[_Found]:
    """The causes of one part; parts do not overlap."""
    machine = part.machine
    its = evidence.machines.get(machine, MachineEvidence())
    span = part.span_ns
    if span <= 0:
        return
    refused = its.refused if part.name == "delivery" else 0
    if part.name == "handling" and (its.masked or its.dropped) and not _is_handling(its, part):
        kind, count = ("masked", its.masked) if its.masked else ("dropped", its.dropped)
        said = "found it masked: their interrupts are pending" if its.masked else "were dropped by the device"
        by = [action.text for action in evidence.actions if action.machine == machine and action.do == "mask"]
        text = f"vector {evidence.vector} of {machine}: {count:,} doorbells {said}"
        yield _Found(kind, machine, span, "; ".join([text, *by[-1:]]))
        return
    use = traced.get((part.name, machine)) or time_use(its.looks, part.begin_ns, part.end_ns)
    left = float(span)
    full = f"{refused:,} doorbells were refused: its counter was full"
    for action in evidence.actions:
        overlap = _overlap(part, action.begin_ns, action.end_ns)
        if action.machine == machine and action.do != "mask" and overlap:
            span_ns = min(left, _due_to(action, use, overlap))
            yield _Found(
                "timeline", machine, span_ns, action.text + (f"; {full}" if action.do == "fill" and refused else "")
            )
            left -= span_ns
    if refused and left:
        yield _Found("full_counter", machine, left, full)
        left = 0.0
    for found in _of_process(evidence, part, its, use):
        spent = min(left, found.time_ns)
        if spent > 0:
            yield _Found(found.kind, found.machine, spent, found.text)
            left -= spent


def _is_handling(its: MachineEvidence, part: LatencyPart) -> bool:
    """Whether the program is still in the handler of this doorbell: no later drain, and it does not wait for one."""
    waits = bool(its.looks) and its.looks[-1].blocked_in.startswith(WAITS_FOR_EVENTS)
    return not waits and bool(its.looks) and all(delivered <= part.begin_ns for delivered, _ in its.drains)


def _due_to(action: ActionSpan, use: TimeUse, overlap: float) -> float:
    """How much of the time that an action lasted it explains."""
    if action.do == "slow" and use.looks:
        return min(overlap, use.slept + use.unknown)
    return overlap


def _overlap(part: LatencyPart, begin_ns: int, end_ns: int) -> int:
    return max(0, min(part.end_ns, end_ns) - max(part.begin_ns, begin_ns))


def _of_process(evidence: Evidence, part: LatencyPart, its: MachineEvidence, use: TimeUse) -> Iterator[_Found]:
    """What the process of the machine did, the surest first."""
    machine = part.machine

    def found(kind: str, time_ns: float, text: str) -> _Found:
        return _Found(kind, machine, time_ns, f"{machine} {text}")

    yield found("stopped", use.stopped, f"was stopped by a signal for {_ms(use.stopped)}")
    collected = float(sum(_overlap(part, begin, end or part.end_ns) for begin, end in its.collections))
    yield found("garbage_collection", collected, f"collected garbage for {_ms(collected)}")
    yield from _of_waiting(evidence, part, its, use, found)
    ran = max(0.0, use.ran - collected)
    pages = max(use.faults, use.grown_bytes // PAGE_BYTES)
    faulted = min(ran, pages * evidence.fault_ns)
    grown = f" and grew by {use.grown_bytes / 2**20:.0f} MiB" if use.grown_bytes >= 1 << 20 else ""
    yield found("page_faults", faulted, f"had {use.faults:,} page faults{grown}, about {_ms(faulted)}")
    major = f" and had {use.major_faults:,} page faults with I/O" if use.major_faults else ""
    kind = "page_faults" if use.major_faults else "disk"
    yield found(kind, use.disk, f"waited for a disk for {_ms(use.disk)}{major}")
    where = ", ".join(function for function, _ in use.blocked_in.most_common(2) if not function.startswith("ep_"))
    yield found("slept", use.slept, f"slept for {_ms(use.slept)}" + (f", in {where} of the kernel" if where else ""))
    ran -= faulted
    handled = sum(part.begin_ns <= delivered < part.end_ns for delivered, _ in its.drains)
    if part.name == "delivery" and handled >= BACKLOG:
        yield found("backlog", ran, f"handled {handled:,} interrupts meanwhile, {_ms(ran)} on a CPU")
    else:
        yield found("computed", ran, f"computed for {_ms(ran)}")
    if not its.looks and part.name in ("handling", "delivery"):
        yield from _by_drains(part, its, handled, found)


def _of_waiting(
    evidence: Evidence, part: LatencyPart, its: MachineEvidence, use: TimeUse, found: Callable[..., _Found]
) -> Iterator[_Found]:
    """Why the process had no CPU."""
    times, throttled = its.throttled
    denied = min(throttled, use.waited + use.unknown + use.idle)
    said = f"was denied a CPU {times:,} times by the quota of its cgroup, for {_ms(denied)}"
    yield found("throttled", denied, said)
    taken = _stolen(evidence, part, use)
    stolen = min(taken, use.unknown + use.ran)
    cpus = " and ".join(map(str, use.cpus)) or "?"
    yield found("stolen", stolen, f"lost {_ms(stolen)}: the hypervisor gave CPU {cpus} to others")
    waited = max(0.0, use.waited - denied)
    preempted = f", preempted {use.preempted:,} time{'s' * (use.preempted > 1)}" if use.preempted else ""
    moved = f", moved between CPUs {cpus}" if len(use.cpus) > 1 else ""
    on = f"CPU {use.cpus[0]}" if len(use.cpus) == 1 else "a CPU"
    less = f", of which the hypervisor took {_ms(min(taken, waited))}" if taken > waited / 10 else ""
    said = f"waited {_ms(waited)} for {on}{less}{preempted}{moved}; {_who_ran(evidence, part, use)}"
    yield found("no_cpu", waited, said)


def _stolen(evidence: Evidence, part: LatencyPart, use: TimeUse) -> float:
    """What the hypervisor took of the CPUs of the process in that time: the most that any of them lost."""
    lost = [0]
    for cpu in use.cpus:
        looks = [look for look in evidence.cpus if look.cpu == cpu]
        before = [look for look in looks if look.time_ns <= part.begin_ns] or looks[:1]
        after = [look for look in looks if look.time_ns >= part.end_ns] or looks[-1:]
        if before and after:
            lost.append(after[0].steal_ns - before[-1].steal_ns)
    return float(max(lost))


def _who_ran(evidence: Evidence, part: LatencyPart, use: TimeUse) -> str:
    """The processes that had the CPUs of a machine: of the run, and others."""
    ran: list[tuple[float, str, str]] = []
    for name, its in evidence.machines.items():
        if name != part.machine and its.looks:
            theirs = time_use(its.looks, part.begin_ns, part.end_ns)
            if set(theirs.cpus) & set(use.cpus):
                ran.append((theirs.ran, name, ""))
    ran += [
        (float(min(other.ran_ns, part.span_ns)), f"{other.name} ({other.pid})", "" if other.is_traced else "up to ")
        for other in evidence.others
        if other.cpu in use.cpus or not use.cpus
    ]
    shown = [f"{name} {bound}{_ms(spent)}" for spent, name, bound in sorted(ran, reverse=True)[:SHOWN] if spent >= 1e5]
    return "there ran " + ", ".join(shown) if shown else "who ran there is not known"


def _by_drains(part: LatencyPart, its: MachineEvidence, handled: int, found: Callable[..., _Found]) -> Iterator[_Found]:
    """What the drains tell of a machine without a process of its own: when it was in a handler."""
    if part.name == "handling":
        yield found("computed", part.span_ns, f"handled this interrupt for {_ms(part.span_ns)}")
        return
    busy = float(sum(_overlap(part, delivered, done) for delivered, done in its.drains if done))
    yield found("backlog", busy, f"handled {max(1, handled):,} interrupts before this one for {_ms(busy)}")


def _ms(time_ns: float) -> str:
    return f"{time_ns / 1e6:.3g} ms" if time_ns >= 1e5 else f"{time_ns / 1e3:.3g} us"
