"""Which machines can migrate, and which streams are refused: every case of golden/migration.json, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.device.blockers import Blocker, Blockers
from nodes.device.ivshmem import Ivshmem
from nodes.device.migration import RamMigration
from nodes.device.migration_texts import MigrationError
from nodes.device.profiles import profile
from nodes.errors import UsageError
from nodes.qemu_versions import COMPARED_VERSIONS, NEWEST, QemuVersion
from tests.nodes.device.test_ivshmem_state import MOVING, PEER_MODE, SEED, device

GOLDEN_DIRECTORY = Path(__file__).parents[2] / "golden"
FACTS: dict[str, Any] = json.loads((GOLDEN_DIRECTORY / "migration.json").read_text())
FACTS_11: dict[str, Any] = json.loads((GOLDEN_DIRECTORY / "migration_11.json").read_text())
STREAMS: dict[str, Any] = json.loads((GOLDEN_DIRECTORY / "migration_streams.json").read_text())
MIB = 1 << 20


# Every case that was seen on the real machine.

SOURCES = {
    "source doorbell id0 default": ("qemu-doorbell", None, 0),
    "source doorbell id1 default": ("qemu-doorbell", None, 1),
    "source doorbell id0 ,master=off": ("qemu-doorbell", "peer", 0),
    "source doorbell id1 ,master=off": ("qemu-doorbell", "peer", 1),
    "source doorbell id0 ,master=on": ("qemu-doorbell", "master", 0),
    "source doorbell id1 ,master=on": ("qemu-doorbell", "master", 1),
    "source doorbell id0 ,master=auto": ("qemu-doorbell", "auto", 0),
    "source doorbell id1 ,master=auto": ("qemu-doorbell", "auto", 1),
    "source plain default": ("qemu-plain", None, 0),
    "source plain ,master=on": ("qemu-plain", "master", 0),
    "src migrate": ("qemu-doorbell", "master", 0),
}
# What is there instead, when the stream of a doorbell device (ID 0, two vectors, 4 MiB) arrives.
DESTINATIONS: dict[str, tuple[str | None, str, int, int, int]] = {
    "dest: same server, master=on, source still connected": ("qemu-doorbell", "master", 1, 2, 4 * MIB),
    "dest: same server, master=on, source closed": ("qemu-doorbell", "master", 2, 2, 4 * MIB),
    "dest: same server, master=off": ("qemu-doorbell", "peer", 1, 2, 4 * MIB),
    "dest: same server, master=auto (id!=0)": ("qemu-doorbell", "auto", 1, 2, 4 * MIB),
    "dest: no ivshmem device": (None, "", 0, 0, 0),
    "dest: plain instead of doorbell": ("qemu-plain", "master", 0, 2, 4 * MIB),
    "dest: fresh server, master=on (id 0)": ("qemu-doorbell", "master", 0, 2, 4 * MIB),
    "dest: fresh server with 1M shm (source 4M)": ("qemu-doorbell", "master", 0, 2, MIB),
    "dest: vectors=4 (source 2)": ("qemu-doorbell", "master", 0, 4, 4 * MIB),
}
ELSEWHERE = {
    "-only-migratable, master=off": "test_only_migratable_machine_takes_no_peer",
    "src state": "test_ivshmem_state.py::test_fresh_server_and_master",
    "mig file bytes": "a size, of all of QEMU",
}


def test_every_case_has_its_counterpart() -> None:
    assert SOURCES.keys() | DESTINATIONS.keys() | ELSEWHERE.keys() == FACTS.keys()


def comparable(text: str) -> str:
    """Without the place on a bus that our machines do not have, and without the name of the program."""
    return text.replace("0000:00:02.0/", "").replace("qemu-system-x86_64: ", "")


@pytest.mark.parametrize("case", SOURCES)
def test_source(case: str) -> None:
    name, role, peer = SOURCES[case]
    facts = FACTS[case]
    if isinstance(facts, str):
        with pytest.raises(UsageError) as caught:
            device(name, role=str(role), peer=peer)
        assert facts.rpartition("master=on: ")[2] in str(caught.value)
        return
    blockers = Blockers()
    blockers.plug(device(name, role=profile(name).default_role if role is None else role, peer=peer))
    assert [found.text for found in blockers] == facts["query-migrate"].get("blocked-reasons", [])
    if "error" in facts["migrate"]:
        with pytest.raises(MigrationError) as refused:
            blockers.begin()
        assert str(refused.value) == facts["migrate"]["error"]["desc"]
        assert not blockers.migrating
    else:
        blockers.begin()
        assert blockers.migrating


@pytest.mark.parametrize("version", COMPARED_VERSIONS, ids=str)
@pytest.mark.parametrize("case", DESTINATIONS)
def test_destination(case: str, version: QemuVersion) -> None:
    name, role, peer, vectors, size_bytes = DESTINATIONS[case]
    facts = (FACTS_11 if version == NEWEST else FACTS)[case]
    printed = facts if isinstance(facts, str) else facts["stderr"]
    source = device("qemu-doorbell", memory_bytes=4 * MIB)

    def arrive() -> None:
        there = device(name, role=role, peer=peer, vectors=vectors, memory_bytes=size_bytes) if name else None
        ram = RamMigration(source)
        ram.check(there)
        assert there is not None
        there.load(source.save())
        ram.complete(there)

    if not printed:
        arrive()
        return
    with pytest.raises(UsageError) as caught:
        arrive()
    told = str(caught.value).partition(": it is peer")[0]
    assert told in comparable(printed)
    if isinstance(caught.value, MigrationError):  # all of what a destination that had started prints
        assert "\n".join(caught.value.log.lines(version)) == comparable(printed).removeprefix("exit 1: ")
    else:
        assert "peers" in told  # it does not start


# Blockers.


def test_only_migratable_machine_takes_no_peer() -> None:
    blockers = Blockers(only_migratable=True)
    blockers.plug(device("qemu-doorbell"))
    expected = FACTS["-only-migratable, master=off"].rpartition("vectors=2: ")[2]
    with pytest.raises(MigrationError) as caught:
        blockers.plug(device("qemu-doorbell", role="peer"))
    assert str(caught.value) == expected
    with pytest.raises(MigrationError, match="for: a passed-through disk"):
        blockers.add(Blocker("a passed-through disk"))
    with pytest.raises(MigrationError, match="Device acrn is not migratable, but --only-migratable was specified"):
        blockers.plug(device("acrn", role="peer"))
    blockers.begin()


def test_blocker_goes_with_its_device() -> None:
    disk, dump = Blocker("a passed-through disk"), Blocker("a dump in progress")
    blockers = Blockers()
    blockers.add(disk)
    peers = [device("qemu-doorbell", role="peer"), device("qemu-plain", role="peer")]
    for made in peers:
        blockers.plug(made)
    blockers.add(dump)
    assert [found.text for found in blockers] == [dump.text, PEER_MODE, PEER_MODE, disk.text]
    newest = list(blockers)[1]
    blockers.unplug(peers[0])
    assert list(blockers) == [dump, newest, disk]  # that device's own, not one that says the same
    blockers.unplug(peers[1])
    for made in peers:
        with pytest.raises(ValueError, match="not plugged"):
            blockers.unplug(made)
    with pytest.raises(ValueError, match="not in list"):
        blockers.remove(Blocker(disk.text))
    blockers.remove(dump)
    with pytest.raises(MigrationError, match=r"^a passed-through disk$"):
        blockers.begin()
    blockers.remove(disk)
    blockers.begin()


def test_while_a_migration_runs_nothing_comes_or_goes() -> None:
    blockers = Blockers(locked=profile("qemu-doorbell").migration_locks_devices)
    master, peer = device("qemu-doorbell"), device("qemu-doorbell", role="peer", peer=1)
    blockers.plug(master)
    blockers.begin()
    attempts: tuple[tuple[Callable[[], None], str], ...] = (
        (lambda: blockers.add(Blocker("x")), "disallowing migration blocker (migration/snapshot in progress) for: x"),
        (lambda: blockers.plug(peer), "device_add not allowed while migrating"),
        (lambda: blockers.unplug(master), "device_del not allowed while migrating"),
        (blockers.begin, "There's a migration process in progress"),
    )
    for refused, text in attempts:
        with pytest.raises(MigrationError) as caught:
            refused()
        assert str(caught.value) == text
    assert list(blockers) == []
    blockers.end()
    blockers.plug(peer)
    with pytest.raises(MigrationError, match="peer mode"):
        blockers.begin()
    assert not blockers.migrating


def test_machine_of_2012_lets_blockers_come_meanwhile() -> None:
    blockers = Blockers(locked=profile("qemu-1.1").migration_locks_devices)
    blockers.plug(device("qemu-1.1"))
    blockers.begin()
    late = device("qemu-1.1", role="peer", peer=1)
    blockers.plug(late)
    assert [found.text for found in blockers] == [PEER_MODE]
    blockers.unplug(late)
    assert not list(blockers)


def test_device_without_state_blocks_before_any_blocker() -> None:
    blockers = Blockers()
    blockers.plug(device("acrn", role="peer"))
    with pytest.raises(MigrationError, match=r"^State blocked by non-migratable device 'acrn'$"):
        blockers.begin()


# Streams.


def written(name: str, *, role: str = "master", vectors: int = 2, plain: bool = False) -> Ivshmem:
    """The device whose stream is in ``golden/migration_streams.json``: what was written to the real one too."""
    made = device(name, role=role, vectors=vectors, memory_bytes=MIB)
    if plain:
        return made
    addresses = {0: 0xFEB0_0000, 1: 0xFEB0_1000, 2: 0xE000_0000}
    for bar in made.config.bars.values():
        made.config_write(bar.offset, 4, addresses[bar.index])
    made.config_write(0x04, 2, 0x0006)
    made.bar_write(0, 0, 4, 0xAB)
    made.bar_write(0, 4, 4, 0xCD)
    if made.msix:
        for vector in range(vectors):
            for word, value in enumerate((0x2000 + 16 * vector, 0, 0xC0DE_0000 + vector, vector)):
                made.bar_write(1, 16 * vector + 4 * word, 4, value)
        made.config_write(0x42, 2, 0x8000)
        made.interrupt(1, 1)
        made.bar_read(1, 0x800, 4)  # with KVM, what is kept in an eventfd is pending only when it is looked for
    return made


@pytest.mark.parametrize("name", MOVING)
def test_golden_stream(name: str) -> None:
    """For today's devices these are the bytes that a real QEMU 7.2 sent, given the same writes."""
    golden = bytes.fromhex(STREAMS[name]["hex"])
    assert written(name).save() == golden
    there = written(name, plain=True)
    there.load(golden)
    assert there.save() == golden
    assert there.config_read(0x04, 2) & 6 == 6


