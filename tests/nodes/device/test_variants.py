"""nodes.device.variants: cells changed within what PCI allows, and what a driver finds then."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from nodes.device import driver
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import MsixMessage
from nodes.device.profiles import PROFILES, profile
from nodes.device.variants import (
    ODD_DEVICES,
    VARIANT_CELLS,
    OddDevice,
    Value,
    make_variant,
    parse_cells,
    parse_variant,
    variant_name,
)
from nodes.errors import UsageError
from topologies import load

BASE = PROFILES["qemu-doorbell"]
ALL_ONES = 0xFFFF_FFFF


def probed(cells: Mapping[str, Value], vectors: int = 2) -> tuple[Ivshmem, list[tuple[int, int]]]:
    """A device of that variant after its driver has started it, and the doorbells that it rings."""
    rung: list[tuple[int, int]] = []
    made = make_variant(BASE, cells)
    device = Ivshmem(made, vectors=made.fixed_vectors or vectors, ring=lambda peer, vector: rung.append((peer, vector)))
    device.set_peer(3)
    device.set_memory(memoryview(bytearray(1 << 20)))
    driver.probe(device)
    device.connect(7, 1)
    return device, rung


def bar_size(device: Ivshmem, bar: int) -> int:
    before = device.config_read(0x10 + 4 * bar, 4)
    device.config_write(0x10 + 4 * bar, 4, ALL_ONES)
    raw = device.config_read(0x10 + 4 * bar, 4)
    device.config_write(0x10 + 4 * bar, 4, before)
    return -(raw & ~0xF) & ALL_ONES


@pytest.mark.parametrize("odd", ODD_DEVICES, ids=lambda odd: odd.name)
def test_a_driver_that_takes_what_it_finds_works_with_each_odd_device(odd: OddDevice) -> None:
    device, rung = probed(odd.cells)
    driver.ring(device, 7, 1)
    assert rung == [(7, 1)]
    device.interrupt(1, 1)
    sent = [effect for effect in device.effects if isinstance(effect, MsixMessage)]
    assert [message.vector for message in sent] == ([1] if device.msix else [])
    if device.msix:
        driver.set_mask(device, 1, masked=True)
        device.interrupt(1, 1)
        assert driver.is_pending(device, 1)


ASSUMPTIONS: dict[str, object] = {
    "large_registers": lambda device: bar_size(device, 0) == 0x100,
    "memory_first": lambda device: bar_size(device, 2) == 1 << 20,
    "memory_32_bit": lambda device: device.config_read(0x18, 4) & 0x6 == 0x4,
    "memory_not_prefetchable": lambda device: bool(device.config_read(0x18, 4) & 0x8),
    "registers_last": lambda device: bar_size(device, 0) == 0x100,
    "no_msix": lambda device: bool(device.config_read(0x06, 2) & 0x10),
    "capability_elsewhere": lambda device: device.config_read(0x40, 1) == 0x11,
    "pending_bits_elsewhere": lambda device: device.config_read(0x48, 4) == 0x801,
    "other_msix_bar": lambda device: device.config_read(0x44, 4) & 7 == 1,
    "many_vectors": lambda device: device.config_read(0x42, 2) & 0x7FF == 1,
    "old_revision": lambda device: device.config_read(0x08, 1) == 1,
    "late_position": lambda device: device.bar_read(device.profile.registers_bar, 8, 4) == 3,
}


@pytest.mark.parametrize("odd", ODD_DEVICES, ids=lambda odd: odd.name)
def test_what_a_driver_takes_for_granted_is_wrong_with_each_odd_device(odd: OddDevice) -> None:
    """And right with QEMU's own."""
    assumption = ASSUMPTIONS[odd.name]
    assert callable(assumption)
    assert assumption(probed({})[0])
    assert not assumption(probed(odd.cells)[0])
    assert odd.breaks
    assert odd.must


def test_the_catalogue_is_the_topology_that_runs_it() -> None:
    topology = load("odd_devices")
    made = {group.name: group.profile for group in topology.groups}
    assert made.pop("hub") == "qemu-doorbell"
    assert made == {odd.name: variant_name("qemu-doorbell", odd.cells) for odd in ODD_DEVICES}
    text = (Path(load.__code__.co_filename).parent / "scenarios" / "odd_devices.toml").read_text()
    assert {name: table["variant"] for name, table in tomllib.loads(text)["machines"].items() if name != "hub"} == {
        odd.name: odd.cells for odd in ODD_DEVICES
    }
    assert all(odd.must in text for odd in ODD_DEVICES)
    assert len(ODD_DEVICES) >= 12


