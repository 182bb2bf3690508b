"""Why the ivshmem devices of a QEMU cannot interrupt their guest, as far as its monitor (QMP) tells.

A doorbell at such a device is taken from its eventfd and lost, or leaves a pending bit, without a message. The monitor
has no command for a device's configuration space; it reads I/O ports, by which a PC reaches it (PCI 3.0, 3.2.2.3.2),
and physical memory, where the MSI-X table is. The virtual machine stands still meanwhile; its address port is restored.

What to ask is a generator: it yields commands, and is sent their results. So a caller may wait, or come back later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

from nodes.device import msix
from nodes.device.pci import CAPABILITIES, COMMAND, COMMAND_BUS_MASTER
from sim.engines.qemu.qtest import CONFIG_ADDRESS, CONFIG_DATA

VENDOR, DEVICE = 0x1AF4, 0x1110
SHOWN = 8

QmpCommands = Generator[tuple[str, Mapping[str, Any]], Any, Any]
"""Yields commands of QMP and their arguments, and is sent the result of each."""


class MsixState(NamedTuple):
    """One ivshmem device of a QEMU.

    ``peer`` is its IVPosition, None where BAR0 has no address; ``pending_vectors`` is how many pending bits are set.
    """

    peer: int | None
    reason: str
    """Why it cannot interrupt, or which vectors cannot; "" if all can."""
    pending_vectors: int = 0


def why_no_interrupt(command: int, control: int) -> str:
    """Why a device with this command register and MSI-X control cannot interrupt at all; "" if it can."""
    if not control & msix.CONTROL_ENABLE:
        return "MSI-X is off"
    if not command & COMMAND_BUS_MASTER:
        return "bus mastering is off, and an MSI is a write by the device"
    return "MSI-X is masked as a whole" if control & msix.CONTROL_FUNCTION_MASK else ""


def run_commands(commands: QmpCommands, execute: Callable[..., Any]) -> Any:
    """Ask with ``execute(name, **arguments)``, which waits for each result; returns what the generator returns."""
    result = None
    while True:
        try:
            name, arguments = commands.send(result)
        except StopIteration as end:
            return end.value
        result = execute(name, **arguments)


def read_msix_states() -> QmpCommands:
    """Ask about each ivshmem device; returns a list of `MsixState`.

    On a machine without the ports of a PC, what is read means nothing, and the list is empty.
    """
    buses = yield "query-pci", {}
    devices = [
        device for device in _devices(buses) if (device["id"]["vendor"], device["id"]["device"]) == (VENDOR, DEVICE)
    ]
    if not devices:
        return []
    status = yield "query-status", {}
    if status["running"]:
        yield "stop", {}
    address = yield from _read("i /xw", CONFIG_ADDRESS)
    found = []
    for device in devices:
        state = yield from _msix_state(device)
        if state is not None:
            found.append(state)
    if address is not None:
        yield from _human(f"o /w {CONFIG_ADDRESS:#x} {address:#x}")
    if status["running"]:
        yield "cont", {}
    return found


def _devices(buses: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for bus in buses:
        for device in bus["devices"]:
            yield device
            if "pci_bridge" in device:
                yield from _devices([{"devices": device["pci_bridge"].get("devices", [])}])


def _msix_state(device: Mapping[str, Any]) -> QmpCommands:
    identity = yield from _config(device, 0)
    if identity != DEVICE << 16 | VENDOR:
        return None  # no PC
    regions = {region["bar"]: region["address"] for region in device["regions"]}
    peer = None if regions.get(0, -1) < 0 else (yield from _read("xp /1xw", regions[0] + 8))
    command = yield from _config(device, COMMAND)
    at = (yield from _config(device, CAPABILITIES)) & 0xFF
    while at and ((capability := (yield from _config(device, at))) & 0xFF) != msix.CAPABILITY_ID:
        at = capability >> 8 & 0xFF
    if not at:
        return MsixState(peer, "it has no MSI-X")
    control = capability >> 16
    reason = why_no_interrupt(command, control)
    if regions.get(1, -1) < 0:
        return MsixState(peer, reason or "its MSI-X table has no address")
    vectors = (control & 0x7FF) + 1
    table = yield from _words(regions[1], vectors * msix.ENTRY_BYTES // 4)
    pending_at = (yield from _config(device, at + 8)) & ~7
    pending = yield from _words(regions[1] + pending_at, (vectors + 31) // 32)
    masked = [vector for vector in range(vectors) if table[msix.ENTRY_BYTES // 4 * vector + msix.CONTROL] & msix.MASKED]
    missed = [vector for vector in range(vectors) if pending[vector // 32] >> vector % 32 & 1]
    if reason or not masked:
        return MsixState(peer, reason, len(missed))
    kept = f", and a doorbell is pending on {_numbers(missed)}" if missed else ""
    return MsixState(peer, f"masked: {_numbers(masked)} of its {vectors} vectors{kept}", len(missed))


def _numbers(vectors: list[int]) -> str:
    shown = ", ".join(map(str, vectors[:SHOWN]))
    return shown if len(vectors) <= SHOWN else f"{shown} and {len(vectors) - SHOWN} more"


def _config(device: Mapping[str, Any], offset: int) -> QmpCommands:
    """32 bits of a device's configuration space."""
    place = device["bus"] << 16 | device["slot"] << 11 | device["function"] << 8
    yield from _human(f"o /w {CONFIG_ADDRESS:#x} {1 << 31 | place | offset & ~3:#x}")
    value = yield from _read("i /xw", CONFIG_DATA)
    return value or 0


def _words(address: int, count: int) -> QmpCommands:
    """So many 32-bit words of physical memory."""
    text = yield from _human(f"xp /{count}xw {address:#x}")
    words = [int(word, 16) for line in text.splitlines() for word in line.partition(":")[2].split()]
    return words if len(words) == count else [0] * count


def _read(how: str, address: int) -> QmpCommands:
    """The value that the monitor prints; None where it prints another thing."""
    text = yield from _human(f"{how} {address:#x}")
    found = re.search(r"[=:] *(0x[0-9a-f]+)\s*$", text)
    return None if found is None else int(found[1], 16)


def _human(line: str) -> QmpCommands:
    text = yield "human-monitor-command", {"command-line": line}
    return str(text)
