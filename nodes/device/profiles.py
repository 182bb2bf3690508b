"""What differs between ivshmem devices in the field: one profile each, every cell with its source.

The JSON files named as sources lie in ``tests/golden``; a profile is chosen by one word in a topology. KVM
and TCG are QEMU's two accelerators: with KVM a doorbell goes from eventfd to interrupt without QEMU.
``ivshmem.c`` without a version is the device of 2012, its rows are in ``tests/golden/seed_rows.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any

from nodes.device.msix import Undelivered
from nodes.device.pci import COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, COMMAND_SERR
from nodes.device.registers import Access, AccessRules, Register, RegisterMap, Unfit
from nodes.errors import UsageError

__all__ = ["DOORBELL", "INTR_MASK", "INTR_STATUS", "IV_POSITION", "PROFILES", "Profile", "Quirk", "profile"]

COMMAND_BITS = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE | COMMAND_SERR
ALL_ONES = 0xFFFF_FFFF

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


class DoorbellMatch(Enum):
    """Which writes are compared, as a whole 32-bit word, with the doorbells that are connected.

    A word that matches rings with all 16 bits of its vector. Every other write is decoded by the register, which may
    know fewer of them.
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


@dataclass(frozen=True)
class Profile:
    """One kind of device. ``sources`` says for each cell where its value was read or seen."""

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
    command_preset: int
    command_mask: int
    config_writable_from: int
    # BARs.
    registers: RegisterMap
    registers_rules: AccessRules
    msix: bool
    msix_rules: AccessRules
    msix_limit: int
    fixed_vectors: int
    memory_wide: bool
    memory_prefetchable: bool
    memory_container: bool
    memory_default_bytes: int
    # Doorbell and position.
    server: bool
    vector_bits: int
    doorbell_match: DoorbellMatch
    position_before_setup: int
    # Delivery.
    ring_while_masked: Undelivered
    ring_while_disabled: Undelivered
    function_mask: bool
    bus_master_gates: bool
    intx: bool
    # Life.
    reset_clears_mask: bool
    default_role: str
    master_is_first: bool
    stream: tuple[str, ...]
    quirks: frozenset[Quirk]
    sources: Mapping[str, str]

    @property
    def default_vectors(self) -> int:
        """How many vectors a device has when the user asks for no number (``fixed_vectors``: 0 is any number)."""
        return self.fixed_vectors or 1

    def has(self, quirk: Quirk) -> bool:
        """Whether this device has that defect."""
        return quirk in self.quirks

    def without(self, *quirks: Quirk) -> Profile:
        """The same device with these defects repaired."""
        return replace(self, quirks=self.quirks - set(quirks))

    @classmethod
    def cells(cls) -> tuple[str, ...]:
        """The names of everything that can differ, in order."""
        return tuple(field.name for field in fields(cls) if field.name not in ("name", "summary", "sources"))


def _profile(name: str, summary: str, base: Profile | None, /, **cells: tuple[Any, str]) -> Profile:
    """A profile from ``cells``, each a (value, source), on top of those of ``base``."""
    values = {cell: getattr(base, cell) for cell in Profile.cells()} if base else {}
    values |= {cell: value for cell, (value, _) in cells.items()}
    sources = {**(base.sources if base else {}), **{cell: source for cell, (_, source) in cells.items()}}
    return Profile(name=name, summary=summary, sources=MappingProxyType(sources), **values)


