"""The outcome of one seed, and the invariant that did not hold."""

from __future__ import annotations

from typing import Literal

import msgspec

from sim.engines.virtual.chaos import Decision


class Broken(msgspec.Struct, frozen=True):
    """An invariant that does not hold.

    Attributes:
        invariant: its name.
        kind: "safety": something bad has happened; "liveness": something good has not happened in time.
        reason: what was found, in words.
        at_ns: when, in nanoseconds of virtual time since the start of the programs; below 0 before that.
        event: after how many events of machines.
    """

    invariant: str
    kind: Literal["safety", "liveness"]
    reason: str
    at_ns: int
    event: int

    def __str__(self) -> str:
        return f"{self.invariant} ({self.kind}) at {self.at_ns / 1e3:.1f} us, event {self.event}: {self.reason}"


class Outcome(msgspec.Struct, frozen=True):
    """What came of one seed.

    Attributes:
        seed: the seed.
        events: how many events machines had.
        doorbells: how many were rung.
        decisions: the schedule: what chaos did, in order.
        broken: the first invariant that did not hold; None when all held.
    """

    seed: int
    events: int
    doorbells: int
    decisions: tuple[Decision, ...]
    broken: Broken | None = None
