"""The device of 2012 in its four variants: by server or named memory, and by its property ``msi``.

``ivshmem.c`` without a version is that device; the rows are those of ``tests/golden/seed_rows.toml``.
"""

from __future__ import annotations

from enum import Enum

from nodes.device.access_path import AccessPath, MisalignedConfig
from nodes.device.msix import Undelivered
from nodes.device.pci import COMMAND_IO, COMMAND_MEMORY
from nodes.device.profile import COMMAND_BITS, INTR_MASK, REGISTERS, DoorbellMatch, Profile, Quirk, make_profile
from nodes.device.registers import AccessRules, Unfit

ALL_ONES = 0xFFFF_FFFF

QEMU_1_1 = make_profile(
    "qemu-1.1",
    "QEMU's ivshmem of 2012 with a server and MSI-X, every defect of it",
    None,
    vendor=(0x1AF4, "row 1"),
    device=(0x1110, "row 1"),
    class_code=(0x05_00_00, "row 2"),
    revision=(0, "row 2"),
    subsystem_vendor=(0x1AF4, "row 2"),
    subsystem=(0x1100, "row 2"),
    interrupt_pin=(1, "row 4"),
    pci=(True, "row 1"),
    command_preset=(COMMAND_IO | COMMAND_MEMORY, "row 3"),
    command_mask=(COMMAND_BITS, "QEMU 1.1, hw/pci.c, pci_init_wmask"),
    config_writable_from=(0x40, "QEMU 1.1, hw/pci.c, pci_init_wmask"),
    msix_capability=(0x40, "QEMU 1.1, hw/pci.c, pci_find_space: the first room behind the header"),
    config_misaligned=(MisalignedConfig.ACROSS, "QEMU 1.1, memory.c, memory_region_iorange_read: not checked"),
    access_path=(AccessPath.WHOLE, "QEMU 1.1, kvm-all.c, kvm_cpu_exec: cpu_physical_memory_rw of each exit"),
    registers_bar=(0, "row 5"),
    registers_io=(False, "row 5"),
    registers=(REGISTERS, "row 38"),
    registers_rules=(
        AccessRules(write_offset_mask=0xFC),
        "rows 39, 40; QEMU 1.1, exec.c, cpu_physical_memory_rw: an exit of KVM is split into aligned pieces",
    ),
    msix_bar=(1, "row 6"),
    msix=(True, "row 6"),
    msix_rules=(
        AccessRules(narrowest_bytes=4, narrow=Unfit.ONES),
        "QEMU 1.1, hw/msix.c, msix_mmio_ops; memory.c, memory_region_dispatch_read; exec.c, cpu_physical_memory_rw",
    ),
    msix_limit=(32, "row 9"),
    msix_pba_offset=(0, "row 8"),
    fixed_vectors=(0, "row 18"),
    memory_bar=(2, "row 7"),
    memory_wide=(False, "row 7"),
    memory_prefetchable=(False, "row 7"),
    memory_container=(True, "row 7"),
    memory_default_bytes=(4 << 20, "row 13"),
    server=(True, "row 26"),
    client=("2012", "rows 56 to 77"),
    waits_for_memory=(False, "row 46"),
    vector_bits=(8, "row 50"),
    doorbell_match=(DoorbellMatch.NEVER, "row 87"),
    position_before_setup=(ALL_ONES, "row 46"),
    position_late_reads=(0, "row 46"),
    ring_while_masked=(Undelivered.PEND, "row 79"),
    ring_while_disabled=(Undelivered.PEND, "row 79"),
    function_mask=(True, "row 10"),
    bus_master_gates=(False, "QEMU 1.1, hw/msix.c, msix_notify: stores to memory whatever the command says"),
    unmask_needs_eventfd=(False, "QEMU 1.1, ivshmem.c: no irqfd"),
    intx=(True, "row 45"),
    driver_start=((), "row 79: with MSI-X, no driver needs the line"),
    reset_clears_mask=(False, "row 91"),
    roles=(("peer", "master"), "row 22"),
    default_role=("master", "row 22"),
    master_is_first=(False, "row 103"),
    migration_locks_devices=(False, "QEMU 1.1, migration.c: migrate_add_blocker looks at nothing"),
    section=("ivshmem", "row 97"),
    stream=(("pci", "msix"), "row 98"),
    load_refusal=("ivshmem: 'peer' devices are not migratable", "row 99"),
    ram_block=("ivshmem.bar2", "row 101"),
    quirks=(frozenset(Quirk), "the rows marked Q"),
)

