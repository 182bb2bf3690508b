"""Machines that migrate while others storm them: each verdict and each fault, in real runs.

IVSIM_MIGRATIONS says how many seeded migrations the longest of these tests makes.
"""

from __future__ import annotations

import io
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import cast, get_args

import pytest

import sim
from nodes.device.migration_texts import MigrationError
from nodes.device.profiles import PROFILES
from sim.runner import Begun
from sim.views.terminal import render
from tests.nodes.device.test_ivshmem_state import PEER_MODE
from tests.system.slower import run_in_time
from tests.system.test_timeline import entry, events
from topologies import loads
from topologies.actions import Fault
from topologies.migration_check import failing_migrations

MIGRATIONS = int(os.environ.get("IVSIM_MIGRATIONS", "24"))
A_RUN = 24
IN_PROGRESS = "There's a migration process in progress"

HEAD = """
title = "Migrate"
[run]
duration_s = 0.8
warmup_s = 0.1
sample_every = 8
[domains.here]
size = "1M"
[domains.there]
size = "1M"
"""


def group(name: str, **given: object) -> str:
    """A group of machines, as a file has it."""
    values = {"vectors": 2, "profile": "qemu-1.1", "domains": ["here"], "program": "tests.guest_programs:ring_in_turn"}
    lines = (f"{key} = {_toml(value)}" for key, value in {**values, **given}.items())
    return f"[machines.{name}]\n" + "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


OLD = group("old", count=4)
MASTER = group("master", profile="qemu-doorbell", role="master")
PEER = group("peer", profile="qemu-doorbell")


def go(tmp_path: Path, *parts: str, **overrides: str) -> sim.Run:
    """A run of these parts of a file; its counts balance, and no machine died that was not told to."""
    result = run_in_time(HEAD + "".join(parts), tmp_path, overrides)
    assert result.status in ("finished", "interrupted"), result.reason
    assert_sound(result)
    return result


def assert_sound(result: sim.Run) -> None:
    """The books balance to the last doorbell; each program that ended got each interrupt of its machine, once."""
    summary = result.summary
    assert result.balanced
    assert summary["rung"] == summary["delivered"] + summary["pending"] + summary["refused"] > 0
    killed = [each for each in events(result, "machine_left") if each["how"] != "left"]
    assert killed or summary["settled"] == 0
    assert not events(result, "machine_died")
    assert not events(result, "machine_killed")
    assert not events(result, "failure")
    # Without the domain that a life has moved to.
    rows = {machine["index"]: ".".join(machine["name"].split(".")[:2]) for machine in result.machines}
    interrupts: Counter[str] = Counter()
    for row in result.vectors().to_pylist():
        interrupts[rows[row["machine"]]] += row["interrupts"]
    said = [each for each in events(result, "statistics") if "interrupts" in each["values"]]
    assert len({each["machine"] for each in said}) == len(said)
    for each in said:
        assert each["values"]["starts"] == 1
        assert each["values"]["interrupts"] == interrupts[each["machine"]]
    assert_one_process(result)


def assert_one_process(result: sim.Run) -> None:
    """Each migration ends before the machine's next one, and each begins with the ID that the last one left it."""
    peers: dict[str, int] = {}
    moving: set[str] = set()
    for event in result.events():
        name = str(event.get("machine")).split(".")[0]
        match event["kind"]:
            case "action" if event["do"] == "migrate" and not {"refused", "skipped"} & event.keys():
                assert name not in moving
                moving.add(name)
            case "migrated":
                moving.remove(name)
                assert event["from_peer"] == peers.get(name, event["from_peer"])
                peers[name] = event["to_peer"]
            case "migration_failed":
                moving.remove(name)
            case "machine_left":
                moving.discard(name)
                peers.pop(name, None)
            case "machine_joined":
                peers[name] = event["peers"][0]
    assert not moving


def verdicts(result: sim.Run) -> list[tuple[str, str, str]]:
    return [(each["machine"], each["verdict"], each["reason"]) for each in result.migrations().to_pylist()]


def said(result: sim.Run, machine: str) -> dict[str, float]:
    (its,) = (each["values"] for each in events(result, "statistics") if each["machine"] == machine)
    return cast(dict[str, float], its)


def skipped(result: sim.Run) -> list[tuple[str, str]]:
    return [(each["do"], each["skipped"]) for each in events(result, "action") if "skipped" in each]


# It moves


