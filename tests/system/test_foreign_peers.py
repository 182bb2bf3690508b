"""Programs of a run ring peers that are no machines of it, once these have been announced."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import sim
from nodes.errors import IvshmemError
from topologies import loads

PATIENCE_S = 60.0
ROUNDS = 50
TOPOLOGY = """
[run]
duration_s = 100
warmup_s = 0
[defaults]
vectors = 2
[machines.timer]
program = "round_trip"
parameters = { to = "foreign", rounds = 50, vector = 1 }
[machines.storm]
program = "storm"
parameters = { to = "others", rate_hz = 200.0, vectors = [0] }
[machines.named]
program = "storm"
parameters = { to = "timer", rate_hz = 10.0, vectors = [0] }
[[expect]]
that = "statistics.rounds == 50"
of = "timer"
"""
LEAVES = """
[[timeline]]
when = "delivered >= 50"
of = "timer:1"
do = "end"
"""


def echo(path: Path, answers: list[int]) -> None:
    """A foreign peer that answers vector 1, until it has answered enough, and notes which vectors came."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        try:
            peer = sim.connect(path, vectors=2)
        except (IvshmemError, OSError):
            time.sleep(0.02)  # the run has not made its socket yet
            continue
        with peer:
            while answers.count(1) < ROUNDS and time.monotonic() < deadline_s:
                interrupt = peer.wait(timeout=PATIENCE_S)
                answers.append(interrupt.vector)
                if interrupt.vector == 1:
                    peer.ring(0, 1)
            return


def test_a_foreign_peer_is_rung_and_its_round_trips_are_timed(tmp_path: Path, short_path: Path) -> None:
    path = short_path / "s"
    answers: list[int] = []
    thread = threading.Thread(target=echo, args=(path, answers))
    thread.start()
    run = sim.run(loads(TOPOLOGY + LEAVES), runs=tmp_path, socket_path=path)
    thread.join()
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    timer = run.summary["statistics"]["timer"]
    assert timer["rounds"] == ROUNDS == timer["round_trip_samples"]
    assert 0 < timer["round_trip_p50_us"] <= timer["round_trip_max_us"]
    (joined,) = [event for event in run.events() if event["kind"] == "foreign_peer_joined"]
    rung = {(edge["source"], edge["peer"]) for edge in run.edges().to_pylist() if edge["rung"]}
    # Who names "foreign" rings it, "others" has it, a name has not.
    assert (0, joined["peer"]) in rung
    assert (2, joined["peer"]) not in rung
    assert run.summary["groups"]["foreign"]["rung"] >= ROUNDS


def test_a_foreign_peer_that_has_left_is_not_rung_any_more(tmp_path: Path, short_path: Path) -> None:
    path = short_path / "s"

    def come_twice() -> None:
        echo(path, [])
        with sim.connect(path, vectors=2) as peer:
            for _ in range(ROUNDS):  # both that ring go on, and ring this one now
                peer.wait(timeout=PATIENCE_S)
            peer.ring(2, 1)
            over.wait(PATIENCE_S)

    text = TOPOLOGY.replace("rounds = 50, vector = 1", "vector = 1, timeout_s = 0.02").partition("[[expect]]")[0]
    text += '[[timeline]]\nwhen = "delivered >= 1"\nof = "named:1"\ndo = "end"\n'
    thread, over = threading.Thread(target=come_twice), threading.Event()
    thread.start()
    run = sim.run(loads(text), runs=tmp_path, socket_path=path)
    over.set()
    thread.join()
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    assert [event["kind"] for event in run.events() if event["kind"].startswith("foreign")] == [
        "foreign_peer_joined"
    ] * 2
    # What was under way when the first one left is refused; after that neither program rings it.
    assert run.summary["refused"] <= 4
