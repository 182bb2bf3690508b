"""The coordinator of one run: it admits the machines, starts them at one moment, watches them, ends them.

starting   workers are born and connect; the servers let them join in the order of the topology
running    from the moment that all are Ready and were told the same start, until the time is up; meanwhile the
           timeline lets things happen
stopping   every worker ends its program and says Stopped; what its counters still hold is pending
done
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.access import access_to
from sim.access import server_path as path_of_server
from sim.coordination.actions import Actions
from sim.coordination.domain import LiveDomain
from sim.coordination.machines import LiveMachines
from sim.coordination.migrations import Migrations
from sim.coordination.monitor import Monitor
from sim.coordination.peer_ids import introduce, make_known
from sim.coordination.timeline import Timeline
from sim.engines.process import control
from sim.engines.process.handle import WorkerHandle
from sim.host.resources import Resources
from sim.kernel.loop import Loop
from sim.wire.server import Arrival, Peer
from topologies import Topology

__all__ = ["Coordinator", "Ending"]

SECOND_NS = 1_000_000_000
START_LEAD_NS = 50_000_000
START_PATIENCE_NS = 30 * SECOND_NS
START_PATIENCE_EACH_NS = SECOND_NS // 10
STOP_PATIENCE_NS = 3 * SECOND_NS
STOP_PATIENCE_EACH_NS = SECOND_NS // 50
TOLD = frozenset(
    {"action", "machine_joined", "machine_left", "machine_died", "migrated", "migration_failed", "warning"}
)
"""The events that those are told who watch the run."""


@dataclass
class Ending:
    """How the run ended, as the coordinator saw it. ``pending`` is by (domain, peer, vector)."""

    status: str = "finished"
    reason: str = ""
    pending: dict[tuple[int, int, int], int] = field(default_factory=dict)
    start_ns: int = 0
    measure_start_ns: int = 0
    stop_ns: int = 0
    ready_ns: int = 0
    phases: list[tuple[str, int, int, bool]] = field(default_factory=list)
    """Of each its name, beginning, end, and whether it is measured."""


class Coordinator:
    """Runs one crew through one topology. ``event(kind, **fields)`` is told what happens, as it happens."""

    def __init__(
        self,
        topology: Topology,
        *,
        runtime: Path,
        server_path: Path,
        recording_path: Callable[[int], Path],
        event: Callable[..., None],
        resources: Callable[[list[Resources]], None],
        resources_every_s: float,
        path: Path,
    ) -> None:
        self._topology = topology
        self._record_event = event
        self.ending = Ending()
        self.phase = "starting"
        self._born_ns = time.monotonic_ns()
        self._loop = Loop()
        self.domains: list[LiveDomain] = []
        self._machines: LiveMachines | None = None
        self._monitor: Monitor | None = None
        try:
            for number, domain in enumerate(topology.domains):
                live = LiveDomain(
                    domain,
                    number,
                    self._loop,
                    path_of_server(server_path, number, domain.name),
                    on_join=self._joined,
                    on_stranger=lambda arrival, name=domain.name: self._stranger(arrival, name),  # type: ignore[misc]
                    on_leave=self._left,
                    on_fault=lambda reason: self.stop("failed", reason),
                )
                self.domains.append(live)
            paths = [domain.path for domain in self.domains]
            self._machines = LiveMachines(topology, runtime, recording_path, paths.__getitem__)
            self._monitor = Monitor(
                self._machines,
                self,
                self._loop,
                runtime=runtime,
                record=resources,
                resources_every_s=resources_every_s,
                path=path,
                access=access_to(topology, server_path),
            )
            for live in self.domains:
                live.open(self._machines)
        except BaseException:
            self.close()
            raise
        self._moves = Migrations(self._machines, self.domains, self._event)
        actions = Actions(self._machines, self.domains, self._loop, spawn=self.spawn)
        self.timeline = Timeline(self, self._loop, self._event, actions)

    def _event(self, kind: str, **fields: Any) -> None:
        self._record_event(kind, **fields)
        if kind in TOLD:
            self.monitor.note(kind, fields)

    @property
    def topology(self) -> Topology:
        return self._topology

    @property
    def machines(self) -> LiveMachines:
        assert self._machines is not None
        return self._machines

    @property
    def monitor(self) -> Monitor:
        assert self._monitor is not None
        return self._monitor

    @property
    def start_ns(self) -> int:
        return self.ending.start_ns

    @property
    def stop_ns(self) -> int:
        return self.ending.stop_ns

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
        if self._machines is not None:
            self._machines.close()
        for domain in reversed(self.domains):
            domain.close()
        self._loop.close()

    # The run

    def run(self) -> Ending:
        """Start everyone, wait for the end, collect what is pending. Returns however the run went."""
        present = [handle for handle in self.machines.handles if handle.machine.present]
        for handle in present:
            if self.phase != "starting":
                break  # it is over before it began
            self.spawn(handle)
            # Those who have connected meanwhile need no answer yet, but their sockets must not fill the backlog.
            self._loop.step(time.monotonic_ns())
        patience_ns = START_PATIENCE_NS + len(present) * START_PATIENCE_EACH_NS
        self._loop.at(self._born_ns + patience_ns, self._give_up_starting)
        self.monitor.begin()
        if not present and self.phase == "starting":
            self._begin()
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

    def spawn(self, handle: WorkerHandle) -> None:
        """Start the process of a life that has been made, and listen to it."""
        self.machines.start(handle)
        self._loop.add(handle.sentinel, lambda: self._collect_exit(handle))
        self._loop.add(handle.control, lambda: self._listen(handle))
        self.monitor.watch(handle)

    def watch(self, file: Any, callback: Callable[[], None]) -> None:
        """Call back when ``file`` is readable, for as long as the run lasts."""
        self._loop.add(file, callback)

    def _give_up_starting(self) -> None:
        if self.phase != "starting":
            return
        missing = [handle.name for handle in self.machines.handles if handle.machine.present and not handle.ready]
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        self.stop("failed", f"not Ready in time: {shown}")

    # Machines that come

    def _joined(self, handle: WorkerHandle, place: int) -> None:
        """A machine is in a domain. When it is in all of its own, it is told what greetings to wait for."""
        if None not in handle.greetings:
            handle.tell(control.Expect(tuple(count or 0 for count in handle.greetings)))
        if self.phase == "running" and handle.moving is None:
            make_known(self.machines, handle, place)

    def _stranger(self, arrival: Arrival, domain: str) -> None:
        self._event("foreign_peer_joined", pid=arrival.pid, uid=arrival.uid, domain=domain)

    def _left(self, peer: Peer, reason: str) -> None:
        if self.phase == "running":
            self._event("peer_left", peer=peer.peer, reason=reason)

    def _begin(self) -> None:
        """Everyone is Ready: one start for all, on the clock that all share."""
        ending, settings = self.ending, self._topology.run
        self.monitor.look_at_resources()  # before there is a start to be late for
        ending.ready_ns = time.monotonic_ns()
        ending.start_ns = ending.ready_ns + START_LEAD_NS
        ending.measure_start_ns = ending.start_ns + round(settings.warmup_s * SECOND_NS)
        ending.stop_ns = ending.measure_start_ns + round(settings.duration_s * SECOND_NS)
        self.phase = "running"
        self._event("ready", ready_s=(ending.ready_ns - self._born_ns) / SECOND_NS, start_ns=ending.start_ns)
        for handle in self.machines.current:
            if handle.ready:
                self._start_program(handle, joined_ns=0)
        at_ns = ending.start_ns
        for phase in self._topology.phases if self._topology.has_own_phases else ():
            end_ns = at_ns + round(phase.duration_s * SECOND_NS)
            ending.phases.append((phase.name, at_ns, end_ns, phase.measured))
            at_ns = end_ns
        self.timeline.begin(ending.start_ns, ending.stop_ns)
        self._loop.at(ending.stop_ns, self._stop)

    def _start_program(self, handle: WorkerHandle, *, joined_ns: int) -> None:
        """Tell a machine who is who, and when to start; ``joined_ns`` as in the order."""
        introduce(self.machines, handle, anew=False)
        handle.tell(control.Start(self.ending.start_ns, self.ending.stop_ns, joined_ns))

    # Machines that go

    def _listen(self, handle: WorkerHandle) -> None:
        """What a worker says."""
        try:
            while (report := handle.control.receive()) is not None:
                match report:
                    case control.Ready():
                        handle.ready = True
                        if self.phase == "running":
                            self._event("machine_joined", machine=handle.name, peers=handle.peers)
                            self._start_program(handle, joined_ns=max(time.monotonic_ns(), self.start_ns))
                        elif self.phase == "starting" and self._all_ready():
                            self._begin()
                    case control.Stopped(statistics):
                        handle.stopped = True
                        if statistics:
                            self._event("statistics", machine=handle.name, values=statistics)
                        self._check_stopped()
                    case control.Moving(pid):
                        self._moves.begin(handle, pid)
                    case control.Moved():
                        self._moves.moved(handle, report)
                    case control.Stayed(reason, paused_ns):
                        self._moves.stayed(handle, reason, paused_ns, stopping=self.phase == "stopping")
                    case control.Warned(text):
                        self._event("warning", machine=handle.name, text=text)
                    case control.Failed(whose, summary, trace):
                        handle.failure = f"its {whose} failed: {summary}"
                        self._event("failure", machine=handle.name, whose=whose, summary=summary, traceback=trace)
        except EOFError:
            self._loop.remove(handle.control)

    def _all_ready(self) -> bool:
        return all(handle.ready for handle in self.machines.handles if handle.machine.present)

    def _collect_exit(self, handle: WorkerHandle) -> None:
        """A worker's process has ended."""
        if not handle.has_ended:
            return
        self._loop.remove(handle.sentinel)
        if handle.succeed():
            self._loop.add(handle.sentinel, lambda: self._collect_exit(handle))
            self.monitor.watch(handle)
            return
        how = handle.collect_exit()
        self._listen(handle)
        handle.moving = None
        handle.lose_successor()
        self.monitor.forget(handle)
        if handle.ending is not None:
            self._event("machine_left", machine=handle.name, how=how or "left", action=handle.ending)
        elif how and handle.garbled:
            self._event("machine_left", machine=handle.name, how=how, action="garble", failure=handle.failure)
        elif how:
            self._died(handle, how)
        self._check_stopped()

    def _died(self, handle: WorkerHandle, how: str) -> None:
        """A worker has ended that nobody had told to."""
        reason = f"{handle.name} died ({how})" + (f": {handle.failure}" if handle.failure else "")
        self._event("machine_died", machine=handle.name, how=how, failure=handle.failure)
        if self.phase not in ("starting", "running"):
            return
        if self._topology.run.on_death == "fail" or self.phase == "starting":
            self.stop("failed", reason)
            return
        self.ending.status = "degraded"
        self.ending.reason = "; ".join(filter(None, (self.ending.reason, reason)))
        if not any(other.lives for other in self.machines.handles):
            self._stop()

    def _stop(self) -> None:
        """Tell everyone to end; those who do not are killed, and what they counted last stands."""
        if self.phase in ("stopping", "done"):
            return
        now_ns = time.monotonic_ns()
        if not self.ending.start_ns:
            self.ending.start_ns = self.ending.measure_start_ns = self.ending.stop_ns = now_ns
        # Machines stop by themselves when the time is up, however late the coordinator's own turn comes.
        self.ending.stop_ns = min(self.ending.stop_ns, now_ns)
        self.monitor.look_at_resources()  # while they are all still there
        self.timeline.end()
        self.phase = "stopping"
        for handle in self.machines.handles:
            handle.tell(control.Stop())
        patience_ns = STOP_PATIENCE_NS + len(self.machines.current) * STOP_PATIENCE_EACH_NS
        self._loop.at(now_ns + patience_ns, self._kill_unstopped)
        self._check_stopped()

    def _kill_unstopped(self) -> None:
        for handle in self.machines.handles:
            if handle.lives and not handle.stopped:
                self._event(
                    "machine_killed", machine=handle.name, reason="its program did not let go when told to stop"
                )
                if self.ending.status == "finished":
                    self.ending.status, self.ending.reason = (
                        "failed",
                        f"{handle.name} did not stop: its program never yields",
                    )
                handle.kill()

    def kill_all(self) -> None:
        """At once, without waiting for anyone's last words."""
        self.stop("interrupted", "interrupted")
        for handle in self.machines.handles:
            handle.kill()

    def _check_stopped(self) -> None:
        if self.phase != "stopping" or any(handle.lives and not handle.stopped for handle in self.machines.handles):
            return
        # Everyone's counts are final and nobody drains: what the counters hold now was rung and not delivered.
        for domain in self.domains:
            for peer in domain.peers():
                for vector, eventfd in enumerate(peer.eventfds):
                    self.ending.pending[domain.number, peer.peer, vector] = eventfd.take()
        self._moves.look_back(self.ending.pending)
        self.phase = "done"
