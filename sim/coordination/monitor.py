"""Monitors a run in progress: heartbeats, resources of processes, and snapshots for subscribers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sim.access import Access
from sim.coordination.coordinated_run import CoordinatedRun
from sim.coordination.incarnation import Incarnation
from sim.coordination.live_latency import recent_delivery_ns
from sim.engines.base import RunLoop
from sim.engines.messages import Ping
from sim.host.resource_row import COORDINATOR, Resources
from sim.host.resources import Sampler
from sim.recording import header
from sim.recording.reader import totals_so_far
from sim.telemetry import Group, Publisher, RecentEvent, Snapshot

SECOND_NS = 1_000_000_000
HEARTBEAT_NS = SECOND_NS // 2
PUBLISH_NS = SECOND_NS // 5
PUBLISH_NS_EACH = 1_000_000
"""With many machines, so much time for each passes between snapshots: an engine's clock may not show their cost."""
LOOK_SHARE = 50
LIVE_LATENCY_EVERY = 5
HAPPENED_MAX = 8
ACCESS_MAX = 16
HAPPENED_LENGTH_MAX = 120

Counts = tuple[int, int, int, int]
"""Rung, delivered, interrupts, refused."""

NOTHING: Counts = (0, 0, 0, 0)


class Observer:
    """Observes a run in progress; this one observes nothing."""

    telemetry = ""
    published = heartbeats = heartbeats_late = spent_ns = 0

    def begin(self) -> None: ...
    def watch(self, incarnation: Incarnation) -> None: ...
    def forget(self, incarnation: Incarnation) -> None: ...
    def note(self, kind: str, fields: Mapping[str, object]) -> None: ...
    def look_at_resources(self) -> None: ...
    def publish(self) -> None: ...
    def close(self) -> None: ...


