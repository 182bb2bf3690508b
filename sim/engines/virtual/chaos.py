"""The faults of a run under virtual time: each decision is drawn from the seed, recorded, and can be given instead."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import msgspec

from topologies import Chaos, TimelineEntry, Topology
from topologies.actions import Fill, Join, Kill, Resume, Stall

MICROSECOND_NS, SECOND_NS = 1_000, 1_000_000_000
FAULTS_MAX = 10_000
FAULTS = {"kill": (Kill, Join), "stall": (Stall, Resume), "fill": (Fill, Resume)}
"""Of each fault, the action that begins it and the one that ends it."""


class Decision(msgspec.Struct, frozen=True):
    """One thing that chaos did.

    Attributes:
        kind: a key of `FAULTS`, "wake", "message", "cut", "reorder" or "preempt".
        machine: the name of the machine.
        number: which occasion of this kind it was for this machine, from 0. It does not depend on other machines.
        value: a delay in nanoseconds; for a cut the bytes that are read; for a reorder a number that says which counter
            is first; for a fault, when it begins, in nanoseconds since the start of the programs.
        lasts_ns: how long a fault lasts.
    """

    kind: str
    machine: str
    number: int
    value: int
    lasts_ns: int = 0

    def __str__(self) -> str:
        match self.kind:
            case "cut":
                what = f"the read ends after {self.value} bytes"
            case "reorder":
                what = f"the counters are taken in another order ({self.value})"
            case "wake" | "message":
                what = f"the {self.kind} is delayed by {self.value / 1e3:g} us"
            case "preempt":
                what = f"the program is preempted for {self.value / 1e3:g} us"
            case _:
                what = f"{self.kind} at {self.value / 1e3:g} us, for {self.lasts_ns / 1e3:g} us"
        return f"{self.machine}: {what} ({self.kind} {self.number})"


class Decisions:
    """Draws decisions. ``taken`` are those that changed something, in order.

    Args:
        chaos: the rates.
        seed: what they are drawn from.
        schedule: these decisions are taken and no others; None: they are drawn.
    """

    def __init__(self, chaos: Chaos, seed: str, schedule: Iterable[Decision] | None = None) -> None:
        self._chaos = chaos
        self._seed, self._random = seed, random.Random(seed)
        self._schedule = (
            None
            if schedule is None
            else {(decision.kind, decision.machine, decision.number): decision for decision in schedule}
        )
        self._delay_log = math.log(chaos.delay_max_us)
        self._outage_log = math.log(chaos.outage_max_us)
        self.taken: list[Decision] = []
        self.on_taken: Callable[[Decision], object] = self.taken.append

    def delays(self, kind: str, machine: str) -> Callable[[], int] | None:
        """A function that returns the delay of the next occasion, in nanoseconds; None when it is always 0."""
        share = {"wake": "wake_delays", "message": "message_delays", "preempt": "preemptions"}[kind]
        return self._make(kind, machine, getattr(self._chaos, share), self._delay)

    def cuts(self, machine: str) -> Callable[[], int] | None:
        """A function that returns after how many bytes the next read ends; 0: it does not."""
        return self._make("cut", machine, self._chaos.cuts, lambda: 1 + self._random.randrange(32))

    def reorders(self, machine: str) -> Callable[[], int] | None:
        """A function that returns by how many places the ready counters are rotated."""
        return self._make("reorder", machine, self._chaos.reorders, lambda: 1 + self._random.randrange(1 << 10))

    def faults(self, machines: list[str], duration_ns: int) -> list[Decision]:
        """The faults of the whole run."""
        if self._schedule is not None:
            found = [decision for decision in self._schedule.values() if decision.kind in FAULTS]
        else:
            found, drawn = [], random.Random(f"{self._seed}/faults")
            for kind in FAULTS:
                rate_hz = getattr(self._chaos, f"{kind}s_per_s")
                at_ns, numbers = 0.0, dict.fromkeys(machines, 0)
                while rate_hz and len(found) < FAULTS_MAX:
                    at_ns += drawn.expovariate(rate_hz / SECOND_NS)
                    if at_ns >= duration_ns:
                        break
                    machine = drawn.choice(machines)
                    lasts_ns = _log_uniform(drawn, self._outage_log)
                    found.append(Decision(kind, machine, numbers[machine], round(at_ns), lasts_ns))
                    numbers[machine] += 1
        for decision in found:
            self.on_taken(decision)
        return found

    def _delay(self) -> int:
        return _log_uniform(self._random, self._delay_log)

    def _make(self, kind: str, machine: str, share: float, value: Callable[[], int]) -> Callable[[], int] | None:
        schedule = self._schedule
        number = -1
        if schedule is not None:
            if not any(decision[:2] == (kind, machine) for decision in schedule):
                return None

            def given() -> int:
                nonlocal number
                number += 1
                decision = schedule.get((kind, machine, number))
                if decision is None:
                    return 0
                self.on_taken(decision)
                return decision.value

            return given
        if not share:
            return None
        drawn = self._random.random

        def draw() -> int:
            nonlocal number
            number += 1
            if drawn() >= share:
                return 0
            decision = Decision(kind, machine, number, value())
            self.on_taken(decision)
            return decision.value

        return draw


def _log_uniform(drawn: random.Random, log_us: float) -> int:
    """A time from 1 us to the longest: as likely from 1 to 2 us as from half of the longest to the longest."""
    return round(math.exp(drawn.random() * log_us) * MICROSECOND_NS)


def draw_decisions(topology: Topology, schedule: Iterable[Decision] | None = None) -> Decisions:
    """The decisions of a topology, drawn from its seed; or those of a schedule."""
    return Decisions(topology.chaos or Chaos(), f"{topology.seed}/chaos", schedule)


def with_faults(topology: Topology, decisions: Decisions) -> Topology:
    """The topology with the faults that were drawn in its timeline."""
    run = topology.run
    duration_ns = round((run.warmup_s + run.duration_s) * SECOND_NS)
    indices = {machine.name: machine.index for machine in topology.machines}
    present = [machine.name for machine in topology.machines if machine.present]
    entries = list(topology.timeline)
    for fault in decisions.faults(present, duration_ns):
        for action, at_ns in zip(FAULTS[fault.kind], (fault.value, fault.value + fault.lasts_ns), strict=True):
            entries.append(TimelineEntry(action=action(), at_s=at_ns / SECOND_NS, machines=(indices[fault.machine],)))
    return msgspec.structs.replace(topology, timeline=tuple(entries))
