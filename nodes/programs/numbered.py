"""Doorbells that are numbered in the shared memory: ``round_trip`` and ``numbered_storm``.

An interrupt carries neither a sender nor a count, and interrupts coalesce. A slot in the shared memory for each
sender and vector carries both: the sender raises ``rung`` before it rings, and the receiver notes what it read after
an interrupt. The guest of ``examples/linux_guest/`` reads the same slots.
"""

from __future__ import annotations

from collections import Counter

from nodes.errors import GuestError
from nodes.guest import FOREVER, OTHERS, Guest, Peers, Program
from nodes.programs.arrivals import SECOND_NS
from nodes.programs.targets import Targets

__all__ = ["SLOT_BYTES", "SLOT_VECTORS", "numbered_storm", "round_trip"]

SLOT_BYTES, SLOT_VECTORS = 64, 4
RUNG, SEEN, ANSWERED = 0, 1, 2
"""The 32-bit words of a slot: numbers of the sender, noted by the receiver, and rung by the receiver in return."""
PRECISION_BITS = 8
POINTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "max": 1.0}


def _slot(guest: Guest, vector: int, offset: int) -> memoryview:
    """The words of this machine's slot for ``vector``, in slots that begin at ``offset``."""
    if vector >= SLOT_VECTORS:
        raise GuestError(f"expected a vector below {SLOT_VECTORS}, got {vector}: slots are for so many")
    at = offset + (guest.peer * SLOT_VECTORS + vector) * SLOT_BYTES
    if at + SLOT_BYTES > len(guest.memory):
        raise GuestError(
            f"the slot of peer {guest.peer} at {at:#x} is beyond the {len(guest.memory):#x} bytes of memory"
        )
    return guest.memory[at : at + SLOT_BYTES].cast("I")


def round_trip(
    guest: Guest,
    *,
    to: Peers = OTHERS,
    vector: int = 0,
    rounds: int = 0,
    timeout_s: float = 1.0,
    offset: int | None = None,
    then: Peers | None = None,
) -> Program:
    """Ring one peer and wait for its answer on the same vector; then ring the next one.

    With ``rounds`` the program ends after so many answers, and rings each peer in ``then`` once. With ``offset`` each
    doorbell is numbered in the slots of the shared memory that begin there, for a guest that reads them
    (``examples/linux_guest``). A doorbell without an answer after ``timeout_s`` is not rung again.

    Statistics: ``rounds`` (answers), ``timeouts``, ``round_trip_p50_us``, ``_p90_us``, ``_p99_us``, ``_p99_9_us`` and
    ``_max_us``: from the ring to the interrupt, in microseconds, to three digits.
    """
    clock, ring, statistics = guest.clock, guest.ring, guest.statistics
    timeout_ns = round(timeout_s * SECOND_NS)
    targets = Targets(guest, to, [vector])
    slot = None if offset is None else _slot(guest, vector, offset)
    times: Counter[int] = Counter()
    answers = timeouts = 0
    try:
        while not rounds or answers < rounds:
            if targets.generation != guest.generation:
                yield from targets.wait()
            for [(peer, each)] in filter(None, targets.rows):
                if slot is not None:
                    slot[RUNG] += 1
                rung_ns = clock()
                ring(peer, each)
                while (interrupt := (yield rung_ns + timeout_ns)) is not None and interrupt.vector != each:
                    pass
                if interrupt is None:
                    timeouts += 1
                    continue
                answers += 1
                times[_rounded(clock() - rung_ns)] += 1
                if answers == rounds:
                    break
        for peer in then or ():
            ring(peer)
        while True:
            yield FOREVER
    finally:
        statistics.update(rounds=answers, timeouts=timeouts)
        statistics.update({f"round_trip_{point}_us": value for point, value in _percentiles(times).items()})


def numbered_storm(
    guest: Guest,
    *,
    to: Peers = OTHERS,
    vector: int = 1,
    count: int = 1000,
    burst: int = 16,
    offset: int = 0,
    wait: bool = False,
) -> Program:
    """Ring each peer in ``to`` ``count`` times, as fast as it can; each doorbell has a number in the shared memory.

    After ``burst`` doorbells the program takes its own interrupts. With ``wait`` it begins at its first interrupt. The
    numbers are in the slots that begin at ``offset`` (see ``round_trip``). Statistics: ``unseen``, numbers that the
    peer has not noted when the program ends, and ``returned``, how many doorbells the peer says to have rung here.
    """
    targets = Targets(guest, to, [vector])
    slot = _slot(guest, vector, offset)
    try:
        if wait:
            yield FOREVER
        yield from targets.wait()
        for number in range(count):
            for [(peer, each)] in filter(None, targets.rows):
                slot[RUNG] += 1
                guest.ring(peer, each)
            if number % burst == burst - 1:
                yield guest.clock()
        while True:
            yield FOREVER
    finally:
        guest.statistics.update(unseen=slot[RUNG] - slot[SEEN], returned=slot[ANSWERED])


def _rounded(time_ns: int) -> int:
    """A time to ``PRECISION_BITS`` bits: there are few enough of them to count each."""
    shift = max(0, time_ns.bit_length() - PRECISION_BITS)
    return time_ns >> shift << shift


def _percentiles(times: Counter[int]) -> dict[str, float]:
    """The percentiles of counted times in nanoseconds, in microseconds; none of no times."""
    found: dict[str, float] = {}
    count, reached = times.total(), 0
    for time_ns in sorted(times):
        reached += times[time_ns]
        for point, share in POINTS.items():
            if point not in found and reached >= share * count:
                found[point] = time_ns / 1e3
    return found
