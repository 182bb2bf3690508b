"""Migration of one device: what forbids it, and the stream in which its state travels.

The stream is one table, :data:`FIELDS`; a profile names the fields that its device writes, in order. Integers
are big-endian but for PCI's version (QEMU, savevm.c). Peers, peer ID and eventfds do not travel: the
destination has those of its own server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from nodes.device.msix import Msix
from nodes.device.pci import ConfigSpace
from nodes.device.profiles import INTR_MASK, INTR_STATUS, Profile
from nodes.device.registers import RegisterFile
from nodes.errors import UsageError

__all__ = ["FIELDS", "Blocker", "Blockers", "Field", "MigrationError", "RamMigration", "load", "save"]

SECTION = b"ivshmem"
INSTANCE = 0
MEMORY_BAR = 2
VERSION = 0
INTERRUPT_PINS = 4
PCI_VERSION = 2  # QEMU, hw/pci/pci.c, PCIDevice.version_id
STATUS, STATUS_INTERRUPT = 0x06, 1 << 3

# Bytes of configuration space that source and destination must have in common, bits that no guest can write
# (QEMU, hw/pci/pci.c, pci_init_cmask): identity, capability list bit, class, header type, capability pointer.
COMPARED = {0x00: 4, 0x08: 4, 0x0E: 1, 0x34: 1}
STATUS_COMPARED = 1 << 4


class Device(Protocol):
    """What there is to save of a device."""

    profile: Profile
    config: ConfigSpace
    msix: Msix | None
    registers: RegisterFile
    memory: memoryview | None
    intx_raised: bool

    @property
    def master(self) -> bool: ...

    def restored(self) -> None: ...


class MigrationError(UsageError):
    """A migration that the real machine refuses; the message is its own, its errno is EINVAL."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why a machine cannot be migrated."""

    feature: str
    device: str

    @property
    def text(self) -> str:
        """The message, as QEMU words it."""
        return f"Migration is disabled when using feature '{self.feature}' in device '{self.device}'"


class Blockers:
    """The blockers of one machine; a refused migration names the newest (migrate_add_blocker)."""

    def __init__(self) -> None:
        self._blockers: list[Blocker] = []

    def __iter__(self) -> Iterator[Blocker]:
        """The newest first."""
        return reversed(self._blockers)

    def add(self, blocker: Blocker) -> None:
        self._blockers.append(blocker)

    def remove(self, blocker: Blocker) -> None:
        """Take one away; the same one may be there several times.

        Raises:
            ValueError: it is not there.
        """
        self._blockers.remove(blocker)

    def check(self) -> None:
        """Raises:
        MigrationError: there is a blocker; the newest one's text.
        """
        for blocker in self:
            raise MigrationError(blocker.text)


def blocker(device: Device) -> Blocker | None:
    """The blocker that this device registers: one unless it is the master."""
    return None if device.master else Blocker("peer mode", "ivshmem")


# The stream.


@dataclass(frozen=True, slots=True)
class Field:
    """One part of the stream: how long it is, and how it is taken from a device and given to one."""

    name: str
    size_bytes: Callable[[Device], int]
    save: Callable[[Device], bytes]
    load: Callable[[Device, bytes], None]


def _load_config(device: Device, data: bytes) -> None:
    own, mask = device.config.data, device.config.write_mask
    compared = {at + byte: 0xFF for at, size in COMPARED.items() for byte in range(size)}
    compared[STATUS] = STATUS_COMPARED
    for capability in device.config.capabilities:
        for byte in range(2 + len(capability.body)):
            compared[capability.offset + byte] = 0xFF
    for at, bits in sorted(compared.items()):
        if (data[at] ^ own[at]) & bits & ~mask[at]:
            raise MigrationError(
                f"get_pci_config_device: Bad config data: i={at:#x} read: {data[at]:x} device: {own[at]:x} "
                f"cmask: {bits:x} wmask: {mask[at]:x} w1cmask:0"
            )
    own[:] = data


def _save_config(device: Device) -> bytes:
    # The interrupt bit is implied by the pins' levels, which follow (QEMU, pci_device_save).
    data = bytearray(device.config.data)
    data[STATUS] &= ~STATUS_INTERRUPT
    return bytes(data)


def _save_pins(device: Device) -> bytes:
    return int(device.intx_raised).to_bytes(4, "big") + bytes(4 * (INTERRUPT_PINS - 1))


def _load_pins(device: Device, data: bytes) -> None:
    levels = [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)]
    if any(level not in (0, 1) for level in levels):
        raise MigrationError("get_pci_irq_state: irq state must be 0 or 1")
    device.intx_raised = bool(levels[0])


def _load_version(device: Device, data: bytes) -> None:
    version = int.from_bytes(data, "little", signed=True)
    if version != PCI_VERSION:
        raise MigrationError(f"PCIDevice: version_id {version}, expected {PCI_VERSION}")


