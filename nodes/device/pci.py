"""PCI configuration space of one function: identity, command, BARs, capability chain, write masks.

256 bytes of conventional PCI configuration space (PCI 3.0, chapter 6). Every byte has a write mask; what the
mask lets through is stored, the rest keeps its value (QEMU, hw/pci/pci.c, pci_default_write_config).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from msgspec import Struct

from nodes.errors import GuestError, UsageError

CONFIG_BYTES = 256
HEADER_BYTES = 0x40

# PCI 3.0, 6.1: offsets of the type 0 header.
COMMAND, STATUS, REVISION, CACHE_LINE, BAR0 = 0x04, 0x06, 0x08, 0x0C, 0x10
BAR_END = 0x28
SUBSYSTEM_VENDOR, CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x2C, 0x34, 0x3C, 0x3D

# PCI 3.0, 6.2.2: bits of the command register.
COMMAND_IO, COMMAND_MEMORY, COMMAND_BUS_MASTER = 1 << 0, 1 << 1, 1 << 2
COMMAND_SERR, COMMAND_INTX_DISABLE = 1 << 8, 1 << 10
# PCI 3.0, 6.2.3: bits of the status register.
STATUS_INTERRUPT, STATUS_CAPABILITIES = 1 << 3, 1 << 4

# PCI 3.0, 6.2.5.1: bits of a BAR.
BAR_IO, BAR_64_BIT, BAR_PREFETCHABLE = 0x1, 0x4, 0x8
IO_BASE = 0x6200  # where `assign_resources` puts I/O ports; kvmtool, include/kvm/ioport.h, IOPORT_START
ADDRESS_LIMIT = 1 << 64


class Identity(Struct, frozen=True):
    """The identity of a function; ``class_code`` is the 24-bit class, sub-class and interface."""

    vendor: int
    device: int
    class_code: int
    revision: int
    subsystem_vendor: int
    subsystem: int
    interrupt_pin: int


class Bar(Struct, frozen=True):
    """One base address register, of memory or of I/O ports; its size is a power of two of at least 16 bytes."""

    index: int
    size_bytes: int
    text: str
    wide: bool = False
    prefetchable: bool = False
    io: bool = False

    def __post_init__(self) -> None:
        if self.size_bytes < 16 or self.size_bytes & (self.size_bytes - 1):
            raise UsageError(f"BAR{self.index} of {self.size_bytes} bytes: not a power of two from 16 up")

    @property
    def offset(self) -> int:
        return BAR0 + 4 * self.index

    @property
    def register_bytes(self) -> int:
        return 8 if self.wide else 4

    @property
    def type_bits(self) -> int:
        if self.io:
            return BAR_IO
        return (BAR_64_BIT if self.wide else 0) | (BAR_PREFETCHABLE if self.prefetchable else 0)

    @property
    def decode(self) -> int:
        """The bit of the command register that enables it."""
        return COMMAND_IO if self.io else COMMAND_MEMORY


class Capability(Struct, frozen=True):
    """One capability. ``body`` follows its ID and its next pointer; a set bit of ``body_write_mask`` can be written."""

    offset: int
    identifier: int
    name: str
    body: bytes
    body_write_mask: bytes


class ConfigSpace:
    """256 bytes of configuration space, with masks.

    ``writable_from``: the first byte from which everything that no BAR or capability covers
    can be written. QEMU: 0x40, and a reset does not clear it (pci_init_wmask).

    Raises:
        UsageError: two capabilities overlap.
    """

    __slots__ = ("_identity", "_masks", "bars", "capabilities", "data")

    def __init__(
        self,
        identity: Identity,
        *,
        capabilities: Iterable[Capability] = (),
        command_mask: int,
        writable_from: int = HEADER_BYTES,
    ) -> None:
        self.data = bytearray(CONFIG_BYTES)
        self._masks = bytearray(CONFIG_BYTES)
        self.bars: dict[int, Bar] = {}
        self.capabilities = tuple(capabilities)
        self._put(0x00, 4, identity.device << 16 | identity.vendor)
        self._put(REVISION, 4, identity.class_code << 8 | identity.revision)
        self._put(SUBSYSTEM_VENDOR, 4, identity.subsystem << 16 | identity.subsystem_vendor)
        self._put(INTERRUPT_PIN, 1, identity.interrupt_pin)
        self._masks[COMMAND : COMMAND + 2] = command_mask.to_bytes(2, "little")
        self._masks[CACHE_LINE] = self._masks[INTERRUPT_LINE] = 0xFF
        self._masks[writable_from:] = b"\xff" * (CONFIG_BYTES - writable_from)
        self._masks[BAR0:BAR_END] = bytes(BAR_END - BAR0)
        link, taken = CAPABILITIES, 0
        for capability in self.capabilities:
            span = ((1 << 2 + len(capability.body)) - 1) << capability.offset
            if taken & span:
                raise UsageError(f"the capability {capability.name} at {capability.offset:#x} overlaps another one")
            taken |= span
            self.data[STATUS] |= STATUS_CAPABILITIES
            self.data[link] = at = capability.offset
            body = bytes([capability.identifier, 0]) + capability.body
            self.data[at : at + len(body)] = body
            self._masks[at : at + len(body)] = b"\0\0" + capability.body_write_mask
            link = at + 1
        self._identity = bytes(self.data[:HEADER_BYTES])

    def add_bar(self, bar: Bar) -> None:
        """Add a BAR; a guest can then size and map it.

        Raises:
            UsageError: its registers are another BAR's.
        """
        if bar.index in self.bars or any(self._masks[bar.offset : bar.offset + bar.register_bytes]):
            raise UsageError(f"BAR{bar.index} is declared already")
        self.bars[bar.index] = bar
        mask = ((1 << 8 * bar.register_bytes) - 1) & ~(bar.size_bytes - 1)
        end = bar.offset + bar.register_bytes
        self._masks[bar.offset : end] = mask.to_bytes(bar.register_bytes, "little")
        self._put(bar.offset, bar.register_bytes, bar.type_bits)

    def _put(self, offset: int, size_bytes: int, value: int) -> None:
        self.data[offset : offset + size_bytes] = value.to_bytes(size_bytes, "little")

    def word(self, offset: int) -> int:
        """The 16-bit word at ``offset``."""
        return self.data[offset] | self.data[offset + 1] << 8

    @property
    def command(self) -> int:
        """The command register (PCI 3.0, 6.2.2)."""
        return self.word(COMMAND)

    @property
    def write_mask(self) -> bytes:
        """One byte for each byte of configuration space: the bits that a write can change."""
        return bytes(self._masks)

    def set_interrupt_status(self, asserted: bool) -> None:
        """Show the function's INTx state in the status register (PCI 3.0, 6.2.3, bit 3)."""
        self.data[STATUS] = (self.data[STATUS] & ~STATUS_INTERRUPT) | (STATUS_INTERRUPT if asserted else 0)

    def fix(self, offset: int, size_bytes: int, value: int) -> None:
        """Set a field that the guest cannot write; a reset keeps it."""
        self._put(offset, size_bytes, value)
        if offset < HEADER_BYTES:
            identity = bytearray(self._identity)
            identity[offset : offset + size_bytes] = value.to_bytes(size_bytes, "little")
            self._identity = bytes(identity)

    def preset_command(self, value: int) -> None:
        """Set the command register, regardless of its write mask."""
        self._put(COMMAND, 2, value)

    def read(self, offset: int, size_bytes: int) -> int:
        """Read 1, 2 or 4 bytes, little-endian.

        Raises:
            GuestError: another size, or bytes outside the 256.
        """
        _check(offset, size_bytes)
        return int.from_bytes(self.data[offset : offset + size_bytes], "little")

    def write(self, offset: int, size_bytes: int, value: int) -> None:
        """Write 1, 2 or 4 bytes, little-endian, through the write mask.

        Raises:
            GuestError: another size, or bytes outside the 256.
        """
        _check(offset, size_bytes)
        for at in range(offset, offset + size_bytes):
            mask = self._masks[at]
            self.data[at] = (self.data[at] & ~mask) | (value & mask)
            value >>= 8

    def reset(self) -> None:
        """Clear what a bus reset clears: command, interrupt line, cache line size and the addresses of the BARs.

        Scratch bytes after the capabilities keep their values (QEMU, pci_do_device_reset).
        """
        kept = (range(COMMAND), range(STATUS, CACHE_LINE), range(SUBSYSTEM_VENDOR, CAPABILITIES + 1))
        for at in chain(*kept):
            self.data[at] = self._identity[at]  # without a write mask, a guest can change them
        self._put(COMMAND, 2, self.command & ~int.from_bytes(self._masks[COMMAND : COMMAND + 2], "little"))
        self.data[CACHE_LINE] = self.data[INTERRUPT_LINE] = 0
        for bar in self.bars.values():
            self._put(bar.offset, bar.register_bytes, bar.type_bits)

    def bar_address(self, index: int) -> int | None:
        """The address at which the BAR is mapped, or None.

        It is not mapped while memory decode is off, its address is 0 or it would pass the end of its
        register's range (QEMU, hw/pci/pci.c, pci_bar_address).
        """
        bar = self.bars.get(index)
        if bar is None or not self.command & bar.decode:
            return None
        raw = int.from_bytes(self.data[bar.offset : bar.offset + bar.register_bytes], "little")
        address = raw & ~(bar.size_bytes - 1)
        last = address + bar.size_bytes - 1
        limit = ADDRESS_LIMIT - 1 if bar.wide else 0xFFFF_FFFF
        return None if address == 0 or last >= limit else address


