"""What programs counted themselves: from the events of a run to its summary."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from sim.results import files
from sim.results.manifest import MachineName

__all__ = ["Statistics", "read_statistics"]

Statistics = dict[str, dict[str, int | float]]
"""By machine (a life of its own each), then by the name that the program gave."""

LINE_BYTES_MAX = 1 << 20


class _Said(msgspec.Struct):
    """The event of a machine that has ended."""

    kind: str
    machine: MachineName = "?"
    values: dict[Annotated[str, Meta(max_length=200)], int | float] = {}


_decode = msgspec.json.Decoder(_Said).decode


def read_statistics(path: Path) -> Statistics:
    """Those of the run directory ``path``, in the order said; a damaged event is passed over."""
    found: Statistics = {}
    with contextlib.suppress(OSError), (path / files.EVENTS).open("rb") as events:
        for line in events:
            if b'"statistics"' in line[:200] and len(line) <= LINE_BYTES_MAX:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    said = _decode(line)
                    if said.kind == "statistics":
                        found[said.machine] = said.values
    return found
