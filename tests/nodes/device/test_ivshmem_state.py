"""Saved state and what forbids saving it: rows 95-103 of seed_rows.toml, and migration.json of a real QEMU 7.2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.device.blockers import Blocker, Blockers, blocker
from nodes.device.ivshmem import Ivshmem
from nodes.device.migration import RamMigration
from nodes.device.migration_texts import MigrationError
from nodes.device.msix import MsixMessage
from nodes.device.pci import assign_resources
from nodes.device.profile import Quirk
from nodes.device.profiles import PROFILES, profile
from nodes.errors import UsageError

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "migration.json").read_text())
SEED = tuple(name for name in PROFILES if name.startswith("qemu-1.1"))
MOVING = [name for name, made in PROFILES.items() if made.stream and "master" in made.roles]
PEER_MODE = "Migration is disabled when using feature 'peer mode' in device 'ivshmem'"


def device(
    name: str,
    *,
    role: str = "master",
    vectors: int = 2,
    peer: int = 0,
    memory_bytes: int = 4096,
    repaired: tuple[Quirk, ...] = (),
) -> Ivshmem:
    made = Ivshmem(
        profile(name).without(*repaired),
        vectors=profile(name).fixed_vectors or vectors,
        ring=lambda peer, vector: None,
        role=role,
        size_bytes=memory_bytes if name in SEED else None,
    )
    if made.profile.server:
        made.set_peer(peer)
    made.set_memory(memoryview(bytearray(memory_bytes)))
    return made


def boot(made: Ivshmem) -> Ivshmem:
    assign_resources(made.config.bars.values(), made.config_write)
    return made


# Who may be migrated.


@pytest.mark.parametrize(
    ("case", "name", "role", "peer"),
    [
        ("source doorbell id0 default", "qemu-doorbell", "peer", 0),
        ("source doorbell id1 default", "qemu-doorbell", "peer", 1),
        ("source doorbell id0 ,master=off", "qemu-doorbell", "peer", 0),
        ("source doorbell id1 ,master=off", "qemu-doorbell", "peer", 1),
        ("source doorbell id0 ,master=on", "qemu-doorbell", "master", 0),
        ("source doorbell id1 ,master=on", "qemu-doorbell", "master", 1),
        ("source doorbell id0 ,master=auto", "qemu-doorbell", "auto", 0),
        ("source doorbell id1 ,master=auto", "qemu-doorbell", "auto", 1),
        ("source plain default", "qemu-plain", "peer", 0),
        ("source plain ,master=on", "qemu-plain", "master", 0),
    ],
)
def test_which_devices_may_migrate(case: str, name: str, role: str, peer: int) -> None:
    facts = GOLDEN[case]
    if isinstance(facts, str):
        with pytest.raises(UsageError) as caught:
            device(name, role=role, peer=peer)
        assert facts.rpartition("master=on: ")[2] in str(caught.value)
        return
    blockers = Blockers()
    found = blocker(device(name, role=role, peer=peer))
    if found:
        blockers.add(found)
    if "error" in facts["migrate"]:
        with pytest.raises(MigrationError, match="peer mode") as refused:
            blockers.check()
        assert str(refused.value) == facts["migrate"]["error"]["desc"] == PEER_MODE
    else:
        blockers.check()


def test_peer_role_adds_a_blocker() -> None:
    found = blocker(device("qemu-1.1", role="peer"))
    assert found is not None
    assert found.text == Blocker("peer mode", "ivshmem").text == PEER_MODE
    assert blocker(device("qemu-1.1")) is None


def test_newest_blocker_is_the_one_reported() -> None:
    blockers = Blockers()
    blockers.check()
    made = [Blocker("peer mode", device_name) for device_name in ("first", "second")]
    for found in made:
        blockers.add(found)
    with pytest.raises(MigrationError, match="'second'"):
        blockers.check()
    assert [found.text.split("'")[3] for found in blockers] == ["second", "first"]
    blockers.remove(made[1])
    with pytest.raises(MigrationError, match="'first'"):
        blockers.check()


def test_every_machine_of_2012_is_a_master_by_default() -> None:
    devices = [Ivshmem(profile("qemu-1.1"), ring=lambda peer, vector: None) for _ in range(2)]
    for peer, made in enumerate(devices):
        made.set_peer(peer)
    assert [made.master for made in devices] == [True, True]
    assert not Ivshmem(profile("qemu-doorbell"), ring=lambda peer, vector: None).master


# The stream.


def test_section_name_instance_and_version() -> None:
    made = device("qemu-1.1")
    state = made.save()
    assert state[:8] == b"\x07ivshmem"
    assert state[8:16] == bytes(8)
    made.load(state)
    wrong = (
        (1, "'hvshmem' 0: expected 'ivshmem' 0"),
        (11, "'ivshmem' 1: "),
        (15, "unsupported version 1 for 'ivshmem' v0"),
    )
    for at, text in wrong:
        other = bytearray(state)
        other[at] ^= 1
        with pytest.raises(MigrationError, match=text):
            device("qemu-1.1").load(bytes(other))


# PCI is a version, 256 bytes and 4 pins.
PCI_BYTES = 4 + 256 + 16


def body_at(name: str) -> int:
    """Where a stream's fields begin: behind the section's name, its instance and its version."""
    return 1 + len(profile(name).section) + 8


@pytest.mark.parametrize(
    ("name", "size_bytes"),
    [
        ("qemu-1.1", PCI_BYTES + 2 * 16 + 1),
        ("qemu-1.1-intx", PCI_BYTES + 8),
        ("qemu-1.1-shm", PCI_BYTES),
        ("qemu-1.1-shm-intx", PCI_BYTES + 8),
        ("qemu-doorbell", PCI_BYTES + 2 * 16 + 1 + 8),
        ("qemu-plain", PCI_BYTES + 8),
    ],
)
def test_the_stream_holds_the_registers(name: str, size_bytes: int) -> None:
    made = boot(device(name))
    made.bar_write(0, 0, 4, 0x0102_0304)
    made.bar_write(0, 4, 4, 0x0506_0708)
    body = made.save()[body_at(name) :]
    assert len(body) == size_bytes
    assert body[4:8] == bytes.fromhex("f41a1011")
    if made.profile.stream[-1] == "mask":  # status, then mask, big-endian
        assert body[-8:] == bytes.fromhex("0506070801020304")


def test_stream_holds_table_then_pending_bits() -> None:
    made = boot(device("qemu-1.1"))
    made.bar_write(1, 16, 4, 0x1122_3344)
    made.interrupt(1, 1)
    body = made.save()[16 + PCI_BYTES :]
    assert body[16:20] == bytes.fromhex("44332211")
    assert body[32] == 2


@pytest.mark.parametrize("name", ["qemu-1.1", "qemu-1.1-shm"])
def test_mask_and_status_do_not_travel_with_msi(name: str) -> None:
    made = boot(device(name))
    made.bar_write(0, 0, 4, 5)
    made.bar_write(0, 4, 4, 6)
    other = device(name)
    other.load(made.save())
    assert [other.bar_read(0, at, 4) for at in (0, 4)] == [0, 0]


def test_pins_follow_the_configuration_space() -> None:
    made = boot(device("qemu-1.1-intx"))
    made.bar_write(0, 0, 4, 1)
    made.interrupt(0, 1)
    assert made.config_read(0x06, 2) & 8
    state = made.save()[16:]
    assert not state[4 + 6] & 8
    assert state[260:264] == bytes([0, 0, 0, 1])
    other = device("qemu-1.1-intx")
    other.load(made.save())
    assert other.config_read(0x06, 2) & 8
    assert other.intx_level
    assert not other.effects


@pytest.mark.parametrize("name", ["qemu-1.1", "qemu-doorbell", "qemu-plain"])
def test_peer_cannot_be_loaded(name: str) -> None:
    state = device(name).save()
    with pytest.raises(MigrationError) as caught:
        device(name, role="peer").load(state)
    text = str(caught.value).removeprefix("ivshmem: " if name in SEED else "")
    assert text in GOLDEN["dest: same server, master=off"]["stderr"]


def test_load_marks_the_vectors_again() -> None:
    made = boot(device("qemu-1.1"))
    made.bar_write(1, 12, 4, 0)
    made.config_write(0x42, 2, 0x8000)
    assert made.fires[0]
    state = made.save()
    made.reset()
    assert not any(made.fires)
    made.load(state)
    assert made.fires == [True, False]


def test_an_unmasked_pending_vector_is_sent_on_load() -> None:
    made = boot(device("qemu-doorbell"))
    made.config_write(0x42, 2, 0x8000)
    made.interrupt(0, 1)
    state = bytearray(made.save())
    state[body_at("qemu-doorbell") + PCI_BYTES + 12] = 0  # a stream whose vector 0 is unmasked and pending
    other = device("qemu-doorbell")
    other.load(bytes(state))
    assert list(other.effects) == [MsixMessage(0, 0, 0)]
    assert other.bar_read(1, 0x800, 4) == 0


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (3, "Invalid value 3 expecting positive value <= 2"),
        (0, "Invalid value 16777218 expecting positive value <= 2"),
        (4 + 0x00, "i=0x0 "),
        (4 + 0x06, None),  # a bit of the status that devices need not share
        (4 + 0x0A, "i=0xa "),
        (4 + 0x34, "i=0x34 "),
        (4 + 0x48, "i=0x48 "),
        (4 + 0x60, None),  # scratch space
        (4 + 256 + 3, None),  # the first pin is up: fine
        (4 + 256 + 7, None),
        (4 + 256 + 2, "irq state 256: must be 0 or 1"),
    ],
)
def test_load_checks_that_both_sides_are_equal(at: int, text: str | None) -> None:
    state = bytearray(device("qemu-doorbell").save())
    state[body_at("qemu-doorbell") + at] ^= 1
    if text is None:
        device("qemu-doorbell").load(bytes(state))
    else:
        with pytest.raises(MigrationError, match=text):
            device("qemu-doorbell").load(bytes(state))


def test_a_capability_list_must_be_on_both_sides() -> None:
    state = bytearray(device("qemu-doorbell").save())
    state[body_at("qemu-doorbell") + 4 + 0x06] ^= 1 << 4
    with pytest.raises(MigrationError, match="i=0x6 "):
        device("qemu-doorbell").load(bytes(state))


def test_other_vectors_are_refused() -> None:
    expected = GOLDEN["dest: vectors=4 (source 2)"]["stderr"]
    with pytest.raises(MigrationError) as caught:
        device("qemu-doorbell", vectors=4).load(device("qemu-doorbell", vectors=2).save())
    assert str(caught.value) in expected


def test_fresh_server_and_master() -> None:
    """The recording's journey: what the destination's guest reads is what the source's wrote."""
    facts = GOLDEN["dest: fresh server, master=on (id 0)"]
    source = boot(device("qemu-doorbell"))
    for vector in range(2):
        for at, value in ((0, 0x2000 + 16 * vector), (8, 0xC0DE_0000 + vector), (12, vector)):
            source.bar_write(1, 16 * vector + at, 4, value)
    source.config_write(0x42, 2, 0x8000)
    source.interrupt(1, 1)
    source.bar_write(0, 0, 4, 0xAB)
    source.bar_write(0, 4, 4, 0xCD)
    assert source.memory is not None
    source.memory[:11] = b"FROM-SOURCE"
    other = device("qemu-doorbell")
    moving = RamMigration(source)
    other.load(source.save())
    assert moving.complete(other) == 4096
    assert (other.config.data == source.config.data) is facts["cfg_equal"]
    assert [hex(other.bar_read(0, at, 4)) for at in (0, 4, 8)] == facts["regs"]
    assert hex(other.bar_read(1, 0x800, 4)) == facts["pba"]
    table = [[hex(other.bar_read(1, 16 * v + 4 * w, 4)) for w in range(4)] for v in range(2)]
    assert table == facts["table"]
    assert bytes(other.bar_read(2, at, 1) for at in range(11)).decode() == facts["bar2"]
    other.bar_write(0, 12, 4, 1 << 16)
    assert other.rung_doorbells == facts["dest doorbell to peer1 heard"] == 0


