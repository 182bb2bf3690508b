"""The 2012 device as a guest sees it: rows 1-11, 35-55, 78-84, 91 and 94 of seed_rows.toml."""

from __future__ import annotations

from collections import Counter

import pytest

from nodes.device.effects import IntxLevel
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import MsixMessage
from nodes.device.pci import assign_resources
from nodes.device.profile import Quirk
from nodes.device.profiles import profile
from nodes.errors import ModelledFault, UsageError

MIB = 1 << 20
ALL_ONES = 0xFFFF_FFFF


class Qemu11DeviceSetup:
    """A device of 2012 with memory of 1 MiB, its doorbells counted."""

    def __init__(
        self, name: str = "qemu-1.1", *, vectors: int = 2, repaired: tuple[Quirk, ...] = (), boot: bool = True
    ) -> None:
        self.rung: Counter[tuple[int, int]] = Counter()
        self.device = Ivshmem(
            profile(name).without(*repaired),
            vectors=vectors,
            ring=lambda peer, vector: self.rung.update([(peer, vector)]),
            size_bytes=MIB,
        )
        if boot:
            assign_resources(self.device.config.bars.values(), self.device.config_write)

    def settle(self, peer: int = 3) -> Qemu11DeviceSetup:
        self.device.set_peer(peer)
        self.device.set_memory(memoryview(bytearray(MIB)))
        return self

    def enable(self, *unmasked: int) -> Qemu11DeviceSetup:
        for vector in unmasked:
            for word, value in enumerate((0x2000 + 16 * vector, 0, 0xC0DE_0000 + vector, 0)):
                self.device.bar_write(1, 16 * vector + 4 * word, 4, value)
        self.device.config_write(0x42, 2, 0x8000)
        return self

    def read(self, offset: int, size_bytes: int = 4) -> int:
        return self.device.bar_read(0, offset, size_bytes)

    def write(self, offset: int, value: int, size_bytes: int = 4) -> None:
        self.device.bar_write(0, offset, size_bytes, value)

    def effects(self) -> list[object]:
        taken: list[object] = list(self.device.effects)
        self.device.effects.clear()
        return taken

    def pending(self) -> int:
        return self.device.bar_read(1, 0x800, 4)


# Identity and PCI.


def test_identity() -> None:
    device = Qemu11DeviceSetup().device
    assert device.config_read(0x00, 4) == 0x1110_1AF4
    assert device.config_read(0x08, 4) == 0x0500_0000
    assert device.config_read(0x2C, 4) == 0x1100_1AF4


def test_command_is_preset_and_any_reset_clears_it() -> None:
    device = Qemu11DeviceSetup(boot=False).device
    assert device.config_read(0x04, 2) == 3
    device.reset()
    assert device.config_read(0x04, 2) == 0


@pytest.mark.parametrize("name", ["qemu-1.1", "qemu-1.1-intx", "qemu-1.1-shm"])
def test_interrupt_pin_is_always_inta(name: str) -> None:
    assert Qemu11DeviceSetup(name).device.config_read(0x3D, 1) == 1


def bar_size(device: Ivshmem, offset: int) -> tuple[int, int]:
    """(size in bytes, type bits) as a guest finds them by writing ones."""
    device.config_write(offset, 4, ALL_ONES)
    raw = device.config_read(offset, 4)
    return (-(raw & ~0xF) & ALL_ONES, raw & 0xF)


def test_register_bar() -> None:
    assert bar_size(Qemu11DeviceSetup(boot=False).device, 0x10) == (0x100, 0)


def test_msix_bar_only_with_server_and_msi() -> None:
    assert bar_size(Qemu11DeviceSetup(boot=False).device, 0x14) == (4096, 0)
    for name in ("qemu-1.1-intx", "qemu-1.1-shm"):
        device = Qemu11DeviceSetup(name, boot=False).device
        assert bar_size(device, 0x14) == (0, 0)
        assert not device.config_read(0x06, 2) & 0x10


def test_memory_bar_is_there_before_the_memory() -> None:
    bench = Qemu11DeviceSetup()
    bench.device.bar_write(2, 0, 4, 5)
    assert bench.device.bar_read(2, 0, 4) == 0
    bench.settle().device.bar_write(2, 0, 4, 5)
    assert bench.device.bar_read(2, 0, 4) == 5
    assert bar_size(bench.device, 0x18) == (MIB, 0)
    assert bar_size(bench.device, 0x1C) == (0, 0)


def test_msix_layout() -> None:
    device = Qemu11DeviceSetup(vectors=5).device
    capability = [device.config_read(0x40 + at, 4) for at in (0, 4, 8)]
    assert capability == [4 << 16 | 0x11, 1, 0x801]
    assert device.config_read(0x34, 1) == 0x40


