"""Migration of one device: the blockers, and the stream with the device's state.

The stream is one table, :data:`FIELDS`; a profile names the fields that its device writes, in order. Integers are
big-endian (QEMU, savevm.c), except for those that are stored as a guest sees them. Peers, peer ID and eventfds are not
in the stream: the destination has those of its own server. Error texts are QEMU's, the first line of what it prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from nodes.device.msix import Msix
from nodes.device.pci import ConfigSpace
from nodes.device.profile import INTR_MASK, INTR_STATUS, Profile
from nodes.device.registers import RegisterFile
from nodes.errors import UsageError

__all__ = ["FIELDS", "Blocker", "Blockers", "MigrationError", "RamMigration", "blocker", "load", "save"]

INSTANCE = 0
VERSION = 0
INTERRUPT_PINS = 4
PCI_VERSION = 2  # QEMU, hw/pci/pci.c, PCIDevice.version_id
_PCI_VERSION = PCI_VERSION.to_bytes(4, "big")
STATUS, STATUS_INTERRUPT = 0x06, 1 << 3

# Bytes of configuration space that source and destination must have in common, bits that no guest can write
# (QEMU, hw/pci/pci.c, pci_init_cmask): identity, capability list bit, class, header type, capability pointer.
COMPARED = {0x00: 4, 0x08: 4, 0x0E: 1, 0x34: 1}
STATUS_COMPARED = 1 << 4


class Device(Protocol):
    """The part of a device that is saved."""

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
    """The real machine refuses this migration, with this message and EINVAL."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocker:
    """Why a machine cannot be migrated: a feature of a device, or a reason that the user gave.

    Blockers with the same text are different blockers.
    """

    reason: str
    device: str = ""

    @property
    def text(self) -> str:
        """The message; that of a device is QEMU's (QERR_DEVICE_FEATURE_BLOCKS_MIGRATION)."""
        if not self.device:
            return self.reason
        return f"Migration is disabled when using feature '{self.reason}' in device '{self.device}'"


def blocker(device: Device) -> Blocker | None:
    """The blocker that this device registers; None for a master."""
    return None if device.master else Blocker("peer mode", "ivshmem")


class Blockers:
    """The blockers of one machine; a refused migration names the newest (QEMU, migrate_add_blocker).

    Args:
        only_migratable: every blocker is refused (QEMU's option --only-migratable).
        locked: no device and no blocker is added or removed during a migration (`Profile.migration_locks_devices`).
    """

    def __init__(self, *, only_migratable: bool = False, locked: bool = True) -> None:
        self._only_migratable, self._locked = only_migratable, locked
        self._blockers: list[Blocker] = []
        self._devices: list[tuple[Device, Blocker | None]] = []
        self.migrating = False

    def __iter__(self) -> Iterator[Blocker]:
        """Iterate over the blockers, the newest first."""
        return reversed(self._blockers)

    def add(self, blocker: Blocker) -> None:
        """Add a blocker.

        Raises:
            MigrationError: blockers are refused, or a migration runs.
        """
        refused = "disallowing migration blocker ({}) for: {}"
        if self._only_migratable:
            raise MigrationError(refused.format("--only-migratable", blocker.text))
        if self.migrating and self._locked:
            raise MigrationError(refused.format("migration/snapshot in progress", blocker.text))
        self._blockers.append(blocker)

    def remove(self, blocker: Blocker) -> None:
        """Remove this blocker.

        Raises:
            ValueError: it was not added.
        """
        self._blockers.remove(blocker)

    def plug(self, device: Device) -> None:
        """Add a device, and its blocker if it has one.

        Raises:
            MigrationError: a migration runs, or the device or its blocker is refused.
        """
        if self.migrating and self._locked:
            raise MigrationError("device_add not allowed while migrating")
        if self._only_migratable and not device.profile.stream:
            name = device.profile.name
            raise MigrationError(f"Device {name} is not migratable, but --only-migratable was specified")
        found = blocker(device)
        if found is not None:
            self.add(found)
        self._devices.append((device, found))

    def unplug(self, device: Device) -> None:
        """Remove a device, and its blocker if it has one.

        Raises:
            MigrationError: a migration runs.
            ValueError: the device was not added.
        """
        if self.migrating and self._locked:
            raise MigrationError("device_del not allowed while migrating")
        for at, (plugged, found) in enumerate(self._devices):
            if plugged is device:
                del self._devices[at]
                return self._blockers.remove(found) if found else None
        raise ValueError("this device is not plugged")

    def check(self) -> None:
        """Check that a migration can begin (QEMU, migrate_prepare).

        Raises:
            MigrationError: a migration runs, a device has no state to save, or there is a blocker (the newest one's
                text).
        """
        if self.migrating:
            raise MigrationError("There's a migration process in progress")
        for device, _ in self._devices:
            if not device.profile.stream:
                raise MigrationError(f"State blocked by non-migratable device '{device.profile.name}'")
        for found in self:
            raise MigrationError(found.text)

    def begin(self) -> None:
        """Begin a migration; raises as `check` does."""
        self.check()
        self.migrating = True

    def end(self) -> None:
        """End the migration, completed or not."""
        self.migrating = False


