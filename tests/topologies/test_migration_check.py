"""topologies.migration_check: migrations of a timeline that are refused or fail, as far as the file tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nodes.device.test_ivshmem_state import PEER_MODE
from topologies import load, loader, loads, migration_check
from topologies.migration_check import FailingMigration, failing_migrations

TEXT = """
[domains.here]
[domains.there]
[domains.busy]
[machines.master]
role = "master"
program = "idle"
domains = ["here"]
[machines.peer]
count = 4
program = "idle"
domains = ["here"]
[machines.old]
count = 2
profile = "qemu-1.1"
program = "idle"
domains = ["busy"]
[machines.late]
absent = true
program = "idle"
domains = ["there"]
"""
LINE = TEXT.count("\n") + 1
SCENARIOS = Path(loader.__file__).with_name("scenarios")
NOT_FIRST = "master must connect to the server before any peers"


def migrate(machines: str, *more: str, at_s: float = 1.0) -> str:
    return "\n".join(["[[timeline]]", f"at_s = {at_s}", 'do = "migrate"', f"machines = {machines}", *more]) + "\n"


def told(*entries: str) -> list[tuple[int, tuple[str, ...], str, str]]:
    found = failing_migrations(loads(TEXT + "".join(entries)))
    return [(each.line - LINE, each.machines, each.verdict, each.reason) for each in found]


def test_a_master_of_today_cannot_migrate_to_a_used_domain() -> None:
    fails = [(0, ("master",), "fails", NOT_FIRST)]
    assert told(migrate("'master'")) == fails
    assert told(migrate("'master'", "to_domain = 'here'")) == fails
    assert told(migrate("'master'", "to_domain = 'busy'")) == fails
    assert told(migrate("'master'", "to_domain = 'there'")) == []
    assert told(migrate("'master'", "hand_over = true")) == []
    assert told(migrate("'master'", "when = 'delivered > 5'")) == fails
    assert told(migrate("'old'")) == []


def test_the_second_one_is_not_the_first() -> None:
    join = "[[timeline]]\nat_s = {}\ndo = 'join'\nmachines = 'late'\n"
    move = migrate("'master'", "to_domain = 'there'")
    assert told(move, join.format(2.0)) == []
    assert told(move, join.format(0.5)) == [(0, ("master",), "fails", NOT_FIRST)]
    assert told(move, join.format(0.5) + "when = 'delivered > 5'\n") == []
    assert told(move, migrate("'old-0'", "to_domain = 'there'", at_s=0.5)) == [(0, ("master",), "fails", NOT_FIRST)]
    assert told(move, migrate("'old'", "to_domain = 'there'", "pick = 1", at_s=0.5)) == []
    assert told(move, migrate("'old-0'", "to_domain = 'there'", "fault = 'cancel'", at_s=0.5)) == []
    again = migrate("'master'", "to_domain = 'there'", "repeat = 9", "period_s = 0.1")
    assert told(again) == [(0, ("master",), "fails", f"{NOT_FIRST}, from the second time on")]


def test_a_blocker_refuses_whatever_else_is_asked() -> None:
    refused = ("peer-0", "peer-1", "peer-2", "peer-3")
    assert told(migrate("['peer', 'master']", "fault = 'cancel'")) == [(0, refused, "refused", PEER_MODE)]
    blocked = TEXT.replace('role = "master"', 'role = "master"\nblockers = ["an older one", "a disk"]')
    (own, device) = failing_migrations(loads(blocked + migrate("['master', 'peer']")))
    assert (own.machines, own.reason) == (("master",), "a disk")
    assert (device.machines, device.reason) == (refused, PEER_MODE)


def test_a_role_that_is_left_to_the_id() -> None:
    """The role "auto" is a master as peer 0, and a peer where it would get another ID."""
    auto = TEXT.replace('role = "master"', 'role = "auto"').replace("count = 4", 'count = 4\nrole = "auto"')
    auto = auto.replace("absent = true", 'absent = true\nrole = "auto"')
    peers = ("peer-0", "peer-1", "peer-2", "peer-3")

    def told(*entries: str) -> list[tuple[tuple[str, ...], str, str]]:
        return [
            (each.machines, each.verdict, each.reason) for each in failing_migrations(loads(auto + "".join(entries)))
        ]

    assert told(migrate("['master', 'peer']", "to_domain = 'there'")) == [(peers, "refused", PEER_MODE)]
    assert told(migrate("'master'", "to_domain = 'busy'")) == [
        (("master",), "fails", "'peer' devices are not migratable")
    ]
    assert told(migrate("'master'")) == [(("master",), "fails", "'peer' devices are not migratable")]
    assert told(migrate("'master'", "hand_over = true")) == []
    join = "[[timeline]]\nat_s = 1.5\ndo = 'join'\nmachines = 'late'\n"
    late = migrate("'late'", "hand_over = true", at_s=2.0)
    assert told(join, late) == []
    assert told(migrate("'old-0'", "to_domain = 'there'"), join, late) == [(("late",), "refused", PEER_MODE)]


def test_a_plain_device_needs_no_id_to_be_a_master() -> None:
    text = TEXT.replace("count = 4", 'count = 4\nrole = "auto"\nprofile = "qemu-plain"')
    assert failing_migrations(loads(text + migrate("'peer'", "to_domain = 'busy'"))) == ()


@pytest.mark.parametrize(
    ("machines", "size", "reason"),
    [
        ("'master'", "8M", "Size mismatch: ivshmem.bar2: 0x400000 != 0x800000: Invalid argument"),
        ("'master'", "1M", "Size mismatch: ivshmem.bar2: 0x400000 != 0x100000: Invalid argument"),
        (
            "'old-0'",
            "1M",
            "IVSHMEM ERROR: Requested memory size greater than shared object size (4194304 > 1048576)",
        ),
        ("'old-0'", "8M", ""),
    ],
)
def test_memory_that_does_not_fit(machines: str, size: str, reason: str) -> None:
    text = TEXT.replace("[domains.there]", f"[domains.there]\nsize = '{size}'")
    found = failing_migrations(loads(text + migrate(machines, "to_domain = 'there'")))
    assert [each.reason for each in found] == ([reason] if reason else [])


def test_a_failing_migration_is_one_line() -> None:
    assert (
        str(FailingMigration(7, ("a", "b"), "fails", "why", "what helps"))
        == "line 7: migrate a, b: fails: why (what helps)"
    )
    assert str(FailingMigration(0, ("a",), "refused", "why")) == "migrate a: refused: why"


def test_a_scenario_that_ships_expects_what_is_foreseen() -> None:
    migrating = [file for file in SCENARIOS.glob("*.toml") if '"migrate"' in file.read_text()]
    assert len(migrating) >= 5
    for file in migrating:
        topology, name = load(file), file.stem
        expected = {
            (each.that.metric, machine.name)
            for each in topology.expectations
            for machine in topology.machines
            if each.that.of in ("", machine.name, machine.group)
        }
        for each in failing_migrations(topology):
            figure = "migrations_refused" if each.verdict == "refused" else "migrations_failed"
            assert {(figure, machine) for machine in each.machines} <= expected, name


def test_not_all_of_a_long_timeline_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(told(*[migrate("'peer'")] * 3)) == 3
    monkeypatch.setattr(migration_check, "MAX_STEPS", 6)
    assert [machines for _, machines, _, _ in told(*[migrate("'peer'")] * 3)] == [
        ("peer-0", "peer-1", "peer-2", "peer-3"),
        ("peer-0", "peer-1"),
    ]
