"""The classic lost wake-up, and invariants that find it: a consumer that checks first and says then that it sleeps.

explore.toml is a topology for the ring buffer; with this consumer, a message that arrives between the check and the
store waits for a doorbell that nothing rings:

    ivsim explore examples/explore.toml --program examples/ring_buffer.py --program examples/lost_wake_up.py \
        --set machines.consumer.program=lossy_consumer
"""

from ring_buffer import ASLEEP, CONSUMED, PRODUCED, ring_buffer

from nodes.guest import NOW, STEP, Guest, Program
from sim.explore import RunState

__all__ = ["is_drained", "is_in_order", "lossy_consumer"]

WORDS = 24
"""The words that the invariants look at."""


def lossy_consumer(
    guest: Guest, *, offset: int = 0, size_bytes: int = 4096, spin_us: float = 50.0, sleep_limit_ms: float = 10.0
) -> Program:
    """Take messages out of the ring buffer; sleep if none arrives for ``spin_us``, and sometimes for too long."""
    ring, _ = ring_buffer(guest, offset, size_bytes)
    consumed, spin_until_ns = ring[CONSUMED], 0
    while True:
        if (produced := ring[PRODUCED]) != consumed:
            ring[CONSUMED] = consumed = produced
            spin_until_ns = guest.clock() + round(spin_us * 1000)
        elif guest.clock() < spin_until_ns:
            yield NOW
        else:
            yield STEP
            ring[ASLEEP] = 1  # too late: the producer may have read the word since PRODUCED was read above
            yield guest.clock() + round(sleep_limit_ms * 1e6)
            ring[ASLEEP] = 0


def is_in_order(state: RunState) -> bool:
    """Safety: the consumer never takes what was not produced."""
    ring = state.memory[: 8 * WORDS].cast("Q")
    return ring[CONSUMED] <= ring[PRODUCED]


def is_drained(state: RunState) -> bool | int:
    """Liveness: the buffer is empty, or the number of consumed messages grows."""
    ring = state.memory[: 8 * WORDS].cast("Q")
    return ring[PRODUCED] == ring[CONSUMED] or ring[CONSUMED]