def test_every_device_that_migrates_has_a_golden_stream() -> None:
    assert STREAMS.keys() == set(MOVING)
    assert {name for name, entry in STREAMS.items() if entry["source"].startswith("ours")} == set(SEED)


def everything(made: Ivshmem) -> tuple[object, ...]:
    """All that a failed load must leave as it was."""
    msix = made.msix
    return (
        bytes(made.config.data),
        dict(made.registers.values),
        (made.intx_raised, made.intx_level, tuple(made.fires), tuple(made.effects)),
        msix and (tuple(msix.table), msix.pending, msix.kept, msix.enabled, msix.bus_master, tuple(msix.used)),
        bytes(made.memory or b""),
    )


@pytest.mark.parametrize("name", MOVING)
@given(data=st.data())
def test_damaged_stream_loads_as_it_is_or_changes_nothing(name: str, data: st.DataObject) -> None:
    golden = bytes.fromhex(STREAMS[name]["hex"])
    stream = bytearray(golden)
    for at in data.draw(st.lists(st.integers(0, len(golden) - 1), min_size=1, max_size=3), label="bytes"):
        stream[at] ^= data.draw(st.integers(1, 255), label="bits")
    there = written(name, vectors=2)
    before = everything(there)
    try:
        there.load(bytes(stream))
    except MigrationError:
        assert everything(there) == before
        return
    body = 1 + len(profile(name).section) + 8
    config = bytes(stream[body + 4 : body + 260])
    assert bytes(there.config.data[:6]) == config[:6]
    assert there.config.data[6] & ~8 == config[6] & ~8  # the interrupt bit follows the pin
    assert there.config_read(0x06, 1) & 8 == 8 * stream[body + 263]
    assert bytes(there.config.data[7:]) == config[7:]
    if there.msix:
        table = bytes(stream[body + 276 : body + 276 + 32])
        assert b"".join(word.to_bytes(4, "little") for word in there.msix.table) == table
    again = written(name, plain=True)
    again.load(there.save())
    assert again.save() == there.save()


