"""Profiles are data: every cell has a value and a source, and a device can be made of each."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nodes.device.access_path import AccessPath
from nodes.device.devices import make_device
from nodes.device.effects import DeviceWarning, IntxPulse
from nodes.device.ivshmem import Ivshmem
from nodes.device.pci import assign_resources
from nodes.device.profile import INTR_STATUS, Profile, Quirk
from nodes.device.profiles import PROFILES, profile, profile_by_access
from nodes.device.registers import Access
from nodes.errors import ModelledFault, RemoteProtocolError, UsageError
from nodes.qemu_versions import QemuVersion

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("made", PROFILES.values(), ids=lambda made: made.name)
def test_every_cell_has_a_source(made: Profile) -> None:
    assert set(made.sources) == set(made.cells())
    assert all(source.strip() for source in made.sources.values())


@pytest.mark.parametrize("made", PROFILES.values(), ids=lambda made: made.name)
def test_sources_in_golden_data_exist(made: Profile) -> None:
    for cell, source in made.sources.items():
        for word in source.replace(";", " ").replace(",", " ").split():
            if word.endswith(".json"):
                assert json.loads((GOLDEN / word).read_text()), cell


@pytest.mark.parametrize("name", ["qemu-1.1", "qemu-1.1-intx", "qemu-1.1-shm", "qemu-1.1-shm-intx", "acrn"])
def test_other_devices_do_not_cite_the_qemu_of_today(name: str) -> None:
    sources = profile(name).sources
    assert [cell for cell, source in sources.items() if ".json" in source or "QEMU 7" in source] == []


def test_each_profile_is_found_by_its_name() -> None:
    for name, made in PROFILES.items():
        assert profile(name) is made
        assert made.name == name


def test_unknown_profile() -> None:
    with pytest.raises(UsageError, match=r"no device profile 'qemu'.*qemu-doorbell"):
        profile("qemu")


def test_seed_says_what_it_is() -> None:
    seed = profile("qemu-1.1")
    assert seed.summary.startswith("QEMU's ivshmem of 2012")
    assert seed.quirks == set(Quirk)
    assert not profile("qemu-doorbell").quirks


def test_a_repaired_defect_leaves_the_profile_as_it_was() -> None:
    seed = profile("qemu-1.1")
    assert not seed.without(Quirk.MEMORY_REMAP).has(Quirk.MEMORY_REMAP)
    assert seed.has(Quirk.MEMORY_REMAP)


# The table "where implementations diverge", cell by cell.


def made_of(name: str, *, vectors: int = 2) -> Ivshmem:
    rung: list[tuple[int, int]] = []
    vectors = profile(name).fixed_vectors or vectors
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
    device.connect(1, 0)
    device.config_write(0x42, 2, 0x8000)
    device.interrupt(0, 1)
    assert pending(device) == bit
    device.bar_write(1, 12, 4, 0)
    assert len(device.effects) == bit


UNMASKS: dict[str, Callable[[Ivshmem], None]] = {
    "the vector": lambda device: device.bar_write(1, 16 + 12, 4, 0),
    "the function": lambda device: device.config_write(0x42, 2, 0x8000),
}


@pytest.mark.parametrize("unmask", UNMASKS)
@pytest.mark.parametrize(
    ("name", "connected", "aborts"),
    [
        ("qemu-doorbell-kvm", 1, True),
        ("qemu-doorbell-kvm", 2, False),
        ("qemu-doorbell", 1, False),
        ("qemu-1.1", 1, False),
        ("acrn", 1, False),
    ],
)
def test_kvm_aborts_when_a_vector_without_an_eventfd_is_unmasked(
    name: str, connected: int, aborts: bool, unmask: str
) -> None:
    """By its own mask or by the function's; under TCG and elsewhere such a vector is only dead."""
    device = made_of(name)
    for vector in range(connected):
        device.connect(1, vector)
    device.bar_write(1, 12, 4, 0)
    if unmask == "the function":
        device.bar_write(1, 16 + 12, 4, 0)  # before MSI-X is enabled: no notifier is called
        device.config_write(0x42, 2, 0xC000)
    else:
        device.config_write(0x42, 2, 0x8000)
    with pytest.raises(ModelledFault, match="vector 1 route") if aborts else contextlib.nullcontext():
        UNMASKS[unmask](device)


