"""How a process spent a span of time: on a CPU, waiting for one, stopped, asleep. From looks at it. Pure.

Between two looks it is known how long the process ran and how long it had waited for a CPU when it last got one. The
rest is time off the CPU, and the states at the looks say why. A span rarely begins and ends at a look: of an interval
that is only partly within it, what the state at the inner look says comes first.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.host.process_looks import ProcessLook

RAN, WAITED, STOPPED, DISK, IDLE, SLEPT, UNKNOWN = "ran", "waited", "stopped", "disk", "idle", "slept", "unknown"
OFF = (STOPPED, DISK, SLEPT, IDLE, UNKNOWN)
"""Why a process is off the CPU without waiting for it; of two looks that differ, the earlier of these counts."""
WAITS_FOR_EVENTS = ("ep_", "do_epoll", "poll_", "do_poll", "do_sys_poll", "do_select", "core_sys_select")
"""How the functions begin in which a worker waits for doorbells."""
NEAR_NS = 1_000_000


@dataclass
class TimeUse:
    """A span of time of one process, in nanoseconds.

    ``blocked_in`` counts the looks at which it slept, by the kernel's function; ``looks`` those within the span.
    """

    ran: float = 0
    waited: float = 0
    stopped: float = 0
    disk: float = 0
    slept: float = 0
    idle: float = 0
    unknown: float = 0
    looks: int = 0
    preempted: int = 0
    faults: int = 0
    major_faults: int = 0
    grown_bytes: int = 0
    cpus: list[int] = field(default_factory=list)
    blocked_in: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, span: float) -> None:
        setattr(self, what, getattr(self, what) + span)


def time_use(looks: Sequence[ProcessLook], begin_ns: int, end_ns: int) -> TimeUse:
    """How the process at which these looks were taken spent that span."""
    use = TimeUse()
    pairs = [(a, b) for a, b in itertools.pairwise(looks) if b.time_ns > begin_ns and a.time_ns < end_ns]
    if not pairs:
        use.unknown = end_ns - begin_ns
        return use
    first, last = pairs[0][0], pairs[-1][1]
    owed = last.waited_ns - first.waited_ns  # what the kernel counts when the wait is over
    for a, b in pairs:
        inner = [look for look in (a, b) if begin_ns - NEAR_NS <= look.time_ns <= end_ns + NEAR_NS]
        amounts = _amounts(a, b, inner, owed)
        owed -= int(min(owed, amounts[WAITED]))
        _share_out(use, amounts, inner, min(b.time_ns, end_ns) - max(a.time_ns, begin_ns))
    known = sum(getattr(use, what) for what in (RAN, WAITED, *OFF))
    use.unknown += max(0.0, end_ns - begin_ns - known)
    within = [look for look in looks if begin_ns <= look.time_ns <= end_ns]
    use.looks = len(within)
    use.blocked_in.update(look.blocked_in for look in within if look.blocked_in)
    use.preempted = last.preempted - first.preempted
    use.faults, use.major_faults = last.faults - first.faults, last.major_faults - first.major_faults
    use.grown_bytes = max(0, last.memory_bytes - first.memory_bytes)
    use.cpus = list(dict.fromkeys(look.cpu for look in [first, *within, last]))
    return use


def _amounts(a: ProcessLook, b: ProcessLook, inner: Sequence[ProcessLook], owed: int) -> dict[str, float]:
    """How the time between two looks was spent."""
    span = b.time_ns - a.time_ns
    ran = min(b.ran_ns - a.ran_ns, span)
    waited = min(b.waited_ns - a.waited_ns, span - ran)
    off = span - ran - waited
    states = {look.state for look in inner}
    amounts = dict.fromkeys((RAN, WAITED, *OFF), 0.0) | {RAN: ran, WAITED: waited}
    if "R" in states and not states & {"T", "D"}:
        # It wants a CPU. A wait is counted when it is over: later, or not yet if it has not run since.
        late = off if a.state == b.state == "R" and not ran else min(off, max(0, owed - waited))
        amounts[WAITED] += late
        off -= late
        if states == {"R"}:
            amounts[RAN] += off  # the kernel counts what a process runs at its ticks
            off = 0
    amounts[_why_off(inner)] += off
    return amounts


def _why_off(inner: Sequence[ProcessLook]) -> str:
    reasons = [reason_of(look) for look in inner]
    return min((reason for reason in reasons if reason in OFF), key=OFF.index, default=UNKNOWN)


def reason_of(look: ProcessLook) -> str:
    """What a process does at a look."""
    match look.state:
        case "T":
            return STOPPED
        case "D":
            return DISK
        case "S" if look.blocked_in.startswith(WAITS_FOR_EVENTS):
            return IDLE
        case "S" if look.blocked_in:
            return SLEPT
        case "R":
            return RAN
    return UNKNOWN


def _share_out(use: TimeUse, amounts: dict[str, float], inner: Sequence[ProcessLook], overlap: int) -> None:
    """Add so much of the amounts to ``use`` as lies within the span."""
    off_first = bool(inner) and all(reason_of(look) in OFF for look in inner)
    order = [*OFF, WAITED, RAN] if off_first else [WAITED, RAN, *OFF]
    left = float(overlap)
    for what in order:
        share = min(left, amounts[what])
        use.add(what, share)
        left -= share
