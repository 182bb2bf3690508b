"""The coordinator of one run: it admits the machines, starts them at one moment, watches them, ends them.

starting   machines start and connect; the servers admit them in the order of the topology; with a gate, the run then
           waits for it
running    from the moment that all are Ready and were told the same start, until the time is up; meanwhile the
           timeline acts
stopping   every machine ends its program, reports Stopped and ends; what its counters still hold is pending
done
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim.coordination.actions import Actions
from sim.coordination.coordinated_run import CoordinatedRun, RunEnd
from sim.coordination.domain import LiveDomain
from sim.coordination.incarnation import FAILED, Incarnation
from sim.coordination.machines import LiveMachines
from sim.coordination.migrations import Migrations
from sim.coordination.monitor import Observer
from sim.coordination.peer_ids import announce_new_id, send_peer_ids
from sim.coordination.timeline import Timeline
from sim.engines import messages
from sim.engines.base import Arrival, Client, Engine, HasDescriptor, RunLoop, StartGate
from topologies import Topology
from topologies.resolve.names import several

SECOND_NS = 1_000_000_000
START_LEAD_NS = 50_000_000
# A start is given up after so many checks without progress. A machine that does not stop is killed after so many
# checks in which no machine has ended, unless it waits for a CPU.
LOOK_NS = SECOND_NS // 4
START_LOOKS = 120
STOP_LOOKS, STARVED_LOOKS = 12, 240
KILL_LOOKS = 20
TOLD = frozenset(
    {"action", "machine_joined", "machine_left", "machine_died", "migrated", "migration_failed", "warning"}
)
"""The events that snapshots show."""


class Coordinator:
    """Runs the machines of one topology on an engine. ``event(kind, **fields)`` is told what happens, as it happens.

    Args:
        recording_path: where the recording with that number belongs; None for memory only.
        observe: makes what shows the run while it lasts.
        gate: holds the start.
    """

    def __init__(
        self,
        topology: Topology,
        engine: Engine,
        *,
        recording_path: Callable[[int], Path | None],
        event: Callable[..., None],
        observe: Callable[[CoordinatedRun, RunLoop], Observer],
        gate: StartGate | None = None,
    ) -> None:
        self.topology, self._gate = topology, gate
        self._engine, self._loop, self._clock = engine, engine.loop, engine.loop.clock
        self._record_event = event
        self.ending = RunEnd()
        self.phase = "starting"
        self._made_ns = self._clock.now_ns()
        self._not_ready = self._running = 0
        self._more_deaths: list[str] = []
        self._progress = (0, 0)
        self._looks = self._looks_after_kill = 0
        with contextlib.ExitStack() as stack:
            self.domains = [self._make_domain(number, stack) for number in range(len(topology.domains))]
            self.machines = LiveMachines(topology, engine, recording_path, self._take_report)
            stack.callback(self.machines.close)
            self.monitor = observe(self, self._loop)
            stack.callback(self.monitor.close)
            for domain in self.domains:
                domain.open(self.machines)
            self._stack = stack.pop_all()
        self._migrations = Migrations(self.machines, self.domains, self._clock, self._event)
        actions = Actions(self.machines, self.domains, self._loop, spawn=self._spawn, end=self._stop)
        self.timeline = Timeline(self, self._loop, self._event, actions)

    def close(self) -> None:
        """End all machines, servers and the telemetry."""
        self._stack.close()

    # The run

    def run(self) -> RunEnd:
        """Start all machines, wait for the end, collect pending doorbells. Returns however the run went."""
        present = [incarnation for incarnation in self.machines.incarnations if incarnation.machine.present]
        self._not_ready = len(present)
        for incarnation in present:
            if self.phase != "starting":
                break  # stopped before it began
            self._spawn(incarnation)
            # Machines that have connected need no answer yet, but their sockets must not fill the backlog.
            self._loop.step(self._clock.now_ns())
        self.monitor.begin()
        self._watch_start()
        if not present and self.phase == "starting":
            self._all_ready()
        while self.phase != "done":
            self._loop.step()
        self.monitor.publish()
        self._event(
            "telemetry",
            snapshots=self.monitor.published,
            heartbeats=self.monitor.heartbeats,
            heartbeats_late=self.monitor.heartbeats_late,
            spent_ms=self.monitor.spent_ns / 1e6,
        )
        return self.ending

    def stop(self, status: str, reason: str) -> None:
        """End the run early; the first reason is the one that counts."""
        if self.phase in ("stopping", "done"):
            return
        self.ending.status, self.ending.reason = status, reason
        self._stop()

    def kill_all(self, reason: str) -> None:
        """End the run at once, without waiting for the machines to stop."""
        self.stop("interrupted", reason)
        if self.ending.status == "finished":
            self.ending.status, self.ending.reason = "interrupted", reason
        for incarnation in self.machines.incarnations:
            incarnation.killed = True
            incarnation.live.kill()

    def watch(self, file: HasDescriptor, callback: Callable[[], None]) -> None:
        """Call back when ``file`` is readable, for as long as the run lasts."""
        self._loop.add(file, callback)

    def _event(self, kind: str, **fields: Any) -> None:
        self._record_event(kind, **fields)
        if kind in TOLD:
            self.monitor.note(kind, fields)

    def _make_domain(self, number: int, stack: contextlib.ExitStack) -> LiveDomain:
        domain = self.topology.domains[number]
        live = LiveDomain(
            domain,
            number,
            self._engine,
            on_join=self._joined,
            on_foreign=lambda arrival, peer: self._foreign(arrival, peer, domain.name),
            on_leave=self._left,
            on_fault=lambda reason: self.stop("failed", reason),
        )
        stack.callback(live.close)
        return live

    # Machines that join

    def _spawn(self, incarnation: Incarnation) -> None:
        self._running += 1
        self.machines.start(incarnation)

    def _watch_start(self) -> None:
        """Give up a start that makes no progress, however long it has taken until then."""
        if self.phase != "starting" or not self._not_ready:
            return
        progress = self._engine.start_progress(), -self._not_ready
        self._looks = 0 if progress != self._progress else self._looks + 1
        self._progress = progress
        if self._looks >= START_LOOKS:
            missing = [
                incarnation.name
                for incarnation in self.machines.incarnations
                if incarnation.machine.present and not incarnation.ready
            ]
            patience_s = START_LOOKS * LOOK_NS / SECOND_NS
            state = self._engine.state()
            self.stop("failed", f"no progress for {patience_s:g} s, {state}; not Ready: {several(missing)}")
            return
        self._loop.at(self._clock.now_ns() + LOOK_NS, self._watch_start)

    def _joined(self, incarnation: Incarnation, place: int) -> None:
        """Note that a machine is in a domain. In all its domains, it is told how long its greetings are."""
        if None not in incarnation.greetings:
            incarnation.live.tell(messages.Expect(tuple(count or 0 for count in incarnation.greetings)))
        if self.phase == "running" and incarnation.migration is None:
            announce_new_id(self.machines, incarnation, place)

    def _foreign(self, arrival: Arrival, peer: int, domain: str) -> None:
        self.ending.foreign_peers += 1
        self._event("foreign_peer_joined", peer=peer, pid=arrival.pid, uid=arrival.uid, domain=domain)

    def _left(self, client: Client, reason: str) -> None:
        if self.phase == "running":
            self._event("peer_left", peer=client.peer, reason=reason)

    def _all_ready(self) -> None:
        """Start the machines, or wait for the gate."""
        gate = self._gate
        if gate is None:
            self._begin()
            return

        def answered() -> None:
            self._loop.remove(gate)
            if self.phase == "starting":
                self._begin() if gate.is_open() else self.stop("failed", "the start was called off")

        self._loop.add(gate, answered)
        gate.tell_ready()

    def _begin(self) -> None:
        """Start all machines, which are Ready, at one moment of the shared clock."""
        ending, settings = self.ending, self.topology.run
        self.monitor.look_at_resources()  # before there is a start to be late for
        ending.ready_ns = self._clock.now_ns()
        ending.start_ns = ending.ready_ns + START_LEAD_NS
        ending.measure_start_ns = ending.start_ns + round(settings.warmup_s * SECOND_NS)
        ending.stop_ns = ending.measure_start_ns + round(settings.duration_s * SECOND_NS)
        self.phase = "running"
        self._event("ready", ready_s=(ending.ready_ns - self._made_ns) / SECOND_NS, start_ns=ending.start_ns)
        for incarnation in self.machines.current:
            if incarnation.ready:
                self._start_program(incarnation, joined_ns=0)
        at_ns = ending.start_ns
        for phase in self.topology.phases if self.topology.has_own_phases else ():
            end_ns = at_ns + round(phase.duration_s * SECOND_NS)
            ending.phases.append((phase.name, at_ns, end_ns, phase.measured))
            at_ns = end_ns
        self.timeline.begin(ending.start_ns, ending.stop_ns)
        self._loop.at(ending.stop_ns, self._stop)

    def _start_program(self, incarnation: Incarnation, *, joined_ns: int) -> None:
        """Tell a machine the IDs that it works with, and when to start; ``joined_ns`` as in the order."""
        send_peer_ids(self.machines, incarnation, anew=False)
        incarnation.live.tell(messages.Start(self.ending.start_ns, self.ending.stop_ns, joined_ns))

    # Reports of machines

    def _take_report(self, incarnation: Incarnation, report: messages.Report) -> None:
        match report:
            case messages.Placed():
                self.monitor.watch(incarnation)
            case messages.Ready():
                self._take_ready(incarnation)
            case messages.Stopped(statistics):
                incarnation.stopped = True
                if statistics:
                    self._event("statistics", machine=incarnation.name, values=statistics)
            case messages.Departed():
                self._event("machine_left", **incarnation.depart())
            case messages.Remained(reason):
                self._event("warning", **incarnation.remain(reason))
            case messages.Moved():
                self._migrations.moved(incarnation, report)
            case messages.Stayed():
                self._migrations.stayed(incarnation, report, stopping=self.phase == "stopping")
            case messages.Warned(text):
                self._event("warning", machine=incarnation.name, text=text)
            case messages.Printed(pattern):
                self._event("console", machine=incarnation.name, pattern=pattern)
                self.timeline.see(pattern)
            case messages.Failed(at_fault, summary, trace):
                incarnation.failure = f"its {at_fault} failed: {summary}"
                self._event("failure", machine=incarnation.name, at_fault=at_fault, summary=summary, traceback=trace)
            case messages.Ended():
                self._take_end(incarnation, report)

    def _take_ready(self, incarnation: Incarnation) -> None:
        incarnation.ready = True
        if self.phase == "running":
            self._event("machine_joined", machine=incarnation.name, peers=incarnation.peers)
            self._start_program(incarnation, joined_ns=max(self._clock.now_ns(), self.ending.start_ns))
        elif self.phase == "starting":
            self._not_ready -= 1
            if not self._not_ready:
                self._all_ready()

    def _take_end(self, incarnation: Incarnation, report: messages.Ended) -> None:
        self._running -= 1
        self._looks = 0
        if incarnation.migration is not None:
            incarnation.migrations[FAILED] += 1
        incarnation.exit, incarnation.migration = report.how, None
        self.monitor.forget(incarnation)
        how = report.how
        if incarnation.ending is not None:
            self._event("machine_left", machine=incarnation.name, how=how or "left", action=incarnation.ending)
        elif how and incarnation.garbled:
            failure = incarnation.failure
            self._event("machine_left", machine=incarnation.name, how=how, action="garble", failure=failure)
        elif how:
            self._event("machine_died", machine=incarnation.name, how=how, failure=incarnation.failure)
            if not incarnation.killed:
                died = f"{incarnation.name} died ({how})" if report.started else f"{incarnation.name} {how}"
                self._count_death(incarnation.name, died + (f": {incarnation.failure}" if incarnation.failure else ""))
        self._check_done()

    def _count_death(self, name: str, reason: str) -> None:
        """Count a machine that ended without being told to, in any phase: the run is not simply finished."""
        ending = self.ending
        if self.topology.run.on_death == "degrade" and self.phase != "starting":
            if ending.status in ("finished", "degraded"):
                ending.status = "degraded"
                ending.reason = "; ".join(filter(None, (ending.reason, reason)))
            if self.phase == "running" and not self._running:
                self._stop()
        elif self.phase in ("starting", "running"):
            self.stop("failed", reason)
        elif ending.status in ("finished", "degraded"):
            ending.status, ending.reason = "failed", reason
        else:
            self._more_deaths.append(name)

    # The end

    def _stop(self) -> None:
        """Tell all machines to end; machines that do not are killed, and their last counts stand."""
        if self.phase in ("stopping", "done"):
            return
        now_ns = self._clock.now_ns()
        if not self.ending.start_ns:
            self.ending.start_ns = self.ending.measure_start_ns = self.ending.stop_ns = now_ns
        # Machines stop by themselves when the time is up, however late the coordinator is.
        self.ending.stop_ns = min(self.ending.stop_ns, now_ns)
        self.monitor.look_at_resources()  # while they all run
        self.timeline.end()
        self.phase = "stopping"
        for incarnation in self.machines.incarnations:
            incarnation.live.tell(messages.Stop())
        self._looks = 0
        self._loop.at(now_ns + LOOK_NS, self._watch_stop)
        self._check_done()

    def _watch_stop(self) -> None:
        """Kill machines that do not end, and finally stop waiting for them."""
        if self.phase != "stopping":
            return
        self._looks += 1
        left = (
            [incarnation for incarnation in self.machines.incarnations if incarnation.is_running]
            if self._looks >= STOP_LOOKS
            else []
        )
        for incarnation in left:
            if not incarnation.killed and (self._looks >= STARVED_LOOKS or not incarnation.live.is_starved):
                self._kill_unstopped(incarnation)
        if left and all(incarnation.killed for incarnation in left):
            self._looks_after_kill += 1
        if self._looks_after_kill >= KILL_LOOKS:
            self._fail(f"{several([incarnation.name for incarnation in left])} cannot be ended")
            self._conclude()
            return
        self._loop.at(self._clock.now_ns() + LOOK_NS, self._watch_stop)

    def _kill_unstopped(self, incarnation: Incarnation) -> None:
        if not incarnation.stopped:
            why = "it is stopped by a signal" if incarnation.live.is_still else "its program never yields"
            self._event("machine_killed", machine=incarnation.name, reason=f"it did not stop when told to: {why}")
            self._fail(f"{incarnation.name} did not stop: {why}")
        incarnation.killed = True
        incarnation.live.kill()

    def _fail(self, reason: str) -> None:
        if self.ending.status == "finished":
            self.ending.status, self.ending.reason = "failed", reason

    def _check_done(self) -> None:
        if self.phase == "stopping" and not self._running:
            self._conclude()

    def _conclude(self) -> None:
        """Read the counters, when all counts are final: their doorbells were rung and not delivered."""
        for line in self._engine.end_leftovers():
            self._event("warning", machine="the run", text=line)
        for domain in self.domains:
            for peer, vector, doorbells in domain.take_pending():
                key = domain.number, peer, vector  # of several clients, where IDs are reused (ivshmem v2)
                self.ending.pending[key] = self.ending.pending.get(key, 0) + doorbells
        self._migrations.conclude(self.ending.pending)
        if self._more_deaths and self.ending.status == "failed":
            self.ending.reason += f"; {several(self._more_deaths)} ended, too"
        self.phase = "done"
