"""sim.engines.virtual: every included topology under virtual time, and the same run again from the same seed."""

from __future__ import annotations

import os
import shutil
import sys
import tracemalloc
from array import array
from pathlib import Path

import pytest

import sim
from sim.engines.messages import Start
from sim.engines.virtual import engine, watchdog
from sim.engines.virtual.cost_model import load_model
from sim.engines.virtual.machine import VirtualMachine
from sim.recording import RecordingLayout, RecordingPack, header
from sim.recording.reader import places, read
from topologies import loads, shipped

EXIT = os._exit

SMALL = {
    "doorbell_storm": {"machines.storm.count": "8", "run.duration_s": "0.1"},
    "fan_in": {"run.duration_s": "0.5"},
    "hotspot": {"run.duration_s": "0.5"},
    "kill_storm": {
        "run.duration_s": "2.5",
        "machines.storm.vectors": "1",
        "machines.storm.parameters.rate_hz": "3000.0",
    },
    "legacy_2012": {"run.duration_s": "0.5"},
    "masked_storm": {"machines.storm.parameters.rate_hz": "1000.0"},
    "ping_pong": {"run.duration_s": "0.1"},
    "ring": {"run.duration_s": "0.5"},
    "slow_reader": {"run.duration_s": "1.0"},
    "storm_64": {"machines.storm.count": "32", "run.duration_s": "0.05"},
    "storm_256": {"machines.storm.count": "48", "run.duration_s": "0.02"},
    "stuck_peer": {"defaults.parameters.rate_hz": "1000.0"},
    "thousand_peers": {"machines.crowd.count": "60", "run.duration_s": "0.5"},
    "two_domains": {"run.duration_s": "0.5"},
    "two_hosts": {"run.duration_s": "0.5"},
    "unequal_vectors": {"run.duration_s": "0.5"},
    "virtual_all_to_all": {"machines.node.count": "64", "run.duration_s": "0.1"},
    "virtual_ring": {"machines.node.count": "600"},
    "virtual_star": {"machines.node.count": "600", "machines.node.parameters.rate_hz": "50.0", "run.duration_s": "0.1"},
    "virtual_random": {"machines.node.count": "600"},
    "virtual_hotspot": {
        "machines.sender.count": "600",
        "machines.sender.parameters.rate_hz": "50.0",
        "run.duration_s": "0.1",
    },
}
"""What makes them quick: one thread does the work of all machines."""


def run(name: str, runs: Path, **overrides: str) -> sim.Run:
    settings = {"run.engine": "virtual", **SMALL.get(name, {}), **overrides}
    return sim.run(name, runs=runs, overrides=settings, resources_every_s=0)


NAMES = [name for name, _ in shipped() if name != "linux_guest"]  # a real QEMU


def faults_of(result: sim.Run) -> list[str]:
    """What is wrong with a run: how it ended, that it does not balance, the expectations that it has not met."""
    summary, found = result.summary, list[str]()
    if result.status not in ("finished", "degraded"):
        found.append(f"{result.status}: {result.reason}")
    if not summary["balanced"] or not summary["rung"]:
        found.append(f"rung {summary['rung']}, balanced: {summary['balanced']}")
    if summary["rung"] != summary["delivered"] + summary["pending"] + summary["refused"]:
        found.append("rung is not delivered + pending + refused")
    return found + [str(each) for each in summary["expectations"] or () if not each["met"]]