@pytest.mark.parametrize("cut", [0, 5, 15, 16, 100, -1])
def test_cut_streams_are_refused(cut: int) -> None:
    state = device("qemu-doorbell").save()
    with pytest.raises(MigrationError):
        device("qemu-doorbell").load(state[:cut])
    with pytest.raises(MigrationError, match="Missing section footer for ivshmem-doorbell: 1 bytes too many"):
        device("qemu-doorbell").load(state + b"\0")


def test_device_that_is_never_migrated() -> None:
    with pytest.raises(MigrationError, match="never migrated"):
        device("acrn", role="peer").save()


# Memory.


def test_memory_moves_whole() -> None:
    source, other = device("qemu-1.1"), device("qemu-1.1")
    assert source.memory is not None
    source.memory[4095] = 9
    assert RamMigration(source).complete(other) == 4096
    assert boot(other).bar_read(2, 4095, 1) == 9


def test_memory_of_another_size_or_missing() -> None:
    source = device("qemu-doorbell", memory_bytes=4 << 20)
    with pytest.raises(MigrationError) as caught:
        RamMigration(source).complete(device("qemu-doorbell", memory_bytes=1 << 20))
    expected = GOLDEN["dest: fresh server with 1M shm (source 4M)"]["stderr"]
    assert str(caught.value).replace("ivshmem.bar2: ", "") in expected.replace("0000:00:02.0/ivshmem.bar2: ", "")
    missing = Ivshmem(profile("qemu-doorbell"), ring=lambda peer, vector: None)
    with pytest.raises(MigrationError, match="Unknown ramblock"):
        RamMigration(source).complete(missing)
    with pytest.raises(MigrationError, match='Unknown ramblock "memory backend"'):
        RamMigration(device("qemu-plain", memory_bytes=4 << 20)).check(source)


