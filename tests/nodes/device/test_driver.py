"""A driver goes by the profile's tables: a device with other registers, BARs and capability works as any other."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from nodes.device import driver
from nodes.device.ivshmem import Ivshmem
from nodes.device.profile import DOORBELL, INTR_MASK, INTR_STATUS, IV_POSITION, Profile
from nodes.device.profiles import PROFILES, profile
from nodes.device.registers import Access, Register, RegisterMap
from nodes.errors import GuestError, UsageError
from nodes.guest import FOREVER, Guest, Interrupt, Program
from nodes.vm import Vm
from tests.fabric import KeptLedger

VERSION_1 = [made for made in PROFILES.values() if made.version == 1]
ELSEWHERE = RegisterMap(
    "BAR2",
    0x40,
    (
        Register(0x00, IV_POSITION, Access.RO, "ID"),
        Register(0x04, "Spare", Access.RESERVED, "nothing", words=3),
        Register(0x10, DOORBELL, Access.WO, "doorbell"),
        Register(0x14, INTR_STATUS, Access.RC, "status"),
        Register(0x18, INTR_MASK, Access.RW, "mask"),
        Register(0x1C, "Rest", Access.RESERVED, "nothing", words=9),
    ),
)


def moved(name: str) -> Profile:
    """The same device with its registers in BAR2, MSI-X in BAR3, the memory in BAR0, its capability at 0x60."""
    return replace(
        profile(name),
        vendor=0x110A,
        device=0x4106,
        revision=7,
        registers=ELSEWHERE,
        registers_bar=2,
        msix_bar=3,
        memory_bar=0,
        msix_capability=0x60,
    )


class DriverSetup:
    def __init__(self, made: Profile) -> None:
        self.rung: list[int] = []
        self.heard: list[Interrupt | None] = []
        self.vm = Vm(
            made,
            vectors=2,
            role="master",
            size_bytes=4096 if made.memory_container else None,
            signal=lambda line, value: self.rung.append(line),
            ledger=KeptLedger(),
            clock=lambda: 1000,
            random=random.Random(0),
            sample_every=1,
        )
        self.vm.place(0, memoryview(bytearray(4096)))
        for peer in range(2):
            for vector in range(2):
                self.vm.connect(peer, vector, 10 * peer + vector)

    def listen(self) -> None:
        def program(guest: Guest) -> Program:
            while True:
                self.heard.append((yield FOREVER))

        self.vm.start(program)


@pytest.mark.parametrize("name", ["qemu-doorbell", "qemu-doorbell-kvm", "qemu-1.1"])
def test_a_device_with_another_register_map(name: str) -> None:
    bench = DriverSetup(moved(name))
    guest, device = bench.vm.guest, bench.vm.device
    bench.listen()
    assert device.config_read(0x00, 4) == 0x4106_110A
    guest.ring(1, 1)
    guest.write(2, 0x10, 1 << 16)
    guest.write(2, 0x0C, 1 << 16)  # where the doorbell of others is: nothing
    assert bench.rung == [11, 10]
    bench.vm.deliver(1, 3)
    guest.mask(0)
    bench.vm.deliver(0, 1)
    assert guest.pending(0)
    guest.unmask(0)
    bench.vm.settle()
    assert bench.heard == [Interrupt(1, 3), Interrupt(0, 1)]
    guest.write(0, 8, 0xABCD)
    assert guest.read(0, 8) == 0xABCD == int.from_bytes(guest.memory[8:12], "little")
    assert guest.read(2, 0) == 0


def test_the_line_of_a_device_with_another_register_map() -> None:
    bench = DriverSetup(moved("qemu-1.1-intx"))
    bench.listen()
    assert bench.vm.guest.read(2, 0x18) == 0xFFFF_FFFF
    bench.vm.deliver(1, 5)
    assert bench.heard == [Interrupt(0, 5)]
    assert bench.vm.guest.read(2, 0x14) == 5
    assert not bench.vm.device.intx_level


@pytest.mark.parametrize("name", ["qemu-doorbell", "qemu-1.1", "qemu-1.1-intx"])
def test_migration_of_a_device_with_another_register_map(name: str) -> None:
    made = moved(name)
    source, there = DriverSetup(made).vm, DriverSetup(made).vm
    source.guest.write(2, 0x18, 0xAB)
    there.device.load(source.device.save())
    assert there.device.config.data == source.device.config.data
    assert there.guest.read(2, 0x18) == (0xAB if "mask" in made.stream else 0)


def test_a_register_that_a_map_lacks() -> None:
    with pytest.raises(UsageError, match="BAR2 has no register Doorbells"):
        ELSEWHERE.offset_of("Doorbells")


@pytest.mark.parametrize("made", VERSION_1, ids=lambda made: made.name)
def test_start_values_are_those_of_the_profile(made: Profile) -> None:
    device = Ivshmem(made, ring=lambda peer, vector: None)
    device.set_memory(memoryview(bytearray(4 << 20)))
    driver.probe(device)
    mask = device.bar_read(made.registers_bar, made.registers.offset_of(INTR_MASK), 4)
    assert mask == dict(made.driver_start).get(INTR_MASK, 0)
    assert (mask != 0) == (made.intx and not made.msix)
    if device.msix:
        assert device.msix.enabled
        assert all(device.fires)


@pytest.mark.parametrize("name", ["qemu-plain", "qemu-1.1-intx"])
def test_a_device_without_msix_has_nothing_to_mask(name: str) -> None:
    device = Ivshmem(profile(name), ring=lambda peer, vector: None)
    with pytest.raises(GuestError, match="no MSI-X: it has no vector to mask"):
        driver.set_mask(device, 0, masked=True)
    with pytest.raises(GuestError, match="no MSI-X: it has no vector that can be pending"):
        driver.is_pending(device, 0)
