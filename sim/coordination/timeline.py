"""The timeline of a run: what it lets happen, when its time has come or its condition holds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from sim.coordination.actions import Actions, Impossible
from sim.coordination.domain import LiveDomain
from sim.coordination.machines import LiveMachines
from sim.kernel.loop import Loop
from sim.results.expectations import Moment, broken, live
from sim.results.measures import Book, Whose, counts_so_far
from topologies import Action, Topology

__all__ = ["Stage", "Timeline"]

SECOND_NS = 1_000_000_000
LOOK_NS = 20_000_000
LOOK_SHARE = 20


class Stage(Protocol):
    """What the timeline acts on: the coordinator."""

    @property
    def topology(self) -> Topology: ...

    @property
    def machines(self) -> LiveMachines: ...

    @property
    def domains(self) -> Sequence[LiveDomain]: ...

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
            # Among those it can happen to: who is gone cannot be killed again, who is there cannot join.
            wanted = action.do != "join"
            able = [machine for machine in machines if self._actions.is_there(machine) == wanted]
            machines = sorted(self._chance[place].sample(able, min(action.pick, len(able))))
            if not able:
                self._event("action", do=action.do, machine=None, line=action.line, skipped="there is nobody to pick")
                return
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
        """Whether anything holds that something waits for, or is broken that was expected."""
        if self._over:
            return
        begin_ns = time.thread_time_ns()
        now_ns = time.monotonic_ns()
        moment = self._moment(now_ns)
        for action in list(self._waiting):
            assert action.when is not None
            due = now_ns >= self._start_ns + round(action.at_s * SECOND_NS)
            if due and live(action.when, moment):
                self._waiting.remove(action)
                self._schedule(self._entries.index(action), action, now_ns)
        for expectation in self._guarded:
            if broken(expectation.that, moment):
                value = moment.value(expectation.that)
                self._event("aborted", expected=str(expectation.that), got=value)
                self._stage.stop("failed", f"expected {expectation.that}, got {value:g}")
                return
        cost_ns = time.thread_time_ns() - begin_ns
        if self._waiting or self._guarded:
            self._loop.at(now_ns + max(LOOK_NS, LOOK_SHARE * cost_ns), self._look)

    def _moment(self, now_ns: int) -> Moment:
        live, machines = self._stage.machines, self._stage.topology.machines
        machine_of: dict[int, int] = {}
        for handle in live.handles:
            for _, domain, peer in handle.identities:
                machine_of[domain << 16 | peer] = handle.machine.index
        return Moment(
            whose=Whose((machine.name, machine.group) for machine in machines),
            counts=counts_so_far(
                [Book(handle.machine.index, book, machine_of) for handle in live.handles for book in handle.books]
            ),
            up=frozenset(handle.machine.index for handle in live.current if handle.ready and handle.lives),
            died=tuple(handle.machine.index for handle in live.handles if handle.exit and handle.is_accident),
            elapsed_s=(now_ns - self._start_ns) / SECOND_NS,
        )
