"""What is seen of a run while it lasts: signs of life, what processes cost, and the snapshots of it all."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sim.access import Access
from sim.coordination.live_latency import recent_delivery_ns
from sim.coordination.machines import LiveMachines
from sim.engines.process import control
from sim.engines.process.handle import WorkerHandle
from sim.host.resources import COORDINATOR, Resources, Sampler
from sim.kernel.loop import Loop
from sim.recording import header
from sim.recording.reader import totals_so_far
from sim.telemetry import Group, Happened, Publisher, Snapshot

__all__ = ["Counts", "Monitor", "Observed", "in_words"]

SECOND_NS = 1_000_000_000
HEARTBEAT_NS = SECOND_NS // 2
PUBLISH_NS = SECOND_NS // 5
LOOK_SHARE = 50
GLIMPSE_EVERY = 5
HAPPENED_MAX = 8
ACCESS_MAX = 16
HAPPENED_LENGTH_MAX = 120

Counts = tuple[int, int, int, int]
"""Rung, delivered, interrupts, refused."""


class Observed(Protocol):
    """What there is to know of the run itself."""

    @property
    def phase(self) -> str: ...

    @property
    def start_ns(self) -> int: ...

    @property
    def stop_ns(self) -> int: ...


def in_words(fields: Mapping[str, object]) -> str:
    """The fields of an event in a line, without those that say nothing. No vectors in particular are all of them."""
    words = []
    for name, value in fields.items():
        match value:
            case None | "" | False:
                continue
            case True:
                words.append(name)
            case float():
                words.append(f"{name} {value:g}")
            case list() | tuple():
                words.append(f"{name} {' '.join(map(str, value)) or 'all'}")
            case _:
                words.append(f"{name} {value}")
    return ", ".join(words)


class Monitor:
    """Looks at a crew for as long as it is told to; owns the socket that snapshots are published on."""

    def __init__(
        self,
        machines: LiveMachines,
        run: Observed,
        loop: Loop,
        *,
        runtime: Path,
        record: Callable[[list[Resources]], None],
        resources_every_s: float,
        path: Path,
        access: Sequence[Access],
    ) -> None:
        self._path = path
        self._access = tuple(access[:ACCESS_MAX])
        self._happened: deque[Happened] = deque(maxlen=HAPPENED_MAX)
        self._machines, self._run, self._loop = machines, run, loop
        self._record = record
        self._resources_every_ns = round(resources_every_s * SECOND_NS)
        self._sampler = Sampler(path)
        self._sampler.watch(COORDINATOR, "coordinator", os.getpid())
        self._ping = 0
        self._pinged: dict[WorkerHandle, int] = {}
        self.heartbeats = 0
        self.heartbeats_late = 0
        self.spent_ns = 0
        """What all this has cost on a CPU so far, in the coordinator."""
        self._snapshots = 0
        self._latency_ns: dict[str, int] = {}
        self._publisher = Publisher(runtime / "telemetry.zmq")

    @property
    def telemetry(self) -> str:
        """Where the snapshots are published."""
        return self._publisher.endpoint

    @property
    def published(self) -> int:
        return self._publisher.published

    def close(self) -> None:
        self._publisher.close()

    def begin(self) -> None:
        """Publish from now on, and ask everybody for signs of life."""
        self._publish()
        self._beat()

    def watch(self, handle: WorkerHandle) -> None:
        """A process has been born: it is looked at, too."""
        self._sampler.watch(handle.rows[0].row, handle.name, handle.pid)

    def forget(self, handle: WorkerHandle) -> None:
        self._sampler.forget(handle.rows[0].row)
        self._pinged.pop(handle, None)

    def note(self, kind: str, fields: Mapping[str, object]) -> None:
        """Something has happened: whoever watches the run sees the latest few."""
        self._happened.append(Happened(time.monotonic_ns(), kind, in_words(fields)[:HAPPENED_LENGTH_MAX]))

    def counts(self) -> dict[int, Counts]:
        """What each machine has rung and got so far, in all its lives, by index."""
        sums: dict[int, Counts] = {}
        for handle in self._machines.handles:
            machine = handle.machine.index
            for book in handle.books:
                a, b, c, d = sums.get(machine, (0, 0, 0, 0))
                rung, delivered, interrupts, refused = totals_so_far(book)
                sums[machine] = a + rung, b + delivered, c + interrupts, d + refused
        return sums

    def look_at_resources(self) -> None:
        """Look at all processes, now and again and again."""
        if self._run.phase in ("stopping", "done") or not self._resources_every_ns:
            return
        begin_ns = time.thread_time_ns()
        rows = self._sampler.sample()
        looked_ns = time.thread_time_ns()
        self._record(rows)
        # What the first record loads is no part of what looking costs.
        self.spent_ns += time.thread_time_ns() - looked_ns
        self._again(self.look_at_resources, self._resources_every_ns, looked_ns - begin_ns)

    def publish(self) -> None:
        """Publish how it stands."""
        machines, topology = self._machines, self._machines.topology
        groups: dict[str, list[int]] = {group.name: [group.count, 0, 0, 0, 0, 0] for group in topology.groups}
        for machine, counts in self.counts().items():
            figures = groups[topology.machines[machine].group]
            handle = machines.current[machine]
            figures[1] += handle.ready and handle.lives
            for place, count in enumerate(counts, 2):
                figures[place] += count
        if self._snapshots % GLIMPSE_EVERY == 0 and self._run.phase == "running":
            rows = {
                row.row: book
                for handle in machines.handles
                for row, book in zip(handle.rows, handle.books, strict=True)
            }
            row_of = {(domain, peer): row for handle in machines.handles for row, domain, peer in handle.identities}
            self._latency_ns = recent_delivery_ns(rows, row_of, time.monotonic_ns())
        self._snapshots += 1
        self._publisher.publish(
            Snapshot(
                number=self._snapshots,
                time_ns=time.monotonic_ns(),
                phase=self._run.phase,
                machines=len(machines.current),
                up=sum(handle.ready and handle.lives for handle in machines.current),
                start_ns=self._run.start_ns or None,
                stop_ns=self._run.stop_ns or None,
                heartbeats_late=self.heartbeats_late,
                groups={name: Group(*figures) for name, figures in groups.items()},
                title=topology.title,
                path=str(self._path),
                happened=tuple(self._happened),
                latency_ns=self._latency_ns,
                access=self._access,
            )
        )

    def _beat(self) -> None:
        """Ask every running machine for a sign of life; count those who still owe the last one."""
        if self._run.phase in ("stopping", "done"):
            return
        begin_ns = time.thread_time_ns()
        if self._run.phase == "running":
            self._ping += 1
            for handle in self._machines.current:
                if handle.lives and handle.ready:
                    last = self._pinged.get(handle, 0)
                    self.heartbeats_late += handle.books[0].words[header.PING] != last
                    if handle.tell(control.Ping(self._ping)):
                        self._pinged[handle] = self._ping
                        self.heartbeats += 1
        self.spent_ns += time.thread_time_ns() - begin_ns
        self._loop.at(time.monotonic_ns() + HEARTBEAT_NS, self._beat)

    def _publish(self) -> None:
        begin_ns = time.thread_time_ns()
        self.publish()
        if self._run.phase != "done":
            self._again(self._publish, PUBLISH_NS, time.thread_time_ns() - begin_ns)

    def _again(self, callback: Callable[[], None], every_ns: int, cost_ns: int) -> None:
        """Call back in ``every_ns``, or as much later as keeps what it costs on a CPU a small part of the whole."""
        self.spent_ns += cost_ns
        self._loop.at(time.monotonic_ns() + max(every_ns, LOOK_SHARE * cost_ns), callback)
