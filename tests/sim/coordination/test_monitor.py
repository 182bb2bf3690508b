"""sim.coordination.monitor: what subscribers of a run read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sim.coordination.coordinated_run import RunEnd
from sim.coordination.monitor import HAPPENED_LENGTH_MAX, HAPPENED_MAX, LOOK_SHARE, Monitor
from sim.host.resource_row import Resources
from sim.kernel.loop import MonotonicClock
from sim.telemetry import Snapshot
from sim.views.event_text import sentence


class Planned:
    """A loop that only keeps what is due when."""

    def __init__(self) -> None:
        self.moments_ns: list[int] = []
        self.clock = MonotonicClock()

    def at(self, moment_ns: int, callback: Callable[[], None]) -> None:
        self.moments_ns.append(moment_ns)


def make_monitor(place: Path, loop: Any, record: Callable[[list[Resources]], None]) -> Monitor:
    """A monitor of a run without machines."""
    topology = SimpleNamespace(title="A title", groups=(), machines=())
    machines = SimpleNamespace(current=[], topology=topology, row_of={})
    run: Any = SimpleNamespace(phase="running", ending=RunEnd(), machines=machines)
    return Monitor(
        run,
        loop,
        runtime=place,
        record=record,
        resources_every_s=0.2,
        path=place,
        access=(),
        describe=sentence,
    )


def test_loading_for_the_first_sample_does_not_delay_the_next(tmp_path: Path) -> None:
    """The first record loads what is heavy; were it paused for like a look, short runs had one look in all."""
    loading_ns, loop = 200_000_000, Planned()

    def record(rows: list[Resources]) -> None:
        until_ns = time.thread_time_ns() + loading_ns
        while time.thread_time_ns() < until_ns:
            pass

    monitor = make_monitor(tmp_path, loop, record)
    try:
        monitor.look_at_resources()
        (next_ns,) = loop.moments_ns
        assert next_ns < time.monotonic_ns() + LOOK_SHARE * loading_ns
        assert monitor.spent_ns >= loading_ns
    finally:
        monitor.close()


def test_a_snapshot_has_the_latest_events_as_sentences(tmp_path: Path, monkeypatch: Any) -> None:
    published: list[Snapshot] = []
    monkeypatch.setattr("sim.telemetry.Publisher.publish", lambda publisher, snapshot: published.append(snapshot))
    monitor = make_monitor(tmp_path, Planned(), lambda rows: None)
    try:
        for _ in range(HAPPENED_MAX):
            monitor.note("machine_joined", {"machine": "a-0", "peers": (7,), "life": "a-0"})
        monitor.note("action", {"do": "mask", "machine": "a-0", "line": 14, "vectors": (0, 2)})
        monitor.note("warning", {"machine": "a-0", "text": "x" * 1000})
        monitor.publish()
    finally:
        monitor.close()
    texts = [event.text for event in published[0].happened]
    assert len(texts) == HAPPENED_MAX
    assert texts[-3:-1] == ["a-0 joined with ID 7", "mask a-0, vectors 0 2 (line 14)"]
    assert len(texts[-1]) == HAPPENED_LENGTH_MAX
