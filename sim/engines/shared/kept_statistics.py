"""The statistics that a program counts itself, limited to the size of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["kept_statistics"]

STATISTICS_BYTES_MAX, NUMBER_BYTES = 50_000, 16


def kept_statistics(given: Mapping[str, object]) -> tuple[dict[str, int | float], int]:
    """The statistics that are finite numbers of 64 bits and fit into a report together, and how many are not kept."""
    kept: dict[str, int | float] = {}
    room_bytes = STATISTICS_BYTES_MAX
    for name, value in given.items():
        whole = type(value) is int and -(1 << 63) <= value < 1 << 63
        room_bytes -= NUMBER_BYTES + len(encoded := str(name).encode(errors="backslashreplace"))
        if room_bytes >= 0 and (whole or (type(value) is float and math.isfinite(value))):
            kept[encoded.decode()] = value  # type: ignore[assignment]
    return kept, len(given) - len(kept)