QEMU_DOORBELL = _profile(
    "qemu-doorbell",
    "QEMU's ivshmem-doorbell, 2.6 to 7.2, TCG",
    None,
    vendor=(0x1AF4, "pci_config.json, 00"),
    device=(0x1110, "pci_config.json, 02"),
    class_code=(0x05_00_00, "pci_config.json, 09"),
    revision=(1, "pci_config.json, 08; QEMU 5400c02b90"),
    subsystem_vendor=(0x1AF4, "pci_config.json, 2c"),
    subsystem=(0x1100, "pci_config.json, 2e"),
    interrupt_pin=(0, "pci_config.json, 3d; QEMU e858e04dd4"),
    command_preset=(0, "pci_config.json, 04"),
    command_mask=(COMMAND_BITS, "pci_config.json, write_mask_hex"),
    config_writable_from=(0x40, "pci_config.json, write_mask_hex, 4c to ff"),
    registers=(REGISTERS, "registers.json"),
    registers_rules=(AccessRules(write_offset_mask=0xFC), "registers.json, sized_access"),
    msix=(True, "pci_config.json, capability at 40"),
    msix_rules=(AccessRules(widest_bytes=8, narrowest_bytes=4), "msix.json, 8-, 16- and 64-bit writes"),
    msix_limit=(2048, "pci_config.json, realize_errors"),
    fixed_vectors=(0, "ivshmem-doorbell's property vectors"),
    memory_wide=(True, "pci_config.json, bars; QEMU c08ba66f1"),
    memory_prefetchable=(True, "pci_config.json, bars; QEMU c08ba66f1"),
    memory_container=(False, "QEMU c2d8019cd7"),
    memory_default_bytes=(4 << 20, "contrib/ivshmem-server, option -l"),
    server=(True, "pci_config.json, realize_errors, doorbell no chardev"),
    vector_bits=(8, "doorbell.json, vec0x100 rings vector 0"),
    doorbell_match=(DoorbellMatch.PIECE, "QEMU 7.2, softmmu/memory.c, memory_region_dispatch_write_eventfds"),
    position_before_setup=(0, "QEMU 1309cf448a: realize waits, no guest sees it"),
    ring_while_masked=(Undelivered.PEND, "msix.json, ring all 4 while all vectors masked"),
    ring_while_disabled=(Undelivered.LOSE, "msix.json, ring v0 while MSI-X disabled"),
    function_mask=(True, "msix.json, function-masked ring v0"),
    bus_master_gates=(True, "msix.json, ring v0 unmasked, bus master off"),
    intx=(False, "QEMU e858e04dd4"),
    reset_clears_mask=(True, "msix.json, system_reset; QEMU a40227911c"),
    default_role=("peer", "migration.json, source doorbell id0 default; QEMU 62a830b688"),
    master_is_first=(True, "migration.json, source doorbell id1 ,master=on"),
    stream=(("pci", "msix", "status", "mask"), "QEMU 7.2, ivshmem.c, ivshmem_doorbell_vmsd; QEMU 1f8552df2c"),
    quirks=(frozenset(), "QEMU 7.2: the defects of 2012 are repaired"),
)

QEMU_DOORBELL_KVM = _profile(
    "qemu-doorbell-kvm",
    "QEMU's ivshmem-doorbell, 2.6 to 7.2, KVM: eventfds wired to interrupts by irqfd",
    QEMU_DOORBELL,
    doorbell_match=(DoorbellMatch.WRITE, "Linux, virt/kvm/eventfd.c, ioeventfd_in_range: length and all 32 bits"),
    ring_while_masked=(Undelivered.KEEP, "QEMU 7.2, ivshmem_vector_mask, ivshmem_vector_poll"),
    ring_while_disabled=(Undelivered.KEEP, "msix_kvm_irqfd.json, pba after enabling"),
)

QEMU_PLAIN = _profile(
    "qemu-plain",
    "QEMU's ivshmem-plain, 2.6 to 7.2: shared memory, no peers and no interrupts",
    QEMU_DOORBELL,
    msix=(False, "pci_config.json, pc/plain"),
    server=(False, "QEMU 5400c02b90: no chardev property"),
    doorbell_match=(DoorbellMatch.NEVER, "QEMU 7.2: ivshmem-plain registers no ioeventfd"),
    memory_default_bytes=(4 << 20, "none: QEMU's memory backend has a size of its own"),
    master_is_first=(False, "migration.json, source plain ,master=on"),
    stream=(("pci", "status", "mask"), "QEMU 7.2, ivshmem.c, ivshmem_plain_vmsd"),
)

