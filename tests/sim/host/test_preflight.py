"""The preflight: every sum by hand, every limit refused with what it is made of, and what this host really has."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from nodes.errors import HostError, UsageError
from sim.commands.run import write_demand
from sim.coordination.recording_layouts import Layouts
from sim.host.limits import Host, Remaining
from sim.host.preflight import INDEX_BYTES_EACH, RESULTS_BYTES, Demand, ResourceDemand, check, preflight, render
from sim.recording.header import WORD_BYTES
from sim.results import RunDirectory
from tests.synthetic import topology
from topologies import Domain, Memory, Scheduling, TimelineEntry, Topology
from topologies.actions import Join

GROUPS = {"hub": (1, 8), "leaf": (3, 2)}
PLENTY = Remaining(1 << 50, "plenty")
HOST = Host(
    descriptors=PLENTY,
    descriptors_open=10,
    in_flight=PLENTY,
    files=PLENTY,
    processes=PLENTY,
    memory_bytes=PLENTY,
    shm_bytes=PLENTY,
    disk_bytes=PLENTY,
    cpus=frozenset({0, 1, 5}),
    cpus_online=8,
    real_time_priority=0,
    nice=0,
)


def changed(made: Topology, **fields: Any) -> Topology:
    return msgspec.structs.replace(made, **fields)


def scheduled(scheduling: Scheduling) -> Topology:
    made = topology(GROUPS)
    return changed(made, machines=tuple(changed(each, scheduling=scheduling) for each in made.machines))  # type: ignore[type-var]


def sums(made: Topology, host: Host = HOST) -> dict[str, ResourceDemand]:
    return {each.what: each for each in preflight(made, host=host).sums}


def test_every_sum_is_what_it_is_made_of() -> None:
    made = topology(GROUPS)
    found = {what: each.needed for what, each in sums(made).items()}
    eventfds = 8 + 3 * 2
    assert found["descriptors in the coordinator"] == eventfds + 3 * 4 + 64 + 10
    assert found["descriptors in a machine"] == eventfds + 16  # the hub, which keeps all eventfds of all machines
    assert found["processes and threads"] == 4 + 5
    assert found["messages of the server"] == 4 * (3 + eventfds)
    assert found["of shared memory in /dev/shm"] == 4 << 20
    layouts = Layouts(made)
    recordings = sum(layouts.of(machine).words * WORD_BYTES for machine in made.machines)
    assert found["of memory for the results"] == RESULTS_BYTES + INDEX_BYTES_EACH * sum(
        Layouts(made).of(machine).drains for machine in made.machines
    )
    assert found["of disk"] == recordings + round(recordings / 4)
    assert found["of address space in the coordinator"] == (640 << 20) + 2 * recordings
    hub = layouts.of(made.machines[0]).words * WORD_BYTES
    assert found["of address space in a machine"] == (96 << 20) + (4 << 20) + hub
    assert found["in one file"] == max(4 << 20, hub)
    assert found["of CPU time in one process"] == sum(phase.duration_s for phase in made.phases)
    assert found["of memory"] == (4 << 20) + recordings + 4 * round(3.9 * 2**20) + 200 * eventfds


def test_a_watch_for_outliers_holds_descriptors_of_each_machine() -> None:
    made = topology(GROUPS)
    watched = changed(made, run=changed(made.run, stop_above="5ms"))
    for what in ("descriptors in the coordinator", "open files on this host"):
        assert sums(watched)[what].needed - sums(made)[what].needed == 4 * 4, what


def test_a_device_keeps_no_more_eventfds_of_a_peer_than_it_has_vectors() -> None:
    made = topology({"thin": (5, 1), "thick": (2, 100)})
    assert sums(made)["descriptors in a machine"].needed == 5 + 2 * 100 + 16
    made = topology({"thin": (300, 1), "thick": (1, 2)})
    assert sums(made)["descriptors in a machine"].needed == 300 + 2 + 16


def test_a_machine_that_joins_again_needs_new_eventfds() -> None:
    join = TimelineEntry(action=Join(), machines=(1, 2), repeat=10, period_s=1.0)
    made = changed(topology(GROUPS), timeline=(join,))
    before, after = sums(topology(GROUPS)), sums(made)
    more = 2 * 10 * 2
    for what in ("descriptors in the coordinator",):
        assert after[what].needed - before[what].needed == more + 2 * 10  # and a connection each
    late = tuple(changed(each, present=each.index not in (1, 2)) for each in made.machines)  # type: ignore[type-var]
    assert sums(changed(made, machines=late))["messages of the server"].needed == (2 + 20) * (3 + 8 + 2 + 20 * 2)


def test_a_pick_counts_the_machines_that_it_hits() -> None:
    """Ten times one of two machines joins: together they have ten further incarnations, not twenty."""
    join = TimelineEntry(action=Join(), machines=(1, 2), repeat=10, period_s=1.0)
    picked = msgspec.structs.replace(join, pick=1)
    all_of_them, one = (sums(changed(topology(GROUPS), timeline=(entry,))) for entry in (join, picked))
    before = sums(topology(GROUPS))
    what = "descriptors in the coordinator"
    assert one[what].needed - before[what].needed == (all_of_them[what].needed - before[what].needed) / 2


def test_a_bridge_has_a_device_in_each_domain() -> None:
    made = topology({"a": (2, 2), "bridge": (1, 2)})
    domains = (Domain(), Domain(name="other", memory=Memory(size_bytes=1 << 20, kind="memfd")))
    machines = (*made.machines[:2], changed(made.machines[2], domains=("main", "other")))  # type: ignore[type-var]
    found = sums(changed(made, domains=domains, machines=machines))
    assert found["descriptors in a machine"].needed == 3 * 2 + 1 * 2 + 16 + 5
    assert found["messages of the server"].needed == 3 * (3 + 6) + 1 * (3 + 2)
    assert found["of nameless memory"].needed == 1 << 20
    assert found["of shared memory in /dev/shm"].needed == 4 << 20


@pytest.mark.parametrize(
    ("limit", "what"),
    [
        ("descriptors", "descriptors in the coordinator"),
        ("files", "open files on this host"),
        ("processes", "processes and threads"),
        ("memory_bytes", "of memory"),
        ("shm_bytes", "of shared memory in /dev/shm"),
        ("disk_bytes", "of disk"),
        ("address_space_bytes", "of address space in the coordinator"),
        ("file_bytes", "in one file"),
    ],
)
def test_each_limit_refuses_what_is_one_too_many(limit: str, what: str) -> None:
    needed = round(sums(topology(GROUPS))[what].needed)
    exactly = dataclasses.replace(HOST, **{limit: Remaining(needed, "a limit")})
    assert preflight(topology(GROUPS), host=exactly).problems == []
    short = dataclasses.replace(HOST, **{limit: Remaining(needed - 1, "a limit")})
    (problem,) = [text for text in preflight(topology(GROUPS), host=short).problems if f" {what}" in text]
    assert problem.startswith("this topology needs ")
    assert "this host allows" in problem
    assert "(a limit)" in problem


def test_a_limit_that_only_delays_is_a_warning() -> None:
    short = dataclasses.replace(HOST, in_flight=Remaining(5, "few"))
    demand = preflight(topology(GROUPS), host=short)
    assert demand.problems == []
    (warning,) = demand.warnings
    assert "descriptors in flight" in warning


def test_nothing_is_refused_by_a_limit_that_there_is_not() -> None:
    limits = ("descriptors", "in_flight", "files", "processes", "memory_bytes", "shm_bytes", "disk_bytes")
    assert preflight(topology(GROUPS), host=dataclasses.replace(HOST, **dict.fromkeys(limits))).problems == []


def test_the_error_says_every_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = dataclasses.replace(
        HOST, descriptors=Remaining(3, "ulimit -Hn"), memory_bytes=Remaining(4096, "available memory")
    )
    monkeypatch.setattr(Host, "here", lambda runs: poor)
    with pytest.raises(HostError) as refused:
        check(topology(GROUPS), tmp_path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "this topology needs 100 descriptors in the coordinator (14 eventfds, 3 for each of 4 machines, 74 others); "
        "this host allows 3 (ulimit -Hn). Take fewer machines or vectors, or raise the limit"
    )
    assert lines[2].endswith("this host allows 4.0 KiB (available memory). Take fewer machines or a smaller memory")


@pytest.mark.parametrize("below", [".", "further", "further/down"])
def test_where_no_run_directory_can_be_made_is_said_as_the_run_would(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        runs = tmp_path / name / below
        (problem,) = preflight(topology(GROUPS), runs, HOST).problems
        assert problem == (
            f"{runs}: no run directory can be made there: {tmp_path / name} is no directory. "
            "Name another one with --runs"
        )
        with pytest.raises(UsageError, match="run directory cannot be made"):
            RunDirectory.create(runs, topology(GROUPS), {})
        assert write_demand(topology(GROUPS), runs) == 2
        with pytest.raises(UsageError, match="Name another one"):
            check(topology(GROUPS), runs)
    assert preflight(topology(GROUPS), tmp_path / "new" / below, HOST).problems == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    (problem,) = preflight(topology(GROUPS), tmp_path / "runs", HOST).problems
    tmp_path.chmod(0o700)
    assert f"{tmp_path} cannot be written" in problem


# Scheduling


@pytest.mark.parametrize(
    ("scheduling", "said"),
    [
        (
            Scheduling(cpus=(0, 6, 9)),
            "no CPU 6, 9 for this process: this host has 8 CPUs, allowed are 0-1,5. Name others in `cpus`",
        ),
        (Scheduling(policy="fifo", priority=10), "policy fifo with priority 10 is not permitted: at most 0 is"),
        (Scheduling(nice=-5), "nice -5 is not permitted: at least 0 is"),
    ],
)
def test_scheduling_that_cannot_be_had_is_refused_once_for_all(scheduling: Scheduling, said: str) -> None:
    (problem,) = preflight(scheduled(scheduling), host=HOST).problems
    assert problem.startswith("hub-0 and 3 more: ")
    assert said in problem


@pytest.mark.parametrize(
    "scheduling",
    [Scheduling(), Scheduling(cpus=(0, 5)), Scheduling(policy="batch", nice=5), Scheduling(policy="fifo", priority=9)],
)
def test_scheduling_that_can_be_had_is_not(scheduling: Scheduling) -> None:
    assert preflight(scheduled(scheduling), host=dataclasses.replace(HOST, real_time_priority=9)).problems == []


# This host


def test_this_host_is_what_the_kernel_says(tmp_path: Path) -> None:
    host = Host.here(tmp_path / "not" / "yet")
    assert host.cpus == os.sched_getaffinity(0)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert host.descriptors is None or host.descriptors.amount == hard
    room = os.statvfs(tmp_path)
    assert host.disk_bytes is not None
    assert 0 < host.disk_bytes.amount <= room.f_blocks * room.f_frsize
    assert str(tmp_path) in host.disk_bytes.limit
    assert host.memory_bytes is not None
    assert 0 < host.memory_bytes.amount <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host.processes is not None
    assert host.processes.amount > 0
    assert -20 <= host.nice <= 19


# What is printed


def test_the_table_has_a_line_for_each_sum_and_says_what_is_wrong() -> None:
    short = dataclasses.replace(HOST, files=Remaining(7, "fs.file-max"))
    demand = preflight(topology(GROUPS), host=short)
    console = Console(file=io.StringIO(), width=50)
    render(demand, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1 + len(demand.sums) + 1
    assert lines[-1].startswith("! this topology needs 90 open files on this host (14 eventfds")


def test_the_dry_run_prints_json_and_its_code_says_whether_it_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "here", lambda runs: HOST)
    assert write_demand(topology(GROUPS), tmp_path, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is True
    assert {each["what"] for each in told["sums"]} == set(sums(topology(GROUPS)))
    monkeypatch.setattr(Host, "here", lambda runs: dataclasses.replace(HOST, processes=Remaining(1, "ulimit -u")))
    assert write_demand(topology(GROUPS), tmp_path) == 3
    assert "9 processes and threads (4 machines, 5 helpers)" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_demand_is_json() -> None:
    demand = preflight(topology(GROUPS), host=HOST)
    assert msgspec.json.decode(msgspec.json.encode(demand), type=Demand) == demand
