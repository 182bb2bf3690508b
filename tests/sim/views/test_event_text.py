"""Events in words: every kind that a coordinator writes is told as people say it, and nothing breaks the teller."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.results.analysis.time_series import KINDS_NOT_SHOWN
from sim.views.event_text import brief, sentence

COORDINATION = Path(__file__).parents[3] / "sim" / "coordination"
MOVED = {"kind": "migrated", "machine": "m", "from_domain": "a", "from_peer": 1, "to_domain": "a", "to_peer": 1}
MOVED |= {"downtime_ms": 13.519133, "state_bytes": 342, "memory_bytes": 0, "pending_vectors": 0}
ACTION = {"kind": "action", "machine": "tx-0", "line": 14}
TOLD = [
    (ACTION | {"do": "stall"}, "stall tx-0", "stall tx-0 (line 14)"),
    (ACTION | {"do": "slow", "delay_us": 50.0}, "slow tx-0", "slow tx-0, by 50 us (line 14)"),
    (ACTION | {"do": "mask", "vectors": [0, 2]}, "mask tx-0", "mask tx-0, vectors 0 2 (line 14)"),
    (ACTION | {"do": "mask", "vectors": []}, "mask tx-0", "mask tx-0, all vectors (line 14)"),
    (ACTION | {"do": "garble", "message": "short"}, "garble tx-0", "garble tx-0, message short (line 14)"),
    (ACTION | {"do": "join", "life": "tx-0"}, "join tx-0", "join tx-0 (line 14)"),
    (ACTION | {"do": "join", "life": "tx-0.2"}, "join tx-0", "join tx-0, life tx-0.2 (line 14)"),
    (ACTION | {"do": "kill", "skipped": "it is gone"}, "kill tx-0", "kill tx-0 (line 14): not done, it is gone"),
    (
        ACTION | {"do": "migrate", "refused": "a disk"},
        "migrate tx-0",
        "migrate tx-0 (line 14): refused, a disk",
    ),
    (
        ACTION | {"do": "migrate", "to_domain": "there", "hand_over": False, "fault": "cancel"},
        "migrate tx-0",
        "migrate tx-0 to domain there, fault cancel (line 14)",
    ),
    (
        ACTION | {"do": "migrate", "to_domain": "here", "hand_over": True, "fault": ""},
        "migrate tx-0",
        "migrate tx-0, handing over its connection (line 14)",
    ),
    (
        {"kind": "action", "do": "stop_server", "machine": None, "line": 3, "domain": "main"},
        "stop the server of domain main",
        "stop the server of domain main (line 3)",
    ),
    (
        {"kind": "action", "do": "kill", "machine": None, "line": 3, "skipped": "there is no machine to pick"},
        "kill",
        "kill (line 3): not done, there is no machine to pick",
    ),
    (MOVED | {"to_domain": "b", "to_peer": 0}, "m moved", "m moved to domain b, 13.5 ms"),
    (MOVED | {"to_peer": 5, "pending_vectors": 2}, "m moved", "m moved from ID 1 to 5, 13.5 ms, 2 vectors pending"),
    (MOVED, "m moved", "m moved and kept its ID 1, 13.5 ms"),
    (
        {"kind": "migration_failed", "machine": "m", "reason": "its new process died", "downtime_ms": 2.79},
        "m did not move",
        "migration of m failed after a pause of 2.79 ms: its new process died",
    ),
    (
        {"kind": "left_behind", "machine": "m", "domain": "a", "peer": 1, "doorbells": 1234},
        "m left doorbells behind",
        "1,234 doorbells left behind by m at ID 1 of domain a",
    ),
    ({"kind": "machine_joined", "machine": "m", "peers": [4]}, "m joined", "m joined with ID 4"),
    ({"kind": "machine_left", "machine": "m", "how": "left", "action": "leave"}, "m left", "m left, after leave"),
    (
        {"kind": "machine_left", "machine": "m", "how": "SIGKILL", "action": "kill"},
        "m left",
        "m left, after kill (SIGKILL)",
    ),
    ({"kind": "machine_died", "machine": "m", "how": "exit 1", "failure": "boom"}, "m died", "m died: exit 1, boom"),
    ({"kind": "machine_killed", "machine": "m", "reason": "it hangs"}, "m killed", "m was killed: it hangs"),
    ({"kind": "warning", "machine": "m", "text": "odd"}, "m warns", "m warns: odd"),
    (
        {"kind": "failure", "machine": "m", "at_fault": "program", "summary": "KeyError", "traceback": "no\nlines"},
        "m failed",
        "program of m failed: KeyError",
    ),
    ({"kind": "peer_left", "peer": 0, "reason": "left"}, "peer 0 left", "peer 0 left"),
    ({"kind": "peer_left", "peer": 0, "reason": "too slow"}, "peer 0 left", "peer 0 left: too slow"),
    (
        {"kind": "foreign_peer_joined", "peer": 3, "pid": 12, "uid": 1000, "domain": "main"},
        "foreign peer joined",
        "process 12 of user 1000 joined domain main as peer 3",
    ),
    ({"kind": "console", "machine": "m", "pattern": "up$"}, "m printed a line", "m printed a line with 'up$'"),
    (
        {"kind": "stopped_above", "metric": "total.max", "reached_ns": 7_210_000, "limit_ns": 5_000_000}
        | {"source": "tx-0", "target": "rx", "vector": 2},
        "stopped above",
        "the run is ended: total.max is 7.21 ms, above 5 ms: tx-0 -> rx:2",
    ),
    ({"kind": "aborted", "expected": "died == 0", "got": 1}, "aborted", "the run is ended: expected died == 0, got 1"),
    ({"kind": "of_tomorrow", "machine": "m", "what": [1, 2]}, "of tomorrow", "of tomorrow: machine m, what 1 2"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "short", "whole"), TOLD)
def test_events_read_as_people_say_them(event, short, whole):
    assert (brief(event), sentence({"time_ns": 1, "utc": "x"} | event)) == (short, whole)


def test_every_kind_of_event_has_its_words():
    sources = "".join(path.read_text() for path in COORDINATION.glob("*.py"))
    kinds = set(re.findall(r'_event\(\s*"(\w+)"', sources))
    assert len(kinds) > 12
    assert kinds - KINDS_NOT_SHOWN == {event["kind"] for event, *_ in TOLD} - {"of_tomorrow"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(TOLD), st.data())
def test_whatever_a_file_holds_is_told_on_one_line(told, data):
    event = dict(told[0])
    for name in data.draw(st.lists(st.sampled_from(sorted(event)), max_size=4)):
        event[name] = data.draw(JSON)
    for said in (brief(event), sentence(event)):
        assert len(said) <= 200
    assert len(sentence(event).splitlines()) <= 1