class Monitor(Observer):
    """Samples the state of all machines at fixed intervals until stopped; owns the socket of the snapshots.

    ``describe(event)`` returns an event as one line of text.
    """

    def __init__(
        self,
        run: CoordinatedRun,
        loop: RunLoop,
        *,
        runtime: Path,
        record: Callable[[list[Resources]], None],
        resources_every_s: float,
        path: Path,
        access: Sequence[Access],
        describe: Callable[[Mapping[str, object]], str],
    ) -> None:
        self._path, self._describe = path, describe
        self._access = tuple(access[:ACCESS_MAX])
        self._happened: deque[RecentEvent] = deque(maxlen=HAPPENED_MAX)
        self._machines, self._run, self._loop, self._clock = run.machines, run, loop, loop.clock
        self._record = record
        self._resources_every_ns = round(resources_every_s * SECOND_NS)
        self._sampler = Sampler(path)
        self._sampler.watch(COORDINATOR, "coordinator", os.getpid())
        self._ping = 0
        self._pinged: dict[Incarnation, int] = {}
        self._final: dict[int, Counts] = {}
        """By machine, what its incarnations that have ended had counted."""
        self.heartbeats = 0
        self.heartbeats_late = 0
        self.spent_ns = 0
        """CPU time of the coordinator that all this has used so far."""
        self._snapshots = 0
        self._latency_ns: dict[str, int] = {}
        paced_ns = PUBLISH_NS_EACH * len(run.machines.topology.machines)
        self._publish_every_ns, self._beat_every_ns = max(PUBLISH_NS, paced_ns), max(HEARTBEAT_NS, paced_ns)
        self._publisher = Publisher(runtime / "telemetry.zmq")
        self.telemetry = self._publisher.endpoint
        """Where the snapshots are published."""
        self.published = 0

    def close(self) -> None:
        self._publisher.close()

    def begin(self) -> None:
        """Publish snapshots and send pings from now on."""
        self._publish()
        self._beat()

    def watch(self, incarnation: Incarnation) -> None:
        """The process of a machine is another one from now on: sample that."""
        if (pid := incarnation.live.pid) is not None:
            self._sampler.watch(incarnation.rows[0].row, incarnation.name, pid)

    def forget(self, incarnation: Incarnation) -> None:
        """A machine has ended: its counts are final."""
        self._sampler.forget(incarnation.rows[0].row)
        self._pinged.pop(incarnation, None)
        machine = incarnation.machine.index
        self._final[machine] = _sum([self._final.get(machine, NOTHING), *map(totals_so_far, incarnation.recordings)])

    def note(self, kind: str, fields: Mapping[str, object]) -> None:
        """Add an event to those that snapshots show, the latest few."""
        text = self._describe({"kind": kind, **fields})[:HAPPENED_LENGTH_MAX]
        self._happened.append(RecentEvent(self._clock.now_ns(), kind, text))

    def counts(self) -> dict[int, Counts]:
        """The doorbells that each machine has rung and received so far, in all its incarnations, by index."""
        sums = dict(self._final)
        for incarnation in self._machines.current:
            if incarnation.exit is None:
                machine = incarnation.machine.index
                sums[machine] = _sum([sums.get(machine, NOTHING), *map(totals_so_far, incarnation.recordings)])
        return sums

    def look_at_resources(self) -> None:
        """Sample all processes, now and at intervals."""
        if self._run.phase in ("stopping", "done") or not self._resources_every_ns:
            return
        begin_ns = self._clock.cpu_ns()
        rows = self._sampler.sample()
        looked_ns = self._clock.cpu_ns()
        self._record(rows)
        # The first record loads modules; that is no part of the cost of a sample.
        self.spent_ns += self._clock.cpu_ns() - looked_ns
        self._again(self.look_at_resources, self._resources_every_ns, looked_ns - begin_ns)

    def publish(self) -> None:
        machines, topology = self._machines, self._machines.topology
        groups: dict[str, list[int]] = {group.name: [group.count, 0, 0, 0, 0, 0] for group in topology.groups}
        for machine, counts in self.counts().items():
            figures = groups[topology.machines[machine].group]
            figures[1] += machines.current[machine].is_up
            for place, count in enumerate(counts, 2):
                figures[place] += count
        if self._snapshots % LIVE_LATENCY_EVERY == 0 and self._run.phase == "running":
            recordings = {
                row.row: recording
                for incarnation in machines.current
                for row, recording in zip(incarnation.rows, incarnation.recordings, strict=True)
            }
            self._latency_ns = recent_delivery_ns(recordings, machines.row_of, self._clock.now_ns())
        self._snapshots += 1
        self._publisher.publish(
            Snapshot(
                number=self._snapshots,
                time_ns=self._clock.now_ns(),
                phase=self._run.phase,
                machines=len(machines.current),
                up=sum(incarnation.is_up for incarnation in machines.current),
                start_ns=self._run.ending.start_ns or None,
                stop_ns=self._run.ending.stop_ns or None,
                heartbeats_late=self.heartbeats_late,
                groups={name: Group(*figures) for name, figures in groups.items()},
                title=topology.title,
                path=str(self._path),
                happened=tuple(self._happened),
                latency_ns=self._latency_ns,
                access=self._access,
            )
        )
        self.published = self._publisher.published

    def _beat(self) -> None:
        """Ping every running machine, and count those that have not answered the last ping."""
        if self._run.phase in ("stopping", "done"):
            return
        begin_ns = self._clock.cpu_ns()
        if self._run.phase == "running":
            self._ping += 1
            for incarnation in self._machines.current:
                if incarnation.is_up:
                    last = self._pinged.get(incarnation, 0)
                    self.heartbeats_late += incarnation.recordings[0].words[header.PING] != last
                    if incarnation.live.tell(Ping(self._ping)):
                        self._pinged[incarnation] = self._ping
                        self.heartbeats += 1
        self.spent_ns += self._clock.cpu_ns() - begin_ns
        self._loop.at(self._clock.now_ns() + self._beat_every_ns, self._beat)

    def _publish(self) -> None:
        begin_ns = self._clock.cpu_ns()
        self.publish()
        if self._run.phase != "done":
            self._again(self._publish, self._publish_every_ns, self._clock.cpu_ns() - begin_ns)

    def _again(self, callback: Callable[[], None], every_ns: int, cost_ns: int) -> None:
        """Call back in ``every_ns``, or so much later that the CPU time used stays a small part of the whole."""
        self.spent_ns += cost_ns
        self._loop.at(self._clock.now_ns() + max(every_ns, LOOK_SHARE * cost_ns), callback)


def _sum(counts: Sequence[Counts]) -> Counts:
    rung, delivered, interrupts, refused = map(sum, zip(*counts, strict=True))
    return rung, delivered, interrupts, refused