def test_kvm_sends_the_doorbells_that_its_eventfd_kept() -> None:
    device = made_of("qemu-doorbell-kvm")
    device.interrupt(0, 5)
    device.bar_write(1, 12, 4, 0)
    device.config_write(0x42, 2, 0x8000)
    assert len(device.effects) == 1
    assert device.pended_doorbells == 5


def test_kvm_drains_its_eventfds_into_the_pending_bits_when_msix_is_enabled() -> None:
    """Enabling sets the bit, which outlasts disabling; doorbells after that stay in their eventfds."""
    device = made_of("qemu-doorbell-kvm")
    device.interrupt(0, 3)
    assert pending(device) == 0
    device.config_write(0x42, 2, 0x8000)
    device.config_write(0x42, 2, 0)
    assert pending(device) == 1
    device.interrupt(1, 1)
    assert pending(device) == 1
    device.config_write(0x42, 2, 0xC000)  # enabled under the function mask: the bit comes all the same
    device.config_write(0x42, 2, 0)
    assert pending(device) == 3


def test_kvm_leaves_a_masked_vector_s_doorbell_in_its_eventfd_until_the_pending_bits_are_read() -> None:
    device = made_of("qemu-doorbell-kvm")
    assert device.msix is not None
    device.connect(1, 0)
    device.config_write(0x42, 2, 0x8000)
    device.interrupt(0, 1)
    assert (device.msix.kept, device.msix.pending) == (1, 0)
    assert pending(device) == 1
    assert (device.msix.kept, device.msix.pending) == (0, 1)


def test_kvm_drains_only_at_the_moment_of_enabling() -> None:
    device = made_of("qemu-doorbell-kvm")
    device.config_write(0x42, 2, 0x8000)
    device.interrupt(0, 1)  # masked: it stays in its eventfd
    device.config_write(0x42, 2, 0x8000)
    device.config_write(0x42, 2, 0)
    assert pending(device) == 0
    device.config_write(0x42, 2, 0x8000)
    assert pending(device) == 1


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


def with_280_vectors(made: Profile, peer: int) -> tuple[Ivshmem, list[int]]:
    """A device that can ring 280 vectors of one peer, and the vectors that it rings."""
    rung: list[int] = []
    device = Ivshmem(made, vectors=300, ring=lambda _, vector: rung.append(vector))
    device.set_peer(0)
    device.set_memory(memoryview(bytearray(4 << 20)))
    assign_resources(device.config.bars.values(), device.config_write)
    for vector in range(280):
        device.connect(peer, vector)
    return device, rung


def test_exact_match_comes_before_the_8_bits() -> None:
    """With more than 256 vectors, a doorbell that names a connected one exactly finds it (an ioeventfd)."""
    device, rung = with_280_vectors(profile("qemu-doorbell"), 3)
    for vector in (279, 280):
        device.bar_write(0, 12, 4, 3 << 16 | vector)
    device.bar_write(0, 12, 2, 279)  # not 4 bytes: peer 0
    assert rung == [279, 280 & 0xFF]