def test_a_master_takes_its_memory_to_another_domain(tmp_path: Path) -> None:
    """What the program had cached shows the other memory: a machine there sees it continue to count."""
    seer = group("seer", domains=["there"], program="tests.guest_programs:watch_word")
    result = go(tmp_path, OLD, seer, entry("migrate", 0.4, "old-1", to_domain="there"))
    (its,) = result.migrations().to_pylist()
    assert (its["verdict"], its["from_domain"], its["to_domain"]) == ("moved", "here", "there")
    assert (its["from_peer"], its["to_peer"], its["memory_bytes"]) == (1, 1, 1 << 20)
    seen = said(result, "seer")
    assert seen["last"] > seen["first"] > 0
    before, after = its["delivered_before"], its["delivered_after"]
    row = sum(each["delivered"] for each in result.vectors().to_pylist() if each["machine"] == 1)
    assert before > 0
    assert (after, before + after) == (0, row)  # no machine rings it there


def test_to_a_new_id_on_its_own_server(tmp_path: Path) -> None:
    result = go(tmp_path, OLD, entry("migrate", 0.4, "old-1"))
    (its,) = result.migrations().to_pylist()
    assert (its["from_peer"], its["to_peer"], its["memory_bytes"]) == (1, 4, 0)
    assert its["delivered_after"] > 0
    (left,) = events(result, "left_behind")
    assert (left["machine"], left["peer"], left["doorbells"]) == ("old-1", 1, its["left_behind"])
    assert its["left_behind"] <= result.summary["pending"]


@pytest.mark.parametrize("profile", [each.name for each in PROFILES.values() if each.stream and not each.msix])
def test_a_device_without_msix_moves(profile: str, tmp_path: Path) -> None:
    """There are no pending bits that could travel."""
    one = group("one", profile=profile, role="master", program="idle", parameters={})
    moves = entry("migrate", 0.3, "one", hand_over=True) + entry("migrate", 0.5, "one", to_domain="there")
    result = go(tmp_path, one, OLD, moves)
    assert verdicts(result) == [("one", "moved", "")] * 2
    assert {each["pending_vectors"] for each in result.migrations().to_pylist()} == {0}


def test_a_hand_over_is_not_noticed_by_peers(tmp_path: Path) -> None:
    move = entry("migrate", 0.3, "master", hand_over=True, repeat=4, period_s=0.15)
    result = go(tmp_path, MASTER, PEER, move)
    assert [each[1] for each in verdicts(result)] == ["moved"] * 4
    assert result.summary["refused"] == 0
    assert not events(result, "peer_left")
    assert not events(result, "left_behind")
    assert {each["left_behind"] for each in result.migrations().to_pylist()} == {0}


def test_pending_and_masked_vectors_travel(tmp_path: Path) -> None:
    """Rung while masked, moved to a domain without other machines, unmasked there: it fires, once."""
    hears = group("hears", profile="qemu-doorbell", role="master", program="tests.guest_programs:count_by_vector")
    late = group("late", profile="qemu-doorbell", absent=True, parameters={"to": "hears"})
    result = go(
        tmp_path,
        hears,
        late,
        entry("mask", 0.1, "hears", vectors=[1]),
        entry("join", 0.2, "late"),
        entry("migrate", 0.5, "hears", to_domain="there"),
        entry("unmask", 0.7, "hears", vectors=[1]),
    )
    (its,) = result.migrations().to_pylist()
    assert (its["verdict"], its["pending_vectors"]) == ("moved", 1)
    assert said(result, "hears")["v0"] > 1
    assert said(result, "hears")["v1"] == 1


def test_many_moves_of_one_machine(tmp_path: Path) -> None:
    """Each migration takes new rows in the recordings of the machines that move and of those that stay."""
    result = go(tmp_path, OLD, entry("migrate", 0.1, "old-1", repeat=24, period_s=0.04))
    assert {each[1] for each in verdicts(result)} <= {"moved", "refused"}
    assert sum(each[1] == "moved" for each in verdicts(result)) > 5


def test_a_machine_that_joins_may_move_before_it_begins(tmp_path: Path) -> None:
    late = group("late", absent=True, count=2, parameters={"to": "old"})
    # More would need more memory for recordings than a host has where the run is made longer.
    moves = entry("migrate", 0.2, "late", repeat=150, period_s=0.004)
    result = run_in_time("".join((HEAD, OLD, late, entry("join", 0.2, "late"), moves)), tmp_path)
    assert_sound(result)
    assert sum(verdict == "moved" for _, verdict, _ in verdicts(result)) > 2  # and one as soon as the other is over
    assert said(result, "late-1")["starts"] == 1