def _check(offset: int, size_bytes: int) -> None:
    if size_bytes not in (1, 2, 4):
        raise GuestError(f"a configuration access of {size_bytes} bytes: 1, 2 or 4 are possible")
    if not 0 <= offset <= CONFIG_BYTES - size_bytes:
        raise GuestError(f"a configuration access at {offset:#x}, {size_bytes} bytes: outside the 256")


def assign_resources(
    bars: Iterable[Bar], write: Callable[[int, int, int], object], base: int = 0xE000_0000
) -> dict[int, int]:
    """Do what firmware does at power-on: assign an address to each BAR, enable decode and bus master.

    ``write`` is the function's configuration write. Returns the address of each BAR, by its index.
    """
    addresses = {}
    command, io_base = COMMAND_MEMORY | COMMAND_BUS_MASTER, IO_BASE
    for bar in sorted(bars, key=lambda bar: bar.index):
        if bar.io:
            addresses[bar.index] = io_base = (io_base + bar.size_bytes - 1) & ~(bar.size_bytes - 1)
            write(bar.offset, 4, io_base)
            io_base += bar.size_bytes
            command |= COMMAND_IO
            continue
        base = (base + bar.size_bytes - 1) & ~(bar.size_bytes - 1)
        addresses[bar.index] = base
        write(bar.offset, 4, base & 0xFFFF_FFFF)
        if bar.wide:
            write(bar.offset + 4, 4, base >> 32)
        base += bar.size_bytes
    write(COMMAND, 2, command)
    return addresses