QEMU_1_1 = _profile(
    "qemu-1.1",
    "QEMU's ivshmem of 2012 with a server and MSI-X, every defect of it",
    QEMU_DOORBELL,
    vendor=(0x1AF4, "row 1"),
    device=(0x1110, "row 1"),
    class_code=(0x05_00_00, "row 2"),
    revision=(0, "row 2"),
    subsystem_vendor=(0x1AF4, "row 2"),
    subsystem=(0x1100, "row 2"),
    interrupt_pin=(1, "row 4"),
    command_preset=(COMMAND_IO | COMMAND_MEMORY, "row 3"),
    command_mask=(COMMAND_BITS, "QEMU 1.1, hw/pci.c, pci_init_wmask"),
    config_writable_from=(0x40, "QEMU 1.1, hw/pci.c, pci_init_wmask"),
    registers=(REGISTERS, "row 38"),
    registers_rules=(
        AccessRules(write_offset_mask=0xFC),
        "rows 39, 40; QEMU 1.1, exec.c, cpu_physical_memory_rw: an exit of KVM is split into aligned pieces",
    ),
    msix=(True, "row 6"),
    msix_rules=(
        AccessRules(narrowest_bytes=4, narrow=Unfit.ONES),
        "QEMU 1.1, hw/msix.c, msix_mmio_ops; memory.c, memory_region_dispatch_read; exec.c, cpu_physical_memory_rw",
    ),
    msix_limit=(32, "row 9"),
    fixed_vectors=(0, "row 18"),
    memory_wide=(False, "row 7"),
    memory_prefetchable=(False, "row 7"),
    memory_container=(True, "row 7"),
    memory_default_bytes=(4 << 20, "row 13"),
    server=(True, "row 26"),
    vector_bits=(8, "row 50"),
    doorbell_match=(DoorbellMatch.NEVER, "row 87"),
    position_before_setup=(ALL_ONES, "row 46"),
    ring_while_masked=(Undelivered.PEND, "row 79"),
    ring_while_disabled=(Undelivered.PEND, "row 79"),
    function_mask=(True, "row 10"),
    bus_master_gates=(False, "QEMU 1.1, hw/msix.c, msix_notify: stores to memory whatever the command says"),
    intx=(True, "row 45"),
    reset_clears_mask=(False, "row 91"),
    default_role=("master", "row 22"),
    master_is_first=(False, "row 103"),
    stream=(("pci", "msix"), "row 98"),
    quirks=(frozenset(Quirk), "the rows marked Q"),
)

QEMU_1_1_INTX = _profile(
    "qemu-1.1-intx",
    "QEMU's ivshmem of 2012 with a server and msi=off: one interrupt line for all vectors",
    QEMU_1_1,
    msix=(False, "row 6"),
    stream=(("pci", "status", "mask"), "row 98"),
)

QEMU_1_1_SHM = _profile(
    "qemu-1.1-shm",
    "QEMU's ivshmem of 2012 without a server: a named shared memory object",
    QEMU_1_1,
    msix=(False, "row 35"),
    server=(False, "row 35"),
    position_before_setup=(ALL_ONES, "row 46"),
    stream=(("pci",), "ivshmem.c, ivshmem_save: msi is on, and msix_save without MSI-X writes nothing"),
)

QEMU_1_1_SHM_INTX = _profile(
    "qemu-1.1-shm-intx",
    "QEMU's ivshmem of 2012 without a server and with msi=off: IntrStatus and IntrMask are saved",
    QEMU_1_1_SHM,
    stream=(("pci", "status", "mask"), "row 98"),
)

