"""The datasheet of a device profile: what ``ivsim device show PROFILE`` prints.

Everything derives from the tables that also define the device: profile, register map, BARs, capabilities, saved state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nodes.device import migration
from nodes.device.devices import make_device
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import CAPABILITY_ID
from nodes.device.pci import (
    CACHE_LINE,
    CAPABILITIES,
    COMMAND,
    HEADER_BYTES,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    REVISION,
    STATUS,
    SUBSYSTEM_VENDOR,
    Bar,
)
from nodes.device.profile import Profile
from nodes.device.qemu_1_1.profiles import occurrence
from nodes.device.registers import AccessRules, RegisterMap
from nodes.device.v2.device import VENDOR_CAPABILITY
from topologies.text_tables import aligned

EXAMPLE_VECTORS = 2
HEADER_FIELDS = (
    (0x00, 2, "vendor ID"),
    (0x02, 2, "device ID"),
    (COMMAND, 2, "command"),
    (STATUS, 2, "status"),
    (REVISION, 1, "revision"),
    (REVISION + 1, 3, "class code"),
    (CACHE_LINE, 1, "cache line size"),
    (SUBSYSTEM_VENDOR, 2, "subsystem vendor ID"),
    (SUBSYSTEM_VENDOR + 2, 2, "subsystem ID"),
    (CAPABILITIES, 1, "first capability"),
    (INTERRUPT_LINE, 1, "interrupt line"),
    (INTERRUPT_PIN, 1, "interrupt pin"),
)
CAPABILITY_FIELDS = {
    CAPABILITY_ID: ((2, 2, "message control"), (4, 4, "table offset, BAR"), (8, 4, "pending bits offset, BAR")),
    VENDOR_CAPABILITY: (
        (2, 1, "length"),
        (3, 1, "privileged control, bit 0: one-shot"),
        (4, 4, "size of the State Table"),
        (8, 4, "size of the read/write section"),
        (12, 4, "size of the read/write section, upper half"),
        (16, 4, "size of each output section"),
        (20, 4, "size of each output section, upper half"),
        (24, 4, "base address"),
        (28, 4, "base address, upper half"),
    ),
}
"""The fields after the ID and the next pointer of a capability: (offset, size in bytes, name)."""


def summary(profiles: Iterable[Profile]) -> str:
    """One line for each profile."""
    return "\n".join(aligned([(profile.name, profile.summary) for profile in profiles]))


def datasheet(profile: Profile, *, vectors: int | None = None, memory_bytes: int | None = None) -> str:
    """One profile as text: configuration space, BARs, registers, MSI-X, saved state, behaviour with sources, defects.

    Raises:
        UsageError: a number of vectors or a size that the device cannot have.
    """
    shown = vectors or profile.fixed_vectors or EXAMPLE_VECTORS
    device = make_device(profile, vectors=shown, ring=lambda peer, vector: None)
    device.set_memory(memoryview(bytearray(memory_bytes or profile.memory_default_bytes)))
    sections = [
        ("", [f"{profile.name}: {profile.summary}"]),
        ("Configuration space", _config(device)),
        ("BARs", _bars(device)),
        (f"Registers, BAR{profile.registers_bar}", _registers(profile.registers, profile.registers_rules)),
    ]
    if device.msix:
        sections.append((f"MSI-X, BAR{profile.msix_bar}", _msix(device)))
    sections += [("Saved state", _state(device)), ("Behaviour", _behaviour(profile))]
    if profile.quirks:
        sections.append(("Defects, and what they need to be seen", _defects(profile)))
    blocks = ["\n".join(([title] if title else []) + list(lines)) for title, lines in sections]
    return "\n\n".join(blocks) + "\n"


def _defects(profile: Profile) -> Iterator[str]:
    for quirk in sorted(profile.quirks):
        yield f"  row {quirk.value:>3}  {_words(quirk.name):<26}{occurrence(quirk, profile).value}"


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


def _config(device: Ivshmem) -> Iterator[str]:
    mask = device.config.write_mask
    yield "  offset  reset       writable    field"
    for offset, size, name in _config_fields(device):
        value = int.from_bytes(device.config.data[offset : offset + size], "little")
        bits = int.from_bytes(mask[offset : offset + size], "little")
        digits = 2 * size
        yield f"  {offset:#04x}    {value:#0{digits + 2}x}".ljust(22) + f"{bits:#0{digits + 2}x}".ljust(12) + name
    data = device.config.data
    for at in range(0, _shown_config_bytes(device), 16):
        yield f"  {at:02x}: {data[at : at + 16].hex(' ')}"


def _config_fields(device: Ivshmem) -> Iterator[tuple[int, int, str]]:
    """The (offset, size in bytes, name) of every field of configuration space, in the order of their offsets."""
    fields = list(HEADER_FIELDS)
    for bar in device.config.bars.values():
        fields.append((bar.offset, 4, f"BAR{bar.index}"))
        if bar.wide:
            fields.append((bar.offset + 4, 4, f"BAR{bar.index}, upper half"))
    for capability in device.config.capabilities:
        fields.append((capability.offset, 2, f"{capability.name}: capability ID, next"))
        for at, size, name in CAPABILITY_FIELDS.get(capability.identifier, ()):
            if at >= 2 + len(capability.body):
                continue  # the vendor capability has a base address only where there is no BAR for the memory
            fields.append((capability.offset + at, size, f"{capability.name}: {name}"))
    return iter(sorted(fields))


def _shown_config_bytes(device: Ivshmem) -> int:
    """The header and every capability, in whole lines of 16 bytes."""
    ends = [capability.offset + 2 + len(capability.body) for capability in device.config.capabilities]
    return (max([HEADER_BYTES, *ends]) + 15) // 16 * 16


def _bars(device: Ivshmem) -> Iterator[str]:
    for bar in sorted(device.config.bars.values(), key=lambda bar: bar.index):
        yield f"  BAR{bar.index}: {_bar_kind(bar)}, {bar.size_bytes} bytes: {bar.text}"


def _bar_kind(bar: Bar) -> str:
    width = "64-bit" if bar.wide else "32-bit"
    return f"memory, {width}, {'prefetchable' if bar.prefetchable else 'non-prefetchable'}"


def _registers(registers: RegisterMap, rules: AccessRules) -> Iterator[str]:
    width = max(10, *(len(register.name) for register in registers.registers))
    yield f"  offset      reset       {'name':<{width}}  access"
    for register in registers.registers:
        last = f"..{register.end - 1:#04x}" if register.words > 1 else ""
        place = f"{register.offset:#04x}{last}"
        name = f"{register.name:<{width}}"
        yield f"  {place:<10}  {register.reset:#010x}  {name}  {register.access.value}: {register.text}"
    yield f"  accesses: {rules.describe()}"


def _msix(device: Ivshmem) -> Iterator[str]:
    assert device.msix is not None
    layout = device.msix.layout
    yield f"  {layout.vectors} vectors here, up to {device.profile.msix_limit}"
    yield f"  0x000..{layout.table_bytes - 1:#05x}  table, 16 bytes an entry: address, upper address, data, control"
    yield f"  {layout.pba_offset:#05x}..{layout.pba_offset + layout.pba_bytes - 1:#05x}  pending bits, read-only"
    yield f"  accesses: {device.profile.msix_rules.describe()}"


def _state(device: Ivshmem) -> Iterator[str]:
    if not device.profile.stream:
        yield "  none"
    for name in device.profile.stream:
        for field in migration.FIELDS[name]:
            yield f"  {len(field.save(device)):>5} bytes  {field.name}"


SHOWN_ELSEWHERE = {"registers", "registers_rules", "msix_rules", "stream", "quirks"}


def _behaviour(profile: Profile) -> Iterator[str]:
    for cell in profile.cells():
        if cell not in SHOWN_ELSEWHERE:
            value = getattr(profile, cell)
            counted = cell.endswith(("_bytes", "_bits", "_limit"))
            text = f"{value:#x}" if type(value) is int and not counted else str(getattr(value, "value", value))
            yield f"  {cell:<22}  {text}  [{profile.sources[cell]}]"
