"""What is remembered for an outlier: actions of the timeline while they last, and looks at processes."""

from __future__ import annotations

import contextlib
import os
import time

from sim.coordination.host_history import HostHistory
from sim.coordination.outlier_watch import ActionSpans

STALL = {"do": "stall", "machine": "rx", "line": 4}
RESUME = {"do": "resume", "machine": "rx", "line": 8}


def lasted(actions: ActionSpans, begin_ns: int, end_ns: int) -> list[tuple[str, str, int, int]]:
    return [(action.machine, action.do, action.begin_ns, action.end_ns) for action in actions.between(begin_ns, end_ns)]


def test_a_stall_lasts_until_it_is_ended() -> None:
    actions = ActionSpans()
    actions.note(100, "action", STALL)
    assert lasted(actions, 0, 100) == []
    (open_one,) = actions.between(150, 200)
    assert open_one.end_ns > 1 << 61
    assert open_one.text == "stall of rx by the timeline (line 4)"
    actions.note(300, "action", RESUME | {"machine": "other"})
    actions.note(400, "action", RESUME)
    assert lasted(actions, 0, 1000) == [("rx", "stall", 100, 400)]
    assert lasted(actions, 400, 1000) == []


def test_a_delay_lasts_until_another_or_none() -> None:
    actions = ActionSpans()
    for at_ns, delay_us in ((100, 50.0), (200, 90.0), (300, 0)):
        actions.note(at_ns, "action", {"do": "slow", "machine": "rx", "delay_us": delay_us})
    assert lasted(actions, 0, 1000) == [("rx", "slow", 100, 200), ("rx", "slow", 200, 300)]


def test_an_action_that_was_not_done_explains_nothing() -> None:
    actions = ActionSpans()
    actions.note(100, "action", STALL | {"skipped": "it is not running"})
    actions.note(100, "action", {"do": "stop_server", "machine": None})
    actions.note(100, "warning", {"machine": "rx", "text": "?"})
    assert lasted(actions, 0, 1000) == []


def test_a_migration_stood_still_before_it_was_told() -> None:
    actions = ActionSpans()
    actions.note(50_000_000, "migrated", {"machine": "rx", "downtime_ms": 20.0})
    assert lasted(actions, 0, 40_000_000) == [("rx", "migrate", 30_000_000, 50_000_000)]


def test_looks_are_kept_for_a_while() -> None:
    now = 0
    with contextlib.closing(HostHistory(lambda: now, time.thread_time_ns, 100)) as history:
        for now in range(0, 300, 50):  # noqa: B007 - the clock reads it
            history.look({1: os.getpid(), 2: None}, at_all=True)
        times = [look.time_ns for look in history.looks(1)]
        assert times == [100, 150, 200, 250]  # the last one before stays: a span begins between two looks
        assert history.looks(2) == []
        assert (history.pid(1), history.pid(2)) == (os.getpid(), None)
        assert {time_ns for time_ns, _ in history.cpus} == {100, 150, 200, 250}
        assert history.throttled(1, 0, 250)[1] >= 0
        assert os.getpid() not in {other.pid for other in history.others(0, [1])}
