"""Variants of a device: a profile with single cells changed, within what PCI allows.

The name of a variant says what it is, ``qemu-doorbell+memory_wide=false,revision=2``, and stands wherever that of a
profile does (`nodes.device.profiles.PROFILES`).

Odd devices are variants that are legal and break drivers that take QEMU's device for granted: each is `qemu-doorbell`
with single cells changed. ``ivsim device odd`` prints them, and the topology ``odd_devices`` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from nodes.device.msix import ENTRY_BYTES
from nodes.device.pci import CONFIG_BYTES, HEADER_BYTES
from nodes.device.profile import Profile
from nodes.device.registers import Access, RegisterMap
from nodes.errors import UsageError
from nodes.spelling import did_you_mean

SEPARATOR = "+"
BARS = 6
MSIX_CAPABILITY_BYTES = 12
Value = int | bool
"""The value of a cell."""


class VariantCell(Struct, frozen=True):
    """One cell that a variant can change: what it means, and its values."""

    text: str
    least: int = 0
    most: int = 1
    is_switch: bool = False
    fits: Callable[[int], bool] = lambda value: True
    also: str = ""

    @property
    def values(self) -> str:
        """Its values in words."""
        return "true or false" if self.is_switch else f"{self.least:#x} to {self.most:#x}{self.also}"

    def check(self, name: str, value: object) -> Value:
        """Return the value.

        Raises:
            UsageError: it is none of this cell's.
        """
        kind = bool if self.is_switch else int
        if type(value) is not kind or not (self.is_switch or (self.least <= value <= self.most and self.fits(value))):
            raise UsageError(f"{name}: expected {self.values}, got {value!r}")
        return value


def _is_power(value: int) -> bool:
    return value & (value - 1) == 0


_BAR = VariantCell("", 0, BARS - 1)
VARIANT_CELLS: Mapping[str, VariantCell] = MappingProxyType(
    {
        "vendor": VariantCell("the vendor ID", 0, 0xFFFE),
        "device": VariantCell("the device ID", 0, 0xFFFF),
        "class_code": VariantCell("class, sub-class and interface", 0, 0xFF_FFFF),
        "revision": VariantCell("the revision", 0, 0xFF),
        "subsystem_vendor": VariantCell("the subsystem's vendor ID", 0, 0xFFFF),
        "subsystem": VariantCell("the subsystem ID", 0, 0xFFFF),
        "interrupt_pin": VariantCell("the interrupt pin; 0: none", 0, 4),
        "msix_capability": VariantCell(
            "the offset of the MSI-X capability",
            HEADER_BYTES,
            CONFIG_BYTES - MSIX_CAPABILITY_BYTES,
            fits=lambda value: value % 4 == 0,
            also=", a multiple of 4",
        ),
        "registers_bar": replace(_BAR, text="the BAR of the registers"),
        "registers_bytes": VariantCell(
            "the size of the registers' BAR", 0x100, 1 << 20, fits=_is_power, also=", a power of two"
        ),
        "msix_bar": replace(_BAR, text="the BAR of the MSI-X table"),
        "msix": VariantCell("whether there is MSI-X", is_switch=True),
        "msix_pba_offset": VariantCell(
            "the offset of the pending bits in their BAR; 0: at 2 KiB, or after the table",
            0,
            1 << 20,
            fits=lambda value: value % 8 == 0,
            also=", a multiple of 8",
        ),
        "fixed_vectors": VariantCell("how many vectors each such device has; 0: as many as asked for", 0, 2048),
        "memory_bar": replace(_BAR, text="the BAR of the memory"),
        "memory_wide": VariantCell("whether the memory's BAR has 64 bits", is_switch=True),
        "memory_prefetchable": VariantCell("whether the memory's BAR is prefetchable", is_switch=True),
        "position_late_reads": VariantCell(
            "how many reads of IVPosition, after a reset, come before the ID", 0, 1 << 16
        ),
        "position_before_setup": VariantCell("what IVPosition reads before the ID", 0, 0xFFFF_FFFF),
    }
)


def variant_name(base: str, cells: Mapping[str, Value]) -> str:
    """The name of a variant of the profile ``base``."""
    if not cells:
        return base
    shown = (f"{name}={str(value).lower() if isinstance(value, bool) else hex(value)}" for name, value in cells.items())
    return f"{base}{SEPARATOR}{','.join(shown)}"


def parse_variant(name: str) -> tuple[str, dict[str, Value]]:
    """The base and the cells of a variant's name; a plain name has none.

    Raises:
        UsageError: a cell without a value.
    """
    base, _, text = name.partition(SEPARATOR)
    return base, parse_cells(text.split(",")) if text else {}


def parse_cells(texts: list[str]) -> dict[str, Value]:
    """Cells from texts CELL=VALUE.

    Raises:
        UsageError: a text of another form.
    """
    cells: dict[str, Value] = {}
    for text in texts:
        cell, equals, value = text.partition("=")
        try:
            cells[cell.strip()] = _value(value.strip())
        except ValueError:
            raise UsageError(f"expected CELL=VALUE with a number, true or false, got {text!r}") from None
        if not equals:
            raise UsageError(f"expected CELL=VALUE, got {text!r}")
    return cells


def _value(text: str) -> Value:
    return text == "true" if text in ("true", "false") else int(text, 0)


def make_variant(base: Profile, cells: Mapping[str, Any]) -> Profile:
    """The profile ``base`` with these cells changed; without any, it is ``base`` itself.

    Raises:
        UsageError: an unknown cell, a value that it cannot have, or BARs and capabilities that do not fit together.
    """
    if not cells:
        return base
    checked: dict[str, Value] = {}
    for name, value in cells.items():
        cell = VARIANT_CELLS.get(name)
        if cell is None:
            known = f"there are {', '.join(VARIANT_CELLS)}{did_you_mean(name, VARIANT_CELLS)}"
            raise UsageError(f"no cell {name!r} that a variant can change: {known}")
        checked[name] = cell.check(name, value)
    values: dict[str, Any] = dict(checked)
    if "registers_bytes" in values:
        values["registers"] = _resized(base.registers, values.pop("registers_bytes"))
    if values.get("msix") is False and base.msix:
        values["stream"] = tuple(part for part in base.stream if part != "msix")
    made = replace(
        base,
        name=variant_name(base.name, checked),
        summary=f"a variant of {base.name}",
        sources=MappingProxyType({**base.sources, **dict.fromkeys(values, f"this variant of {base.name}")}),
        **values,
    )
    _check_bars(made)
    return made


def _resized(registers: RegisterMap, size_bytes: int) -> RegisterMap:
    """The same registers in a window of another size, with reserved words at its end."""
    last = registers.registers[-1]
    if last.access is not Access.RESERVED or size_bytes < last.offset + 4:
        raise UsageError(f"registers_bytes: expected room for the registers, got {size_bytes:#x}")
    words = (size_bytes - last.offset) // 4
    return replace(registers, size_bytes=size_bytes, registers=(*registers.registers[:-1], replace(last, words=words)))


def _check_bars(made: Profile) -> None:
    used = {"registers_bar": [made.registers_bar], "memory_bar": [made.memory_bar]}
    if made.memory_wide:
        used["memory_bar"].append(made.memory_bar + 1)
    if made.msix:
        used["msix_bar"] = [made.msix_bar]
    places = [place for numbers in used.values() for place in numbers]
    if len(set(places)) < len(places) or max(places) >= BARS:
        shown = ", ".join(f"{name} {' and '.join(map(str, numbers))}" for name, numbers in used.items())
        raise UsageError(f"expected BARs of their own, 0 to {BARS - 1}, a 64-bit one takes two, got {shown}")
    most = made.fixed_vectors or 1
    if made.msix and most > made.msix_limit:
        raise UsageError(f"fixed_vectors: expected at most {made.msix_limit}, got {most}")
    if made.msix and made.msix_pba_offset and made.msix_pba_offset < most * ENTRY_BYTES:
        least = f"expected at least {most * ENTRY_BYTES:#x}, after the table"
        raise UsageError(f"msix_pba_offset: {least}, got {made.msix_pba_offset:#x}")


class OddDevice(Struct, frozen=True):
    """One odd device: its cells, what breaks, and what a driver must do."""

    name: str
    cells: Mapping[str, Value]
    breaks: str
    must: str


ODD_DEVICES: tuple[OddDevice, ...] = (
    OddDevice(
        "large_registers",
        {"registers_bytes": 0x1000},
        "a driver that checks for a BAR0 of exactly 256 bytes",
        "accept any window that holds the four registers",
    ),
    OddDevice(
        "memory_first",
        {"memory_bar": 0, "registers_bar": 2, "msix_bar": 3},
        "a driver that maps BAR0 as registers and BAR2 as memory without a look at their sizes",
        "tell the BARs apart by size and type, or refuse the device",
    ),
    OddDevice(
        "memory_32_bit",
        {"memory_wide": False},
        "a driver that reads BAR3 as the upper half of BAR2's address",
        "look at the type bits of each BAR before it takes two registers for one",
    ),
    OddDevice(
        "memory_not_prefetchable",
        {"memory_prefetchable": False},
        "a driver that asks for a prefetchable window only",
        "take the window that the BAR asks for, and map it uncached if it must",
    ),
    OddDevice(
        "registers_last",
        {"registers_bar": 5},
        "a driver that maps BAR0 unconditionally: there is none",
        "walk all six BARs; one that reads 0 after all ones were written is not there",
    ),
    OddDevice(
        "no_msix",
        {"msix": False},
        "a driver that takes the MSI-X capability for granted and walks a list that is empty",
        "work without interrupts (poll), or refuse the device with a message",
    ),
    OddDevice(
        "capability_elsewhere",
        {"msix_capability": 0x90},
        "a driver that reads the MSI-X capability at 0x40",
        "walk the capability list from 0x34",
    ),
    OddDevice(
        "pending_bits_elsewhere",
        {"msix_pba_offset": 0x3000},
        "a driver that reads the pending bits at 0x800 of BAR1, and maps 4 KiB of it",
        "take table, pending bits and their BARs from the capability, and the size from the BAR",
    ),
    OddDevice(
        "other_msix_bar",
        {"msix_bar": 4},
        "a driver that maps BAR1 for the MSI-X table",
        "take the BAR from the capability (the low three bits of the offsets)",
    ),
    OddDevice(
        "many_vectors",
        {"fixed_vectors": 64},
        "a driver with a table of fixed length for its interrupts",
        "read the table's size from message control, and use as many as it can serve",
    ),
    OddDevice(
        "old_revision",
        {"revision": 0},
        "a driver that takes revision 0 for INTx and waits for a status bit",
        "decide by the capabilities: MSI-X if there is one, whatever the revision",
    ),
    OddDevice(
        "late_position",
        {"position_late_reads": 3, "position_before_setup": 0xFFFF_FFFF},
        "a driver that reads IVPosition once and rings as peer 65535",
        "read IVPosition again while it is negative, with a limit",
    ),
)
