"""A protocol of one's own: messages from one machine to another through a ring buffer in the shared memory.

Programs are generator functions; this file needs to be nowhere but on Python's path::

    [machines.producer]
    program = "tests.examples.ring_buffer:producer"
    parameters = { to = "consumer", rate_hz = 20_000.0 }

    [machines.consumer]
    program = "tests.examples.ring_buffer:consumer"

Of every word in the memory, one side is the only writer. A doorbell is rung only when the consumer may be asleep. Both
sides count what they do in ``guest.statistics``, which is in the run's result. Whoever begins anew goes on where the
words say it was.
"""

from __future__ import annotations

from zlib import crc32

from nodes.errors import GuestError
from nodes.guest import NOW, Guest, Peers, Program

__all__ = ["consumer", "producer"]

# In 64-bit words, each of the first three on a cache line of its own: neither side's writes slow the other's reads.
PRODUCED, CONSUMED, ASLEEP, SLOTS = 0, 8, 16, 24
SLOT = 8  # words: the checksum, and the seven of the message
MESSAGE_BYTES = 8 * (SLOT - 1)

FULL_NS = 50_000  # until the next look for room
PATIENCE_NS = 10_000_000


def producer(guest: Guest, *, to: Peers, offset: int = 0, size_bytes: int = 4096, rate_hz: float = 10_000.0) -> Program:
    """Put a message into the ring buffer so often; ring ``to`` when it may be asleep."""
    ring, slots = _ring_buffer(guest, offset, size_bytes)
    done = guest.statistics
    done.update(messages=0, bytes=0, doorbells=0, doorbells_saved=0, found_full=0)
    produced, due_ns = ring[PRODUCED], guest.clock()
    while True:
        # A time that has passed is no wait, but gives the machine its turn to see that the run is over.
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
        # Last of all: now it is the consumer's. An aligned word is written in one go, and x86 shows a processor's
        # stores to others in their order; a machine with a weaker order needs a barrier here.
        produced += 1
        ring[PRODUCED] = produced
        done["messages"] += 1
        done["bytes"] += MESSAGE_BYTES

        if ring[ASLEEP]:
            for peer in to:
                guest.ring(peer)
            done["doorbells"] += 1
        else:
            done["doorbells_saved"] += 1


def consumer(guest: Guest, *, offset: int = 0, size_bytes: int = 4096, spin_us: float = 50.0) -> Program:
    """Take messages out of the ring buffer and check them; sleep when none has come for ``spin_us``."""
    ring, slots = _ring_buffer(guest, offset, size_bytes)
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
            ring[CONSUMED] = consumed = produced  # the slots are the producer's again
            spin_until_ns = guest.clock() + round(spin_us * 1000)
        if guest.clock() < spin_until_ns:
            yield NOW
        else:
            ring[ASLEEP] = 1
            # Once more, for the producer may have looked just before. Each side writes its word and then reads the
            # other's: for that, x86 too asks for a barrier, which Python does not have. So no sleep is for ever.
            if ring[PRODUCED] == consumed:
                done["sleeps"] += 1
                yield guest.clock() + PATIENCE_NS
            else:
                yield NOW
            ring[ASLEEP] = 0


def _ring_buffer(guest: Guest, offset: int, size_bytes: int) -> tuple[memoryview, int]:
    """The 64-bit words of the ring buffer, and how many slots it has."""
    slots = (size_bytes // 8 - SLOTS) // SLOT
    if slots < 1 or offset % 8 or offset + size_bytes > len(guest.memory):
        raise GuestError(
            f"expected a ring buffer of at least {8 * (SLOTS + SLOT)} bytes at a multiple of 8 within the memory of "
            f"{len(guest.memory)} bytes, got {size_bytes} bytes at {offset}"
        )
    return guest.memory[offset : offset + size_bytes // 8 * 8].cast("Q"), slots
