"""Profiles are data: every cell has a value and a source, and a device can be made of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import Undelivered
from nodes.device.pci import assign_resources
from nodes.device.profiles import INTR_STATUS, PROFILES, Profile, Quirk, profile
from nodes.device.registers import Access
from nodes.errors import RemoteProtocolError, UsageError

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("made", PROFILES.values(), ids=lambda made: made.name)
def test_every_cell_has_a_source(made: Profile) -> None:
    assert set(made.sources) == set(Profile.cells())
    assert all(source.strip() for source in made.sources.values())


@pytest.mark.parametrize("made", PROFILES.values(), ids=lambda made: made.name)
def test_sources_in_golden_data_exist(made: Profile) -> None:
    for cell, source in made.sources.items():
        for word in source.replace(";", " ").replace(",", " ").split():
            if word.endswith(".json"):
                assert json.loads((GOLDEN / word).read_text()), cell


@pytest.mark.parametrize("name", ["qemu-1.1", "qemu-1.1-intx", "qemu-1.1-shm", "acrn"])
def test_other_devices_do_not_cite_the_qemu_of_today(name: str) -> None:
    sources = profile(name).sources
    assert [cell for cell, source in sources.items() if ".json" in source or "QEMU 7" in source] == []


def test_the_profiles() -> None:
    assert set(PROFILES) == {
        *("qemu-doorbell", "qemu-doorbell-kvm", "qemu-plain"),
        *("qemu-1.1", "qemu-1.1-intx", "qemu-1.1-shm", "acrn"),
    }
    for name, made in PROFILES.items():
        assert profile(name) is made
        assert made.name == name


def test_unknown_profile() -> None:
    with pytest.raises(UsageError, match=r"no device profile 'qemu'.*qemu-doorbell"):
        profile("qemu")


def test_seed_says_what_it_is() -> None:
    seed = profile("qemu-1.1")
    assert "2012" in seed.summary
    assert seed.quirks == set(Quirk)
    assert not profile("qemu-doorbell").quirks


def test_a_repaired_defect_leaves_the_profile_as_it_was() -> None:
    seed = profile("qemu-1.1")
    assert not seed.without(Quirk.MEMORY_REMAP).has(Quirk.MEMORY_REMAP)
    assert seed.has(Quirk.MEMORY_REMAP)


# The table "where implementations diverge", cell by cell.


def made_of(name: str, *, vectors: int = 2) -> Ivshmem:
    rung: list[tuple[int, int]] = []
    device = Ivshmem(profile(name), vectors=vectors, ring=lambda peer, vector: rung.append((peer, vector)))
    device.set_peer(1)
    device.set_memory(memoryview(bytearray(4 << 20)))
    assign_resources(device.config.bars.values(), device.config_write)
    return device


def pending(device: Ivshmem) -> int:
    return device.bar_read(1, 0x800, 4)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("qemu-1.1", 1, 1),
        ("qemu-doorbell", 0, 0),
        ("qemu-doorbell-kvm", 0, 1),
        ("acrn", 0, 0),
    ],
)
def test_ring_while_disabled(name: str, before: int, after: int) -> None:
    device = made_of(name)
    device.interrupt(0, 1)
    assert pending(device) == before
    device.config_write(0x42, 2, 0x8000)
    assert pending(device) == after


@pytest.mark.parametrize(
    ("name", "bit"), [("qemu-1.1", 1), ("qemu-doorbell", 1), ("qemu-doorbell-kvm", 1), ("acrn", 0)]
)
def test_ring_while_masked(name: str, bit: int) -> None:
    device = made_of(name)
    device.config_write(0x42, 2, 0x8000)
    device.interrupt(0, 1)
    assert pending(device) == bit
    device.bar_write(1, 12, 4, 0)
    assert len(device.effects) == bit


def test_kvm_sends_what_its_eventfd_kept_even_when_nobody_looked() -> None:
    device = made_of("qemu-doorbell-kvm")
    device.interrupt(0, 5)
    device.bar_write(1, 12, 4, 0)
    device.config_write(0x42, 2, 0x8000)
    assert len(device.effects) == 1
    assert device.pended_doorbells == 5


def test_kvm_keeps_its_eventfds_over_a_reset() -> None:
    device = made_of("qemu-doorbell-kvm")
    device.interrupt(1, 1)
    device.reset()
    assign_resources(device.config.bars.values(), device.config_write)
    device.config_write(0x42, 2, 0x8000)
    assert pending(device) == 2


@pytest.mark.parametrize(
    ("name", "rung"), [("qemu-1.1", 1), ("qemu-doorbell", 1), ("qemu-doorbell-kvm", 1), ("acrn", 0)]
)
def test_vector_bits(name: str, rung: int) -> None:
    device = made_of(name)
    device.connect(3, 0)
    device.bar_write(0, 12, 4, 3 << 16 | 0x100)
    assert device.rung_doorbells == rung


def test_exact_match_comes_before_the_8_bits() -> None:
    """With more than 256 vectors, a doorbell that names a connected one exactly finds it (an ioeventfd)."""
    rung: list[tuple[int, int]] = []
    device = Ivshmem(profile("qemu-doorbell"), vectors=300, ring=lambda peer, vector: rung.append((peer, vector)))
    device.set_peer(0)
    device.set_memory(memoryview(bytearray(4096)))
    assign_resources(device.config.bars.values(), device.config_write)
    for vector in range(280):
        device.connect(3, vector)
    for vector in (279, 280):
        device.bar_write(0, 12, 4, 3 << 16 | vector)
    device.bar_write(0, 12, 2, 279)  # not 4 bytes: peer 0
    assert rung == [(3, 279), (3, 280 & 0xFF)]


@pytest.mark.parametrize(("name", "position"), [("qemu-1.1", 0xFFFF_FFFF), ("acrn", 0)])
def test_position_before_setup(name: str, position: int) -> None:
    device = Ivshmem(profile(name), vectors=1, ring=lambda peer, vector: None)
    assign_resources(device.config.bars.values(), device.config_write)
    assert device.bar_read(0, 8, 4) == position


@pytest.mark.parametrize("name", list(PROFILES))
def test_nothing_answers_without_memory_decode(name: str) -> None:
    device = made_of(name, vectors=1)
    device.bar_write(0, 0, 4, 5)
    device.bar_write(2, 0, 4, 6)
    device.config_write(0x04, 2, 4)
    for bar in sorted(device.config.bars):
        assert [device.bar_read(bar, at, 4) for at in (0, 4, 8, 12)] == [0] * 4
        device.bar_write(bar, 0, 4, 0xFFFF_FFFF)
    device.config_write(0x04, 2, 6)
    assert [device.bar_read(bar, 0, 4) for bar in sorted(device.config.bars)] == ([5, 0, 6] if device.msix else [5, 6])


def test_a_peer_that_leaves_takes_only_its_own_lines() -> None:
    device = made_of("qemu-doorbell")
    for peer in (2, 3, 4):
        for vector in range(2):
            device.connect(peer, vector)
    device.disconnect(3)
    assert device.lines == {peer << 16 | vector for peer in (2, 4) for vector in range(2)}


def test_memory_larger_than_the_bar_of_a_device_that_was_told_its_size() -> None:
    device = Ivshmem(profile("qemu-1.1"), vectors=1, ring=lambda peer, vector: None, size_bytes=4096)
    device.set_memory(memoryview(bytearray(8192)))
    assign_resources(device.config.bars.values(), device.config_write)
    device.bar_write(2, 4094, 4, 0xFFFF_FFFF)
    assert device.bar_read(2, 4094, 4) == 0xFFFF
    assert device.memory is not None
    assert len(device.memory) == 4096


def test_memory_that_no_bar_can_show() -> None:
    device = Ivshmem(profile("qemu-doorbell"), vectors=1, ring=lambda peer, vector: None)
    for size in (0, 2048, 6000, 3 << 20):
        with pytest.raises(RemoteProtocolError, match=f"memory of {size} bytes"):
            device.set_memory(memoryview(bytearray(size)))
    with pytest.raises(UsageError, match="cannot be written"):
        device.set_memory(memoryview(bytes(4096)))
    device.set_memory(memoryview(bytearray(8192)).cast("Q"))
    assert device.memory is not None
    assert (device.memory.format, len(device.memory)) == ("B", 8192)


@pytest.mark.parametrize("name", ["qemu-doorbell", "acrn"])
def test_mask_and_status_do_nothing_today(name: str) -> None:
    device = made_of(name)
    device.bar_write(0, 0, 4, 0xFFFF_FFFF)
    device.bar_write(0, 4, 4, 1)
    assert not device.effects
    assert device.config_read(0x3D, 1) == 0


def test_acrn_registers() -> None:
    device = made_of("acrn")
    device.bar_write(0, 4, 4, 0x1234)
    assert [device.bar_read(0, 4, 4) for _ in range(2)] == [0x1234, 0x1234]
    for offset, size in ((4, 1), (4, 2), (5, 4), (0, 8)):
        assert device.bar_read(0, offset, size) == 0
        device.bar_write(0, offset, size, 0)
    assert device.bar_read(0, 4, 4) == 0x1234
    (status,) = (r for r in device.profile.registers.registers if r.name == INTR_STATUS)
    assert status.access is Access.RW


def test_acrn_function_mask_is_ignored_and_configuration_space_unprotected() -> None:
    device = made_of("acrn")
    device.bar_write(1, 12, 4, 0)
    device.config_write(0x42, 2, 0xC000)
    assert device.fires == [True, False]
    device.config_write(0x04, 2, 2)  # no bus master either
    assert device.fires == [True, False]
    device.config_write(0x00, 4, 0xDEAD_BEEF)
    assert device.config_read(0x00, 4) == 0xDEAD_BEEF
    device.config_write(0x40, 4, 0xFFFF_FFFF)
    assert device.config_read(0x40, 2) == 0x11


def test_acrn_vectors() -> None:
    with pytest.raises(UsageError):
        made_of("acrn", vectors=9)
    assert profile("acrn").ring_while_masked is Undelivered.LOSE
