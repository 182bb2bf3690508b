"""The words of a recording's header, each by its place; and the counters, each declared once."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta

MAGIC = int.from_bytes(b"IVSIMREC", "little")
VERSION = 3
HEADER_WORDS = 64
WORD_BYTES = 8
WORD_FORMAT: Final = "L"
"""An ``unsigned long`` of 64 bits, as Linux has it on 64-bit hosts. Storing a time takes a third less than with "Q"."""
assert struct.calcsize(WORD_FORMAT) == WORD_BYTES
NO_PEER = (1 << 64) - 1

# The identity of the file ...
MAGIC_AT, VERSION_AT, MACHINE, VECTORS, EDGES, RINGS, DRAINS, SAMPLE_EVERY = range(8)
# ... what the machine does ...
STATE, PEER, PING, PING_NS, READY_NS, STARTED_NS, STOPPED_NS = range(8, 15)
# ... how many entries of each section are in use, of drains at least ...
EDGES_USED, RINGS_USED, DRAINS_USED = range(16, 19)
# ... which device it records: the machine, the incarnation of that machine, the number of the device's domain ...
OF_MACHINE, INCARNATION, DOMAIN = range(20, 23)
# ... how long the oldest missed doorbell had been due when its program ended ...
MISSED_OLDEST_NS = 24
# ... 1 for a guest of its own, which counts no doorbells here, and one more than it says to have rung (0: unknown).
GUEST, GUEST_RUNG = 25, 26
COUNTERS_AT = 32
# ... and, in a run that ends at an outlier, the latest garbage collections of the worker that took long: the number of
# them, then begin and end of each in turn (end 0: it goes on).
COLLECTIONS, COLLECTIONS_AT, COLLECTIONS_KEPT = 47, 48, 8

COUNT_LIMIT = 1 << 44
"""Counts are below this (50 days at 4 million doorbells a second). A larger one is damage."""

Count = Annotated[int, Meta(ge=0, le=1 << 62)]


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of a device besides its vectors and edges. Each field is one word of the header, in this order.

    A further counter is one field here and the line that counts it. The reader, the sums over groups, and the summary
    derive from this declaration.

    Attributes:
        samples_refused: doorbells due for a sample that the section of rings had no room for.
        drains_refused: drains that the section of drains had no room for.
        rung_nowhere: doorbells rung at a peer or vector that was never connected; all are refused.
        pba_pending: doorbells taken while MSI-X could not deliver them; the PBA holds one bit for each vector.
        dropped: doorbells taken and dropped by the device.
        missed: doorbells of an open-loop program that were due and not rung when it ended.
    """

    samples_refused: Count = 0
    drains_refused: Count = 0
    rung_nowhere: Count = 0
    pba_pending: Count = 0
    dropped: Count = 0
    missed: Count = 0

    @classmethod
    def total(cls, parts: Iterable[Counters]) -> Self:
        """The sums, field by field."""
        sums = dict.fromkeys(COUNTER_AT, 0)
        for part in parts:
            for name in sums:
                sums[name] += getattr(part, name)
        return cls(**sums)

    def named(self) -> dict[str, int]:
        """The counters by name."""
        return {name: getattr(self, name) for name in COUNTER_AT}


COUNTER_AT: dict[str, int] = {name: place for place, name in enumerate(Counters.__struct_fields__, start=COUNTERS_AT)}
"""The header word of each counter."""


class State:
    """The states of a worker, as the header holds them; the number only grows."""

    STARTING = 0
    CONNECTED = 1
    READY = 2
    RUNNING = 3
    STOPPED = 4
    FAILED = 5
    NAMES = ("starting", "connected", "ready", "running", "stopped", "failed")