def test_a_machine_that_has_moved_can_leave_and_come_back(tmp_path: Path) -> None:
    result = go(
        tmp_path,
        OLD,
        entry("migrate", 0.3, "old-1", to_domain="there"),
        entry("leave", 0.5, "old-1"),
        entry("join", 0.55, "old-1"),
        entry("migrate", 0.7, "old-1"),
    )
    assert [(each["machine"], each["how"]) for each in events(result, "machine_left")] == [("old-1", "left")]
    assert [each[:2] for each in verdicts(result)] == [("old-1", "moved"), ("old-1.2", "moved")]
    moved = result.migrations().to_pylist()[1]
    assert (moved["from_domain"], moved["from_peer"], moved["to_peer"]) == ("here", 4, 5)


# It is refused


def test_a_peer_is_refused_in_the_words_of_qemu(tmp_path: Path) -> None:
    result = go(tmp_path, MASTER, PEER, entry("migrate", 0.4, "peer"))
    assert verdicts(result) == [("peer", "refused", PEER_MODE)]
    assert result.summary["refused"] == 0


def test_a_role_that_is_left_to_the_id(tmp_path: Path) -> None:
    """Peer 0 is a master, where it lands as another one it would be a peer; the others are peers from the beginning."""
    auto = group("auto", count=2, profile="qemu-doorbell", role="auto")
    memory_only = {"profile": "qemu-plain", "vectors": 0, "program": "idle", "parameters": {}}
    plain = group("plain", role="auto", **memory_only)
    result = go(
        tmp_path,
        auto,
        PEER,
        plain,
        entry("migrate", 0.1, "auto-1"),
        entry("migrate", 0.15, "auto-0"),
        entry("migrate", 0.3, "auto-0", hand_over=True),
        entry("migrate", 0.45, "auto-0", to_domain="there"),
        entry("migrate", 0.6, "plain"),
    )
    assert verdicts(result) == [
        ("auto-1", "refused", PEER_MODE),
        ("auto-0", "failed", "'peer' devices are not migratable"),
        ("auto-0", "moved", ""),
        ("auto-0", "moved", ""),
        ("plain", "moved", ""),
    ]
    assert [each["to_peer"] for each in result.migrations().to_pylist()][2:4] == [0, 0]


def test_the_newest_blocker_is_named(tmp_path: Path) -> None:
    blocked = group("master", profile="qemu-doorbell", role="master", blockers=["an older one", "a disk"])
    result = go(tmp_path, blocked, PEER, entry("migrate", 0.4, "master"))
    assert verdicts(result) == [("master", "refused", "a disk")]


def test_a_second_migration_at_once_is_refused(tmp_path: Path) -> None:
    result = go(tmp_path, OLD, entry("migrate", 0.4, "old-1", repeat=2, period_s=0.0001))
    assert sorted(verdicts(result)) == [("old-1", "moved", ""), ("old-1", "refused", IN_PROGRESS)]


def test_actions_refused_during_a_migration(tmp_path: Path) -> None:
    words = ["device_del not allowed while migrating", *["it is migrating"] * 3]
    others = [entry(do, 0.4, f"old-{place}") for place, do in enumerate(("unplug", "stall", "leave", "reset"))]
    result = go(tmp_path, OLD, entry("migrate", 0.4, "old"), *others)
    assert skipped(result) == list(zip(("unplug", "stall", "leave", "reset"), words, strict=True))
    assert verdicts(result).count(("old-1", "moved", "")) == 1
    assert [each[1] for each in verdicts(result)] == ["moved"] * 4


def test_an_impossible_migration_says_why(tmp_path: Path) -> None:
    result = go(
        tmp_path,
        OLD,
        entry("stall", 0.3, "old-1"),
        entry("migrate", 0.35, "old-1"),
        entry("unplug", 0.3, "old-2"),
        entry("migrate", 0.35, "old-2"),
        entry("migrate", 0.4, "old-3", to_domain="there", hand_over=True),
        entry("migrate", 0.4, "old-3", to_domain="there", when="delivered > 1e9"),
    )
    assert [why.partition(":")[0] for _, why in skipped(result)] == [
        "it is stalled",
        "its device is unplugged",
        "a connection that is handed over stays in its domain",
    ]
    assert verdicts(result) == []