@pytest.mark.parametrize("vectors", [0, 33])
def test_too_many_or_no_vectors(vectors: int) -> None:
    assert Qemu11DeviceSetup(vectors=32).device.config_read(0x42, 2) == 31
    with pytest.raises(UsageError, match=r"expected 1\.\.32"):
        Qemu11DeviceSetup(vectors=vectors)


def test_vectors_are_masked_at_first() -> None:
    bench = Qemu11DeviceSetup().settle()
    assert [bench.device.bar_read(1, 16 * vector + 12, 4) for vector in range(2)] == [1, 1]
    bench.enable()
    bench.device.interrupt(0, 1)
    assert bench.pending() == 1
    bench.enable(0)
    assert bench.effects() == [MsixMessage(0, 0x2000, 0xC0DE_0000)]
    bench.device.config_write(0x42, 2, 0xC000)
    bench.device.interrupt(0, 1)
    assert bench.pending() == 1
    assert bench.effects() == []


# Modes.


def test_shm_mode_has_no_msix_no_peers_and_position_0() -> None:
    device = Qemu11DeviceSetup("qemu-1.1-shm").device
    device.set_memory(memoryview(bytearray(MIB)))
    assert device.bar_read(0, 8, 4) == 0
    assert device.msix is None
    assert device.fires == []
    assert list(device.peers) == []


# Registers.


def test_register_map() -> None:
    """Each register alone: what is written to one is seen there, and at no other offset."""
    bench = Qemu11DeviceSetup("qemu-1.1-intx").settle(7)
    bench.device.connect(9, 1)
    bench.write(0, 0xA5)
    bench.write(4, 0x5A00)
    bench.write(8, ALL_ONES)
    assert not bench.rung
    bench.write(12, 9 << 16 | 1)
    assert bench.rung == {(9, 1): 1}
    assert [bench.read(at) for at in (0, 8, 12, *range(16, 256, 4))] == [0xA5, 7, 0, *[0] * 60]
    assert [bench.read(4), bench.read(4), bench.read(0)] == [0x5A00, 0, 0xA5]


def test_written_offsets_are_rounded_read_ones_are_not() -> None:
    bench = Qemu11DeviceSetup().settle()
    bench.device.connect(0, 1)
    bench.write(13, 1, 1)
    assert bench.rung == {(0, 1): 1}
    bench.write(0, 0x1234_5678)
    assert bench.read(0, 1) == 0x78
    assert bench.read(1, 1) == 0
    assert bench.read(13, 1) == 0


def test_misaligned_accesses_arrive_in_aligned_pieces() -> None:
    """An exit of KVM is split before the memory core could refuse it (QEMU 1.1, exec.c, cpu_physical_memory_rw)."""
    bench = Qemu11DeviceSetup().settle()
    bench.write(0, 5)
    bench.write(4, 0x1234_5678)
    assert bench.read(2) == 0x5678_0000  # 2 bytes at 2 are no register, 2 at 4 are the status, and clear it
    assert bench.read(4) == 0
    bench.write(2, 0xAAAA_BBBB)
    assert [bench.read(at) for at in (0, 4)] == [0xBBBB, 0xAAAA]
    bench.write(1, 0xCCDD, 2)  # two single bytes, both for the word at 0: the later one stays
    assert bench.read(0) == 0xCC


def test_misaligned_accesses_of_the_msix_table() -> None:
    """Only aligned words are taken (QEMU 1.1, hw/msix.c, msix_mmio_ops); every other piece reads all ones."""
    device = Qemu11DeviceSetup().settle().device
    device.bar_write(1, 0, 4, 0x1122_3344)
    device.bar_write(1, 4, 4, 0x5566_7788)
    assert device.bar_read(1, 2, 4) == ALL_ONES
    assert device.bar_read(1, 0, 2) == 0xFFFF
    assert device.bar_read(1, 2, 8) == 0xFFFF_5566_7788_FFFF
    device.bar_write(1, 2, 4, 0)
    assert device.bar_read(1, 0, 4) == 0x1122_3344


def test_narrow_writes_replace_the_whole_register() -> None:
    bench = Qemu11DeviceSetup().settle()
    bench.write(0, ALL_ONES)
    bench.write(0, 0x12, 1)
    assert bench.read(0) == 0x12


def test_little_endian_as_its_host() -> None:
    bench = Qemu11DeviceSetup().settle()
    bench.write(0, 0x0102_0304)
    assert bench.read(0, 2) == 0x0304
    bench.write(0, 0x0506_0708_0102_0304, 8)  # the low word is at the low address
    assert [bench.read(0), bench.read(4)] == [0x0102_0304, 0x0506_0708]