# QEMU 7.2, 10.0 and 11.1: vector 257 of a peer with 280, by the access, the width and the offset of the write. None: it
# is not rung.
@pytest.mark.parametrize(
    ("kind", "peer", "expected"),
    [
        ("qtest 7.2", 5, {(4, 12): 257, (8, 8): 257, (8, 12): 257, (8, 10): 257, (8, 11): 257}),
        ("qtest 11.1", 0x7FFF, {(4, 12): 257, (8, 8): 257}),
        ("qtest 7.2", 0x8000, {(4, 12): 1, (8, 8): 1, (8, 12): 1, (8, 10): 1}),
        ("qtest 10.0", 0xFFFF, {(4, 12): 1, (8, 8): 1}),
        ("tcg 7.2", 5, {(4, 12): 257, (8, 8): 257, (8, 12): None, (8, 10): None, (8, 11): None}),
        ("tcg 7.2", 0x8000, {(4, 12): 1}),
        ("tcg 10.0", 5, {(4, 12): 257, (8, 8): 257, (8, 12): 257, (8, 10): None, (8, 11): None}),
        ("tcg 11.1", 5, {(4, 12): 257, (8, 8): 257, (8, 12): 257, (8, 10): None, (8, 11): None}),
        ("tcg 11.1", 0x8000, {(4, 12): 1}),
        ("kvm 7.2", 5, {(4, 12): 257, (8, 8): 1, (8, 12): 1, (8, 10): 1, (8, 11): 1}),
        ("kvm 11.1", 0x8000, {(4, 12): 257, (8, 8): 1}),
        ("qemu-1.1-intx", 5, {(4, 12): 1, (8, 8): 1, (8, 12): 1, (8, 10): 1}),
    ],
)
def test_doorbell_inside_a_wider_write(kind: str, peer: int, expected: dict[tuple[int, int], int | None]) -> None:
    access, _, version = kind.partition(" ")
    made = by_access(access, version) if version else profile(kind)
    for (size, offset), vector in expected.items():
        device, rung = with_280_vectors(made, peer)
        device.bar_write(0, offset, size, (peer << 16 | 257) << 8 * (12 - offset))
        assert rung == ([] if vector is None else [vector]), (size, offset)


@pytest.mark.parametrize(
    ("access", "version", "mask", "status", "reads"),
    [
        ("tcg", "7.2", 0xCC, 0xAA, 0x77881122),
        ("tcg", "10.0", 0xCCDD, 0xAABB, 0x77880000),
        ("tcg", "11.1", 0xCCDD, 0xAABB, 0x77880000),
        ("qtest", "7.2", 0xCCDD, 0xAABB, 0x77880000),
        ("kvm", "7.2", 0xCCDD, 0xAABB, 0x77880000),
    ],
)
def test_a_word_across_two_registers(access: str, version: str, mask: int, status: int, reads: int) -> None:
    """4 bytes at offset 2 of BAR0, as a bare guest and qtest found them."""
    device = Ivshmem(by_access(access, version), ring=lambda peer, vector: None)
    assign_resources(device.config.bars.values(), device.config_write)
    device.bar_write(0, 0, 4, 0x1122_3344)
    device.bar_write(0, 4, 4, 0x5566_7788)
    assert device.bar_read(0, 2, 4) == reads
    device.bar_write(0, 2, 4, 0xAABB_CCDD)
    assert [device.bar_read(0, at, 4) for at in (0, 4)] == [mask, status]


@pytest.mark.parametrize(
    ("access", "version", "word", "long", "written"),
    [
        ("tcg", "7.2", 0, 0, "000000"),
        ("tcg", "11.1", 0, 0, "000000"),
        ("qtest", "11.1", 0, 0, "000000"),
        ("qtest", "7.2", 0x3322, 0xFF443322, "78569a"),
        ("kvm", "11.1", 0x3322, 0xFF443322, "78569a"),
    ],
)
def test_configuration_ports_misaligned(access: str, version: str, word: int, long: int, written: str) -> None:
    """``inw`` and ``inl`` at 0xcfd, and ``outw`` at 0xcff, of a scratch word; as above."""
    device = Ivshmem(by_access(access, version), ring=lambda peer, vector: None)
    device.config_write(0x80, 4, 0x4433_2211)
    assert [device.config_read(0x81, size) for size in (2, 4)] == [word, long]
    device.config_write(0x84, 4, 0)
    device.config_write(0x85, 2, 0x5678)
    device.config_write(0x87, 2, 0xFF9A)
    assert bytes(device.config.data[0x85:0x88]).hex() == written
    assert device.config_read(0x88, 1) == 0


@pytest.mark.parametrize(
    ("name", "word", "long"),
    [("acrn", 0xFFFF, 0xFFFF_FFFF), ("cloud-hypervisor", 0x101A, 0xFFFF_FFFF), ("qemu-1.1", 0x101A, 0x0003_1110)],
)
def test_other_hypervisors_take_misaligned_configuration_accesses(name: str, word: int, long: int) -> None:
    """2 bytes at 1, within a word; 4 bytes at 2, across its end."""
    device = Ivshmem(profile(name), ring=lambda peer, vector: None)
    assert device.config_read(1, 2) == word
    assert device.config_read(2, 4) == long