QEMU_1_1_INTX = make_profile(
    "qemu-1.1-intx",
    "QEMU's ivshmem of 2012 with a server and msi=off: one interrupt line for all vectors",
    QEMU_1_1,
    msix=(False, "row 6"),
    driver_start=(((INTR_MASK, ALL_ONES),), "row 45"),
    stream=(("pci", "status", "mask"), "row 98"),
)

QEMU_1_1_SHM = make_profile(
    "qemu-1.1-shm",
    "QEMU's ivshmem of 2012 without a server: a named shared memory object",
    QEMU_1_1,
    msix=(False, "row 35"),
    driver_start=(((INTR_MASK, ALL_ONES),), "row 45"),
    server=(False, "row 35"),
    client=("2.6", "row 35: it has none; in a run the server hands it the memory that it would open by name"),
    waits_for_memory=(True, "row 35: the memory is opened at initialisation"),
    position_before_setup=(ALL_ONES, "row 46"),
    stream=(("pci",), "ivshmem.c, ivshmem_save: msi is on, and msix_save without MSI-X writes nothing"),
)

QEMU_1_1_SHM_INTX = make_profile(
    "qemu-1.1-shm-intx",
    "QEMU's ivshmem of 2012 without a server and with msi=off: IntrStatus and IntrMask are saved",
    QEMU_1_1_SHM,
    stream=(("pci", "status", "mask"), "row 98"),
)

VARIANTS = {
    (True, True): QEMU_1_1,
    (True, False): QEMU_1_1_INTX,
    (False, True): QEMU_1_1_SHM,
    (False, False): QEMU_1_1_SHM_INTX,
}
"""The profile of a device, by (with a server, property msi)."""


class Occurrence(Enum):
    """Where a defect can occur."""

    RUN = "in a run"
    GARBLED = "in a run, by the timeline's action garble"
    SERVER = "with a server that sends such messages; that of a run does not"
    LIBRARY = "with nodes.device as a library"
    VARIANT = "in another variant of the device"


_ELSEWHERE = {
    Quirk.ZERO_SIZE: Occurrence.LIBRARY,
    Quirk.MODE_UNCHECKED: Occurrence.LIBRARY,
    Quirk.DESCRIPTOR_ZERO_UNMAPPED: Occurrence.LIBRARY,
    Quirk.SHORT_READ: Occurrence.GARBLED,
    Quirk.PEER_UNBOUNDED: Occurrence.GARBLED,
    Quirk.LEAVE_RENAMES: Occurrence.GARBLED,
    Quirk.MINUS_ONE_UNCHECKED: Occurrence.GARBLED,
    Quirk.MEMORY_REMAP: Occurrence.GARBLED,
    Quirk.EARLY_OWN_VECTORS: Occurrence.SERVER,
    Quirk.IOEVENTFD_INIT_FAULT: Occurrence.LIBRARY,
    Quirk.IOEVENTFD_UNBOUND: Occurrence.LIBRARY,
    Quirk.LEAVE_TWICE_FAULT: Occurrence.GARBLED,
    Quirk.UNPLUG_LEAK: Occurrence.LIBRARY,
    Quirk.UNPLUG_EARLY_FAULT: Occurrence.LIBRARY,
}
"""Where the defects occur that a plain run does not show.

A topology has no key for the properties ioeventfd and size; the memory of a run is there before a machine is unplugged;
a worker closes what its device leaves behind.
"""


def occurrence(quirk: Quirk, profile: Profile) -> Occurrence:
    """Where a defect of the device of 2012 can occur in this variant of it."""
    needs_client = {Quirk.MAPPING_UNCHECKED, Quirk.DESCRIPTOR_LEAK, Quirk.VECTOR_OVERFLOW}
    needs_client |= {each for each, where in _ELSEWHERE.items() if where in (Occurrence.GARBLED, Occurrence.SERVER)}
    absent = (
        (quirk in needs_client and profile.client != "2012")
        or (quirk in (Quirk.RESET_DROPS_VECTORS, Quirk.INTX_BESIDE_MSIX) and not profile.msix)
        or (quirk is Quirk.STATUS_LOW_BYTE and (profile.msix or not profile.server))
        or (quirk is Quirk.PLAIN_DOORBELL_FAULT and profile.server)
    )
    return Occurrence.VARIANT if absent else _ELSEWHERE.get(quirk, Occurrence.RUN)