def test_a_late_position_comes_after_so_many_reads_and_after_each_reset() -> None:
    device, _ = probed({"position_late_reads": 2, "position_before_setup": ALL_ONES})
    assert [device.bar_read(0, 8, 4) for _ in range(3)] == [ALL_ONES, ALL_ONES, 3]
    device.reset()
    driver.probe(device)
    assert [device.bar_read(0, 8, 4) for _ in range(3)] == [ALL_ONES, ALL_ONES, 3]


def test_the_window_of_the_registers_ends_where_it_says() -> None:
    device, _ = probed({"registers_bytes": 0x400})
    device.bar_write(0, 0, 4, 5)
    assert [device.bar_read(0, at, 4) for at in (0, 0x100, 0x3FC)] == [5, 0, 0]
    assert bar_size(device, 0) == 0x400


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ({"speed": 1}, "no cell 'speed'.*revision"),
        ({"revision": 256}, "revision: expected 0x0 to 0xff, got 256"),
        ({"revision": True}, "revision: expected 0x0 to 0xff, got True"),
        ({"msix": 1}, "msix: expected true or false, got 1"),
        ({"registers_bytes": 0x180}, "a power of two, got 384"),
        ({"msix_capability": 0x42}, "a multiple of 4, got 66"),
        ({"msix_capability": 0xF8}, "expected 0x40 to 0xf4"),
        ({"memory_bar": 0}, "BARs of their own.*memory_bar 0 and 1"),
        ({"memory_bar": 5}, "BARs of their own"),
        ({"msix_bar": 3}, "BARs of their own.*msix_bar 3"),
        ({"msix_pba_offset": 16, "fixed_vectors": 4}, "msix_pba_offset: expected at least 0x40"),
    ],
)
def test_what_pci_does_not_allow_is_refused(cells: dict[str, Value], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make_variant(BASE, cells)


def test_without_msix_the_memory_can_have_the_place_of_the_table() -> None:
    assert make_variant(BASE, {"msix": False, "memory_bar": 1}).memory_bar == 1


def test_a_variant_is_found_by_its_name() -> None:
    name = variant_name("qemu-doorbell", {"memory_wide": False, "revision": 2})
    assert name == "qemu-doorbell+memory_wide=false,revision=0x2"
    assert parse_variant(name) == ("qemu-doorbell", {"memory_wide": False, "revision": 2})
    assert PROFILES[name] == profile(name) == make_variant(BASE, {"memory_wide": False, "revision": 2})
    assert PROFILES[name].name == name
    assert name not in list(PROFILES)
    assert PROFILES.get("qemu-doorbell+revision=999") is None
    assert PROFILES.get("nothing+revision=1") is None
    with pytest.raises(UsageError, match="revision: expected"):
        profile("qemu-doorbell+revision=999")


@pytest.mark.parametrize("text", ["revision", "revision=", "revision=new", "=1=2"])
def test_a_text_that_is_no_cell_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected CELL=VALUE"):
        parse_cells([text])


def test_every_cell_says_what_it_is_and_takes_its_limits() -> None:
    for name, cell in VARIANT_CELLS.items():
        assert cell.text
        assert cell.values
        if cell.is_switch:
            assert [cell.check(name, value) for value in (True, False)] == [True, False]
        else:
            assert cell.check(name, cell.least) == cell.least
            with pytest.raises(UsageError):
                cell.check(name, cell.most + 1)


def test_what_a_cloud_hypervisor_guest_finds() -> None:
    """cloud-hypervisor, devices/src/ivshmem.rs: registers read 0, no MSI-X, the memory in a 64-bit BAR2."""
    made = PROFILES["cloud-hypervisor"]
    device = Ivshmem(made, ring=lambda peer, vector: None)
    device.set_memory(memoryview(bytearray(1 << 20)))
    driver.probe(device)
    assert device.config_read(0, 4) == 0x1110_1AF4
    assert device.config_read(8, 4) == 0x0500_0001
    assert device.config_read(0x2C, 4) == 0
    assert device.config_read(0x06, 2) & 0x10 == 0
    for offset in (0, 4, 8, 12):
        device.bar_write(0, offset, 4, ALL_ONES)
        assert device.bar_read(0, offset, 4) == 0
    assert device.config_read(0x18, 4) & 0xF == 0xC
    device.bar_write(2, 8, 4, 7)
    assert device.bar_read(2, 8, 4) == 7
    assert (bar_size(device, 0), bar_size(device, 1)) == (0x100, 0)
    device.config_write(4, 2, 0xFFFF)
    assert device.config_read(4, 2) == 0xFFFF
    device.config_write(0x60, 4, ALL_ONES)
    assert device.config_read(0x60, 4) == 0