def test_kvmtool_has_its_registers_in_io_ports_and_a_table_without_interrupts() -> None:
    device = Ivshmem(profile("kvmtool"), ring=lambda peer, vector: None)
    device.set_memory(memoryview(bytearray(1 << 20)))
    assert device.config_read(0x10, 4) == 1
    addresses = assign_resources(device.config.bars.values(), device.config_write)
    assert device.config_read(0x10, 4) == addresses[0] | 1
    assert device.config.bar_address(0) == addresses[0] < 0x10000
    assert device.config_read(0x04, 2) == 7
    assert [device.config_read(0x40, 1), device.config_read(0x42, 2), device.config_read(0x48, 4)] == [0x11, 1, 0x1001]
    assert [device.config_read(at, size) for at, size in ((0x08, 1), (0x09, 1), (0x0A, 2))] == [0, 0, 0xFF00]
    device.bar_write(0, 0, 4, 5)
    assert [device.bar_read(0, at, 4) for at in (0, 4, 8, 12)] == [0, 0, 0, 0]
    device.bar_write(1, 4, 4, 0x5A)
    assert device.bar_read(1, 4, 4) == 0x5A
    device.config_write(0x04, 2, 1)  # ports, no memory
    assert device.bar_read(1, 0, 4) == 0
    assert device.config.bar_address(0) == addresses[0]
    assert device.config.bar_address(2) is None


def test_ivshmem_flat_has_no_pci_and_a_window_of_16_bytes() -> None:
    rung: list[tuple[int, int]] = []
    device = make_device(profile("ivshmem-flat"), vectors=64, ring=lambda peer, vector: rung.append((peer, vector)))
    device.set_peer(3)
    device.set_memory(memoryview(bytearray(1 << 20)))
    device.config_write(0x04, 2, 0)
    assert [device.config_read(at, size) for at, size in ((0, 4), (4, 2), (0x42, 1))] == [0xFFFF_FFFF, 0xFFFF, 0xFF]
    device.bar_write(0, 0, 4, 5)
    device.bar_write(0, 4, 4, 6)
    assert [device.bar_read(0, at, 4) for at in (0, 4, 8, 12, 16)] == [0, 0, 3, 0, 0]
    for vector in range(64):
        assert device.connect(5, vector)
    assert device.connect(0, 5)
    device.bar_write(0, 12, 4, 5 << 16 | 63)
    device.bar_write(0, 14, 2, 5)  # another offset, so nothing: ivshmem-doorbell rings vector 5 of peer 0
    device.bar_write(0, 12, 4, 5 << 16 | 0x100)
    assert rung == [(5, 63)]
    (warning,) = device.effects
    assert warning == DeviceWarning("doorbell for vector 256: the real device looks behind its table of 64 vectors")
    device.reset()
    assert device.bar_read(0, 8, 4) == 3


def test_ivshmem_flat_is_interrupted_by_vector_0_only() -> None:
    device = make_device(profile("ivshmem-flat"), vectors=2, ring=lambda peer, vector: None)
    device.interrupt(0, 3)
    assert list(device.effects) == [IntxPulse()]
    assert device.lost_doorbells == 0
    device.effects.clear()
    device.interrupt(1, 2)
    assert [type(effect) for effect in device.effects] == [DeviceWarning]
    assert device.lost_doorbells == 2


def test_a_profile_of_a_version() -> None:
    assert profile("qemu-doorbell-7.2").access_path is AccessPath.BYTES
    assert profile("qemu-plain-10.0").access_path is profile("qemu-plain").access_path is AccessPath.EVEN
    assert profile("qemu-doorbell-7.2+revision=3").revision == 3
    assert PROFILES["qemu-doorbell-9.2"].name == "qemu-doorbell-9.2"
    assert "qemu-doorbell-9.2" not in list(PROFILES)
    for wrong in ("acrn-7.2", "qemu-doorbell-", "qemu-doorbell-new", "qemu-doorbell-kvm-7.2"):
        with pytest.raises(UsageError):
            profile(wrong)
        assert wrong not in PROFILES


def by_access(access: str, version: str) -> Profile:
    return profile_by_access(profile("qemu-doorbell"), access, QemuVersion.parse(version))


