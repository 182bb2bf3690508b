"""Migration of one device: the stream with the device's state, and the memory.

The stream is one table, :data:`FIELDS`; a profile names the fields that its device writes, in order. Integers are
big-endian (QEMU, savevm.c), except for those that are stored as a guest sees them. Peers, peer ID and eventfds are not
in the stream: the destination has those of its own server. Error texts are QEMU's, the first line of what 7.2 prints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from nodes.device import migration_texts as texts
from nodes.device.migration_texts import MigrationError
from nodes.device.msix import Msix
from nodes.device.pci import ConfigSpace
from nodes.device.profile import INTR_MASK, INTR_STATUS, Profile
from nodes.device.registers import RegisterFile
from nodes.device.v2.profiles import INTERRUPT_CONTROL, STATE

INSTANCE = 0
VERSION = 0
INTERRUPT_PINS = 4
PCI_VERSION = 2  # QEMU, hw/pci/pci.c, PCIDevice.version_id
_PCI_VERSION = PCI_VERSION.to_bytes(4, "big")
STATUS, STATUS_INTERRUPT = 0x06, 1 << 3
SETUP_HINT = ". Make sure that your current VM setup matches your saved VM setup, including any hotplugged devices"

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


class Field(Struct, frozen=True):
    """One part of the stream: how it is saved, checked and loaded.

    ``member`` is its name in QEMU's error texts, ``kind`` its type there. ``check`` returns why the device does not
    take the data, or "".
    """

    name: str
    member: str
    save: Callable[[Device], bytes]
    load: Callable[[Device, bytes], None]
    check: Callable[[Device, bytes], str] = lambda device, data: ""
    kind: str = ""


def _check_version(device: Device, data: bytes) -> str:
    version = int.from_bytes(data, "big", signed=True)
    known = 0 <= version <= PCI_VERSION
    return "" if known else f"Invalid value {version} expecting positive value <= {PCI_VERSION}"


def _check_config(device: Device, data: bytes) -> str:
    own, mask = device.config.data, device.config.write_mask
    compared = {at + byte: 0xFF for at, size in COMPARED.items() for byte in range(size)}
    compared[STATUS] = STATUS_COMPARED
    for capability in device.config.capabilities:
        for byte in range(2 + len(capability.body)):
            compared[capability.offset + byte] = 0xFF
    for at, bits in sorted(compared.items()):
        if (data[at] ^ own[at]) & bits & ~mask[at]:
            return (
                f"get_pci_config_device: Bad config data: i={at:#x} read: {data[at]:x} device: {own[at]:x} "
                f"cmask: {bits:x} wmask: {mask[at]:x} w1cmask:0"
            )
    return ""


def _load_config(device: Device, data: bytes) -> None:
    device.config.data[:] = data


def _save_config(device: Device) -> bytes:
    # The levels of the pins, which follow, imply the interrupt bit (QEMU, pci_device_save).
    data = bytearray(device.config.data)
    data[STATUS] &= ~STATUS_INTERRUPT
    return bytes(data)


def _save_pins(device: Device) -> bytes:
    return int(device.intx_raised).to_bytes(4, "big") + bytes(4 * (INTERRUPT_PINS - 1))


def _check_pins(device: Device, data: bytes) -> str:
    for at in range(0, len(data), 4):
        level = int.from_bytes(data[at : at + 4], "big", signed=True)
        if level not in (0, 1):
            return f"irq state {level}: must be 0 or 1."
    return ""


def _load_pins(device: Device, data: bytes) -> None:
    device.intx_raised = bool(int.from_bytes(data[:4], "big"))  # the device has no other pin


def _save_table(device: Device) -> bytes:
    words = device.msix.table if device.msix else []
    return b"".join(word.to_bytes(4, "little") for word in words)


def _load_table(device: Device, data: bytes) -> None:
    if device.msix:
        device.msix.table[:] = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def _save_pending(device: Device) -> bytes:
    return device.msix.pending.to_bytes((device.msix.layout.vectors + 7) // 8, "little") if device.msix else b""


def _load_pending(device: Device, data: bytes) -> None:
    if device.msix:
        device.msix.pending = int.from_bytes(data, "little")  # with the bits after the last vector, as msix_load


def _word(name: str, member: str) -> Field:
    def store(device: Device, data: bytes) -> None:
        device.registers.values[name] = int.from_bytes(data, "big")

    return Field(name, member, lambda device: device.registers.values[name].to_bytes(4, "big"), store)


FIELDS: dict[str, tuple[Field, ...]] = {
    "pci": (
        Field("version", "PCIDevice:version_id", lambda _: _PCI_VERSION, lambda _, data: None, _check_version),
        Field("configuration space", "PCIDevice:config", _save_config, _load_config, _check_config, "pci config"),
        Field("pins", "PCIDevice:irq_state", _save_pins, _load_pins, _check_pins, "pci irq state"),
    ),
    "msix": (
        Field("MSI-X table", "msix:msix", _save_table, _load_table),
        Field("pending bits", "msix:msix", _save_pending, _load_pending),
    ),
    "status": (_word(INTR_STATUS, "intrstatus"),),
    "mask": (_word(INTR_MASK, "intrmask"),),
    "state": (_word(STATE, "state"),),
    "control": (_word(INTERRUPT_CONTROL, "intctrl"),),
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
        raise MigrationError(device.profile.load_refusal, texts.wrong_role(name, device.profile.load_refusal))
    parts: list[tuple[Field, bytes]] = []
    at = 0
    for field in fields:
        size_bytes = len(field.save(device))
        part = body[at : at + size_bytes]
        if len(part) != size_bytes:
            member = field.member if ":" in field.member else f"{name}:{field.member}"
            raise MigrationError(f"Failed to load {member}: the stream ends in it", texts.cut_short(name, field.member))
        if refused := field.check(device, part):
            bad = texts.bad_element(name, field.member, refused, field.kind) if field.kind else None
            raise MigrationError(refused, bad or texts.bad_version(name, field.member, refused))
        parts.append((field, part))
        at += size_bytes
    if at != len(body):
        extra = f"Missing section footer for {name}: {len(body) - at} bytes too many"
        raise MigrationError(extra, texts.no_footer(name))
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
        unknown = f"Unknown savevm section or instance '{told}' {instance}"
        raise MigrationError(f"{unknown}: expected '{name}' {INSTANCE}", texts.bad_header(f"{unknown}{SETUP_HINT}"))
    if version > VERSION:
        signed = version - (version >> 31 << 32)  # compared unsigned, printed signed
        unsupported = f"savevm: unsupported version {signed} for '{name}' v{VERSION}"
        raise MigrationError(unsupported, texts.bad_header(unsupported))
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
            unknown = f'Unknown ramblock "{block}", cannot accept migration'
            raise MigrationError(unknown, texts.wrong_memory(unknown))
        if now != there:
            sizes = f"Size mismatch: {block}: {now:#x} != {there:#x}: Invalid argument"
            raise MigrationError(sizes, texts.wrong_memory(sizes))

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