@pytest.mark.sample(9)
@pytest.mark.parametrize("name", NAMES)
def test_every_topology_balances_and_meets_its_expectations(name: str, tmp_path: Path) -> None:
    assert not faults_of(run(name, tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_every_topology_meets_its_expectations_with_as_many_seeds_as_asked_for(name: str, tmp_path: Path) -> None:
    broken = dict[int, list[str]]()
    for seed in range(1, 1 + int(os.environ.get("IVSIM_SEEDS", "50"))):
        if faults := faults_of(run(name, tmp_path, seed=str(seed))):
            broken[seed] = faults
        shutil.rmtree(tmp_path)
    assert not broken


TABLES = ("samples", "drains", "edges", "vectors", "histograms")


def told(event: dict[str, object]) -> dict[str, object]:
    """An event without the host's own time."""
    return {key: value for key, value in event.items() if key != "utc"}


@pytest.mark.parametrize("name", ["ping_pong", "peer_churn", "migration_abort", "two_domains"])
def test_the_same_seed_gives_the_same_run(name: str, tmp_path: Path) -> None:
    first, second = run(name, tmp_path / "1"), run(name, tmp_path / "2")
    for table in TABLES:
        assert (first.path / f"{table}.parquet").read_bytes() == (second.path / f"{table}.parquet").read_bytes(), table
    assert [told(event) for event in first.events()] == [told(event) for event in second.events()]


def test_a_cost_model_is_a_file(tmp_path):
    model = Path(engine.__file__).with_name("models") / "default.toml"
    slower = tmp_path / "slower.toml"
    slower.write_text(model.read_text().replace("drain_ns = 900", "drain_ns = 90_000"))
    found = {
        cost_model: run("ping_pong", tmp_path / "runs", **{"run.cost_model": cost_model, "run.duration_s": "0.05"})
        for cost_model in ("default", str(model), str(slower))
    }
    medians = [each.summary["latency_ns"]["delivery"]["p50"] for each in found.values()]
    assert medians[0] == medians[1]
    assert medians[2] > medians[1] + 80_000


def test_a_doorbell_that_reaches_no_peer_costs_its_write(tmp_path):
    model = load_model()
    topology = """
        [run]
        engine = "virtual"
        duration_s = 0.1
        warmup_s = 0.0
        [machines.a]
        program = "tests.guest_programs:ring_nobody"
    """
    result = sim.run(loads(topology), runs=tmp_path)
    assert result.summary["rung"] == result.summary["refused"] == 200
    assert result.summary["statistics"]["a"]["took_ns"] == 200 * model.ring_ns


def test_a_program_that_never_yields_is_ended_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "TICK_S", 0.02)
    program = tmp_path / "program.py"
    program.write_text("def stuck(guest):\n    yield 0\n    while True:\n        pass\n")
    file = tmp_path / "stuck.toml"
    file.write_text('run.engine = "virtual"\n[machines.stuck]\nprogram = "stuck"\n[machines.other]\nprogram = "idle"\n')
    result = sim.run(file, runs=tmp_path / "runs", programs=program, resources_every_s=0)
    assert result.status == "failed"
    assert "stuck died" in result.reason
    assert "has not yielded" in result.reason


def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    first, second = run("ping_pong", tmp_path / "1"), run("ping_pong", tmp_path / "2", seed="7")
    assert first.summary["latency_ns"] != second.summary["latency_ns"]


@pytest.mark.parametrize("name", ["kill_storm", "peer_churn", "two_domains", "unequal_vectors", "stuck_peer", "ring"])
def test_a_topology_balances_where_servers_announce_once_for_all(name, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "MESSAGES_MAX", 0)
    result = run(name, tmp_path)
    assert result.status in ("finished", "degraded"), result.reason
    assert result.balanced
    assert result.summary["delivered"] > 0
    assert not [each for each in result.summary["expectations"] or () if not each["met"]]


def test_many_machines_share_recordings_and_announcements(tmp_path):
    result = run("virtual_ring", tmp_path)
    assert result.balanced
    assert result.summary["refused"] == 0
    count = len(result.machines)
    edges = result.edges().to_pylist()
    assert len(edges) > count / 2
    assert all(each["target"] == (each["source"] + 1) % count for each in edges)


def test_the_recordings_of_many_machines_are_in_few_files(tmp_path):
    pack = RecordingPack(lambda row: tmp_path / f"{row}.rec")
    layout = RecordingLayout(vectors=1, edges=2, rings=3, drains=4)
    made = [pack.create(row, layout, sample_every=1, of=row, incarnation=1, domain=0) for row in range(300)]
    for row, recording in enumerate(made):
        recording.words[header.EDGES_USED] = 1
        recording.words[layout.edges_at : layout.edges_at + 3] = memoryview(
            array(header.WORD_FORMAT, (row << 16, row + 1, 0))
        )
        recording.close()
    pack.close()
    files = recordings_of(tmp_path)
    assert list(files) == [0, 256]
    found = {row: (file, at) for first, file in files.items() for row, at in places(file, first).items()}
    assert list(found) == list(range(300))
    for row, (file, at) in found.items():
        records = read(file, row, at)
        assert not records.problems
        assert records.edges.tolist() == [[row << 16, row + 1, 0]]


def recordings_of(folder: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in sorted(folder.iterdir(), key=lambda path: int(path.stem))}


FAILS_LATER = """
run = { engine = "virtual", duration_s = 0.3, warmup_s = 0.0 }
[domains.here]
[domains.there]
[machines.moved]
domains = ["here"]
role = "master"
program = "fails_later"
[machines.other]
domains = ["there"]
program = "idle"
[[timeline]]
at_s = 0.05
do = "stop_server"
domain = "there"
[[timeline]]
at_s = 0.1
do = "migrate"
machines = "moved"
to_domain = "there"
"""


def test_a_machine_whose_migration_fails_at_once_is_one_that_does_not_migrate(tmp_path):
    """What its program raises afterwards is its own failure, not one more of the migration."""
    program = tmp_path / "program.py"
    lines = ("def fails_later(guest):", "    yield guest.start_ns + 200_000_000", "    raise ValueError('later')", "")
    program.write_text("\n".join(lines))
    file = tmp_path / "fails_later.toml"
    file.write_text(FAILS_LATER)
    result = sim.run(file, runs=tmp_path / "runs", programs=program, resources_every_s=0)
    assert [event["kind"] for event in result.events() if event["kind"] == "migration_failed"] == ["migration_failed"]
    assert result.status == "failed"
    assert "later" in result.reason


@pytest.mark.parametrize("call", ["os._exit(0)", "sys.exit(0)"])
def test_a_program_that_ends_its_process_ends_its_machine(call, tmp_path):
    """All machines run in one process; a child that a program forks ends as it asks."""
    program = tmp_path / "program.py"
    lines = (
        "import os, sys",
        "def ends(guest):",
        "    yield guest.start_ns + 100_000_000",
        "    if not (child := os.fork()):",
        "        os._exit(7)",
        "    guest.statistics['child'] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])",
        "    yield guest.clock() + 1_000_000",
        f"    {call}",
        "",
    )
    program.write_text("\n".join(lines))
    file = tmp_path / "ends.toml"
    file.write_text(
        'run = { engine = "virtual", duration_s = 0.3, warmup_s = 0.0 }\n[machines.ends]\nprogram = "ends"\n'
        '[machines.other]\nprogram = "idle"\n'
    )
    result = sim.run(file, runs=tmp_path / "runs", programs=program, resources_every_s=0)
    assert result.status == "failed"
    assert "ends died" in result.reason
    assert os._exit is EXIT


LARGE = {
    "virtual_ring": "node",
    "virtual_star": "node",
    "virtual_random": "node",
    "virtual_hotspot": "sender",
}


def calls_of(name: str, count: int, runs: Path) -> int:
    """How many functions a whole run with so many machines calls, from the topology to the tables of its result."""
    calls = 0

    def count_call(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_call)
    try:
        settings = {"run.engine": "virtual", f"machines.{LARGE[name]}.count": str(count), "run.duration_s": "1.0"}
        result = sim.run(name, runs=runs, overrides=settings, resources_every_s=0)
    finally:
        sys.setprofile(before)
    assert result.summary["balanced"]
    return calls


@pytest.mark.parametrize("name", LARGE)
def test_the_work_of_a_run_grows_as_the_number_of_machines(name, tmp_path, monkeypatch):
    """Each doubling adds twice the calls of the doubling before: something that grows as the square adds four times."""
    monkeypatch.setattr(engine, "MESSAGES_MAX", 0)  # as with very many machines
    calls_of(name, 16, tmp_path)  # what only the first run of a process does
    few, twice, four_times = (calls_of(name, count, tmp_path) for count in (32, 64, 128))
    assert four_times - twice < 2.4 * (twice - few)


def test_a_machine_among_many_takes_little_memory(tmp_path, monkeypatch):
    """65,536 machines fit 2 GiB, with their recordings, as long as the objects of each take 24 KiB."""
    monkeypatch.setattr(engine, "MESSAGES_MAX", 0)
    start, up_bytes = VirtualMachine._take_start, list[int]()

    def take_start(machine: VirtualMachine, order: Start) -> None:
        if not up_bytes:  # all machines are up
            up_bytes.append(tracemalloc.get_traced_memory()[0])
        start(machine, order)

    monkeypatch.setattr(VirtualMachine, "_take_start", take_start)

    def bytes_of(count: int) -> int:
        up_bytes.clear()
        settings = {"run.engine": "virtual", "machines.node.count": str(count), "run.duration_s": "0.01"}
        tracemalloc.start()
        try:
            sim.run("virtual_ring", runs=tmp_path, overrides=settings, resources_every_s=0)
        finally:
            tracemalloc.stop()
        return up_bytes[0]

    bytes_of(16)  # what only the first run of a process allocates
    few, many = bytes_of(32), bytes_of(160)
    assert (many - few) / (160 - 32) < 24_576