ACRN = _profile(
    "acrn",
    "ACRN's hypervisor-land ivshmem: always 8 vectors, no pending bits",
    QEMU_DOORBELL,
    vendor=(0x1AF4, "ACRN, hypervisor/include/dm/ivshmem.h, IVSHMEM_VENDOR_ID"),
    device=(0x1110, "ACRN, ivshmem.h, IVSHMEM_DEVICE_ID"),
    class_code=(0x05_00_00, "ACRN, hypervisor/dm/vpci/ivshmem.c, IVSHMEM_CLASS"),
    revision=(1, "ACRN, ivshmem.c, IVSHMEM_REV"),
    subsystem_vendor=(0, "ACRN, ivshmem.c, init_ivshmem_vdev: not set"),
    subsystem=(0, "ACRN, ivshmem.c, init_ivshmem_vdev: not set"),
    interrupt_pin=(0, "ACRN, ivshmem.c, init_ivshmem_vdev: not set"),
    command_preset=(0, "ACRN, ivshmem.c, init_ivshmem_vdev: not set"),
    command_mask=(0xFFFF, "ACRN, ivshmem.c, write_ivshmem_vdev_cfg: no write mask"),
    config_writable_from=(0, "ACRN, ivshmem.c, write_ivshmem_vdev_cfg: no write mask"),
    registers=(STICKY_REGISTERS, "ACRN, ivshmem.c, ivshmem_mmio_handler: useless for revision 1"),
    registers_rules=(
        AccessRules(narrowest_bytes=4, misaligned=Unfit.ZERO, wide=Unfit.ZERO),
        "ACRN, ivshmem.c, ivshmem_mmio_handler: 4 bytes, aligned",
    ),
    msix=(True, "ACRN, ivshmem.c, init_ivshmem_vdev: add_vmsix_capability"),
    msix_rules=(
        AccessRules(widest_bytes=8, narrowest_bytes=4, misaligned=Unfit.ZERO),
        "ACRN, vmsix.c, rw_vmsix_table",
    ),
    msix_limit=(8, "ACRN, ivshmem.h, MAX_IVSHMEM_MSIX_TBL_ENTRY_NUM"),
    fixed_vectors=(8, "ACRN, ivshmem.c, init_ivshmem_vdev: add_vmsix_capability, the same for every device"),
    memory_wide=(True, "ACRN, ivshmem.c, init_ivshmem_bar: as configured, 64-bit in the shipped scenarios"),
    memory_prefetchable=(True, "ACRN, ivshmem.c, init_ivshmem_bar: as configured"),
    memory_container=(False, "ACRN, ivshmem.c, init_ivshmem_bar: no region, no BAR"),
    memory_default_bytes=(2 << 20, "ACRN, doc/tutorials/enable_ivshmem.rst: at least 2 MiB"),
    server=(True, "ACRN, ivshmem.c, ivshmem_server_bind_peer: in the hypervisor"),
    vector_bits=(16, "ACRN, ivshmem.c, union ivshmem_doorbell"),
    doorbell_match=(DoorbellMatch.NEVER, "ACRN, ivshmem.c, ivshmem_mmio_handler: no eventfds"),
    position_before_setup=(0, "ACRN, ivshmem.c, create_ivshmem_device"),
    ring_while_masked=(Undelivered.LOSE, "ACRN, ivshmem.c, ivshmem_server_notify_peer"),
    ring_while_disabled=(Undelivered.LOSE, "ACRN, ivshmem.c, ivshmem_server_notify_peer"),
    function_mask=(False, "ACRN, ivshmem.c, ivshmem_server_notify_peer: looks at the entry's mask only"),
    bus_master_gates=(False, "ACRN, ivshmem.c, ivshmem_server_notify_peer: vlapic_inject_msi"),
    intx=(False, "ACRN, ivshmem.c, ivshmem_mmio_handler: useless for revision 1"),
    reset_clears_mask=(True, "ACRN, ivshmem.c, create_ivshmem_device: cleared when the VM starts again"),
    default_role=("peer", "ACRN migrates no devices"),
    master_is_first=(False, "ACRN migrates no devices"),
    stream=((), "ACRN migrates no devices"),
    quirks=(frozenset(), "ACRN: another device, other defects"),
)

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        each.name: each
        for each in (
            *(QEMU_DOORBELL, QEMU_DOORBELL_KVM, QEMU_PLAIN),
            *(QEMU_1_1, QEMU_1_1_INTX, QEMU_1_1_SHM, QEMU_1_1_SHM_INTX),
            ACRN,
        )
    }
)


def profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        UsageError: there is none; the message lists them.
    """
    if name not in PROFILES:
        raise UsageError(f"no device profile {name!r}: there are {', '.join(PROFILES)}")
    return PROFILES[name]
