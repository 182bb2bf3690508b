"""Machines of the kind "qemu" in a run: real QEMUs beside simulated machines, on the same server, in the accounts."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import psutil
import pytest

import sim
from sim.access import external_lines, external_path
from sim.engines.qemu.peer import QemuPeer
from sim.oracle.agree import pair
from sim.results import Run
from sim.runner import Begun
from tests.real_qemu import interrupt_itself
from topologies import Topology, load, loader, loads, shipped

pytestmark = pytest.mark.qemu

SCENARIOS = Path(loader.__file__).with_name("scenarios")
MACHINES_MAX = 8
RUNG, VECTORS = 50, 3
PATIENCE_S = 60.0


def qemus() -> set[int]:
    """The QEMUs that descend from this process: those with the option that only `sim.engines.qemu.qtest` gives."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(argument.startswith("qtest,") for argument in each.cmdline()):
                found.add(each.pid)
    return found


def why_not_half_real(scenario: Path) -> str:
    """Why no half of its machines can be real; "" if it can.

    The text says so: to load all scenarios costs seconds, in each process that collects tests.
    """
    values = tomllib.loads(scenario.read_text())
    groups = [{**values.get("defaults", {}), **group} for group in values["machines"].values()]
    if values["run"].get("engine", "process") != "process":
        return "virtual time"
    if any("host" in domain for domain in values.get("domains", {}).values()):
        return "several hosts"
    if any(domain.get("version", 1) != 1 for domain in values.get("domains", {}).values()):
        return "version 2"
    if all(group.get("profile", "qemu-doorbell") != "qemu-doorbell" for group in groups):
        return "a device of 2012"
    return "a guest" if any("guest" in group for group in groups) else ""


WHY_NOT = {name: why_not_half_real(SCENARIOS / f"{name}.toml") for name, _ in shipped()}
HALF_REAL = [name for name, why in WHY_NOT.items() if not why]


def half_real(name: str, duration_s: float) -> Topology:
    """A topology that ships, of which every other machine is a real QEMU, where it can be."""
    base = load(name)
    short = {} if base.timeline or base.has_own_phases else {"run.duration_s": duration_s, "run.warmup_s": 0.2}
    return pair(name, short, share="half", machines_max=MACHINES_MAX).real


def test_an_included_topology_runs_with_half_of_it_real_or_cannot() -> None:
    assert {name: why for name, why in WHY_NOT.items() if why} == {
        "legacy_2012": "a device of 2012",
        "linux_guest": "a guest",
        "lost_intx": "a device of 2012",
        "migration_abort": "a device of 2012",
        "two_hosts": "several hosts",
        **dict.fromkeys(("v2_console", "v2_ethernet", "v2_peer_dies", "v2_states"), "version 2"),
        **dict.fromkeys(
            ("virtual_all_to_all", "virtual_hotspot", "virtual_random", "virtual_ring", "virtual_star"), "virtual time"
        ),
    }


def check(run: Run) -> None:
    assert run.status in ("finished", "degraded"), run.reason
    assert run.balanced
    assert not qemus()


def test_a_storm_among_qemus_balances(tmp_path: Path) -> None:
    run = sim.run(
        "doorbell_storm",
        runs=tmp_path,
        overrides={
            "machines.storm.kind": "qemu",
            "machines.storm.count": 2,
            "run.duration_s": 0.5,
            "run.warmup_s": 0.1,
        },
    )
    check(run)
    assert run.summary["delivered"] > 0
    assert run.summary["settled"] == 0


@pytest.mark.slow
@pytest.mark.sample(3)
@pytest.mark.parametrize("name", HALF_REAL)
def test_half_of_the_machines_of_a_scenario_are_qemus(name: str, tmp_path: Path) -> None:
    topology = half_real(name, 1.0)
    assert any(machine.kind == "qemu" for machine in topology.machines)
    check(sim.run(topology, runs=tmp_path))


ACTIONS = """
[run]
duration_s = 100
warmup_s = 0
on_death = "degrade"

[defaults]
vectors = 2
program = "storm"
parameters = { to = "all", rate_hz = 300.0 }

[machines.model]
count = 2

[machines.real]
count = 4
kind = "qemu"

[[timeline]]
at_s = 0.2
do = "stall"
machines = "real-0"

[[timeline]]
at_s = 0.5
do = "resume"
machines = "real-0"

[[timeline]]
at_s = 0.3
do = "reset"
machines = "real-1"

[[timeline]]
at_s = 0.4
do = "mask"
machines = "real-1"

[[timeline]] # as long as QEMUs take to start on this host, its vectors are rung
at_s = 1.2
when = "up == 6"
do = "unmask"
machines = "real-1"

[[timeline]]
at_s = 0.4
do = "kill"
machines = "real-2"

[[timeline]]
at_s = 0.5
do = "leave"
machines = "real-3"

[[timeline]]
at_s = 0.9
do = "join"
machines = ["real-2", "real-3"]

[[timeline]] # a busy host takes long to start QEMUs
at_s = 1.4
when = "up == 6"
do = "end"
"""


def test_the_timeline_acts_on_qemus(tmp_path: Path) -> None:
    run = sim.run(loads(ACTIONS), runs=tmp_path)
    check(run)
    assert run.status == "finished", run.reason
    done = [event["do"] for event in run.events() if event["kind"] == "action" and "skipped" not in event]
    assert {"stall", "resume", "reset", "mask", "unmask", "kill", "leave", "join"} <= set(done)
    assert run.summary["pba_pending"] > 0
    joined = [event["machine"] for event in run.events() if event["kind"] == "machine_joined"]
    assert sorted(joined) == ["real-2.2", "real-3.2"]


