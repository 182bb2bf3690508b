"""The devices of ivshmem v2 in the field: the cells that v1 does not have, and one profile each.

Sources: "S" is Jailhouse's Documentation/ivshmem-v2-specification.md; "J" its hypervisor/ivshmem.c; "Q" the QEMU fork's
hw/misc/ivshmem2.c (Kiszka's RFC of November 2019). "A running fork" is that device in a QEMU 7.2, as
tests/qemu/test_v2_fork.py finds it.
"""

from __future__ import annotations

from enum import Enum

from nodes.device.access_path import AccessPath, MisalignedConfig
from nodes.device.msix import Undelivered
from nodes.device.pci import COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_MEMORY
from nodes.device.profile import COMMAND_BITS, DOORBELL, DoorbellMatch, Profile, make_profile
from nodes.device.registers import Access, AccessRules, Register, RegisterMap, Unfit

ID, MAXIMUM_PEERS, INTERRUPT_CONTROL, STATE = "ID", "Maximum Peers", "Interrupt Control", "State"
REGISTERS_V2 = RegisterMap(
    "BAR0",
    0x1000,
    (
        Register(0x00, ID, Access.RO, "the device's own peer ID"),
        Register(0x04, MAXIMUM_PEERS, Access.RO, "how many peers there can be, this one included"),
        Register(0x08, INTERRUPT_CONTROL, Access.RW, "bit 0 enables interrupts; one-shot mode clears it"),
        Register(0x0C, DOORBELL, Access.WO, "peer ID in bits 31:16, vector in bits 15:0: rings it"),
        Register(0x10, STATE, Access.RW, "the own entry of the State Table; a change interrupts all others"),
        Register(0x14, "reserved", Access.RESERVED, "nothing", words=0x3FB),
    ),
)


class ForbiddenStore(Enum):
    """What a store into a section that the guest may only read does."""

    IGNORED = "it changes nothing and is reported"
    STOPS = "it stops the machine"


class ProfileV2(Profile, frozen=True):
    """A device of ivshmem v2.

    ``vendor_capability`` is the offset of the vendor capability. With ``base_address`` that names the address of the
    memory, and there is no BAR for it. ``msix_bar_bytes`` is the size of the MSI-X BAR; 0: as QEMU lays
    it out. ``pba_reads_zero``: no pending bit is ever shown. ``config_limit`` is the first offset of
    configuration space that reads all ones and cannot be written. ``peers_limit`` is the most peers of a link.
    """

    version = 2

    vendor_capability: int
    base_address: bool
    msix_bar_bytes: int
    config_limit: int
    peers_limit: int
    forbidden_store: ForbiddenStore
    reset_clears_one_shot: bool


QEMU_V2 = make_profile(
    "qemu-v2",
    "ivshmem v2 of the QEMU fork (RFC of 2019): ivshmem2-server, MSI-X, BAR2",
    None,
    ProfileV2,
    vendor=(0x110A, "S, offset 00"),
    device=(0x4106, "S, offset 02"),
    class_code=(0xFF_00_00, "S, offset 09: the protocol in the low 16 bits"),
    revision=(0, "S, offset 08"),
    subsystem_vendor=(0x1AF4, "a running fork, offset 2c; S has the vendor"),
    subsystem=(0x1100, "a running fork, offset 2e; S has the device"),
    interrupt_pin=(0, "S, interrupt pin: 0 with MSI-X"),
    pci=(True, "S, Device Identification"),
    command_preset=(0, "a running fork, offset 04: the reset after realize clears what Q sets; S"),
    command_mask=(COMMAND_BITS, "QEMU, hw/pci/pci.c, pci_init_wmask"),
    config_writable_from=(0x40, "QEMU, hw/pci/pci.c, pci_init_wmask"),
    msix_capability=(0x40, "Q: lspci of the RFC's thread, [40] MSI-X"),
    config_misaligned=(MisalignedConfig.ACROSS, "none: what an access across the ports does is not modelled"),
    access_path=(AccessPath.WHOLE, "S: aligned 32-bit only"),
    vendor_capability=(0x4C, "Q: lspci of the RFC's thread, [4c] Vendor Specific Len=18"),
    base_address=(False, "Q: BAR2 has the memory"),
    registers_bar=(0, "S, BAR0"),
    registers_io=(False, "S, BAR0"),
    registers=(REGISTERS_V2, "S, Register Region; Q: 4 KiB"),
    registers_rules=(
        AccessRules(write_offset_mask=0xFC),
        "a running fork takes accesses of 8, 16 and 64 bits too, S only 32; Q: a written address is masked with 0xfc",
    ),
    msix_bar=(1, "S, BAR1"),
    msix=(True, "S, MSI-X"),
    msix_rules=(AccessRules(widest_bytes=8, narrowest_bytes=4), "QEMU, hw/pci/msix.c, msix_table_mmio_ops"),
    msix_limit=(1024, "Q: 1 to 1024 vectors in INIT"),
    msix_bar_bytes=(0, "Q: msix_init_exclusive_bar"),
    msix_pba_offset=(0, "Q: msix_init_exclusive_bar, the PBA at 2 KiB"),
    config_limit=(0x100, "QEMU: all of configuration space can be read"),
    peers_limit=(1024, "Q: the State Table has 4096 bytes"),
    fixed_vectors=(0, "Q: as many as the server says in INIT"),
    memory_bar=(2, "S, BAR2"),
    memory_wide=(True, "S, BAR2: 64-bit"),
    memory_prefetchable=(True, "Q: PCI_BASE_ADDRESS_MEM_PREFETCH"),
    memory_container=(False, "Q: the memory comes before the guest runs"),
    memory_default_bytes=(4 << 20, "ivshmem2-server, option -l"),
    server=(True, "Q: property chardev"),
    client=("v2", "Q: ivshmem_recv_setup; nodes.wire.v2.client"),
    waits_for_memory=(True, "Q: realize waits for INIT"),
    vector_bits=(8, "Q, ivshmem_io_write: value & 0xff; S has 16"),
    doorbell_match=(DoorbellMatch.PIECE, "Q: ioeventfd, on by default"),
    position_before_setup=(0, "Q: realize waits, no guest sees it"),
    position_late_reads=(0, "Q: realize waits, no guest sees it"),
    ring_while_masked=(Undelivered.PEND, "Q: msix_notify sets a pending bit; S: the PBA reads 0"),
    ring_while_disabled=(Undelivered.LOSE, "Q, ivshmem_vector_notify; S: delivered if enabled"),
    function_mask=(True, "QEMU, hw/pci/msix.c"),
    bus_master_gates=(True, "S, offset 04"),
    unmask_needs_eventfd=(False, "Q: without irqfd; not modelled with KVM"),
    intx=(False, "S: MSI-X replaces INTx"),
    driver_start=(((INTERRUPT_CONTROL, 1),), "S: interrupts are disabled after reset"),
    reset_clears_mask=(True, "S: there is no mask register; Interrupt Control resets to 0"),
    roles=(("peer",), "Q has master too, which alone is migrated; not modelled"),
    default_role=("peer", "Q: property master, off by default"),
    master_is_first=(True, "Q: Master must connect to the server before any peers"),
    migration_locks_devices=(True, "QEMU fe44dc9180 and b06424de62, 2017"),
    section=("ivshmem", "Q: vmsd ivshmem, version 0"),
    stream=(("pci", "msix", "state", "control"), "Q: ivshmem_vmsd"),
    load_refusal=("'peer' devices are not migratable", "Q: ivshmem_pre_load"),
    ram_block=("ivshmem.rw-section", "Q: beside it ivshmem.state and ivshmem.input-sections"),
    quirks=(frozenset(), "none of 2012"),
    forbidden_store=(ForbiddenStore.IGNORED, "Q: memory_region_set_readonly; writes are ignored"),
    reset_clears_one_shot=(False, "a running fork: QEMU's hw/pci/pci.c resets no vendor capability"),
)

