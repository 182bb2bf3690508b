"""Doorbells that are numbered in the shared memory: ``round_trip`` and ``numbered_storm``.

An interrupt carries neither a sender nor a count, and interrupts coalesce. A slot in the shared memory for each
sender and vector carries both: the sender raises ``rung`` before it rings, and the receiver notes what it read after
an interrupt, and may stamp when it took the interrupt and when it rang its answer, by its own clock. The guest of
``examples/linux_guest/`` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from nodes.errors import GuestError
from nodes.guest import FOREVER, OTHERS, Guest, Peers, Program
from nodes.programs.arrivals import SECOND_NS
from nodes.programs.clock_calibration import Calibration, Exchange, calibrate
from nodes.programs.targets import Targets

SLOT_BYTES, SLOT_VECTORS = 64, 4
RUNG, SEEN, ANSWERED = 0, 1, 2
"""The 32-bit words of a slot: numbers of the sender, noted by the receiver, and rung by the receiver in return."""
TAKEN_NS, ANSWERED_NS = 2, 3
"""The 64-bit words of a slot in which the receiver stamps by its own clock when it took a doorbell and answered it."""
EXCHANGES_MAX = 20_000
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
    ``_max_us``: from the ring to the interrupt, in microseconds, to three digits; ``round_trip_samples``.

    A peer that stamps its slot is calibrated from the first 20,000 exchanges: ``to_peer_p50_us`` and
    ``from_peer_p50_us`` to ``_max_us`` are the one-way times, each up to ``clock_error_us`` off;
    ``clock_offset_us`` is how far the peer's clock is ahead, and ``clock_drift_ppm`` how much faster it is, up to
    ``clock_drift_error_ppm`` off; neither of the two of fewer than eight exchanges.
    """
    clock, statistics = guest.clock, guest.statistics
    timeout_ns = round(timeout_s * SECOND_NS)
    targets = Targets(guest, to, [vector])
    slot = None if offset is None else _slot(guest, vector, offset)
    stamps = None if slot is None else slot.cast("B").cast("Q")
    times: Counter[int] = Counter()
    exchanges: dict[int, list[Exchange]] = {}
    bells: list[tuple[int, Callable[..., None]]] = []
    answers = timeouts = 0
    try:
        while not rounds or answers < rounds:
            if targets.generation != guest.generation:
                yield from targets.wait()
                bells = [(peer, guest.bell(peer, vector)) for [(peer, _)] in filter(None, targets.rows)]
            for peer, bell in bells:
                if slot is not None:
                    slot[RUNG] += 1
                rung_ns = clock()
                bell()
                while (interrupt := (yield rung_ns + timeout_ns)) is not None and interrupt.vector != vector:
                    pass
                if interrupt is None:
                    timeouts += 1
                    continue
                answers += 1
                answered_ns = clock()
                times[_rounded(answered_ns - rung_ns)] += 1
                if stamps is not None and stamps[TAKEN_NS] and answers <= EXCHANGES_MAX:
                    exchange = Exchange(rung_ns, stamps[TAKEN_NS], stamps[ANSWERED_NS], answered_ns)
                    exchanges.setdefault(peer, []).append(exchange)
                if answers == rounds:
                    break
        for peer in then or ():
            guest.ring(peer)
        while True:
            yield FOREVER
    finally:
        statistics.update(rounds=answers, timeouts=timeouts)
        statistics.update(_percentiles("round_trip", times))
        statistics.update(_one_way(exchanges.values()))


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
        bells = [guest.bell(*pair) for [pair] in filter(None, targets.rows)]
        for number in range(count):
            for bell in bells:
                slot[RUNG] += 1
                bell()
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


def _one_way(exchanges: Iterable[Sequence[Exchange]]) -> dict[str, float]:
    """The statistics of the stamps of each peer."""
    clocks: list[Calibration] = []
    to_peer: Counter[int] = Counter()
    from_peer: Counter[int] = Counter()
    for those in exchanges:
        clock = calibrate(those)
        clocks.append(clock)
        to_peer.update(_rounded(max(0, round(clock.to_other_ns(exchange)))) for exchange in those)
        from_peer.update(_rounded(max(0, round(clock.from_other_ns(exchange)))) for exchange in those)
    if not clocks:
        return {}
    worst = max(clocks, key=lambda clock: clock.error_ns)
    drift = {}
    if worst.drift_error is not None:
        drift = {"clock_drift_ppm": worst.drift * 1e6, "clock_drift_error_ppm": worst.drift_error * 1e6}
    return {
        **_percentiles("to_peer", to_peer),
        **_percentiles("from_peer", from_peer),
        "clock_error_us": worst.error_ns / 1e3,
        "clock_offset_us": worst.offset_ns / 1e3,
        **drift,
    }


def _percentiles(name: str, times: Counter[int]) -> dict[str, float]:
    """``NAME_p50_us`` and so on, of times in nanoseconds that were counted; nothing of no times."""
    found: dict[str, float] = {}
    count, reached = times.total(), 0
    for time_ns in sorted(times):
        reached += times[time_ns]
        for point, share in POINTS.items():
            if point not in found and reached >= share * count:
                found[point] = time_ns / 1e3
    samples = {f"{name}_samples": count} if count else {}
    return {f"{name}_{point}_us": value for point, value in found.items()} | samples