UNPLUGS = """
[run]
duration_s = 100
warmup_s = 0

[defaults]
program = "storm"
parameters = { to = ["model", "real-1"], rate_hz = 100.0 } # a doorbell at a device that goes can end QEMU

[machines.model]
count = 2

[machines.real]
count = 2
kind = "qemu"

[[timeline]]
at_s = 0.3
do = "unplug"
machines = "real-0"

[[timeline]]
at_s = 0.6
do = "leave"
machines = "model-1"

[[timeline]]
at_s = 1.0
do = "unplug"
machines = "real-1"

[[timeline]] # its peers have heard that it has left
at_s = 1.0
when = "refused > 0"
of = "real-1"
do = "end"
"""


def test_a_qemu_is_unplugged_by_device_del_unless_that_aborts_it(tmp_path: Path) -> None:
    run = sim.run(loads(UNPLUGS), runs=tmp_path)
    check(run)
    assert run.status == "finished", run.reason
    told = [event["machine"] for event in run.events() if "device_del aborts" in str(event.get("text"))]
    # The unplugged machine has left its server, which the other one has heard of.
    assert told == ["real-1"]


EXTERNAL = """
[run]
duration_s = 100
warmup_s = 0

[machines.model]
count = 2
vectors = 2
program = "storm"
parameters = {{ to = "theirs", rate_hz = 200.0 }}

[machines.theirs]
kind = "external"
ready_timeout_s = {timeout_s}
vectors = {vectors}

[[timeline]] # as long as it takes to ring all
at_s = 1.0
when = "rung >= {rung}"
of = "model"
do = "end"
"""


def test_an_external_qemu_is_awaited_and_counted(tmp_path: Path) -> None:
    topology = loads(EXTERNAL.format(vectors=VECTORS, timeout_s=60, rung=RUNG))
    seen: list[int] = []

    def begin(begun: Begun) -> None:
        (line,) = external_lines(topology, begun.access)
        path = external_path(Path(begun.access[0].socket), "theirs")
        assert f"socket,path={path}" in line
        thread = threading.Thread(target=be_theirs, args=(path,), daemon=True)
        thread.start()
        threads.append(thread)

    def be_theirs(path: Path) -> None:
        while not path.exists():
            over.wait(0.01)
        with QemuPeer(path, vectors=VECTORS) as real:
            seen.append(real.id)
            interrupt_itself(real)
            for _ in range(RUNG):
                real.ring(0, 1)
            over.wait()

    threads: list[threading.Thread] = []
    over = threading.Event()
    run = sim.run(topology, runs=tmp_path, on_begin=begin)
    over.set()
    threads[0].join()
    check(run)
    assert seen == [2]
    assert run.summary["settled"] == 0
    groups = run.summary["groups"]
    assert groups["model"]["rung"] == RUNG  # which only theirs rings
    assert groups["theirs"]["delivered"] > 0


def test_an_external_machine_without_a_qemu_is_named_when_its_time_is_over(tmp_path: Path) -> None:
    run = sim.run(loads(EXTERNAL.format(vectors=VECTORS, timeout_s=0.3, rung=RUNG)), runs=tmp_path)
    assert run.status == "failed"
    assert "theirs" in run.reason
    assert "its QEMU failed: no QEMU has connected" in run.reason
    assert "within 0.3 s" in run.reason


def test_qemus_end_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    count = 2
    settings = {"kind": "qemu", "count": count, "parameters.rate_hz": 100.0}
    command = [sys.executable, "-m", "sim", "run", "doorbell_storm", "--quiet", "--runs", str(tmp_path)]
    for key, value in settings.items():
        command += ["--set", f"machines.storm.{key}={value}"]
    with subprocess.Popen([*command, "--set", "run.duration_s=600"], stderr=subprocess.DEVNULL) as run:
        deadline_s = time.monotonic() + PATIENCE_S
        while len(there := qemus()) < count:
            assert run.poll() is None
            assert time.monotonic() < deadline_s, "no QEMU has started"
            threading.Event().wait(0.05)
        processes = [psutil.Process(pid) for pid in there]
        run.kill()
    _, left = psutil.wait_procs(processes, PATIENCE_S)
    # One that no process has collected yet has ended all the same.
    assert not [each for each in left if each.status() != psutil.STATUS_ZOMBIE]


DIES = """
import os
from signal import SIGSEGV
from sim.kernel.processes import children

def dies(guest):
    yield guest.clock() + 10_000_000
    for pid in children():
        os.kill(pid, SIGSEGV)
    yield None
"""


def test_a_qemu_that_dies_is_told_with_its_signal(tmp_path: Path) -> None:
    program = tmp_path / "deaths.py"
    program.write_text(DIES)
    run = sim.run(
        "ping_pong",
        runs=tmp_path,
        programs=program,
        overrides={
            "machines.echo.kind": "qemu",
            "machines.echo.program": "deaths:dies",
            "machines.echo.parameters": {},
            "run.duration_s": 60,
        },
    )
    assert run.status == "failed"
    assert "echo died" in run.reason
    assert "QEMU ended (SIGSEGV)" in run.reason
    assert not qemus()
