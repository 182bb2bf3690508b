"""The descriptors of a run: as many as the preflight says, which refuses a run that would lack some."""

from __future__ import annotations

from pathlib import Path

import msgspec

import sim
from sim.host.limits import Host
from sim.host.preflight import preflight
from topologies import loads

# The least of some counts: the coordinator opens files of /proc for a moment.
PROGRAM = """
import os

def count_descriptors(guest):
    for name, process in (("worker", "self"), ("coordinator", os.getppid())):
        guest.statistics[name] = min(len(os.listdir(f"/proc/{process}/fd")) for _ in range(20))
    yield guest.stop_ns
"""
TOPOLOGY = """
[run]
duration_s = 0.1
warmup_s = 0.0
[machines.counting]
vectors = 2
program = "{program}"
[machines.idle]
count = {idle}
vectors = 2
program = "idle"
"""


def counted(idle: int, tmp_path: Path) -> tuple[dict[str, int], dict[str, float]]:
    """What a worker counts, and what the preflight says."""
    program, file = tmp_path / "p.py", tmp_path / "t.toml"
    program.write_text(PROGRAM)
    file.write_text(TOPOLOGY.format(program="count_descriptors", idle=idle))
    run = sim.run(file, runs=tmp_path / "runs", programs=program, resources_every_s=0)
    assert run.status == "finished", run.reason
    events = map(msgspec.json.decode, (run.path / "events.jsonl").read_bytes().splitlines())
    (values,) = [event["values"] for event in events if event["kind"] == "statistics"]
    demand = preflight(loads(TOPOLOGY.format(program="idle", idle=idle)), host=Host.here(tmp_path))
    return values, {each.what: each.needed for each in demand.sums}


def test_a_machine_costs_the_descriptors_that_the_preflight_says(tmp_path: Path) -> None:
    few, told_few = counted(1, tmp_path)
    more, told_more = counted(5, tmp_path)
    for process, what in (("coordinator", "descriptors in the coordinator"), ("worker", "descriptors in a machine")):
        assert more[process] - few[process] == told_more[what] - told_few[what], process
        assert more[process] <= told_more[what], process
