"""Devices that no stock QEMU can be compared with: what a driver finds, held against the facts read from their sources.

``tests/golden/other_devices.toml`` has a table for each; the profile cites the source of each cell.
"""

from __future__ import annotations

import tomllib
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from nodes.device import driver
from nodes.device.devices import make_device
from nodes.device.ivshmem import Ivshmem
from nodes.device.pci import COMMAND, assign_resources
from nodes.device.profile import Profile
from nodes.device.profiles import PROFILES
from nodes.device.registers import AccessRules
from nodes.device.v2.profiles import ProfileV2

FACTS: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parents[2] / "golden" / "other_devices.toml").read_text()
)
MIB = 1 << 20
CELLS = (
    *("client", "waits_for_memory", "position_before_setup", "position_late_reads", "vector_bits", "doorbell_match"),
    *("unmask_needs_eventfd", "reset_clears_mask", "driver_start", "roles", "default_role", "master_is_first"),
    *("migration_locks_devices", "section", "stream", "load_refusal", "ram_block", "server", "memory_default_bytes"),
    *("memory_container", "quirks", "intx", "msix_limit", "fixed_vectors", "access_path", "registers_rules"),
    *("ring_while_masked", "ring_while_disabled", "function_mask", "bus_master_gates", "config_misaligned"),
    *("memory_bar", "memory_wide", "memory_prefetchable"),
)
"""Those that no access shows, or not alone."""
PLACES = {"0": (0, 4), "1@4": (4, 1), "2@6": (6, 2), "8@0": (0, 8), "4@6": (6, 4), "4@16": (16, 4)}


def device(name: str, rung: list[str] | None = None) -> Ivshmem:
    made = make_device(
        PROFILES[name],
        vectors=None,
        ring=lambda peer, vector: None if rung is None else rung.append(f"{peer}:{vector}"),
    )
    made.set_peer(3)
    if made.profile.version == 1:
        made.set_memory(memoryview(bytearray(MIB)))
    return made


def rows(data: bytes) -> list[str]:
    """The lines of 16 bytes that are not zero, with their offsets; equal ones are one."""
    found = []
    for line, places in groupby(range(0, len(data), 16), lambda at: data[at : at + 16]):
        first, *others = places
        if any(line):
            found.append(f"{first:02x}{f' to {others[-1]:02x}' if others else ''}: {line.hex(' ')}")
    return found


def config_space(made: Ivshmem) -> dict[str, Any]:
    config = bytes(made.config_read(at, 1) for at in range(256))
    limit = made.profile.config_limit if isinstance(made.profile, ProfileV2) else 256
    for at in range(limit):
        made.config_write(at, 1, 0xFF)
    ones = bytes(made.config_read(at, 1) for at in range(256))
    return {"config": rows(config), "ones": rows(ones)}


def windows(name: str) -> dict[str, Any]:
    made = device(name)
    assign_resources(made.config.bars.values(), made.config_write)
    found: dict[str, Any] = {
        "bars": [f"{bar.index}: {bar.size_bytes:#x}, {bar.type_bits:#x}" for bar in made.config.bars.values()],
        "misaligned": [hex(made.config_read(at, size)) for at, size in ((1, 2), (2, 4))],
    }
    made.bar_write(0, 0, 4, 0x1122_3344)
    made.bar_write(0, 4, 4, 0x5566_7788)
    found["registers"] = {text: hex(made.bar_read(0, at, size)) for text, (at, size) in PLACES.items()}
    found["position"] = made.bar_read(0, 8, 4)
    for at, size in ((1, 1), (2, 2), (2, 4), (0, 8)):
        made.bar_write(0, at, size, 0xA1A2_A3A4_A5A6_A7A8)
    found["written"] = {at: value for at, value in made.registers.values.items() if value}
    if made.msix:
        for at, size in ((0, 8), (16, 2), (20, 1), (26, 4), (24, 4)):
            made.bar_write(1, at, size, 0x1112_1314_1516_1718)
        found["table"] = [hex(made.bar_read(1, at, size)) for at, size in ((0, 4), (0, 8), (16, 4), (24, 4), (26, 2))]
    return found


def bells(name: str) -> dict[str, Any]:
    """Which doorbells ring, and what becomes of own ones: while all is enabled, masked, disabled or no bus master."""
    rung: list[str] = []
    made = device(name, rung)
    driver.probe(made)
    vectors = [vector for vector in range(300) if made.connect(5, vector)]
    for value in (5 << 16, 5 << 16 | 1, 5 << 16 | 0x100, 0x8005 << 16):
        made.bar_write(0, made.profile.registers.offset_of("Doorbell"), 4, value)
    found: dict[str, Any] = {"vectors": len(vectors), "rung": rung}
    if made.vectors:
        found["delivered"] = fate(made)
        found["no bus master"] = fate(made, command=2)
        if made.msix:
            for text, control in (("masked function", 0xC000), ("disabled", 0)):
                found[text] = fate(made, control=control)
            made.config_write(made.profile.msix_capability + 2, 2, 0x8000)
            driver.set_mask(made, 0, masked=True)
            found["masked"] = fate(made)
    return found


def fate(made: Ivshmem, *, command: int = 6, control: int | None = None) -> str:
    made.effects.clear()
    if made.profile.pci:
        made.config_write(COMMAND, 2, command)
    if control is not None:
        made.config_write(made.profile.msix_capability + 2, 2, control)
    before = (made.pended_doorbells, made.lost_doorbells)
    made.interrupt(0, 1)
    pended, lost = made.pended_doorbells - before[0], made.lost_doorbells - before[1]
    sent = ", ".join(type(effect).__name__ for effect in made.effects)
    made.config_write(COMMAND, 2, 6)
    return "pended" if pended else "lost" if lost else sent or "kept"


def cells(name: str) -> dict[str, Any]:
    profile = PROFILES[name]
    further = ProfileV2.cells() if isinstance(profile, ProfileV2) else ()
    names = [*CELLS, *(cell for cell in further if cell not in Profile.cells())]
    return {cell: told(getattr(profile, cell)) for cell in names}


def told(value: object) -> Any:
    """A cell's value as TOML has it."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, AccessRules):
        return value.describe()
    if isinstance(value, tuple | frozenset):
        return [told(each) for each in value]
    return value


def found_of(name: str) -> dict[str, Any]:
    parts = {"cells": cells(name), "config": config_space(device(name)), "windows": windows(name)}
    return parts if PROFILES[name].version == 2 else parts | {"bells": bells(name)}


@pytest.mark.parametrize("name", FACTS)
def test_a_driver_finds_what_the_source_says(name: str) -> None:
    found = found_of(name)
    for part, facts in FACTS[name].items():
        assert found[part] == facts, part
    assert found.keys() == FACTS[name].keys()


def test_each_device_without_an_oracle_is_there() -> None:
    compared = {name for name in PROFILES if name.startswith(("qemu-doorbell", "qemu-plain", "qemu-1.1"))}
    assert set(FACTS) == set(PROFILES) - compared
