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

from sim.coordination.actions import Actions
from sim.coordination.domain import LiveDomain
from sim.coordination.machines import Crew
from sim.coordination.migrations import Moves
from sim.coordination.monitor import Lookout
from sim.coordination.peer_ids import introduce, make_known
from sim.coordination.timeline import Timeline
from sim.engines.process import control
from sim.engines.process.handle import Hand
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
        self._crew: Crew | None = None
        self._lookout: Lookout | None = None
        try:
            for number, domain in enumerate(topology.domains):
                live = LiveDomain(
                    domain,
                    number,
                    self._loop,
                    server_path if number == 0 else server_path.with_name(f"{server_path.name}.{domain.name}"),
                    on_join=self._joined,
                    on_stranger=lambda arrival, name=domain.name: self._stranger(arrival, name),  # type: ignore[misc]
                    on_leave=self._left,
                    on_fault=lambda reason: self.stop("failed", reason),
                )
                self.domains.append(live)
            paths = [domain.path for domain in self.domains]
            self._crew = Crew(topology, runtime, recording_path, paths.__getitem__)
            self._lookout = Lookout(
                self._crew,
                self,
                self._loop,
                runtime=runtime,
                record=resources,
                resources_every_s=resources_every_s,
                path=path,
            )
            for live in self.domains:
                live.open(self._crew)
        except BaseException:
            self.close()
            raise
        self._moves = Moves(self._crew, self.domains, self._event)
        actions = Actions(self._crew, self.domains, self._loop, bear=self.bear)
        self.timeline = Timeline(self, self._loop, self._event, actions)

    def _event(self, kind: str, **fields: Any) -> None:
        self._record_event(kind, **fields)
        if kind in TOLD:
            self.lookout.note(kind, fields)

    @property
    def topology(self) -> Topology:
        return self._topology

    @property
    def crew(self) -> Crew:
        assert self._crew is not None
        return self._crew

    @property
    def lookout(self) -> Lookout:
        assert self._lookout is not None
        return self._lookout

    @property
    def start_ns(self) -> int:
        return self.ending.start_ns

    @property
    def stop_ns(self) -> int:
        return self.ending.stop_ns

    def close(self) -> None:
        if self._lookout is not None:
            self._lookout.close()
        if self._crew is not None:
            self._crew.close()
        for domain in reversed(self.domains):
            domain.close()
        self._loop.close()

    # The run

    def run(self) -> Ending:
        """Start everyone, wait for the end, collect what is pending. Returns however the run went."""
        present = [hand for hand in self.crew.hands if hand.machine.present]
        for hand in present:
            if self.phase != "starting":
                break  # it is over before it began
            self.bear(hand)
            # Those who have connected meanwhile need no answer yet, but their sockets must not fill the backlog.
            self._loop.step(time.monotonic_ns())
        patience_ns = START_PATIENCE_NS + len(present) * START_PATIENCE_EACH_NS
        self._loop.at(self._born_ns + patience_ns, self._give_up_starting)
        self.lookout.begin()
        if not present and self.phase == "starting":
            self._begin()
        while self.phase != "done":
            self._loop.step()
        self.lookout.publish()
        self._event(
            "telemetry",
            snapshots=self.lookout.published,
            heartbeats=self.lookout.heartbeats,
            heartbeats_late=self.lookout.heartbeats_late,
            spent_ms=self.lookout.spent_ns / 1e6,
        )
        return self.ending

    def stop(self, status: str, reason: str) -> None:
        """End the run early; the first reason is the one that counts."""
        if self.phase in ("stopping", "done"):
            return
        self.ending.status, self.ending.reason = status, reason
        self._stop()

    def bear(self, hand: Hand) -> None:
        """Start the process of a life that has been made, and listen to it."""
        self.crew.start(hand)
        self._loop.add(hand.sentinel, lambda: self._reap(hand))
        self._loop.add(hand.control, lambda: self._listen(hand))
        self.lookout.watch(hand)

    def watch(self, file: Any, callback: Callable[[], None]) -> None:
        """Call back when ``file`` is readable, for as long as the run lasts."""
        self._loop.add(file, callback)

    def _give_up_starting(self) -> None:
        if self.phase != "starting":
            return
        missing = [hand.name for hand in self.crew.hands if hand.machine.present and not hand.ready]
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        self.stop("failed", f"not Ready in time: {shown}")

    # Machines that come

    def _joined(self, hand: Hand, place: int) -> None:
        """A machine is in a domain. When it is in all of its own, it is told what greetings to wait for."""
        if None not in hand.greetings:
            hand.tell(control.Expect(tuple(count or 0 for count in hand.greetings)))
        if self.phase == "running" and hand.moving is None:
            make_known(self.crew, hand, place)

    def _stranger(self, arrival: Arrival, domain: str) -> None:
        self._event("foreign_peer_joined", pid=arrival.pid, uid=arrival.uid, domain=domain)

    def _left(self, peer: Peer, reason: str) -> None:
        if self.phase == "running":
            self._event("peer_left", peer=peer.peer, reason=reason)

    def _begin(self) -> None:
        """Everyone is Ready: one start for all, on the clock that all share."""
        ending, settings = self.ending, self._topology.run
        self.lookout.look_at_resources()  # before there is a start to be late for
        ending.ready_ns = time.monotonic_ns()
        ending.start_ns = ending.ready_ns + START_LEAD_NS
        ending.measure_start_ns = ending.start_ns + round(settings.warmup_s * SECOND_NS)
        ending.stop_ns = ending.measure_start_ns + round(settings.duration_s * SECOND_NS)
        self.phase = "running"
        self._event("ready", ready_s=(ending.ready_ns - self._born_ns) / SECOND_NS, start_ns=ending.start_ns)
        for hand in self.crew.current:
            if hand.ready:
                self._send_off(hand, joined_ns=0)
        at_ns = ending.start_ns
        for phase in self._topology.phases if self._topology.has_own_phases else ():
            end_ns = at_ns + round(phase.duration_s * SECOND_NS)
            ending.phases.append((phase.name, at_ns, end_ns, phase.measured))
            at_ns = end_ns
        self.timeline.begin(ending.start_ns, ending.stop_ns)
        self._loop.at(ending.stop_ns, self._stop)

    def _send_off(self, hand: Hand, *, joined_ns: int) -> None:
        """Tell a machine who is who, and when to start; ``joined_ns`` as in the order."""
        introduce(self.crew, hand, anew=False)
        hand.tell(control.Start(self.ending.start_ns, self.ending.stop_ns, joined_ns))

    # Machines that go

    def _listen(self, hand: Hand) -> None:
        """What a worker says."""
        try:
            while (report := hand.control.receive()) is not None:
                match report:
                    case control.Ready():
                        hand.ready = True
                        if self.phase == "running":
                            self._event("machine_joined", machine=hand.name, peers=hand.peers)
                            self._send_off(hand, joined_ns=max(time.monotonic_ns(), self.start_ns))
                        elif self.phase == "starting" and self._all_ready():
                            self._begin()
                    case control.Stopped(statistics):
                        hand.stopped = True
                        if statistics:
                            self._event("statistics", machine=hand.name, values=statistics)
                        self._check_stopped()
                    case control.Moving(pid):
                        self._moves.begin(hand, pid)
                    case control.Moved():
                        self._moves.moved(hand, report)
                    case control.Stayed(reason, paused_ns):
                        self._moves.stayed(hand, reason, paused_ns, stopping=self.phase == "stopping")
                    case control.Warned(text):
                        self._event("warning", machine=hand.name, text=text)
                    case control.Failed(whose, summary, trace):
                        hand.failure = f"its {whose} failed: {summary}"
                        self._event("failure", machine=hand.name, whose=whose, summary=summary, traceback=trace)
        except EOFError:
            self._loop.remove(hand.control)

    def _all_ready(self) -> bool:
        return all(hand.ready for hand in self.crew.hands if hand.machine.present)

    def _reap(self, hand: Hand) -> None:
        """A worker's process has ended."""
        if not hand.has_ended:
            return
        self._loop.remove(hand.sentinel)
        if hand.succeed():
            self._loop.add(hand.sentinel, lambda: self._reap(hand))
            self.lookout.watch(hand)
            return
        how = hand.reap()
        self._listen(hand)
        hand.moving = None
        hand.lose_successor()
        self.lookout.forget(hand)
        if hand.ending is not None:
            self._event("machine_left", machine=hand.name, how=how or "left", action=hand.ending)
        elif how and hand.garbled:
            self._event("machine_left", machine=hand.name, how=how, action="garble", failure=hand.failure)
        elif how:
            self._died(hand, how)
        self._check_stopped()

    def _died(self, hand: Hand, how: str) -> None:
        """A worker has ended that nobody had told to."""
        reason = f"{hand.name} died ({how})" + (f": {hand.failure}" if hand.failure else "")
        self._event("machine_died", machine=hand.name, how=how, failure=hand.failure)
        if self.phase not in ("starting", "running"):
            return
        if self._topology.run.on_death == "fail" or self.phase == "starting":
            self.stop("failed", reason)
            return
        self.ending.status = "degraded"
        self.ending.reason = "; ".join(filter(None, (self.ending.reason, reason)))
        if not any(other.lives for other in self.crew.hands):
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
        self.lookout.look_at_resources()  # while they are all still there
        self.timeline.end()
        self.phase = "stopping"
        for hand in self.crew.hands:
            hand.tell(control.Stop())
        patience_ns = STOP_PATIENCE_NS + len(self.crew.current) * STOP_PATIENCE_EACH_NS
        self._loop.at(now_ns + patience_ns, self._kill_unstopped)
        self._check_stopped()

    def _kill_unstopped(self) -> None:
        for hand in self.crew.hands:
            if hand.lives and not hand.stopped:
                self._event("machine_killed", machine=hand.name, reason="its program did not let go when told to stop")
                if self.ending.status == "finished":
                    self.ending.status, self.ending.reason = (
                        "failed",
                        f"{hand.name} did not stop: its program never yields",
                    )
                hand.kill()

    def kill_all(self) -> None:
        """At once, without waiting for anyone's last words."""
        self.stop("interrupted", "interrupted")
        for hand in self.crew.hands:
            hand.kill()

    def _check_stopped(self) -> None:
        if self.phase != "stopping" or any(hand.lives and not hand.stopped for hand in self.crew.hands):
            return
        # Everyone's counts are final and nobody drains: what the counters hold now was rung and not delivered.
        for domain in self.domains:
            for peer in domain.peers():
                for vector, eventfd in enumerate(peer.eventfds):
                    self.ending.pending[domain.number, peer.peer, vector] = eventfd.take()
        self._moves.look_back(self.ending.pending)
        self.phase = "done"
