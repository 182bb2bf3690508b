"""Odd devices: variants that are legal and break drivers that take QEMU's device for granted.

Each is `qemu-doorbell` with single cells changed. ``ivsim device odd`` prints them, and the topology ``odd_devices``
runs them all.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from nodes.device.variants import Value

__all__ = ["ODD_DEVICES", "OddDevice"]


class OddDevice(Struct, frozen=True):
    """One odd device: its cells, what breaks, and what a driver must do."""

    name: str
    cells: Mapping[str, Value]
    breaks: str
    must: str


ODD_DEVICES: tuple[OddDevice, ...] = (
    OddDevice(
        "large_registers",
        {"registers_bytes": 0x1000},
        "a driver that checks for a BAR0 of exactly 256 bytes",
        "accept any window that holds the four registers",
    ),
    OddDevice(
        "memory_first",
        {"memory_bar": 0, "registers_bar": 2, "msix_bar": 3},
        "a driver that maps BAR0 as registers and BAR2 as memory without a look at their sizes",
        "tell the BARs apart by size and type, or refuse the device",
    ),
    OddDevice(
        "memory_32_bit",
        {"memory_wide": False},
        "a driver that reads BAR3 as the upper half of BAR2's address",
        "look at the type bits of each BAR before it takes two registers for one",
    ),
    OddDevice(
        "memory_not_prefetchable",
        {"memory_prefetchable": False},
        "a driver that asks for a prefetchable window only",
        "take the window that the BAR asks for, and map it uncached if it must",
    ),
    OddDevice(
        "registers_last",
        {"registers_bar": 5},
        "a driver that maps BAR0 unconditionally: there is none",
        "walk all six BARs; one that reads 0 after all ones were written is not there",
    ),
    OddDevice(
        "no_msix",
        {"msix": False},
        "a driver that takes the MSI-X capability for granted and walks a list that is empty",
        "work without interrupts (poll), or refuse the device with a message",
    ),
    OddDevice(
        "capability_elsewhere",
        {"msix_capability": 0x90},
        "a driver that reads the MSI-X capability at 0x40",
        "walk the capability list from 0x34",
    ),
    OddDevice(
        "pending_bits_elsewhere",
        {"msix_pba_offset": 0x3000},
        "a driver that reads the pending bits at 0x800 of BAR1, and maps 4 KiB of it",
        "take table, pending bits and their BARs from the capability, and the size from the BAR",
    ),
    OddDevice(
        "other_msix_bar",
        {"msix_bar": 4},
        "a driver that maps BAR1 for the MSI-X table",
        "take the BAR from the capability (the low three bits of the offsets)",
    ),
    OddDevice(
        "many_vectors",
        {"fixed_vectors": 64},
        "a driver with a table of fixed length for its interrupts",
        "read the table's size from message control, and use as many as it can serve",
    ),
    OddDevice(
        "old_revision",
        {"revision": 0},
        "a driver that takes revision 0 for INTx and waits for a status bit",
        "decide by the capabilities: MSI-X if there is one, whatever the revision",
    ),
    OddDevice(
        "late_position",
        {"position_late_reads": 3, "position_before_setup": 0xFFFF_FFFF},
        "a driver that reads IVPosition once and rings as peer 65535",
        "read IVPosition again while it is negative, with a limit",
    ),
)