JAILHOUSE_V2 = make_profile(
    "jailhouse-v2",
    "ivshmem v2 of the Jailhouse hypervisor: MSI-X, the memory at a base address",
    QEMU_V2,
    ProfileV2,
    subsystem_vendor=(0x110A, "S, offset 2c: the same as the vendor"),
    subsystem=(0x4106, "S, offset 2e: the same as the device"),
    command_mask=(
        COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE,
        "J: PCI_CMD_MEM, PCI_CMD_MASTER, PCI_CMD_INTX_OFF; S prints bus master as bit 3",
    ),
    config_writable_from=(0x100, "S: writes to anything else are ignored"),
    vendor_capability=(0x40, "J, default_cspace"),
    msix_capability=(0x60, "J, default_cspace"),
    base_address=(True, "J: the vendor capability has 20 bytes (hex), there is no BAR2"),
    registers_rules=(
        AccessRules(narrowest_bytes=4, misaligned=Unfit.ZERO, wide=Unfit.ZERO),
        "S: aligned 32-bit only; other offsets read 0 and ignore writes",
    ),
    msix_rules=(
        AccessRules(narrowest_bytes=4, misaligned=Unfit.ZERO, wide=Unfit.ZERO),
        "J: other accesses stop the cell; here they read 0",
    ),
    msix_limit=(16, "J, PCI_EMBEDDED_MSIX_VECTS"),
    msix_bar_bytes=(0x200, "J: constant, for 16 entries"),
    msix_pba_offset=(0x100, "J: after 16 entries"),
    config_limit=(0x80, "J: reads beyond give -1, writes are refused"),
    peers_limit=(12, "J, IVSHMEM_MAX_PEERS"),
    vector_bits=(16, "J, ivshmem_register_mmio; S, Doorbell"),
    doorbell_match=(DoorbellMatch.NEVER, "J: the hypervisor decodes every write"),
    ring_while_masked=(Undelivered.LOSE, "J: the message is prepared only while unmasked; S: the PBA reads 0"),
    master_is_first=(False, "J: no migration"),
    migration_locks_devices=(False, "J: no migration"),
    stream=((), "J: no migration"),
    reset_clears_one_shot=(True, "S, Privileged Control: 0 after reset"),
    forbidden_store=(ForbiddenStore.STOPS, "J: the section is mapped read-only; a fault stops the cell"),
)

JAILHOUSE_V2_INTX = make_profile(
    "jailhouse-v2-intx",
    "ivshmem v2 of the Jailhouse hypervisor without MSI-X: one interrupt line, no status bit",
    JAILHOUSE_V2,
    ProfileV2,
    msix=(False, "J: num_msix_vectors = 0 in the cell's configuration"),
    intx=(True, "S, offset 06: the Interrupt Status bit is never set; events are found in the memory"),
    interrupt_pin=(1, "J: ((bdf >> 3) & 3) + 1"),
)
