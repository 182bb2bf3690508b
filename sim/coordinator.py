"""The coordinator of one run: it admits the machines, starts them at one moment, watches them, ends them.

starting   workers are born and connect; the server lets them join in the order of the topology,
           so that a machine's index is its ID
running    from the moment that all are Ready and were told the same start, until the time is up
stopping   every worker ends its program and says Stopped; what its counters still hold is pending
done
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nodes.errors import HostError
from sim import control, recording
from sim.crew import Hand
from sim.kernel.loop import Loop
from sim.recording import WORD_BYTES
from sim.resources import COORDINATOR, Resources, Sampler
from sim.telemetry import Group, Publisher, Snapshot
from sim.wire.server import Arrival, IvshmemServer, Peer
from topologies import Topology

__all__ = ["Coordinator", "Ending"]

SECOND_NS = 1_000_000_000
START_LEAD_NS = 50_000_000
START_PATIENCE_NS = 30 * SECOND_NS
START_PATIENCE_EACH_NS = SECOND_NS // 10
STOP_PATIENCE_NS = 3 * SECOND_NS
HEARTBEAT_NS = SECOND_NS // 2
PUBLISH_NS = SECOND_NS // 5
LOOK_SHARE = 20


@dataclass
class Ending:
    """How the run ended, as the coordinator saw it."""

    status: str = "finished"
    reason: str = ""
    pending: dict[tuple[int, int], int] = field(default_factory=dict)
    start_ns: int = 0
    measure_start_ns: int = 0
    stop_ns: int = 0
    ready_ns: int = 0


class Coordinator:
    """Runs one crew through one topology. ``event(kind, **fields)`` is told what happens, as it happens."""

    def __init__(
        self,
        topology: Topology,
        hands: list[Hand],
        *,
        runtime: Path,
        server_path: Path,
        memory: int,
        event: Callable[..., None],
        resources: Callable[[list[Resources]], None],
        resources_every_s: float,
    ) -> None:
        self._topology = topology
        self._hands = hands
        self._event = event
        self._record_resources = resources
        self._resources_every_ns = round(resources_every_s * SECOND_NS)
        self.ending = Ending()
        self.phase = "starting"
        self._born_ns = time.monotonic_ns()
        self._loop = Loop()
        self._arrivals: dict[int, Arrival] = {}  # pid of a worker -> its connection, until all are there
        self._strangers: list[Arrival] = []
        self._everyone_joined = False
        self._ping = 0
        self._snapshots = 0
        self.heartbeats_late = 0
        self._sampler = Sampler()
        self._server = IvshmemServer(
            self._loop,
            server_path,
            memory,
            vectors=max(machine.vectors for machine in topology.machines),
            on_arrival=self._arrive,
            on_leave=self._left,
            retain_departed=True,
        )
        self._publisher = Publisher(runtime / "telemetry.zmq")

    @property
    def telemetry(self) -> str:
        """Where the snapshots are published."""
        return self._publisher.endpoint

    def close(self) -> None:
        self._publisher.close()
        self._server.close()
        self._loop.close()

    # The run

    def run(self) -> Ending:
        """Start everyone, wait for the end, collect what is pending. Returns however the run went."""
        for hand in self._hands:
            hand.start()
            assert hand.process is not None
            self._loop.add(hand.process.sentinel, lambda hand=hand: self._reap(hand))  # type: ignore[misc]
            self._loop.add(hand.control, lambda hand=hand: self._listen(hand))  # type: ignore[misc]
            self._sampler.watch(hand.machine, hand.name, hand.pid)
            # Those who have connected meanwhile need no answer yet, but their sockets must not fill the backlog.
            self._loop.step(time.monotonic_ns())
        self._sampler.watch(COORDINATOR, "coordinator", os.getpid())
        patience_ns = START_PATIENCE_NS + len(self._hands) * START_PATIENCE_EACH_NS
        self._loop.at(self._born_ns + patience_ns, self._give_up_starting)
        self._publish()
        self._beat()
        while self.phase != "done":
            self._loop.step()
        self._publish_now()
        self._event(
            "telemetry",
            snapshots=self._publisher.published,
            heartbeats=self._ping * len(self._hands),
            heartbeats_late=self.heartbeats_late,
        )
        return self.ending

    def stop(self, status: str, reason: str) -> None:
        """End the run early; the first reason is the one that counts."""
        if self.phase in ("stopping", "done"):
            return
        self.ending.status, self.ending.reason = status, reason
        self._stop()

    def watch(self, file: Any, callback: Callable[[], None]) -> None:
        """Call back when ``file`` is readable, for as long as the run lasts."""
        self._loop.add(file, callback)

    def _give_up_starting(self) -> None:
        if self.phase != "starting":
            return
        missing = [hand.name for hand in self._hands if not hand.ready]
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        self.stop("failed", f"not Ready in time: {shown}")

    # Machines that come

    def _arrive(self, arrival: Arrival) -> None:
        """Workers join together, in the order of the topology; whoever else connects joins after them."""
        hand = next((hand for hand in self._hands if hand.lives and hand.pid == arrival.pid), None)
        if hand is None or self.phase != "starting":
            self._strangers.append(arrival)
        else:
            self._arrivals[arrival.pid] = arrival
        if len(self._arrivals) == len(self._hands):
            for hand in self._hands:
                self._join(self._arrivals[hand.pid], hand.plan.vectors)
            self._arrivals.clear()
            self._everyone_joined = True
        if self._everyone_joined:
            for stranger in self._strangers:
                self._event("foreign_peer_joined", pid=stranger.pid, uid=stranger.uid)
                self._join(stranger, max(hand.plan.vectors for hand in self._hands))
            self._strangers.clear()

    def _join(self, arrival: Arrival, vectors: int) -> None:
        try:
            self._server.join(arrival, vectors)
        except HostError as error:
            self.stop("failed", str(error))

    def _left(self, peer: Peer, reason: str) -> None:
        if self.phase == "running":
            self._event("peer_left", peer=peer.peer, reason=reason)

    def _begin(self) -> None:
        """Everyone is Ready: one start for all, on the clock that all share."""
        ending, settings = self.ending, self._topology.run
        ending.ready_ns = time.monotonic_ns()
        ending.start_ns = ending.ready_ns + START_LEAD_NS
        ending.measure_start_ns = ending.start_ns + round(settings.warmup_s * SECOND_NS)
        ending.stop_ns = ending.measure_start_ns + round(settings.duration_s * SECOND_NS)
        self.phase = "running"
        self._event("ready", ready_s=(ending.ready_ns - self._born_ns) / SECOND_NS)
        self._look_at_resources()
        for hand in self._hands:
            hand.control.send(control.Start(ending.start_ns, ending.stop_ns))
        self._loop.at(ending.stop_ns, self._stop)

    # Machines that go

    def _listen(self, hand: Hand) -> None:
        """What a worker says."""
        try:
            while (report := hand.control.receive()) is not None:
                match report:
                    case control.Ready():
                        hand.ready = True
                        if self.phase == "starting" and all(hand.ready for hand in self._hands):
                            self._begin()
                    case control.Stopped():
                        hand.stopped = True
                        self._check_stopped()
                    case control.Warned(text):
                        self._event("warning", machine=hand.name, text=text)
                    case control.Failed(whose, summary, trace):
                        hand.failure = f"its {whose} failed: {summary}"
                        self._event("failure", machine=hand.name, whose=whose, summary=summary, traceback=trace)
        except EOFError:
            self._loop.remove(hand.control)

    def _reap(self, hand: Hand) -> None:
        """A worker's process has ended."""
        how = hand.reap()
        if how is None:
            return
        assert hand.process is not None
        self._loop.remove(hand.process.sentinel)
        self._listen(hand)
        self._sampler.forget(hand.machine)
        if how:
            reason = f"{hand.name} died ({how})" + (f": {hand.failure}" if hand.failure else "")
            self._event("machine_died", machine=hand.name, how=how, failure=hand.failure)
            if self.phase in ("starting", "running"):
                if self._topology.run.on_death == "fail" or self.phase == "starting":
                    self.stop("failed", reason)
                else:
                    self.ending.status = "degraded"
                    self.ending.reason = "; ".join(filter(None, (self.ending.reason, reason)))
                    if not any(other.lives for other in self._hands):
                        self._stop()
        self._check_stopped()

    def _stop(self) -> None:
        """Tell everyone to end; those who do not are killed, and what they counted last stands."""
        if self.phase in ("stopping", "done"):
            return
        now_ns = time.monotonic_ns()
        if not self.ending.start_ns:
            self.ending.start_ns = self.ending.measure_start_ns = self.ending.stop_ns = now_ns
        # Machines stop by themselves when the time is up, however late the coordinator's own turn comes.
        self.ending.stop_ns = min(self.ending.stop_ns, now_ns)
        self._look_at_resources()  # while they are all still there
        self.phase = "stopping"
        for hand in self._hands:
            hand.control.send(control.Stop())
        self._loop.at(now_ns + STOP_PATIENCE_NS, self._kill_unstopped)
        self._check_stopped()

    def _kill_unstopped(self) -> None:
        for hand in self._hands:
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
        for hand in self._hands:
            hand.kill()

    def _check_stopped(self) -> None:
        if self.phase != "stopping" or any(hand.lives and not hand.stopped for hand in self._hands):
            return
        # Everyone's counts are final and nobody drains: what the counters hold now was rung and not delivered.
        for peer in (*self._server.peers.values(), *self._server.departed):
            for vector, eventfd in enumerate(peer.eventfds):
                self.ending.pending[peer.peer, vector] = eventfd.take()
        self.phase = "done"

    # What is seen meanwhile

    def _beat(self) -> None:
        """Ask every running machine for a sign of life; count those who still owe the last one."""
        if self.phase in ("stopping", "done"):
            return
        if self.phase == "running":
            for hand in self._hands:
                if hand.lives:
                    if self._ping and hand.book.words[recording.PING] != self._ping:
                        self.heartbeats_late += 1
                    hand.control.send(control.Ping(self._ping + 1))
            self._ping += 1
        self._loop.at(time.monotonic_ns() + HEARTBEAT_NS, self._beat)

    def _look_at_resources(self) -> None:
        if self.phase in ("stopping", "done") or not self._resources_every_ns:
            return
        begin_ns = time.thread_time_ns()
        self._record_resources(self._sampler.sample({hand.machine: _instrument_bytes(hand) for hand in self._hands}))
        self._again(self._look_at_resources, self._resources_every_ns, begin_ns)

    def _publish(self) -> None:
        begin_ns = time.thread_time_ns()
        self._publish_now()
        if self.phase != "done":
            self._again(self._publish, PUBLISH_NS, begin_ns)

    def _again(self, callback: Callable[[], None], every_ns: int, begin_ns: int) -> None:
        """Call back in ``every_ns``, or as much later as keeps what it cost on a CPU a small part of the whole."""
        cost_ns = time.thread_time_ns() - begin_ns
        self._loop.at(time.monotonic_ns() + max(every_ns, LOOK_SHARE * cost_ns), callback)

    def _publish_now(self) -> None:
        groups: dict[str, list[int]] = {group.name: [0] * 6 for group in self._topology.groups}
        for hand, machine in zip(self._hands, self._topology.machines, strict=True):
            figures = (1, int(hand.ready and hand.lives), *_counts(hand))
            groups[machine.group] = [a + b for a, b in zip(groups[machine.group], figures, strict=True)]
        self._snapshots += 1
        self._publisher.publish(
            Snapshot(
                number=self._snapshots,
                time_ns=time.monotonic_ns(),
                phase=self.phase,
                machines=len(self._hands),
                up=sum(hand.ready and hand.lives for hand in self._hands),
                start_ns=self.ending.start_ns or None,
                stop_ns=self.ending.stop_ns or None,
                heartbeats_late=self.heartbeats_late,
                groups={name: Group(*figures) for name, figures in groups.items()},
            )
        )


def _counts(hand: Hand) -> tuple[int, int, int, int]:
    """What a machine has rung, been delivered, been interrupted, been refused, as its recording says now."""
    words, layout = np.frombuffer(hand.book.words, dtype=np.uint64), hand.book.layout
    edges = words[layout.edges_at : layout.edges_at + 3 * int(words[recording.EDGES_USED])]
    vectors = words[layout.vectors_at : layout.edges_at]
    nowhere = int(words[recording.RUNG_NOWHERE])
    return (
        int(edges[1::3].sum()) + nowhere,
        int(vectors[0::2].sum()),
        int(vectors[1::2].sum()),
        int(edges[2::3].sum()) + nowhere,
    )


def _instrument_bytes(hand: Hand) -> int:
    """The pages of its recording that a machine has touched, in bytes; an estimate from how far it is filled."""
    words, layout = hand.book.words, hand.book.layout
    samples = 3 * (words[recording.RINGS_USED] + words[recording.DRAINS_USED])
    return int(layout.rings_at + samples) * WORD_BYTES
