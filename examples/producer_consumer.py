"""A producer and a consumer in two processes, and the server: records through the shared memory, doorbells both ways.

    python examples/producer_consumer.py

The producer fills one of eight slots and rings vector 0 of the consumer, which reads it and rings vector 1 of the
producer: the slot is free again.
"""

import multiprocessing
import struct
from pathlib import Path

import sim

SLOTS, SLOT_BYTES = 8, 64
FILLED, FREED = 0, 1  # the vectors
RECORDS = 1000
HEAD, TAIL = struct.Struct("<Q"), struct.Struct("<Q")  # how many were written, and read, at offsets 0 and 8
FIRST_SLOT = 64


def produce(path: Path) -> None:
    """Write records as long as a slot is free; wait for the consumer's doorbell when none is."""
    with sim.connect(path, vectors=2, timeout=60) as peer:
        (consumer,) = peer.wait_for_peers(1)
        for number in range(RECORDS):
            while number - TAIL.unpack_from(peer.memory, 8)[0] == SLOTS:
                peer.wait(FREED)
            struct.pack_into("<Q", peer.memory, FIRST_SLOT + number % SLOTS * SLOT_BYTES, number * number)
            HEAD.pack_into(peer.memory, 0, number + 1)
            peer.ring(consumer, FILLED)
        while TAIL.unpack_from(peer.memory, 8)[0] < RECORDS:
            peer.wait(FREED)


def consume(peer: sim.Peer) -> int:
    """Read all records and return their sum."""
    (producer,) = peer.wait_for_peers(1)
    total, read = 0, 0
    while read < RECORDS:
        if read == HEAD.unpack_from(peer.memory, 0)[0]:
            peer.wait(FILLED)
            continue
        total += struct.unpack_from("<Q", peer.memory, FIRST_SLOT + read % SLOTS * SLOT_BYTES)[0]
        read += 1
        TAIL.pack_into(peer.memory, 8, read)
        peer.ring(producer, FREED)
    return total


def main() -> None:
    """Run the server and the consumer here, the producer in a process of its own."""
    with sim.serve(size="4K", timeout=60) as server, server.connect() as consumer:
        producer = multiprocessing.get_context("spawn").Process(target=produce, args=(server.path,))
        producer.start()
        total = consume(consumer)
        producer.join()
    print(f"{RECORDS} records, sum {total}, expected {sum(n * n for n in range(RECORDS))}")


if __name__ == "__main__":
    main()