@pytest.mark.parametrize(("name", "position"), [("qemu-1.1", 0xFFFF_FFFF), ("acrn", 0), ("qemu-doorbell", 0)])
def test_position_before_setup(name: str, position: int) -> None:
    device = Ivshmem(profile(name), ring=lambda peer, vector: None)
    assign_resources(device.config.bars.values(), device.config_write)
    assert device.bar_read(0, 8, 4) == position


@pytest.mark.parametrize("name", [name for name, made in PROFILES.items() if made.version == 1 and made.pci])
def test_nothing_answers_without_memory_decode(name: str) -> None:
    device = made_of(name, vectors=1)
    device.bar_write(0, 0, 4, 5)
    device.bar_write(2, 0, 4, 6)
    device.config_write(0x04, 2, 4)
    for bar in sorted(device.config.bars):
        assert [device.bar_read(bar, at, 4) for at in (0, 4, 8, 12)] == [0] * 4
        device.bar_write(bar, 0, 4, 0xFFFF_FFFF)
    device.config_write(0x04, 2, 7)
    mask = 0 if name in ("cloud-hypervisor", "kvmtool") else 5
    found = [device.bar_read(bar, 0, 4) for bar in sorted(device.config.bars)]
    assert found == ([mask, 0, 6] if device.msix else [mask, 6])


def test_a_peer_that_leaves_takes_only_its_own_lines() -> None:
    device = made_of("qemu-doorbell")
    for peer in (2, 3, 4):
        for vector in range(2):
            device.connect(peer, vector)
    device.disconnect(3)
    assert {peer: device.peers.vectors(peer) for peer in device.peers} == {2: 2, 4: 2}


def test_memory_larger_than_the_bar_of_a_device_that_was_told_its_size() -> None:
    device = Ivshmem(profile("qemu-1.1"), vectors=1, ring=lambda peer, vector: None, size_bytes=4096)
    device.set_memory(memoryview(bytearray(8192)))
    assign_resources(device.config.bars.values(), device.config_write)
    device.bar_write(2, 4094, 4, 0xFFFF_FFFF)
    assert device.bar_read(2, 4094, 4) == 0xFFFF
    assert device.memory is not None
    assert len(device.memory) == 4096


def test_the_memory_of_a_device_that_is_told_no_size() -> None:
    """contrib/ivshmem-server's -l, the property size of 2012, ACRN's tutorial, kvmtool's SHMEM_DEFAULT_SIZE."""
    sizes = {name: made.memory_default_bytes >> 20 for name, made in PROFILES.items() if made.version == 1}
    assert [sizes.pop(name) for name in ("acrn", "kvmtool")] == [2, 16]
    assert set(sizes.values()) == {4}


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
    assert device.fires == [True] + [False] * 7
    device.config_write(0x04, 2, 2)  # no bus master either
    assert device.fires == [True] + [False] * 7
    device.config_write(0x00, 4, 0xDEAD_BEEF)
    assert device.config_read(0x00, 4) == 0xDEAD_BEEF
    device.config_write(0x40, 4, 0xFFFF_FFFF)
    assert device.config_read(0x40, 2) == 0x11


@pytest.mark.parametrize("vectors", [0, 1, 7, 9])
def test_acrn_always_has_eight_vectors(vectors: int) -> None:
    with pytest.raises(UsageError, match=f"acrn always has 8 vectors, not {vectors}"):
        Ivshmem(profile("acrn"), vectors=vectors, ring=lambda peer, vector: None)
    device = Ivshmem(profile("acrn"), ring=lambda peer, vector: None)
    assert device.vectors == len(device.fires) == 8
    assert device.config_read(0x42, 2) == 7


def test_acrn_asks_the_table_of_the_receiver() -> None:
    """Every vector of the receiver's table is rung; the sender's own number limits nothing."""
    rung: list[tuple[int, int]] = []
    device = Ivshmem(profile("acrn"), ring=lambda peer, vector: rung.append((peer, vector)))
    assign_resources(device.config.bars.values(), device.config_write)
    device.set_peer(1)
    for vector in range(8):
        assert device.connect(0, vector)
    for vector in range(10):
        device.bar_write(0, 12, 4, vector)
    assert rung == [(0, vector) for vector in range(8)]
    assert device.ignored_doorbells == 2
