"""Rates and pending doorbells, from successive snapshots of a run."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from sim.telemetry import Snapshot

COUNTED = ("rung", "delivered", "interrupts", "refused")
WINDOW_NS = 1_000_000_000


def pending(snapshot: Snapshot) -> int:
    """Doorbells rung, not refused and not yet delivered; at least 0.

    Machines are sampled one after the other, so a doorbell can be counted as delivered before it is counted as rung.
    """
    its = snapshot.groups.values()
    return max(0, sum(group.rung - group.refused - group.delivered for group in its))


def ran_s(snapshot: Snapshot) -> float | None:
    """Seconds since the start; None before it."""
    if snapshot.start_ns is None or snapshot.time_ns < snapshot.start_ns:
        return None
    return (snapshot.time_ns - snapshot.start_ns) / 1e9


def left_s(snapshot: Snapshot) -> float | None:
    """Seconds until the planned end; None when there is none to wait for."""
    if snapshot.stop_ns is None or snapshot.phase != "running":
        return None
    return max(0.0, (snapshot.stop_ns - snapshot.time_ns) / 1e9)


def share_done(snapshot: Snapshot) -> float:
    """The share that is done, 0 to 1: of the time while the run goes on, of the machines that are up otherwise."""
    if snapshot.phase == "running" and snapshot.start_ns and snapshot.stop_ns:
        done, total = snapshot.time_ns - snapshot.start_ns, snapshot.stop_ns - snapshot.start_ns
    else:
        done, total = snapshot.up, snapshot.machines
    return max(0.0, min(1.0, done / total if total else 0.0))


class Rates:
    """How fast the counts of groups grow: over the last second, or what there is of it."""

    def __init__(self) -> None:
        self._seen: deque[Snapshot] = deque()

    def update(self, snapshot: Snapshot) -> None:
        seen = self._seen
        if seen and snapshot.time_ns <= seen[-1].time_ns:
            return
        seen.append(snapshot)
        # The oldest one that is kept is the last that lies a whole window back.
        while len(seen) > 2 and seen[1].time_ns <= snapshot.time_ns - WINDOW_NS:
            seen.popleft()

    def together(self, snapshot: Snapshot) -> dict[str, float]:
        """Each of :data:`COUNTED` a second, of all groups that have rates together; empty where none has."""
        known = [its for name in snapshot.groups if (its := self.of(name)) is not None]
        return {name: sum(rate[name] for rate in known) for name in COUNTED if known}

    def of(self, group: str) -> dict[str, float] | None:
        """Each of :data:`COUNTED` a second; None until two snapshots know the group."""
        if len(self._seen) < 2:
            return None
        first, last = self._seen[0], self._seen[-1]
        if group not in first.groups or group not in last.groups:
            return None
        passed_s = (last.time_ns - first.time_ns) / 1e9
        before, now = first.groups[group], last.groups[group]
        return {name: (getattr(now, name) - getattr(before, name)) / passed_s for name in COUNTED}


def plain(snapshot: Snapshot, rates: Rates, lost: int) -> dict[str, Any]:
    """A snapshot with its rates as plain data, for JSON."""
    said: dict[str, Any] = msgspec.to_builtins(snapshot)
    for name, group in said["groups"].items():
        its = rates.of(name) or dict.fromkeys(COUNTED)
        group |= {f"{counted}_per_s": None if rate is None else round(rate, 1) for counted, rate in its.items()}
    return said | {"pending": pending(snapshot), "ran_s": ran_s(snapshot), "left_s": left_s(snapshot), "lost": lost}