# The stream


@dataclass(frozen=True, slots=True)
class Field:
    """One part of the stream: its size, and how it is saved, checked and loaded.

    ``member`` is its name in QEMU's error texts. ``check`` raises `MigrationError` and changes nothing.
    """

    name: str
    member: str
    size_bytes: Callable[[Device], int]
    save: Callable[[Device], bytes]
    load: Callable[[Device, bytes], None]
    check: Callable[[Device, bytes], None] = lambda device, data: None


def _check_version(device: Device, data: bytes) -> None:
    version = int.from_bytes(data, "big", signed=True)
    if not 0 <= version <= PCI_VERSION:
        raise MigrationError(f"Invalid value {version} expecting positive value <= {PCI_VERSION}")


def _check_config(device: Device, data: bytes) -> None:
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


def _load_config(device: Device, data: bytes) -> None:
    device.config.data[:] = data


def _save_config(device: Device) -> bytes:
    # The levels of the pins, which follow, imply the interrupt bit (QEMU, pci_device_save).
    data = bytearray(device.config.data)
    data[STATUS] &= ~STATUS_INTERRUPT
    return bytes(data)


def _save_pins(device: Device) -> bytes:
    return int(device.intx_raised).to_bytes(4, "big") + bytes(4 * (INTERRUPT_PINS - 1))


def _check_pins(device: Device, data: bytes) -> None:
    for at in range(0, len(data), 4):
        level = int.from_bytes(data[at : at + 4], "big", signed=True)
        if level not in (0, 1):
            raise MigrationError(f"irq state {level}: must be 0 or 1.")


def _load_pins(device: Device, data: bytes) -> None:
    device.intx_raised = bool(int.from_bytes(data[:4], "big"))  # the device has no other pin


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
        device.msix.pending = int.from_bytes(data, "little")  # with the bits after the last vector, as msix_load


def _word(name: str, member: str) -> Field:
    def store(device: Device, data: bytes) -> None:
        device.registers.values[name] = int.from_bytes(data, "big")

    return Field(name, member, lambda _: 4, lambda device: device.registers.values[name].to_bytes(4, "big"), store)


FIELDS: dict[str, tuple[Field, ...]] = {
    "pci": (
        Field(
            "version", "PCIDevice:version_id", lambda _: 4, lambda _: _PCI_VERSION, lambda _, data: None, _check_version
        ),
        Field("configuration space", "PCIDevice:config", lambda _: 256, _save_config, _load_config, _check_config),
        Field("pins", "PCIDevice:irq_state", lambda _: 4 * INTERRUPT_PINS, _save_pins, _load_pins, _check_pins),
    ),
    "msix": (
        Field("MSI-X table", "msix:msix", _table_bytes, _save_table, _load_table),
        Field("pending bits", "msix:msix", _pending_bytes, _save_pending, _load_pending),
    ),
    "status": (_word(INTR_STATUS, "intrstatus"),),
    "mask": (_word(INTR_MASK, "intrmask"),),
}


def _fields(device: Device) -> tuple[Field, ...]:
    if not device.profile.stream:
        raise MigrationError(f"{device.profile.name}: this device is never migrated")
    return tuple(field for name in device.profile.stream for field in FIELDS[name])