def _table_bytes(device: Device) -> int:
    return device.msix.layout.table_bytes if device.msix else 0


def _pending_bytes(device: Device) -> int:
    return (device.msix.layout.vectors + 7) // 8 if device.msix else 0


def _save_table(device: Device) -> bytes:
    words = device.msix.table if device.msix else []
    return b"".join(word.to_bytes(4, "little") for word in words)


def _load_table(device: Device, data: bytes) -> None:
    if device.msix:
        device.msix.table[:] = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def _save_pending(device: Device) -> bytes:
    return device.msix.pending.to_bytes(_pending_bytes(device), "little") if device.msix else b""


def _load_pending(device: Device, data: bytes) -> None:
    if device.msix:
        device.msix.pending = int.from_bytes(data, "little") & ((1 << device.msix.layout.vectors) - 1)


def _word(name: str) -> Field:
    def store(device: Device, data: bytes) -> None:
        device.registers.values[name] = int.from_bytes(data, "big")

    return Field(name, lambda _: 4, lambda device: device.registers.values[name].to_bytes(4, "big"), store)


FIELDS: dict[str, tuple[Field, ...]] = {
    "pci": (
        Field("version", lambda _: 4, lambda _: PCI_VERSION.to_bytes(4, "little"), _load_version),
        Field("configuration space", lambda _: 256, _save_config, _load_config),
        Field("pins", lambda _: 4 * INTERRUPT_PINS, _save_pins, _load_pins),
    ),
    "msix": (
        Field("MSI-X table", _table_bytes, _save_table, _load_table),
        Field("pending bits", _pending_bytes, _save_pending, _load_pending),
    ),
    "status": (_word(INTR_STATUS),),
    "mask": (_word(INTR_MASK),),
}


def _fields(device: Device) -> tuple[Field, ...]:
    if not device.profile.stream:
        raise MigrationError(f"{device.profile.name}: this device is never migrated")
    return tuple(field for name in device.profile.stream for field in FIELDS[name])


def _header() -> bytes:
    return bytes([len(SECTION)]) + SECTION + INSTANCE.to_bytes(4, "big") + VERSION.to_bytes(4, "big")


def save(device: Device) -> bytes:
    """The device's section of the stream: name, instance, version, then the fields of its profile.

    Raises:
        MigrationError: this kind of device is never migrated.
    """
    return _header() + b"".join(field.save(device) for field in _fields(device))


def load(device: Device, data: bytes) -> None:
    """Give a device the state of such a section; what its new masks set free is sent.

    Raises:
        MigrationError: another section, a newer version, a device in the peer role, a device that differs
            (configuration space), or a stream of another length. The device may then hold a part of it.
    """
    fields = _fields(device)
    header = _header()
    if data[: len(header) - 4] != header[:-4]:
        raise MigrationError("Unknown savevm section or instance: this is no ivshmem, instance 0")
    version = int.from_bytes(data[len(header) - 4 : len(header)], "big")
    if version > VERSION or len(data) < len(header):
        raise MigrationError(f"ivshmem: version {version}, expected {VERSION}")
    if not device.master:
        raise MigrationError("'peer' devices are not migratable")
    at = len(header)
    for field in fields:
        part = data[at : at + field.size_bytes(device)]
        if len(part) != field.size_bytes(device):
            raise MigrationError(f"load of migration failed: the stream ends in {field.name}")
        field.load(device, part)
        at += len(part)
    if at != len(data):
        raise MigrationError(f"load of migration failed: {len(data) - at} bytes too many")
    device.restored()


class RamMigration:
    """The memory side: which RAM blocks a migration has seen, and what becomes of those that it has not.

    BAR2 is RAM of its machine, so a master's migration copies it whole. A device whose memory arrives when the
    migration has begun is not among the blocks (rationale of QEMU 3a55fc0f24).
    """

    def __init__(self, source: Device) -> None:
        self._source = source
        self.block_bytes = memory_bytes(source)

    def complete(self, destination: Device) -> int:
        """Copy the memory; the number of bytes moved.

        Raises:
            MigrationError: a block that one side has and the other lacks, or of another size.
        """
        now, there = memory_bytes(self._source), memory_bytes(destination)
        if now != self.block_bytes:
            raise MigrationError("ivshmem.bar2 appeared after the migration began: its contents are lost")
        if now and not there:
            raise MigrationError('Unknown ramblock "ivshmem.bar2", cannot accept migration')
        if now != there:
            raise MigrationError(f"Size mismatch: ivshmem.bar2: {now:#x} != {there:#x}: Invalid argument")
        source, target = self._source.memory, destination.memory
        if source is not None and target is not None:
            target[:] = source
        return now


def memory_bytes(device: Device) -> int:
    """The size of the RAM block behind BAR2; 0 before there is one."""
    bar = device.config.bars.get(MEMORY_BAR)
    return bar.size_bytes if bar and device.memory is not None else 0
