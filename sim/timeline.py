"""The timeline of a run: what it lets happen, when its time has come or its condition holds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from sim.actions import Actions, Impossible
from sim.crew import Crew
from sim.kernel.loop import Loop
from sim.live_domain import LiveDomain
from sim.lookout import Counts, Lookout
from topologies import Action, Condition, Topology

__all__ = ["Stage", "Timeline", "live_figure"]

SECOND_NS = 1_000_000_000
LOOK_NS = 20_000_000
LOOK_SHARE = 20


class Stage(Protocol):
    """What the timeline acts on: the coordinator."""

    @property
    def topology(self) -> Topology: ...

    @property
    def crew(self) -> Crew: ...

    @property
    def domains(self) -> Sequence[LiveDomain]: ...

    @property
    def lookout(self) -> Lookout: ...

    def stop(self, status: str, reason: str) -> None: ...


class Timeline:
    """Carries out the topology's timeline, and ends the run when an expectation with ``abort`` is broken."""

    def __init__(self, stage: Stage, loop: Loop, event: Callable[..., None], actions: Actions) -> None:
        self._stage, self._loop, self._event, self._actions = stage, loop, event, actions
        self._start_ns = self._stop_ns = 0
        self._over = True
        self._waiting = [action for action in stage.topology.timeline if action.when is not None]
        self._guarded = [expectation for expectation in stage.topology.expectations if expectation.abort]
        # One source of chance for each entry: what one of them picks does not hang on when others came.
        self._chance = [random.Random(f"{stage.topology.seed}/timeline/{at}") for at in range(len(self._entries))]

    @property
    def _entries(self) -> tuple[Action, ...]:
        return self._stage.topology.timeline

    def begin(self, start_ns: int, stop_ns: int) -> None:
        """The programs start at ``start_ns``: from then on the timeline counts."""
        self._start_ns, self._stop_ns, self._over = start_ns, stop_ns, False
        for place, action in enumerate(self._entries):
            if action.when is None:
                self._schedule(place, action, start_ns + round(action.at_s * SECOND_NS))
        if self._waiting or self._guarded:
            self._loop.at(start_ns, self._look)

    def end(self) -> None:
        """Nothing happens any more; whoever stands still is set free, and counters hold what they should."""
        self._over = True
        self._actions.undo()

    def _schedule(self, place: int, action: Action, at_ns: int) -> None:
        """Its first time, and after that the next: one moment for each, not all of them at once."""
        self._loop.at(at_ns, partial(self._turn, place, action, at_ns, action.repeat))

    def _turn(self, place: int, action: Action, at_ns: int, left: int) -> None:
        if self._over:
            return
        if left > 1:
            next_ns = at_ns + round(action.period_s * SECOND_NS)
            self._loop.at(next_ns, partial(self._turn, place, action, next_ns, left - 1))
        machines: Sequence[int] = action.machines
        if action.pick is not None:
            machines = sorted(self._chance[place].sample(machines, min(action.pick, len(machines))))
        every_ns = round(action.every_s * SECOND_NS)
        if not machines:
            self._act(action, None)
        for turn, machine in enumerate(machines):
            if every_ns and turn:
                self._loop.at(at_ns + turn * every_ns, partial(self._act, action, machine))
            else:
                self._act(action, machine)

    def _act(self, action: Action, machine: int | None) -> None:
        if self._over:
            return
        name = None if machine is None else self._stage.topology.machines[machine].name
        try:
            done = self._actions.do(action, machine)
        except Impossible as reason:
            self._event("action", do=action.do, machine=name, line=action.line, skipped=str(reason))
        else:
            self._event("action", do=action.do, machine=name, line=action.line, **done)

    def _look(self) -> None:
        """Whether anything holds that something waits for, or does no longer hold that was expected."""
        if self._over:
            return
        begin_ns = time.thread_time_ns()
        counts = self._stage.lookout.counts()
        now_ns = time.monotonic_ns()
        for action in list(self._waiting):
            assert action.when is not None
            due = now_ns >= self._start_ns + round(action.at_s * SECOND_NS)
            if due and action.when.holds(self._figure(action.when, counts, now_ns)):
                self._waiting.remove(action)
                self._schedule(self._entries.index(action), action, now_ns)
        for expectation in self._guarded:
            value = self._figure(expectation.that, counts, now_ns)
            if not expectation.that.holds(value):
                self._event("aborted", expected=str(expectation.that), got=value)
                self._stage.stop("failed", f"expected {expectation.that}, got {value:g}")
                return
        cost_ns = time.thread_time_ns() - begin_ns
        if self._waiting or self._guarded:
            self._loop.at(now_ns + max(LOOK_NS, LOOK_SHARE * cost_ns), self._look)

    def _figure(self, condition: Condition, counts: Mapping[int, Counts], now_ns: int) -> float:
        topology, crew = self._stage.topology, self._stage.crew
        chosen = [each.index for each in topology.machines if condition.of in ("", each.group, each.name)]
        return live_figure(
            condition.figure,
            [counts.get(machine, (0, 0, 0, 0)) for machine in chosen],
            up=sum(crew.current[machine].ready and crew.current[machine].lives for machine in chosen),
            died=sum(bool(hand.exit) and hand.ending is None for hand in crew.hands if hand.machine.index in chosen),
            elapsed_s=(now_ns - self._start_ns) / SECOND_NS,
        )


def live_figure(figure: str, counts: Sequence[Counts], *, up: int, died: int, elapsed_s: float) -> float:
    """A figure of some machines while they run: `topologies.scenario.LIVE_FIGURES`.

    ``rung`` and ``refused`` are what these machines rang; ``delivered`` and ``interrupts`` what they got.
    """
    rung, delivered, interrupts, refused = (sum(column) for column in zip(*counts, strict=True)) if counts else (0,) * 4
    figures: dict[str, float] = {
        "rung": rung,
        "delivered": delivered,
        "interrupts": interrupts,
        "refused": refused,
        "pending": rung - refused - delivered,
        "coalescing": delivered / interrupts if interrupts else 1.0,
        "up": up,
        "died": died,
        "elapsed_s": elapsed_s,
    }
    return figures[figure]