def test_mask_is_read_write_and_moves_the_line() -> None:
    bench = Qemu11DeviceSetup("qemu-1.1-intx").settle()
    assert bench.read(0) == 0
    bench.write(4, 1)
    assert bench.effects() == []
    bench.write(0, 1)
    assert bench.effects() == [IntxLevel(True)]
    assert bench.device.config_read(0x06, 2) & 8
    bench.write(0, 0)
    assert bench.effects() == [IntxLevel(False)]


def test_status_write_stores() -> None:
    bench = Qemu11DeviceSetup("qemu-1.1-intx").settle()
    bench.write(0, 2)
    bench.write(4, 3)
    assert bench.effects() == [IntxLevel(True)]
    bench.write(4, 1)
    assert bench.effects() == [IntxLevel(False)]
    assert bench.read(4) == 1


def test_status_read_clears_and_lowers_the_line() -> None:
    bench = Qemu11DeviceSetup("qemu-1.1-intx").settle()
    bench.write(0, 0xFF)
    bench.write(4, 0x55)
    bench.effects()
    assert bench.read(4) == 0x55
    assert bench.effects() == [IntxLevel(False)]
    assert bench.read(4) == 0


def test_line_is_status_and_mask_unless_disabled() -> None:
    bench = Qemu11DeviceSetup("qemu-1.1-intx").settle()
    bench.write(0, 0xF0)
    bench.write(4, 0x0F)
    assert bench.effects() == []
    bench.write(4, 0x10)
    assert bench.effects() == [IntxLevel(True)]
    bench.device.config_write(0x04, 2, 0x402)
    assert bench.effects() == [IntxLevel(False)]


def test_position_is_minus_one_until_memory_is_there() -> None:
    bench = Qemu11DeviceSetup()
    assert bench.read(8) == ALL_ONES
    bench.device.set_peer(5)
    assert bench.read(8) == ALL_ONES
    bench.settle(5)
    assert bench.read(8) == 5


def test_position_and_reserved_space_ignore_writes() -> None:
    bench = Qemu11DeviceSetup().settle()
    for offset in (8, *range(16, 256, 4)):
        bench.write(offset, ALL_ONES)
        assert bench.read(offset) == (3 if offset == 8 else 0)
    assert bench.device.ignored_doorbells == 0


def test_doorbell_reads_0() -> None:
    bench = Qemu11DeviceSetup().settle()
    bench.device.connect(0, 0)
    bench.write(12, 9 << 16)
    assert bench.read(12) == 0


def test_doorbell_vector_has_8_bits() -> None:
    bench = Qemu11DeviceSetup().settle()
    for vector in range(2):
        bench.device.connect(9, vector)
    for value in (9 << 16, 9 << 16 | 0x100, 9 << 16 | 0xFF01):
        bench.write(12, value)
    assert bench.rung == {(9, 0): 2, (9, 1): 1}


def test_doorbell_beyond_the_peers_and_vectors_is_ignored() -> None:
    bench = Qemu11DeviceSetup().settle()
    bench.device.connect(9, 0)
    bench.write(12, 10 << 16)
    bench.write(12, 9 << 16 | 1)
    assert not bench.rung
    assert bench.device.ignored_doorbells == 2


def test_doorbell_rings_once() -> None:
    bench = Qemu11DeviceSetup().settle()
    bench.device.connect(9, 0)
    bench.write(12, 9 << 16)
    assert bench.rung == {(9, 0): 1}
    assert bench.device.rung_doorbells == 1


def test_doorbell_to_itself() -> None:
    bench = Qemu11DeviceSetup().settle(3)
    bench.device.connect(3, 1)
    bench.write(12, 3 << 16 | 1)
    assert bench.rung == {(3, 1): 1}


def test_doorbell_0_without_a_server_is_a_fault() -> None:
    bench = Qemu11DeviceSetup("qemu-1.1-shm")
    bench.write(12, 1 << 16)  # beyond the largest peer: nothing
    with pytest.raises(ModelledFault) as caught:
        bench.write(12, 0)
    assert caught.value.row == 55
    repaired = Qemu11DeviceSetup("qemu-1.1-shm", repaired=(Quirk.PLAIN_DOORBELL_FAULT,))
    repaired.write(12, 0)
    assert repaired.device.ignored_doorbells == 1


# Delivery.


def test_rings_coalesce() -> None:
    bench = Qemu11DeviceSetup().settle().enable(0)
    bench.device.interrupt(0, 1000)
    assert len(bench.effects()) == 1