def test_memory_that_arrives_after_the_migration_began() -> None:
    source = Ivshmem(profile("qemu-1.1"), ring=lambda peer, vector: None, size_bytes=4096)
    moving = RamMigration(source)
    source.set_memory(memoryview(bytearray(b"\x07" * 4096)))
    with pytest.raises(MigrationError, match="its contents are lost"):
        moving.complete(device("qemu-1.1"))


# A saved device loaded elsewhere answers like the original.

WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("config"), st.integers(0, 252), st.sampled_from((1, 2, 4)), st.integers(0, (1 << 32) - 1)),
        st.tuples(
            st.sampled_from(("registers", "msix")),
            st.one_of(st.integers(0, 40), st.integers(0x7F8, 0x810)),
            st.sampled_from((1, 2, 4, 8)),
            st.integers(0, (1 << 64) - 1),
        ),
        st.tuples(st.just("interrupt"), st.integers(0, 1), st.just(1), st.integers(1, 300)),
    ),
    max_size=30,
)


def apply(made: Ivshmem, writes: list[tuple[str, int, int, int]]) -> list[object]:
    seen: list[object] = []
    for kind, at, size, value in writes:
        if kind == "config":
            at = min(at, 256 - size)
            made.config_write(at, size, value)
            seen.append(made.config_read(at, size))
        elif kind == "interrupt":
            if at < made.vectors:
                made.interrupt(at, value)
        elif kind == "registers" or made.msix:
            bar = 0 if kind == "registers" else 1
            made.bar_write(bar, at, size, value)
            seen.append(made.bar_read(bar, at, size))
    seen += made.effects
    made.effects.clear()
    return seen


@pytest.mark.parametrize("name", MOVING)
@given(before=WRITES, after=WRITES)
def test_saved_device_answers_like_the_original(
    name: str, before: list[tuple[str, int, int, int]], after: list[tuple[str, int, int, int]]
) -> None:
    repaired = (Quirk.PLAIN_DOORBELL_FAULT, Quirk.RESET_DROPS_VECTORS)
    original, copy = device(name, repaired=repaired), device(name, repaired=repaired)
    boot(original)
    apply(original, before)
    if original.msix and original.msix.kept:
        original.msix.kept = 0  # doorbells kept in eventfds stay with the source's server
    copy.load(original.save())
    copy.effects.clear()
    if "mask" not in copy.profile.stream:
        # What the stream of this device forgets: a guest finds its mask and status gone.
        copy.registers.values.update(original.registers.values)
    assert copy.save() == original.save()
    assert apply(copy, after) == apply(original, after)