# It fails


def test_a_failed_migration_continues_at_the_source(tmp_path: Path) -> None:
    """Twice of each: a new process that dies, and a cancel; with a new ID, and handed over."""
    cases = [(fault, over) for fault in ("target_dies", "cancel") for over in (False, True)]
    moves = [
        entry("migrate", 0.2 + 0.05 * place, f"old-{place}", fault=fault, hand_over=over, repeat=2, period_s=0.3)
        for place, (fault, over) in enumerate(cases)
    ]
    result = go(tmp_path, OLD, *moves)
    why = {"target_dies": "its new process died", "cancel": "it was cancelled"}
    assert sorted(verdicts(result)) == sorted(
        (f"old-{place}", "failed", why[fault]) for place, (fault, _) in enumerate(cases) for _ in range(2)
    )
    assert result.summary["refused"] == 0
    assert all(each["delivered_after"] > 0 for each in result.migrations().to_pylist())


def test_a_migration_to_a_missing_server_fails(tmp_path: Path) -> None:
    result = go(tmp_path, OLD, entry("migrate", 0.4, "old-1", fault="server_gone"))
    ((_, verdict, why),) = verdicts(result)
    assert verdict == "failed"
    assert why.startswith("no server listens on ")
    assert result.summary["refused"] == 0


@pytest.mark.parametrize("to_domain", ["here", "there"])
@pytest.mark.parametrize("profile", ["qemu-1.1", "qemu-1.1-intx"])
def test_the_state_comes_before_the_memory(profile: str, to_domain: str, tmp_path: Path) -> None:
    """Row 102, at the target: QEMU's words for a block that one side has and the other lacks."""
    old = group("old", count=4, profile=profile)
    move = entry("migrate", 0.3, "old-1", fault="late_memory", to_domain=to_domain, repeat=2, period_s=0.2)
    result = go(tmp_path, old, move)
    unknown = 'Unknown ramblock "ivshmem.bar2", cannot accept migration'
    assert verdicts(result) == [("old-1", "failed", unknown)] * 2
    assert result.summary["refused"] == 0
    assert all(each["delivered_after"] > 0 for each in result.migrations().to_pylist())
    assert said(result, "old-1")["starts"] == 1


def test_a_source_that_dies_takes_the_machine_with_it(tmp_path: Path) -> None:
    dies = entry("migrate", 0.3, "old-1", fault="source_dies")
    result = go(tmp_path, OLD, dies, entry("kill", 0.5, "old-1"), entry("join", 0.5, "old-1"))
    assert skipped(result) == [("kill", "it is not running")]
    assert verdicts(result) == [("old-1", "failed", "its process ended meanwhile (SIGKILL)")]
    assert [each["machine"] for each in events(result, "machine_joined")] == ["old-1.2"]


def test_a_source_that_could_not_be_killed_continues(tmp_path: Path) -> None:
    """Its new process never gets ready; whatever it is told next, it can do."""
    doomed = entry("migrate", 0.3, "master", fault="source_dies")
    result = go(tmp_path, MASTER, PEER, doomed, entry("leave", 0.7, "master"))
    assert [each[1] for each in verdicts(result)] == ["failed"]
    assert [(each["how"], each["action"]) for each in events(result, "machine_left")] == [("left", "leave")]


def test_memory_of_another_size(tmp_path: Path) -> None:
    result = go(
        tmp_path,
        MASTER,
        PEER,
        entry("migrate", 0.4, "master", to_domain="there"),
        **{"domains.there.size": "2M"},
    )
    assert verdicts(result) == [
        ("master", "failed", "Size mismatch: ivshmem.bar2: 0x100000 != 0x200000: Invalid argument")
    ]
    assert result.summary["refused"] == 0


def test_memory_that_is_smaller_than_a_device_of_2012(tmp_path: Path) -> None:
    move = entry("migrate", 0.4, "old-1", to_domain="there")
    result = go(tmp_path, OLD, move, **{"domains.there.size": "512K"})
    too_small = "IVSHMEM ERROR: Requested memory size greater than shared object size (1048576 > 524288)"
    assert verdicts(result) == [("old-1", "failed", too_small)]
    assert result.summary["refused"] == 0