@pytest.mark.parametrize("enabled", [False, True])
def test_masked_or_disabled_is_pending(enabled: bool) -> None:
    bench = Qemu11DeviceSetup().settle()
    if enabled:
        bench.enable()
    bench.device.interrupt(1, 3)
    assert bench.pending() == 2
    bench.enable(1)
    assert bench.effects() == [MsixMessage(1, 0x2010, 0xC0DE_0001)]
    assert bench.pending() == 0


def test_reset_drops_the_vectors() -> None:
    bench = Qemu11DeviceSetup().settle().enable(0)
    assert bench.device.fires == [True, False]
    bench.device.reset()
    assign_resources(bench.device.config.bars.values(), bench.device.config_write)
    bench.enable(0, 1)
    assert bench.device.fires == [False, False]
    bench.device.interrupt(0, 4)
    assert bench.effects() == []
    assert bench.pending() == 0
    assert bench.device.lost_doorbells == 4
    repaired = Qemu11DeviceSetup(repaired=(Quirk.RESET_DROPS_VECTORS,)).settle()
    repaired.device.reset()
    assign_resources(repaired.device.config.bars.values(), repaired.device.config_write)
    assert repaired.enable(0).device.fires == [True, False]


def test_intx_status_is_the_low_byte_of_the_counter() -> None:
    bench = Qemu11DeviceSetup("qemu-1.1-intx").settle()
    bench.write(0, ALL_ONES)
    bench.device.interrupt(0, 255)
    assert bench.effects() == [IntxLevel(True)]
    bench.device.interrupt(0, 256)
    assert bench.effects() == [IntxLevel(False)]
    assert bench.read(4) == 0
    assert (bench.device.lost_doorbells, bench.device.pended_doorbells) == (256, 0)
    bench.write(0, 2)
    bench.device.interrupt(0, 1)
    assert bench.effects() == []
    assert (bench.device.lost_doorbells, bench.device.pended_doorbells) == (256, 1)
    repaired = Qemu11DeviceSetup("qemu-1.1-intx", repaired=(Quirk.STATUS_LOW_BYTE,)).settle()
    repaired.write(0, ALL_ONES)
    repaired.device.interrupt(0, 256)
    assert repaired.effects() == [IntxLevel(True)]


def test_intx_forgets_the_vector() -> None:
    bench = Qemu11DeviceSetup("qemu-1.1-intx").settle()
    seen = []
    for vector in range(2):
        bench.device.interrupt(vector, 1)
        seen.append(bench.read(4))
    assert seen == [1, 1]


def test_intx_beside_msix() -> None:
    bench = Qemu11DeviceSetup().settle().enable(0)
    bench.write(0, 1)
    bench.write(4, 1)
    assert bench.effects() == [IntxLevel(True)]
    repaired = Qemu11DeviceSetup(repaired=(Quirk.INTX_BESIDE_MSIX,)).settle().enable(0)
    repaired.write(0, 1)
    repaired.write(4, 1)
    assert repaired.effects() == []


# Reset, configuration writes.


def test_device_reset_keeps_mask_peers_and_memory() -> None:
    bench = Qemu11DeviceSetup().settle(3)
    bench.device.connect(9, 0)
    bench.write(0, 0xAB)
    bench.write(4, 0xCD)
    bench.device.bar_write(2, 0, 4, 0x1234)
    bench.device.reset()
    assign_resources(bench.device.config.bars.values(), bench.device.config_write)
    assert [bench.read(at) for at in (0, 4, 8)] == [0xAB, 0, 3]
    assert bench.device.bar_read(2, 0, 4) == 0x1234
    bench.write(12, 9 << 16)
    assert bench.rung == {(9, 0): 1}


def test_enable_and_function_mask_fire_what_is_pending() -> None:
    bench = Qemu11DeviceSetup().settle().enable(0, 1)
    bench.device.config_write(0x42, 2, 0xC000)
    bench.device.interrupt(0, 1)
    bench.device.interrupt(1, 1)
    assert bench.effects() == []
    bench.device.config_write(0x42, 2, 0x8000)
    assert [effect.vector for effect in bench.effects() if isinstance(effect, MsixMessage)] == [0, 1]
    bench.device.config_write(0x42, 2, 0)
    bench.device.interrupt(1, 1)
    bench.device.config_write(0x43, 1, 0x80)
    assert bench.effects() == [MsixMessage(1, 0x2010, 0xC0DE_0001)]


def test_messages_need_no_bus_master() -> None:
    bench = Qemu11DeviceSetup().settle().enable(0)
    bench.device.config_write(0x04, 2, 2)
    assert bench.device.fires[0] is True
    bench.device.interrupt(0, 1)
    assert bench.effects() == [MsixMessage(0, 0x2000, 0xC0DE_0000)]
