"""The cells of a device profile: everything in which ivshmem devices differ, and the types of these cells."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, overload

from msgspec import Struct
from msgspec.structs import replace

from nodes.device.access_path import AccessPath, MisalignedConfig
from nodes.device.msix import Undelivered
from nodes.device.pci import (
    COMMAND_BUS_MASTER,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MEMORY,
    COMMAND_SERR,
    Identity,
)
from nodes.device.registers import Access, AccessRules, Register, RegisterMap

COMMAND_BITS = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE | COMMAND_SERR

INTR_MASK, INTR_STATUS, IV_POSITION, DOORBELL = "IntrMask", "IntrStatus", "IVPosition", "Doorbell"

REGISTERS = RegisterMap(
    "BAR0",
    0x100,
    (
        Register(0x00, INTR_MASK, Access.RW, "INTx devices: the status bits that raise the line"),
        Register(0x04, INTR_STATUS, Access.RC, "INTx devices: set by a doorbell"),
        Register(0x08, IV_POSITION, Access.RO, "the device's own peer ID"),
        Register(0x0C, DOORBELL, Access.WO, "peer ID in bits 31:16, vector in the low bits: rings it"),
        Register(0x10, "reserved", Access.RESERVED, "nothing", words=60),
    ),
)
STICKY_REGISTERS = replace(
    REGISTERS,
    registers=tuple(replace(r, access=Access.RW) if r.name == INTR_STATUS else r for r in REGISTERS.registers),
)


SILENT_REGISTERS = replace(
    REGISTERS,
    registers=tuple(replace(r, access=Access.WO if r.name == DOORBELL else Access.RO) for r in REGISTERS.registers[:-1])
    + REGISTERS.registers[-1:],
)
"""Registers that read 0 and ignore what is written; the doorbell is there, and no peer."""
FLAT_REGISTERS = replace(SILENT_REGISTERS, size_bytes=0x10, registers=SILENT_REGISTERS.registers[:-1])
"""The same in a window that ends behind the doorbell."""


class DoorbellMatch(Enum):
    """Which writes are compared as a 32-bit word with the connected doorbells (ioeventfds).

    A word that matches rings the vector in its low 16 bits. The register decodes every other write, with
    ``vector_bits`` bits of the vector.
    """

    NEVER = "none: the register decodes every write"
    PIECE = "each aligned 4-byte piece of a write; IDs from 0x8000 on never match, one side is sign-extended"
    WRITE = "a write of exactly 4 bytes; a wider one is split later, and its pieces are not compared"

    def knows(self, peer: int) -> bool:
        """Whether a doorbell for this peer can match."""
        return self is DoorbellMatch.WRITE or (self is DoorbellMatch.PIECE and peer < 0x8000)


class Quirk(IntEnum):
    """Defects of the 2012 device, each a switch; the value is its row in ``tests/golden/seed_rows.toml``."""

    ZERO_SIZE = 16
    MODE_UNCHECKED = 28
    MAPPING_UNCHECKED = 34
    DESCRIPTOR_ZERO_UNMAPPED = 47
    PLAIN_DOORBELL_FAULT = 55
    SHORT_READ = 56
    PEER_UNBOUNDED = 59
    LEAVE_RENAMES = 62
    MINUS_ONE_UNCHECKED = 64
    DESCRIPTOR_LEAK = 65
    MEMORY_REMAP = 68
    VECTOR_OVERFLOW = 72
    EARLY_OWN_VECTORS = 75
    RESET_DROPS_VECTORS = 80
    STATUS_LOW_BYTE = 81
    INTX_BESIDE_MSIX = 84
    IOEVENTFD_INIT_FAULT = 85
    IOEVENTFD_UNBOUND = 87
    LEAVE_TWICE_FAULT = 90
    UNPLUG_LEAK = 92
    UNPLUG_EARLY_FAULT = 93


class Profile(Struct, frozen=True):
    """One kind of device. ``sources`` names the source of the value of each cell.

    Cells whose names need an explanation:

    ``pci``: there is a configuration space; a device without is an `IvshmemFlat`.
    ``registers_io``: the registers are I/O ports.
    ``config_misaligned`` is what becomes of an access to configuration space that is not aligned, ``access_path`` what
    becomes of one to a BAR other than the memory: the way of a guest's own loads and stores.
    ``msix_capability`` is the offset of the MSI-X capability in configuration space.
    ``msix_pba_offset`` is the offset of the pending bits in their BAR; 0: at 2 KiB, or after a longer table.
    ``position_late_reads`` is how many reads of IVPosition, after a reset, have the value of before the setup.
    ``fixed_vectors`` is how many vectors every such device has; 0: as many as the user wants.
    ``memory_container``: BAR2 has a size of its own and is there before the memory.
    ``client`` is how the device hears a server: "2012" (`nodes.device.qemu_1_1.client`) or "2.6" (`nodes.wire.client`).
    ``waits_for_memory``: no guest runs before the server has sent ID and memory.
    ``bus_master_gates``: without bus master no message is sent.
    ``unmask_needs_eventfd``: the process ends when a guest unmasks a vector for which the server has sent no eventfd.
    ``driver_start`` are the (register, value) that a driver writes before it enables interrupts.
    ``roles`` are the values of the role property; with ``master_is_first`` a master needs the ID 0.
    ``migration_locks_devices``: while it migrates, the machine refuses device_add, device_del and blockers.
    ``section`` names the device in a migration stream, ``stream`` the groups of fields there (`migration.FIELDS`);
    ``load_refusal`` is the error of a device that is not a master, ``ram_block`` the name of the memory's RAM block.
    """

    version: ClassVar[int] = 1
    """The version of ivshmem."""

    name: str
    summary: str
    # Identity.
    vendor: int
    device: int
    class_code: int
    revision: int
    subsystem_vendor: int
    subsystem: int
    interrupt_pin: int
    # Configuration space.
    pci: bool
    command_preset: int
    command_mask: int
    config_writable_from: int
    msix_capability: int
    config_misaligned: MisalignedConfig
    # BARs.
    access_path: AccessPath
    registers_bar: int
    registers_io: bool
    registers: RegisterMap
    registers_rules: AccessRules
    msix_bar: int
    msix: bool
    msix_rules: AccessRules
    msix_limit: int
    msix_pba_offset: int
    fixed_vectors: int
    memory_bar: int
    memory_wide: bool
    memory_prefetchable: bool
    memory_container: bool
    memory_default_bytes: int
    # Server, doorbell and position.
    server: bool
    client: str
    waits_for_memory: bool
    vector_bits: int
    doorbell_match: DoorbellMatch
    position_before_setup: int
    position_late_reads: int
    # Delivery.
    ring_while_masked: Undelivered
    ring_while_disabled: Undelivered
    function_mask: bool
    bus_master_gates: bool
    unmask_needs_eventfd: bool
    intx: bool
    driver_start: tuple[tuple[str, int], ...]
    # Reset and migration.
    reset_clears_mask: bool
    roles: tuple[str, ...]
    default_role: str
    master_is_first: bool
    migration_locks_devices: bool
    section: str
    stream: tuple[str, ...]
    load_refusal: str
    ram_block: str
    # Defects.
    quirks: frozenset[Quirk]
    sources: Mapping[str, str]

    @property
    def identity(self) -> Identity:
        """What configuration space says the function is."""
        names = ("vendor", "device", "class_code", "revision", "subsystem_vendor", "subsystem", "interrupt_pin")
        return Identity(**{name: getattr(self, name) for name in names})

    @property
    def default_vectors(self) -> int:
        """How many vectors a device has when the user asks for no number (``fixed_vectors``: 0 is any number)."""
        return self.fixed_vectors or 1

    @property
    def vectors_limit(self) -> int | None:
        """How many vectors it can have at most; None: the server decides."""
        return self.msix_limit if self.msix or not self.pci else None

    def has(self, quirk: Quirk) -> bool:
        """Whether this device has that defect."""
        return quirk in self.quirks

    def without(self, *quirks: Quirk) -> Profile:
        """The same device with these defects repaired."""
        return replace(self, quirks=self.quirks - set(quirks))

    @classmethod
    def cells(cls) -> tuple[str, ...]:
        """The names of everything that can differ, in order."""
        return tuple(name for name in cls.__struct_fields__ if name not in ("name", "summary", "sources"))


P = TypeVar("P", bound=Profile)


@overload
def make_profile(name: str, summary: str, base: Profile | None, /, **cells: tuple[Any, str]) -> Profile: ...
@overload
def make_profile(name: str, summary: str, base: P | None, kind: type[P], /, **cells: tuple[Any, str]) -> P: ...
def make_profile(
    name: str, summary: str, base: Profile | None, kind: type[Profile] = Profile, /, **cells: tuple[Any, str]
) -> Profile:
    """A profile from ``cells``, each a (value, source), on top of the cells of ``base``.

    ``kind`` is the class: one of another family has further cells.
    """
    values = {cell: getattr(base, cell) for cell in kind.cells()} if base else {}
    values |= {cell: value for cell, (value, _) in cells.items()}
    sources = {**(base.sources if base else {}), **{cell: source for cell, (_, source) in cells.items()}}
    return kind(name=name, summary=summary, sources=MappingProxyType(sources), **values)
