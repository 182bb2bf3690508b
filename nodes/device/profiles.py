"""The ivshmem devices in the field: one profile each, every cell with its source.

The JSON files named as sources lie in ``tests/golden``; a profile is chosen by one word in a topology. KVM
and TCG are QEMU's two accelerators: with KVM a doorbell goes from eventfd to interrupt without QEMU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from msgspec.structs import replace

from nodes.device.access_path import AccessPath, MisalignedConfig
from nodes.device.msix import Undelivered
from nodes.device.pci import COMMAND_BUS_MASTER, COMMAND_MEMORY
from nodes.device.profile import (
    COMMAND_BITS,
    FLAT_REGISTERS,
    REGISTERS,
    SILENT_REGISTERS,
    STICKY_REGISTERS,
    DoorbellMatch,
    Profile,
    make_profile,
)
from nodes.device.qemu_1_1.profiles import VARIANTS
from nodes.device.registers import AccessRules, Unfit
from nodes.device.v2.profiles import JAILHOUSE_V2, JAILHOUSE_V2_INTX, QEMU_V2
from nodes.device.variants import make_variant, parse_variant
from nodes.errors import UsageError
from nodes.qemu_versions import NEWEST, QemuVersion
from nodes.spelling import did_you_mean

QEMU_DOORBELL = make_profile(
    "qemu-doorbell",
    "QEMU's ivshmem-doorbell, 2.6 to 11.1, TCG",
    None,
    vendor=(0x1AF4, "pci_config.json, 00"),
    device=(0x1110, "pci_config.json, 02"),
    class_code=(0x05_00_00, "pci_config.json, 09"),
    revision=(1, "pci_config.json, 08; QEMU 5400c02b90"),
    subsystem_vendor=(0x1AF4, "pci_config.json, 2c"),
    subsystem=(0x1100, "pci_config.json, 2e"),
    interrupt_pin=(0, "pci_config.json, 3d; QEMU e858e04dd4"),
    pci=(True, "pci_config.json"),
    command_preset=(0, "pci_config.json, 04"),
    command_mask=(COMMAND_BITS, "pci_config.json, write_mask_hex"),
    config_writable_from=(0x40, "pci_config.json, write_mask_hex, 4c to ff"),
    msix_capability=(0x40, "pci_config.json, 34"),
    config_misaligned=(MisalignedConfig.ZERO, "QEMU 7.2, 10.0, 11.1, TCG: inw, inl, outw, outl of a bare guest"),
    access_path=(AccessPath.EVEN, "QEMU 10.0, accel/tcg/cputlb.c, int_ld_mmio_beN and int_st_mmio_leN"),
    registers_bar=(0, "pci_config.json, bars"),
    registers_io=(False, "pci_config.json, bars"),
    registers=(REGISTERS, "registers.json"),
    registers_rules=(AccessRules(write_offset_mask=0xFC), "registers.json, sized_access"),
    msix_bar=(1, "pci_config.json, capability at 40"),
    msix=(True, "pci_config.json, capability at 40"),
    msix_rules=(AccessRules(widest_bytes=8, narrowest_bytes=4), "msix.json, 8-, 16- and 64-bit writes"),
    msix_limit=(2048, "pci_config.json, realize_errors"),
    msix_pba_offset=(0, "pci_config.json, capability at 40"),
    fixed_vectors=(0, "ivshmem-doorbell's property vectors"),
    memory_bar=(2, "pci_config.json, bars"),
    memory_wide=(True, "pci_config.json, bars; QEMU c08ba66f1"),
    memory_prefetchable=(True, "pci_config.json, bars; QEMU c08ba66f1"),
    memory_container=(False, "QEMU c2d8019cd7"),
    memory_default_bytes=(4 << 20, "contrib/ivshmem-server, option -l"),
    server=(True, "pci_config.json, realize_errors, doorbell no chardev"),
    client=("2.6", "QEMU 3a55fc0f24: ivshmem_recv_setup"),
    waits_for_memory=(True, "QEMU 3a55fc0f24"),
    vector_bits=(8, "doorbell.json, vec0x100 rings vector 0"),
    doorbell_match=(DoorbellMatch.PIECE, "QEMU 7.2, softmmu/memory.c, memory_region_dispatch_write_eventfds"),
    position_before_setup=(0, "QEMU 1309cf448a: realize waits, no guest sees it"),
    position_late_reads=(0, "QEMU 1309cf448a: realize waits"),
    ring_while_masked=(Undelivered.PEND, "msix.json, ring all 4 while all vectors masked"),
    ring_while_disabled=(Undelivered.LOSE, "msix.json, ring v0 while MSI-X disabled"),
    function_mask=(True, "msix.json, function-masked ring v0"),
    bus_master_gates=(True, "msix.json, ring v0 unmasked, bus master off"),
    unmask_needs_eventfd=(False, "QEMU 7.2, TCG: such a vector is dead"),
    intx=(False, "QEMU e858e04dd4"),
    driver_start=((), "ivshmem-spec: IntrMask and IntrStatus have no function"),
    reset_clears_mask=(True, "msix.json, system_reset; QEMU a40227911c"),
    roles=(("peer", "master", "auto"), "QEMU 62a830b688: master=off, on or auto"),
    default_role=("peer", "migration.json, source doorbell id0 default; QEMU 62a830b688"),
    master_is_first=(True, "migration.json, source doorbell id1 ,master=on"),
    migration_locks_devices=(True, "QEMU fe44dc9180 and b06424de62, 2017"),
    section=("ivshmem-doorbell", "QEMU 5400c02b90; migration_streams.json"),
    stream=(("pci", "msix", "status", "mask"), "QEMU 7.2, ivshmem.c, ivshmem_doorbell_vmsd; QEMU 1f8552df2c"),
    load_refusal=("'peer' devices are not migratable", "migration.json, dest: same server, master=off"),
    ram_block=("ivshmem.bar2", "migration.json, dest: no ivshmem device"),
    quirks=(frozenset(), "QEMU 7.2: the defects of 2012 are repaired"),
)

QEMU_DOORBELL_KVM = make_profile(
    "qemu-doorbell-kvm",
    "QEMU's ivshmem-doorbell, 2.6 to 11.1, KVM: eventfds wired to interrupts by irqfd",
    QEMU_DOORBELL,
    config_misaligned=(MisalignedConfig.PIECES, "QEMU 7.2, accel/kvm/kvm-all.c, kvm_handle_io: address_space_rw"),
    access_path=(AccessPath.WHOLE, "QEMU 7.2, accel/kvm/kvm-all.c, kvm_cpu_exec: address_space_rw of each exit"),
    doorbell_match=(DoorbellMatch.WRITE, "Linux, virt/kvm/eventfd.c, ioeventfd_in_range: length and all 32 bits"),
    ring_while_masked=(Undelivered.KEEP, "QEMU 7.2, ivshmem_vector_mask, ivshmem_vector_poll"),
    ring_while_disabled=(Undelivered.KEEP, "msix_kvm_irqfd.json, pba after enabling"),
    unmask_needs_eventfd=(
        True,
        "QEMU 7.2, 10.0, 11.1 with KVM: SIGABRT; ivshmem_vector_unmask, msix_fire_vector_notifier",
    ),
)

QEMU_PLAIN = make_profile(
    "qemu-plain",
    "QEMU's ivshmem-plain, 2.6 to 11.1: shared memory, no peers and no interrupts",
    QEMU_DOORBELL,
    msix=(False, "pci_config.json, pc/plain"),
    server=(False, "QEMU 5400c02b90: no chardev property"),
    doorbell_match=(DoorbellMatch.NEVER, "QEMU 7.2: ivshmem-plain registers no ioeventfd"),
    memory_default_bytes=(4 << 20, "none: QEMU's memory backend has a size of its own"),
    master_is_first=(False, "migration.json, source plain ,master=on"),
    section=("ivshmem-plain", "QEMU 5400c02b90; migration_streams.json"),
    stream=(("pci", "status", "mask"), "QEMU 7.2, ivshmem.c, ivshmem_plain_vmsd"),
    ram_block=("memory backend", "QEMU d9453c93fe: the block is the memory backend's, whatever its name"),
)

ACRN = make_profile(
    "acrn",
    "ACRN's hypervisor-land ivshmem: always 8 vectors, no pending bits",
    None,
    vendor=(0x1AF4, "ACRN, hypervisor/include/dm/ivshmem.h, IVSHMEM_VENDOR_ID"),
    device=(0x1110, "ACRN, ivshmem.h, IVSHMEM_DEVICE_ID"),
    class_code=(0x05_00_00, "ACRN, hypervisor/dm/vpci/ivshmem.c, IVSHMEM_CLASS"),
    revision=(1, "ACRN, ivshmem.c, IVSHMEM_REV"),
    subsystem_vendor=(0, "ACRN, ivshmem.c, init_ivshmem_vdev: not set"),
    subsystem=(0, "ACRN, ivshmem.c, init_ivshmem_vdev: not set"),
    interrupt_pin=(0, "ACRN, ivshmem.c, init_ivshmem_vdev: not set"),
    pci=(True, "ACRN, ivshmem.c, init_ivshmem_vdev"),
    command_preset=(0, "ACRN, ivshmem.c, init_ivshmem_vdev: not set"),
    command_mask=(0xFFFF, "ACRN, ivshmem.c, write_ivshmem_vdev_cfg: no write mask"),
    config_writable_from=(0, "ACRN, ivshmem.c, write_ivshmem_vdev_cfg: no write mask"),
    msix_capability=(0x40, "ACRN, vmsix.c, add_vmsix_capability: the first capability"),
    config_misaligned=(MisalignedConfig.ONES, "ACRN, hypervisor/dm/vpci/vpci.c, vpci_is_valid_access"),
    access_path=(AccessPath.WHOLE, "ACRN, hypervisor/dm/io_req.c: an access is one request"),
    registers_bar=(0, "ACRN, ivshmem.c, IVSHMEM_MMIO_BAR"),
    registers_io=(False, "ACRN, ivshmem.c, init_ivshmem_bar"),
    registers=(STICKY_REGISTERS, "ACRN, ivshmem.c, ivshmem_mmio_handler: useless for revision 1"),
    registers_rules=(
        AccessRules(narrowest_bytes=4, misaligned=Unfit.ZERO, wide=Unfit.ZERO),
        "ACRN, ivshmem.c, ivshmem_mmio_handler: 4 bytes, aligned",
    ),
    msix_bar=(1, "ACRN, ivshmem.c, IVSHMEM_MSIX_BAR"),
    msix=(True, "ACRN, ivshmem.c, init_ivshmem_vdev: add_vmsix_capability"),
    msix_rules=(
        AccessRules(widest_bytes=8, narrowest_bytes=4, misaligned=Unfit.ZERO),
        "ACRN, vmsix.c, rw_vmsix_table",
    ),
    msix_limit=(8, "ACRN, ivshmem.h, MAX_IVSHMEM_MSIX_TBL_ENTRY_NUM"),
    msix_pba_offset=(0, "ACRN, vmsix.c, add_vmsix_capability: in the second half of 4 KiB"),
    fixed_vectors=(8, "ACRN, ivshmem.c, init_ivshmem_vdev: add_vmsix_capability, the same for every device"),
    memory_bar=(2, "ACRN, ivshmem.c, IVSHMEM_SHM_BAR"),
    memory_wide=(True, "ACRN, ivshmem.c, init_ivshmem_bar: as configured, 64-bit in the shipped scenarios"),
    memory_prefetchable=(True, "ACRN, ivshmem.c, init_ivshmem_bar: as configured"),
    memory_container=(False, "ACRN, ivshmem.c, init_ivshmem_bar: no region, no BAR"),
    memory_default_bytes=(2 << 20, "ACRN, doc/tutorials/enable_ivshmem.rst: at least 2 MiB"),
    server=(True, "ACRN, ivshmem.c, ivshmem_server_bind_peer: in the hypervisor"),
    client=("2.6", "none: ACRN's server is a part of the hypervisor"),
    waits_for_memory=(True, "ACRN, ivshmem.c, init_ivshmem_shared_memory: before any VM"),
    vector_bits=(16, "ACRN, ivshmem.c, union ivshmem_doorbell"),
    doorbell_match=(DoorbellMatch.NEVER, "ACRN, ivshmem.c, ivshmem_mmio_handler: no eventfds"),
    position_before_setup=(0, "ACRN, ivshmem.c, create_ivshmem_device"),
    position_late_reads=(0, "ACRN, ivshmem.c, create_ivshmem_device: set before any VM runs"),
    ring_while_masked=(Undelivered.LOSE, "ACRN, ivshmem.c, ivshmem_server_notify_peer"),
    ring_while_disabled=(Undelivered.LOSE, "ACRN, ivshmem.c, ivshmem_server_notify_peer"),
    function_mask=(False, "ACRN, ivshmem.c, ivshmem_server_notify_peer: looks at the entry's mask only"),
    bus_master_gates=(False, "ACRN, ivshmem.c, ivshmem_server_notify_peer: vlapic_inject_msi"),
    unmask_needs_eventfd=(False, "ACRN, ivshmem.c, ivshmem_mmio_handler: no eventfds"),
    intx=(False, "ACRN, ivshmem.c, ivshmem_mmio_handler: useless for revision 1"),
    driver_start=((), "ACRN, ivshmem.c, ivshmem_mmio_handler: useless for revision 1"),
    reset_clears_mask=(True, "ACRN, ivshmem.c, create_ivshmem_device: cleared when the VM starts again"),
    roles=(("peer", "master"), "ACRN migrates no devices"),
    default_role=("peer", "ACRN migrates no devices"),
    master_is_first=(False, "ACRN migrates no devices"),
    migration_locks_devices=(True, "ACRN migrates no devices"),
    section=("", "ACRN migrates no devices"),
    stream=((), "ACRN migrates no devices"),
    load_refusal=("", "ACRN migrates no devices"),
    ram_block=("", "ACRN migrates no devices"),
    quirks=(frozenset(), "ACRN: another device, other defects"),
)

CLOUD_HYPERVISOR = make_profile(
    "cloud-hypervisor",
    "cloud-hypervisor's ivshmem: shared memory, registers that read 0, no interrupts",
    QEMU_PLAIN,
    class_code=(0x05_00_00, "cloud-hypervisor, devices/src/ivshmem.rs, IvshmemDevice::new: MemoryController, Other"),
    revision=(1, "cloud-hypervisor, ivshmem.rs, IvshmemDevice::new"),
    subsystem_vendor=(0, "cloud-hypervisor, ivshmem.rs, IvshmemDevice::new"),
    subsystem=(0, "cloud-hypervisor, ivshmem.rs, IvshmemDevice::new"),
    command_mask=(0xFFFF, "cloud-hypervisor, pci/src/configuration.rs, PciConfiguration::new: writable_bits[1]"),
    config_writable_from=(0x100, "cloud-hypervisor, configuration.rs: no scratch space"),
    config_misaligned=(MisalignedConfig.INSIDE, "cloud-hypervisor, pci/src/bus.rs, PciConfigIo: to the register's end"),
    access_path=(AccessPath.WHOLE, "cloud-hypervisor, ivshmem.rs, read_bar: an exit of KVM is one call"),
    registers=(SILENT_REGISTERS, "cloud-hypervisor, ivshmem.rs, read_bar returns 0, write_bar warns"),
    registers_rules=(
        AccessRules(narrowest_bytes=4),
        "cloud-hypervisor, ivshmem.rs, read_bar: LittleEndian::write_u32, which panics for fewer than 4 bytes",
    ),
    position_before_setup=(0, "cloud-hypervisor, ivshmem.rs, read_bar"),
    memory_default_bytes=(4 << 20, "none: --ivshmem path=,size= has no default"),
    roles=(("peer", "master"), "cloud-hypervisor knows no roles"),
    default_role=("peer", "cloud-hypervisor knows no roles"),
    section=("", "cloud-hypervisor has snapshots of its own, in JSON; they are not modelled"),
    stream=((), "cloud-hypervisor has snapshots of its own, in JSON; they are not modelled"),
)


KVMTOOL = make_profile(
    "kvmtool",
    "kvmtool's pci-shmem, 2011 to 2020: registers in I/O ports, an MSI-X table without interrupts, no peers",
    QEMU_PLAIN,
    class_code=(0xFF_00_00, "kvmtool, hw/pci-shmem.c, pci_shmem_pci_device"),
    revision=(0, "kvmtool, pci-shmem.c, pci_shmem_pci_device"),
    subsystem_vendor=(0, "kvmtool, pci-shmem.c, pci_shmem_pci_device"),
    subsystem=(0, "kvmtool, pci-shmem.c, pci_shmem_pci_device"),
    interrupt_pin=(1, "kvmtool, pci-shmem.c, pci_shmem__init: irq__register_device"),
    command_mask=(0xFFFF, "kvmtool, pci.c, pci__config_wr: no write mask"),
    config_writable_from=(0x100, "kvmtool, pci.c, pci__config_wr: words that are 0 stay 0"),
    config_misaligned=(MisalignedConfig.ACROSS, "kvmtool, pci.c, pci__config_rd: memcpy"),
    access_path=(AccessPath.WHOLE, "kvmtool, pci-shmem.c, callback_mmio_msix: memcpy of each exit of KVM"),
    registers_io=(True, "kvmtool, pci-shmem.c, pci_shmem__init: PCI_BASE_ADDRESS_SPACE_IO"),
    registers=(SILENT_REGISTERS, "kvmtool, pci-shmem.c, shmem_pci__io_in, shmem_pci__io_out"),
    registers_rules=(AccessRules(), "kvmtool, pci-shmem.c, shmem_pci__io_in: by the port, whatever the size"),
    msix=(True, "kvmtool, pci-shmem.c, pci_shmem_pci_device: msix"),
    msix_rules=(
        AccessRules(widest_bytes=8, narrowest_bytes=4),
        "kvmtool, pci-shmem.c, callback_mmio_msix: memcpy; narrower accesses are not modelled",
    ),
    msix_limit=(2, "kvmtool, pci-shmem.c, msix_table"),
    msix_pba_offset=(0x1000, "kvmtool, pci-shmem.c, pci_shmem_pci_device: pba_offset"),
    fixed_vectors=(2, "kvmtool, pci-shmem.c, pci_shmem_pci_device: msix.ctrl 1"),
    memory_wide=(False, "kvmtool, pci-shmem.c, pci_shmem__init: bar[2]"),
    memory_prefetchable=(False, "kvmtool, pci-shmem.c, pci_shmem__init: bar[2]"),
    memory_default_bytes=(16 << 20, "kvmtool, include/kvm/pci-shmem.h, SHMEM_DEFAULT_SIZE"),
    position_before_setup=(0, "kvmtool, pci-shmem.c, local_id: never set"),
    roles=(("peer", "master"), "kvmtool migrates nothing"),
    default_role=("peer", "kvmtool migrates nothing"),
    section=("", "kvmtool migrates nothing"),
    stream=((), "kvmtool migrates nothing"),
)

IVSHMEM_FLAT = make_profile(
    "ivshmem-flat",
    "QEMU's ivshmem-flat, 10.0 to 11.1: no PCI, a window of 16 bytes, one interrupt line, and only vector 0 raises it",
    QEMU_DOORBELL,
    pci=(False, "QEMU 10.0, hw/misc/ivshmem-flat.c: TYPE_SYS_BUS_DEVICE"),
    command_preset=(COMMAND_MEMORY | COMMAND_BUS_MASTER, "QEMU 10.0, ivshmem-flat.c: always mapped"),
    command_mask=(0, "QEMU 10.0, ivshmem-flat.c: no command register"),
    config_misaligned=(MisalignedConfig.ACROSS, "QEMU 10.0, ivshmem-flat.c: no configuration space"),
    registers=(FLAT_REGISTERS, "QEMU 10.0, ivshmem-flat.c, ivshmem_flat_iomem_read: 0 but for IVPOSITION"),
    registers_rules=(AccessRules(), "QEMU 10.0, ivshmem-flat.c, ivshmem_flat_iomem_write: the offset is not rounded"),
    msix=(False, "QEMU 10.0, ivshmem-flat.c: sysbus_init_irq"),
    msix_limit=(64, "QEMU 10.0, ivshmem-flat.h, IVSHMEM_MAX_VECTOR_NUM"),
    memory_wide=(False, "QEMU 10.0, ivshmem-flat.c: the second region of the device, no BAR"),
    memory_prefetchable=(False, "QEMU 10.0, ivshmem-flat.c: the second region of the device, no BAR"),
    memory_default_bytes=(4 << 20, "QEMU 10.0, ivshmem-flat.c, property shmem-size"),
    vector_bits=(16, "QEMU 10.0, ivshmem-flat.c, ivshmem_flat_iomem_write"),
    doorbell_match=(DoorbellMatch.NEVER, "QEMU 10.0, ivshmem-flat.c: registers no ioeventfd"),
    roles=(("peer", "master"), "QEMU 10.0, ivshmem-flat.c: no vmsd, no property master"),
    default_role=("peer", "QEMU 10.0, ivshmem-flat.c: no property master"),
    master_is_first=(False, "QEMU 10.0, ivshmem-flat.c: no property master"),
    section=("", "QEMU 10.0, ivshmem-flat.c: no vmsd"),
    stream=((), "QEMU 10.0, ivshmem-flat.c: no vmsd"),
)

OF_A_VERSION = re.compile(r"(?P<base>.+)-(?P<version>[0-9]+\.[0-9]+)")
ACCESSES = ("tcg", "kvm", "qtest")
"""The origin of an access to a device of QEMU: a processor, by accelerator, or the qtest protocol."""
SINCE_EVEN = QemuVersion(10, 0)


def profile_by_access(made: Profile, access: str, version: QemuVersion) -> Profile:
    """A device of QEMU of a version, as one of `ACCESSES` finds it; ``made`` is qemu-doorbell or qemu-plain."""
    kvm = QEMU_DOORBELL_KVM
    if access == "kvm" and made is QEMU_DOORBELL:
        return kvm
    path, config = kvm.access_path, kvm.config_misaligned
    if access == "tcg":
        path, config = AccessPath.EVEN if version >= SINCE_EVEN else AccessPath.BYTES, made.config_misaligned
    elif access == "qtest" and version >= NEWEST:
        config = MisalignedConfig.ZERO
    source = f"QEMU {version}, {access}: `ivsim conformance --access {access}`"
    sources = MappingProxyType({**made.sources, "access_path": source, "config_misaligned": source})
    return replace(made, access_path=path, config_misaligned=config, sources=sources)


def _of_version(name: str) -> Profile | None:
    """The profile of a name like ``qemu-doorbell-7.2``: what a TCG processor of that version finds. None: no such."""
    found = OF_A_VERSION.fullmatch(name)
    made = {base.name: base for base in (QEMU_DOORBELL, QEMU_PLAIN)}.get(found["base"]) if found else None
    if found is None or made is None:
        return None
    return replace(profile_by_access(made, "tcg", QemuVersion.parse(found["version"])), name=name)


class _Profiles(Mapping[str, Profile]):
    """The profiles by name; a version or a variant of one is there under its name, but is not listed."""

    def __init__(self, profiles: Iterable[Profile]) -> None:
        self._profiles = {entry.name: entry for entry in profiles}
        self._derived: dict[str, Profile] = {}

    def __getitem__(self, name: str) -> Profile:
        if name in self._profiles:
            return self._profiles[name]
        if name not in self._derived:
            try:
                base, cells = parse_variant(name)
                self._derived[name] = make_variant(_of_version(base) or self._profiles[base], cells)
            except UsageError as error:
                raise KeyError(name) from error
        return self._derived[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)


PROFILES: Mapping[str, Profile] = _Profiles(
    (
        QEMU_DOORBELL,
        QEMU_DOORBELL_KVM,
        QEMU_PLAIN,
        *VARIANTS.values(),
        ACRN,
        CLOUD_HYPERVISOR,
        KVMTOOL,
        IVSHMEM_FLAT,
        QEMU_V2,
        JAILHOUSE_V2,
        JAILHOUSE_V2_INTX,
    )
)


def profile(name: str) -> Profile:
    """Return the profile of that name; or of a version, as qemu-doorbell-7.2; or a variant.

    Raises:
        UsageError: there is no such profile; the message lists all of them. Or a variant has a cell that cannot be.
    """
    base, cells = parse_variant(name)
    if base not in PROFILES:
        raise UsageError(f"no device profile {base!r}: there are {', '.join(PROFILES)}{did_you_mean(base, PROFILES)}")
    return make_variant(PROFILES[base], cells)