@pytest.mark.parametrize("name", MOVING)
def test_no_stream_that_is_cut_or_too_long_is_loaded(name: str) -> None:
    golden = bytes.fromhex(STREAMS[name]["hex"])
    there = written(name, plain=True)
    before = everything(there)
    for stream in [*(golden[:cut] for cut in range(len(golden))), golden + b"\0", golden * 2, b"\xff" * 400]:
        with pytest.raises(MigrationError):
            there.load(stream)
    assert everything(there) == before
    there.load(golden)
    assert everything(there) != before


@pytest.mark.parametrize(
    ("name", "at", "value", "text"),
    [
        ("qemu-doorbell", 12, 1, "savevm: unsupported version 16777216 for 'ivshmem-doorbell' v0"),
        ("qemu-doorbell", 12, 255, "savevm: unsupported version -16777216 for 'ivshmem-doorbell' v0"),
        ("qemu-plain", 5, ord("j"), "Unknown savevm section or instance 'ivshjem-plain' 0: expected"),
        ("qemu-1.1", 0, 6, "Unknown savevm section or instance"),
    ],
)
def test_wrong_header(name: str, at: int, value: int, text: str) -> None:
    stream = bytearray.fromhex(STREAMS[name]["hex"])
    at += len(profile(name).section) - 7 if at == 12 else 0
    stream[at] = value
    with pytest.raises(MigrationError) as caught:
        device(name).load(bytes(stream))
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("name", "other"),
    [(name, other) for name in MOVING for other in MOVING if len(STREAMS[name]["hex"]) != len(STREAMS[other]["hex"])],
)
def test_stream_of_another_device_is_refused(name: str, other: str) -> None:
    there = written(name, plain=True)
    before = everything(there)
    with pytest.raises(MigrationError):
        there.load(bytes.fromhex(STREAMS[other]["hex"]))
    assert everything(there) == before


@pytest.mark.parametrize(
    ("cut", "member", "structure"),
    [(100, "PCIDevice:config", "PCIDevice"), (290, "msix:msix", "msix")],
)
def test_what_is_printed_of_a_stream_that_ends_in_a_field(cut: int, member: str, structure: str) -> None:
    """As QEMU 7.2.22, 10.0.13 and 11.1.3 printed it (tests/qemu/test_migration.py, test_cut_stream)."""
    stream = bytes.fromhex(STREAMS["qemu-doorbell"]["hex"])
    header = 1 + len("ivshmem-doorbell") + 8
    with pytest.raises(MigrationError) as caught:
        device("qemu-doorbell").load(stream[: header + cut])
    loading = "error while loading state for instance 0x0 of device 'ivshmem-doorbell'"
    assert caught.value.log.lines(QemuVersion(10, 0)) == (
        f"Failed to load {member}",
        "Failed to load ivshmem-doorbell:parent_obj",
        loading,
        "load of migration failed: Input/output error",
    )
    assert caught.value.log.lines(NEWEST) == (
        f"load of migration failed: Invalid argument: {loading}: Failed to load {structure} state: stream error: -5",
    )