def _header(name: str) -> bytes:
    return bytes([len(name)]) + name.encode() + INSTANCE.to_bytes(4, "big") + VERSION.to_bytes(4, "big")


def save(device: Device) -> bytes:
    """Return the device's section of the stream: name, instance, version, then the fields of its profile.

    Raises:
        MigrationError: this kind of device is never migrated.
    """
    return _header(device.profile.section) + b"".join(field.save(device) for field in _fields(device))


def load(device: Device, data: bytes) -> None:
    """Set a device's state from its section of a stream; then send the interrupts that are unmasked and pending.

    Raises:
        MigrationError: another section, a newer version, a device in the peer role, a device that differs
            (configuration space), or a stream of another length. Nothing of the device is changed then.
    """
    fields = _fields(device)
    name = device.profile.section
    body = _open(name, data)
    if not device.master:
        raise MigrationError(device.profile.load_refusal)
    parts: list[tuple[Field, bytes]] = []
    at = 0
    for field in fields:
        size_bytes = field.size_bytes(device)
        part = body[at : at + size_bytes]
        if len(part) != size_bytes:
            member = field.member if ":" in field.member else f"{name}:{field.member}"
            raise MigrationError(f"Failed to load {member}: the stream ends in it")
        field.check(device, part)
        parts.append((field, part))
        at += size_bytes
    if at != len(body):
        raise MigrationError(f"Missing section footer for {name}: {len(body) - at} bytes too many")
    for field, part in parts:
        field.load(device, part)
    device.restored()


def _open(name: str, data: bytes) -> bytes:
    """Check a section's header; returns the bytes after it."""
    header = _header(name)
    if len(data) < len(header):
        raise MigrationError(f"Unknown savevm section or instance: the stream ends before that of {name}")
    found, instance = data[1 : len(name) + 1], int.from_bytes(data[len(name) + 1 : len(name) + 5], "big")
    version = int.from_bytes(data[len(name) + 5 : len(header)], "big")
    if data[0] != len(name) or found != name.encode() or instance != INSTANCE:
        told = found.decode(errors="backslashreplace")
        raise MigrationError(f"Unknown savevm section or instance '{told}' {instance}: expected '{name}' {INSTANCE}")
    if version > VERSION:
        raise MigrationError(f"savevm: unsupported version {version} for '{name}' v{VERSION}")
    return data[len(header) :]


class RamMigration:
    """The migration of the shared memory: whether the RAM blocks fit, and the copy.

    BAR2 is RAM of its machine, so a master's migration copies all of it, before any device is loaded. Memory
    that arrives after the migration began is not among the blocks (commit message of QEMU 3a55fc0f24).
    """

    def __init__(self, source: Device) -> None:
        self._source = source
        self.block_bytes = memory_bytes(source)

    def check(self, destination: Device | None) -> None:
        """Check that the memory fits the destination; None is a machine without such a device.

        Raises:
            MigrationError: one side has a block that the other lacks, or the sizes differ.
        """
        now, block = memory_bytes(self._source), self._source.profile.ram_block
        if now != self.block_bytes:
            raise MigrationError("ivshmem.bar2 appeared after the migration began: its contents are lost")
        same = destination is not None and destination.profile.ram_block == block
        there = memory_bytes(destination) if destination is not None and same else 0
        if now and not there:
            raise MigrationError(f'Unknown ramblock "{block}", cannot accept migration')
        if now != there:
            raise MigrationError(f"Size mismatch: {block}: {now:#x} != {there:#x}: Invalid argument")

    def complete(self, destination: Device) -> int:
        """Copy the memory; returns the number of bytes. Raises as `check` does, before it copies anything."""
        self.check(destination)
        source, target = self._source.memory, destination.memory
        if source is not None and target is not None:
            target[:] = source
        return memory_bytes(self._source)


def memory_bytes(device: Device) -> int:
    """The size of the RAM block of the memory BAR; 0 while there is none."""
    bar = device.config.bars.get(device.profile.memory_bar)
    return bar.size_bytes if bar and device.memory is not None else 0
