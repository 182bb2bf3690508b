"""A protocol on a page: messages from one machine to another through a ring buffer in the shared memory.

Each word in the memory has one writer. The producer rings a doorbell only when the consumer may be asleep. Both
count what they do in ``guest.statistics``, which the run's result contains. The state is in the shared memory: a
program that restarts continues where the words say it stopped. ring_buffer.toml is a topology for both programs:

    ivsim run examples/ring_buffer.toml --program examples/ring_buffer.py

At each STEP, `ivsim explore` may preempt the program; a run on processes goes on at once.
"""

from zlib import crc32

from nodes.errors import GuestError
from nodes.guest import NOW, STEP, Guest, Peers, Program

__all__ = ["ASLEEP", "CONSUMED", "PRODUCED", "consumer", "producer", "ring_buffer"]

# Offsets in 64-bit words. The first three have a cache line each, so a write does not slow the other side's reads.
PRODUCED, CONSUMED, ASLEEP, SLOTS = 0, 8, 16, 24
SLOT = 8  # words: the checksum, and the seven of the message
MESSAGE_BYTES = 8 * (SLOT - 1)

FULL_NS = 50_000  # until the next check for a free slot


def producer(
    guest: Guest,
    *,
    to: Peers,
    offset: int = 0,
    size_bytes: int = 4096,
    rate_hz: float = 10_000.0,
    messages: int | None = None,
) -> Program:
    """Put ``rate_hz`` messages per second into the ring buffer, and no more than so many ``messages``.

    Ring ``to`` when the consumer may be asleep.
    """
    ring, slots = ring_buffer(guest, offset, size_bytes)
    done = guest.statistics
    done.update(messages=0, bytes=0, doorbells=0, doorbells_saved=0, found_full=0)
    produced, due_ns = ring[PRODUCED], guest.clock()
    while messages is None or produced < messages:
        # A due time in the past does not wait, but the yield lets the machine see the end of the run.
        due_ns += round(1e9 / rate_hz)
        while (yield due_ns) is not None:
            pass
        while produced - ring[CONSUMED] == slots:
            done["found_full"] += 1
            yield guest.clock() + FULL_NS

        message = bytes(guest.random.randrange(256) for _ in range(8)) * (SLOT - 1)
        at = SLOTS + produced % slots * SLOT
        ring[at] = crc32(message)
        ring[at + 1 : at + SLOT] = memoryview(message).cast("Q")
        # The last store passes the slot to the consumer. A store to an aligned word is atomic, and x86 keeps the order
        # of stores; an architecture with a weaker order needs a barrier here.
        produced += 1
        yield STEP
        ring[PRODUCED] = produced
        yield STEP
        done["messages"] += 1
        done["bytes"] += MESSAGE_BYTES

        if ring[ASLEEP]:
            for peer in to:
                guest.ring(peer)
            done["doorbells"] += 1
        else:
            done["doorbells_saved"] += 1


def consumer(
    guest: Guest, *, offset: int = 0, size_bytes: int = 4096, spin_us: float = 50.0, sleep_limit_ms: float = 10.0
) -> Program:
    """Take messages out of the ring buffer and check them; sleep if none arrives for ``spin_us``."""
    ring, slots = ring_buffer(guest, offset, size_bytes)
    done = guest.statistics
    done.update(messages=0, bytes=0, wrong_checksums=0, sleeps=0)
    consumed, spin_until_ns = ring[CONSUMED], 0
    while True:
        if (produced := ring[PRODUCED]) != consumed:
            for number in range(consumed, produced):
                at = SLOTS + number % slots * SLOT
                done["wrong_checksums"] += ring[at] != crc32(ring[at + 1 : at + SLOT])
            done["messages"] += produced - consumed
            done["bytes"] += MESSAGE_BYTES * (produced - consumed)
            yield STEP
            ring[CONSUMED] = consumed = produced  # returns the slots to the producer
            spin_until_ns = guest.clock() + round(spin_us * 1000)
        if guest.clock() < spin_until_ns:
            yield NOW
        else:
            yield STEP
            ring[ASLEEP] = 1
            yield STEP
            # Check again: the producer may have read ASLEEP just before the store. Each side writes its own word and
            # then reads the other's, which needs a barrier on x86 too. Python has none, so each sleep has a limit.
            if ring[PRODUCED] == consumed:
                done["sleeps"] += 1
                yield STEP
                yield guest.clock() + round(sleep_limit_ms * 1e6)
            else:
                yield NOW
            ring[ASLEEP] = 0


def ring_buffer(guest: Guest, offset: int, size_bytes: int) -> tuple[memoryview, int]:
    """Return the 64-bit words of the ring buffer and its number of slots."""
    slots = (size_bytes // 8 - SLOTS) // SLOT
    if slots < 1 or offset % 8 or offset + size_bytes > len(guest.memory):
        raise GuestError(
            f"expected a ring buffer of at least {8 * (SLOTS + SLOT)} bytes at a multiple of 8 within the memory of "
            f"{len(guest.memory)} bytes, got {size_bytes} bytes at {offset}"
        )
    return guest.memory[offset : offset + size_bytes // 8 * 8].cast("Q"), slots
