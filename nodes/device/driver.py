"""A guest's driver for an ivshmem device: it finds, enables, rings and masks the device.

The driver has no fixed offsets: registers come from the device's profile, the place of the MSI-X table from its
capability.
"""

from __future__ import annotations

from collections.abc import Callable

from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import CAPABILITY_ID, CONTROL, CONTROL_ENABLE, ENTRY_BYTES, MASKED, Msix
from nodes.device.pci import CAPABILITIES, STATUS, STATUS_CAPABILITIES, assign_resources
from nodes.device.profile import DOORBELL
from nodes.device.v2.profiles import INTERRUPT_CONTROL, STATE, ProfileV2
from nodes.errors import GuestError

MSI_ADDRESS = 0xFEE00000  # the local APIC's window, Intel SDM vol. 3, 10.11.1
ID_LIMIT = 1 << 16


def _to_processor(vector: int) -> tuple[int, int]:
    """The address and the data of the message by which a vector interrupts the first processor."""
    return MSI_ADDRESS, vector


def probe(
    device: Ivshmem,
    *,
    assign: Callable[..., object] = assign_resources,
    message: Callable[[int], tuple[int, int]] = _to_processor,
) -> None:
    """Start the device: decode memory, master the bus, write the start values, fill and enable the MSI-X table.

    Args:
        device: the device.
        assign: gives addresses to the BARs and enables the decoder, as `assign_resources` does.
        message: ``message(vector)`` is the address and the data of the message that the vector sends.
    """
    profile = device.profile
    assign(device.config.bars.values(), device.config_write)
    for name, value in profile.driver_start:
        device.bar_write(profile.registers_bar, profile.registers.offset_of(name), 4, value)
    capability = find_capability(device, CAPABILITY_ID)
    if capability is None or device.msix is None:
        return
    for vector in range(device.msix.layout.vectors):
        address, data = message(vector)
        for word, value in enumerate((address & 0xFFFF_FFFF, address >> 32, data, 0)):
            device.bar_write(device.msix.layout.bar, ENTRY_BYTES * vector + 4 * word, 4, value)
    control = device.config_read(capability + 2, 2)
    device.config_write(capability + 2, 2, control | CONTROL_ENABLE)


def ring(device: Ivshmem, peer: int, vector: int) -> None:
    """Write a doorbell to its register.

    Raises:
        GuestError: no doorbell has that peer or that vector.
    """
    if not (0 <= peer < ID_LIMIT and 0 <= vector < ID_LIMIT):
        raise GuestError(f"a doorbell names a peer and a vector of 0..65535 each, not peer {peer}, vector {vector}")
    profile = device.profile
    device.bar_write(profile.registers_bar, profile.registers.offset_of(DOORBELL), 4, peer << 16 | vector)


def set_state(device: Ivshmem, value: int) -> None:
    """Write the State register (ivshmem v2).

    Raises:
        GuestError: the device has none.
    """
    _write_v2(device, STATE, value)


def enable_interrupts(device: Ivshmem, *, enabled: bool) -> None:
    """Write the Interrupt Control register (ivshmem v2).

    Raises:
        GuestError: the device has none.
    """
    _write_v2(device, INTERRUPT_CONTROL, int(enabled))


def _write_v2(device: Ivshmem, name: str, value: int) -> None:
    profile = device.profile
    if not isinstance(profile, ProfileV2):
        raise GuestError(f"a {profile.name} has no register {name}: it is not of ivshmem v2")
    device.bar_write(profile.registers_bar, profile.registers.offset_of(name), 4, value)


def set_mask(device: Ivshmem, vector: int, *, masked: bool) -> None:
    """Set or clear the mask bit of a vector's MSI-X table entry (PCI 3.0, 6.8.2).

    Raises:
        GuestError: the device has no MSI-X, or no such vector.
    """
    layout = _msix(device, vector, "to mask").layout
    device.bar_write(layout.bar, ENTRY_BYTES * vector + 4 * CONTROL, 4, MASKED if masked else 0)


def is_pending(device: Ivshmem, vector: int) -> bool:
    """Read a vector's bit in the pending bit array (PCI 3.0, 6.8.2).

    Raises:
        GuestError: the device has no MSI-X, or no such vector.
    """
    layout = _msix(device, vector, "that can be pending").layout
    return bool(device.bar_read(layout.bar, layout.pba_offset + vector // 32 * 4, 4) >> vector % 32 & 1)


def _msix(device: Ivshmem, vector: int, purpose: str) -> Msix:
    if device.msix is None:
        raise GuestError(f"this device has no MSI-X: it has no vector {purpose}")
    if not 0 <= vector < device.msix.layout.vectors:
        vectors = device.msix.layout.vectors
        raise GuestError(f"vector {vector} does not exist: this device has vectors 0..{vectors - 1}")
    return device.msix


def find_capability(device: Ivshmem, identifier: int) -> int | None:
    """Walk the capability list (PCI 3.0, 6.7); returns the offset of the capability, or None."""
    if not (device.profile.pci and device.config_read(STATUS, 2) & STATUS_CAPABILITIES):
        return None
    at = device.config_read(CAPABILITIES, 1)
    while at:
        if device.config_read(at, 1) == identifier:
            return at
        at = device.config_read(at + 1, 1)
    return None
