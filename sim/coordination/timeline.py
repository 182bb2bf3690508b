"""The timeline of a run: carries out each action at its time, or when its condition first holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sim.coordination.actions import ActionError, Actions
from sim.coordination.coordinated_run import CoordinatedRun
from sim.coordination.incarnation import MIGRATION_METRICS
from sim.engines.base import RunLoop
from sim.results.conditions import Moment, broken, live
from sim.results.counts import LiveRecording, Scopes, counts_so_far
from topologies import TimelineEntry
from topologies.actions import Join

SECOND_NS = 1_000_000_000
LOOK_NS = 20_000_000
LOOK_SHARE = 20


class Timeline:
    """Carries out the topology's timeline, and ends the run when an expectation with ``abort`` is broken."""

    def __init__(self, run: CoordinatedRun, loop: RunLoop, event: Callable[..., None], actions: Actions) -> None:
        self._run, self._loop, self._event, self._actions = run, loop, event, actions
        self._clock = loop.clock
        self._start_ns = self._stop_ns = 0
        self._over = True
        entries = run.topology.timeline
        self._waiting = [place for place, entry in enumerate(entries) if entry.waits]
        self._seen: set[str] = set()
        """Regular expressions of entries that a line on a console has contained."""
        self._guarded = [expectation for expectation in run.topology.expectations if expectation.abort]
        # A random generator for each entry, so that its picks do not depend on the times of the others.
        places = [place if entry.place is None else entry.place for place, entry in enumerate(entries)]
        self._random = [random.Random(f"{run.topology.seed}/timeline/{place}") for place in places]

    def begin(self, start_ns: int, stop_ns: int) -> None:
        """Start the timeline: the programs start at ``start_ns``."""
        self._start_ns, self._stop_ns, self._over = start_ns, stop_ns, False
        for place, entry in enumerate(self._run.topology.timeline):
            if not entry.waits:
                self._schedule(place, start_ns + round(entry.at_s * SECOND_NS))
        if self._waiting or self._guarded:
            self._loop.at(start_ns, self._look)

    def see(self, pattern: str) -> None:
        """A line on the console of a guest contains this regular expression of an entry."""
        self._seen.add(pattern)

    def end(self) -> None:
        """Stop the timeline; stalled machines continue, and filled counters get their values back."""
        self._over = True
        self._actions.undo()

    def _schedule(self, place: int, at_ns: int) -> None:
        """Schedule an entry's first time; each time schedules the next, so that the loop holds one for each entry."""
        self._loop.at(at_ns, partial(self._turn, place, at_ns, self._run.topology.timeline[place].repeat))

    def _turn(self, place: int, at_ns: int, left: int) -> None:
        if self._over:
            return
        entry = self._run.topology.timeline[place]
        if left > 1:
            next_ns = at_ns + round(entry.period_s * SECOND_NS)
            self._loop.at(next_ns, partial(self._turn, place, next_ns, left - 1))
        machines: Sequence[int] = entry.machines
        if entry.pick is not None:
            # Only machines on which the action is possible: an absent one cannot be killed, a present one cannot join.
            wanted = not isinstance(entry.action, Join)
            able = [machine for machine in machines if self._actions.is_there(machine) == wanted]
            machines = sorted(self._random[place].sample(able, min(entry.pick, len(able))))
            if not able:
                self._told(entry, None, skipped="there is no machine to pick")
                return
        every_ns = round(entry.every_s * SECOND_NS)
        if not machines:
            self._act(entry, None)
        for turn, machine in enumerate(machines):
            if every_ns and turn:
                self._loop.at(at_ns + turn * every_ns, partial(self._act, entry, machine))
            else:
                self._act(entry, machine)

    def _act(self, entry: TimelineEntry, machine: int | None) -> None:
        if self._over:
            return
        try:
            done = self._actions.do(entry.action, machine)
        except ActionError as reason:
            self._told(entry, machine, skipped=str(reason))
        else:
            self._told(entry, machine, **done)

    def _told(self, entry: TimelineEntry, machine: int | None, **details: Any) -> None:
        name = None if machine is None else self._run.topology.machines[machine].name
        self._event("action", do=entry.action.do, machine=name, line=entry.line, **details)

    def _look(self) -> None:
        """Start the entries whose condition holds now; end the run when an expectation is broken."""
        if self._over:
            return
        begin_ns = self._clock.cpu_ns()
        now_ns = self._clock.now_ns()
        moment = self._moment(now_ns)
        for place in list(self._waiting):
            entry = self._run.topology.timeline[place]
            due_ns = self._start_ns + round(entry.at_s * SECOND_NS)
            is_seen = not entry.console or entry.console in self._seen
            if now_ns >= due_ns and is_seen and (entry.when is None or live(entry.when, moment)):
                self._waiting.remove(place)
                self._schedule(place, now_ns)
        for expectation in self._guarded:
            if broken(expectation.that, moment):
                value = moment.value(expectation.that)
                self._event("aborted", expected=str(expectation.that), got=value)
                self._run.stop("failed", f"expected {expectation.that}, got {value:g}")
                return
        cost_ns = self._clock.cpu_ns() - begin_ns
        if self._waiting or self._guarded:
            self._loop.at(now_ns + max(LOOK_NS, LOOK_SHARE * cost_ns), self._look)

    def _moment(self, now_ns: int) -> Moment:
        live, machines = self._run.machines, self._run.topology.machines
        return Moment(
            scopes=Scopes((machine.name, machine.group) for machine in machines),
            counts=counts_so_far(
                [
                    LiveRecording(incarnation.machine.index, recording, live.index_of)
                    for incarnation in live.incarnations
                    for recording in incarnation.recordings
                ]
            ),
            up=frozenset(incarnation.machine.index for incarnation in live.current if incarnation.is_up),
            died=tuple(
                incarnation.machine.index
                for incarnation in live.incarnations
                if incarnation.exit and incarnation.is_accident
            ),
            migrations={
                metric: [
                    incarnation.machine.index
                    for incarnation in live.incarnations
                    for _ in range(incarnation.migrations[metric])
                ]
                for metric in MIGRATION_METRICS
            },
            elapsed_s=(now_ns - self._start_ns) / SECOND_NS,
        )
