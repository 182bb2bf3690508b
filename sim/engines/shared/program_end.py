"""The end of a machine's program: the counts are final, and its statistics go into the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nodes.vm import Vm
from sim.engines.messages import Stopped
from sim.engines.shared.failures import blaming_program
from sim.recording import header
from sim.recording.header import COUNTER_AT

STATISTICS_BYTES_MAX, NUMBER_BYTES = 50_000, 16


def stop_program(vms: Sequence[Vm], words: memoryview[int]) -> Stopped:
    """End the program, and store the counts of doorbells and what it missed.

    Statistics that do not go into the report are a warning of the machine.

    Args:
        vms: the devices of the machine, the first one first.
        words: the first device's recording.

    Raises:
        ProgramError: the program has raised at its end.
    """
    guest = vms[0].guest
    with blaming_program():
        for vm in vms:
            vm.stop()
        statistics, left_out = _kept(guest.statistics)
    if left_out:
        vms[0].warnings.append(f"{left_out} statistics of the program are no numbers that fit")
    for vm in vms:
        vm.doorbells.flush()
    words[COUNTER_AT["missed"]], words[header.MISSED_OLDEST_NS] = guest.missed, guest.missed_oldest_ns
    return Stopped(statistics)


def _kept(given: Mapping[str, object]) -> tuple[dict[str, int | float], int]:
    """The statistics that are finite numbers of 64 bits and fit into a report together, and how many are not kept."""
    kept: dict[str, int | float] = {}
    room_bytes = STATISTICS_BYTES_MAX
    for name, value in given.items():
        whole = type(value) is int and -(1 << 63) <= value < 1 << 63
        room_bytes -= NUMBER_BYTES + len(encoded := str(name).encode(errors="backslashreplace"))
        if room_bytes >= 0 and (whole or (type(value) is float and math.isfinite(value))):
            kept[encoded.decode()] = value  # type: ignore[assignment]
    return kept, len(given) - len(kept)