def test_two_masters_cannot_land_on_one_server(tmp_path: Path) -> None:
    other = group("other", profile="qemu-doorbell", role="master", domains=["third"], parameters={"to": []})
    result = go(
        tmp_path,
        '[domains.third]\nsize = "1M"\n',
        MASTER,
        PEER,
        other,
        entry("migrate", 0.3, "master", to_domain="there"),
        entry("migrate", 0.5, "other", to_domain="there"),
    )
    not_first = "master must connect to the server before any peers: it is peer 1"
    assert verdicts(result) == [("master", "moved", ""), ("other", "failed", not_first)]


def test_predicted_failures_of_migrations_occur(tmp_path: Path) -> None:
    text = HEAD + '[domains.wide]\nsize = "2M"\n[domains.narrow]\nsize = "512K"\n' + MASTER + PEER + OLD
    text += entry("migrate", 0.1, "peer") + entry("migrate", 0.15, "master") + entry("migrate", 0.25, "old-0")
    text += entry("migrate", 0.35, "master", to_domain="wide") + entry("migrate", 0.4, "old-1", to_domain="narrow")
    text += entry("migrate", 0.45, "old-2", to_domain="wide")
    text += entry("migrate", 0.5, "master", to_domain="there", repeat=2, period_s=0.15)
    told = [
        (*each.machines, each.verdict, each.reason.partition(", from")[0]) for each in failing_migrations(loads(text))
    ]
    result = run_in_time(text, tmp_path)
    assert_sound(result)
    found = [each for each in verdicts(result) if each[1] != "moved"]
    assert [(name, verdict[:4], reason.partition(": it is peer")[0]) for name, verdict, reason in found] == [
        (name, verdict[:4], reason) for name, verdict, reason in told
    ]
    assert len(told) == 5


# Something else happens meanwhile


@pytest.mark.parametrize("after_ms", [0, 3, 6, 12])
def test_killed_in_the_middle(after_ms: int, tmp_path: Path) -> None:
    result = go(tmp_path, OLD, entry("migrate", 0.4, "old-1"), entry("kill", 0.4 + after_ms / 1e3, "old-1"))
    assert [(each["how"], each["action"]) for each in events(result, "machine_left")] == [("SIGKILL", "kill")]
    assert result.summary["refused"] > 0


@pytest.mark.parametrize("before_ms", [1, 6, 15])
def test_the_end_of_the_run_in_the_middle(before_ms: int, tmp_path: Path) -> None:
    moves = entry("migrate", 0.6 - before_ms / 1e3, "old", to_domain="there")
    result = go(tmp_path, OLD, moves, **{"run.duration_s": "0.5"})
    assert result.status == "finished"
    # Machines that were told before the end have a verdict; for the others nothing had begun.
    told = [each for each in events(result, "action") if each["do"] == "migrate" and "skipped" not in each]
    assert len(verdicts(result)) == len(told) <= 4
    assert len(events(result, "statistics")) == 4


def test_an_interrupt_in_the_middle(tmp_path: Path) -> None:
    """As by Ctrl-C, the moment that a migration has begun."""
    threads = []

    def interrupt(begun: Begun) -> None:
        def wait() -> None:
            while b'"do":"migrate"' not in (begun.path / "events.jsonl").read_bytes():
                time.sleep(0.0005)
            os.kill(os.getpid(), signal.SIGINT)

        threads.append(threading.Thread(target=wait))
        threads[0].start()

    text = HEAD + OLD + entry("migrate", 0.3, "old", to_domain="there")
    overrides = {"run.duration_s": "60.0"}
    result = sim.run(loads(text, overrides=overrides), runs=tmp_path, resources_every_s=0, on_begin=interrupt)
    threads[0].join()
    assert result.status == "interrupted"
    assert_sound(result)
    assert len(verdicts(result)) == 4


def test_a_server_that_stops_in_the_middle(tmp_path: Path) -> None:
    """Whether it came in time or not, the machine is there."""
    servers = [entry("stop_server", 0.4, domain="there"), entry("start_server", 0.5, domain="there")]
    result = go(tmp_path, OLD, entry("migrate", 0.4, "old", to_domain="there"), *servers)
    assert len(verdicts(result)) == 4
    assert len(events(result, "statistics")) == 4
    assert result.figures.elapsed_s < 3 * (result.figures.warmup_s / 0.1)  # the scale of `run_in_time`


