"""sim.coordination.monitor: what subscribers of a run read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sim.coordination.monitor import LOOK_SHARE, Monitor, in_words
from sim.host.resources import Resources
from sim.kernel.clock import MonotonicClock


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"do": "mask", "machine": "a-0", "vectors": (1,)}, "do mask, machine a-0, vectors 1"),
        ({"do": "mask", "vectors": (0, 2, 3)}, "do mask, vectors 0 2 3"),
        ({"do": "unmask", "vectors": ()}, "do unmask, vectors all"),
        ({"machine": "a-0", "peers": [0, 7]}, "machine a-0, peers 0 7"),
        ({"do": "migrate", "hand_over": True, "fault": ""}, "do migrate, hand_over"),
        ({"do": "migrate", "hand_over": False, "skipped": None}, "do migrate"),
        (
            {"from_peer": 0, "downtime_ms": 3.0625001, "pending_vectors": 0},
            "from_peer 0, downtime_ms 3.0625, pending_vectors 0",
        ),
        ({}, ""),
    ],
)
def test_an_event_is_told_as_one_would_read_it(fields: dict[str, object], words: str) -> None:
    assert in_words(fields) == words


class Planned:
    """A loop that only keeps what is due when."""

    def __init__(self) -> None:
        self.moments_ns: list[int] = []
        self.clock = MonotonicClock()

    def at(self, moment_ns: int, callback: Callable[[], None]) -> None:
        self.moments_ns.append(moment_ns)


def test_loading_for_the_first_sample_does_not_delay_the_next(tmp_path: Path) -> None:
    """The first record loads what is heavy; were it paused for like a look, short runs had one look in all."""
    loading_ns, loop = 200_000_000, Planned()

    def record(rows: list[Resources]) -> None:
        until_ns = time.thread_time_ns() + loading_ns
        while time.thread_time_ns() < until_ns:
            pass

    run: Any = SimpleNamespace(phase="running")
    machines: Any = SimpleNamespace(current=[], topology=SimpleNamespace(machines=()))
    planned: Any = loop
    monitor = Monitor(
        machines, run, planned, runtime=tmp_path, record=record, resources_every_s=0.2, path=tmp_path, access=()
    )
    try:
        monitor.look_at_resources()
        (next_ns,) = loop.moments_ns
        assert next_ns < time.monotonic_ns() + LOOK_SHARE * loading_ns
        assert monitor.spent_ns >= loading_ns
    finally:
        monitor.close()
