"""Programs for ways to handle interrupts: ignore them, poll instead, or moderate their rate."""

from __future__ import annotations

from collections import deque

from nodes.guest import FOREVER, NOW, OTHERS, Guest, Peers, Program
from nodes.programs.arrivals import SECOND_NS

MICROSECOND_NS = 1_000


def idle(guest: Guest) -> Program:
    """Take each interrupt and do nothing."""
    while True:
        yield FOREVER


def poll(guest: Guest, *, to: Peers = OTHERS, offset: int = 0, interval_s: float = 0.0) -> Program:
    """Poll a 64-bit word of the shared memory, at ``offset``, and ring the peers in ``to`` when it changes.

    ``interval_s`` is the time between two looks. With 0 the program never waits and keeps a CPU busy.
    """
    word = guest.memory[offset : offset + 8].cast("Q")
    seen = word[0]
    while True:
        if word[0] != seen:
            seen = word[0]
            for peer in to:
                guest.ring(peer)
        yield guest.clock() + round(interval_s * SECOND_NS) if interval_s else NOW


def moderate(guest: Guest, *, window_us: float = 100.0) -> Program:
    """Mask a vector at each of its interrupts and unmask it ``window_us`` later, as NAPI and network cards do.

    A vector then interrupts at most once in a window, however often it is rung, and no doorbell is lost: doorbells in
    the window leave the vector pending, and it fires when it is unmasked. Statistics: ``windows``, and ``pending``, the
    number of windows that ended with the vector pending.
    """
    window_ns = round(window_us * MICROSECOND_NS)
    masked: dict[tuple[int, int], None] = {}
    ends: deque[tuple[int, int, int]] = deque()  # windows are of one length: the first to begin is the first to end
    windows = pending = 0
    while True:
        guest.statistics.update(windows=windows, pending=pending)
        interrupt = yield ends[0][0] if ends else FOREVER
        now_ns = guest.clock()
        if interrupt is not None and (interrupt.device, interrupt.vector) not in masked:
            guest.devices[interrupt.device].mask(interrupt.vector)
            masked[interrupt.device, interrupt.vector] = None
            ends.append((now_ns + window_ns, interrupt.device, interrupt.vector))
        while ends and ends[0][0] <= now_ns:
            _, device, vector = ends.popleft()
            del masked[device, vector]
            windows += 1
            pending += guest.devices[device].pending(vector)
            guest.devices[device].unmask(vector)