def test_a_machine_that_joins_while_a_migration_fails_is_known_afterwards(tmp_path: Path) -> None:
    late = group("late", absent=True, parameters={"to": []})
    moves = entry("migrate", 0.2, "old-1", fault="cancel", repeat=60, period_s=0.005)
    ring = {"machines.old.parameters.to": "late"}
    result = go(tmp_path, OLD, late, moves, entry("join", 0.25, "late"), **ring)
    rung = {row["source"] for row in result.edges().to_pylist() if row["rung"] and row["target"] == 4}
    assert rung == {0, 1, 2, 3}


# What is shown


def test_migrations_are_in_the_table_and_those_that_failed_say_why(tmp_path: Path) -> None:
    from rich.console import Console

    result = go(tmp_path, MASTER, PEER, entry("migrate", 0.4, "peer"), entry("migrate", 0.5, "master", hand_over=True))
    console = Console(width=80, record=True, file=io.StringIO())
    render(result, console)
    shown = console.export_text()
    assert f"refused: peer: {PEER_MODE}" in shown
    assert any(line.split()[:3] == ["master", "moved", "1"] for line in shown.splitlines())
    assert "handed over, connection and ID: master" in shown
    quiet = go(tmp_path, MASTER, PEER, **{"run.duration_s": "0.2"})
    render(quiet, console)
    assert "verdict" not in console.export_text()
    assert quiet.migrations().num_rows == 0


def test_figures_of_expectations(tmp_path: Path) -> None:
    expected = {
        "migrated == 1": "old",
        "migrated == 0": "old-2",
        "migrations_failed == 1": "old-2",
        "migrations_refused == 1": "",
        "downtime_ms > 0": "",
        "downtime_ms < 0": "old-3",
    }
    expectations = [
        f'[[expect]]\nthat = "{that}"\n' + (f'of = "{of}"\n' if of else "") for that, of in expected.items()
    ]
    result = go(
        tmp_path,
        OLD,
        *expectations,
        entry("migrate", 0.3, "old-1", repeat=2, period_s=0.0001),
        entry("migrate", 0.3, "old-2", fault="cancel"),
    )
    found = result.figures.expectations
    assert [each.met for each in found] == [True] * 5 + [False]
    assert found[-1].why == "no machine migrated"


# Many


def roaming(seed: int) -> str:
    """A storm of five on two servers, of which one migrates every 60 ms; half of the times, something goes wrong."""
    chance = random.Random(seed)
    parts = [HEAD, group("old", count=5, parameters={"to": "old", "rate_hz": 1000.0})]
    for number in range(A_RUN):
        at_s, name = 0.2 + 0.06 * number, f"old-{chance.randrange(5)}"
        fault = {"fault": chance.choice(get_args(Fault))} if number % 2 else {}
        hand_over = chance.random() < 0.3 and fault.get("fault") != "late_memory"
        where = {"hand_over": True} if hand_over else {"to_domain": chance.choice(["here", "there"])}
        parts.append(entry("migrate", at_s, name, **where, **fault))
        if fault.get("fault") == "source_dies":
            parts.append(entry("kill", at_s + 0.05, name))  # should it not have come to that
            parts.append(entry("join", at_s + 0.05, name))
    return "".join(parts).replace("duration_s = 0.8", "duration_s = 1.8").replace("\n[run]", f"\nseed = {seed}\n[run]")


def test_no_machine_is_lost_or_doubled_over_many_migrations(tmp_path: Path) -> None:
    counted: Counter[str] = Counter()
    for seed in range(-(-MIGRATIONS // A_RUN)):
        result = run_in_time(roaming(seed), tmp_path)
        assert result.status == "finished", f"seed {seed}: {result.reason}"
        assert_sound(result)
        began = [each for each in events(result, "action") if each["do"] == "migrate" and "skipped" not in each]
        counted.update(verdict for _, verdict, _ in verdicts(result))
        assert len(verdicts(result)) == len(began)
        killed = {each["machine"] for each in events(result, "machine_left")}
        names = {machine["name"] for machine in result.machines if machine["of"] is None} | {
            each["machine"] for each in events(result, "machine_joined")
        }
        assert {each["machine"] for each in events(result, "statistics")} == names - killed
    assert counted["moved"] > MIGRATIONS // 4
    assert counted["failed"] > MIGRATIONS // 8


def test_words_are_those_of_the_device() -> None:
    """The refusal that runs tell is the one that `nodes.device.migration` raises."""
    from nodes.device.blockers import Blockers

    blockers = Blockers()
    blockers.begin()
    with pytest.raises(MigrationError, match=IN_PROGRESS):
        blockers.begin()
