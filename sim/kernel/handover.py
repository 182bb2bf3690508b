"""Many descriptors from one of our own processes to another, in few messages: a machine that moves takes its lines.

As many descriptors in a message as the kernel passes, each message being the number of those still to come, its own
among them. No ivshmem client would understand it. What is sent and received goes through ``sim.kernel.channel``.

The sender keeps its descriptors, and closes them when the receiver has said that it goes on: until then the machine
can stay where it was.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence

from nodes.errors import HostError, RemoteProtocolError
from nodes.wire.protocol import MESSAGE_BYTES, Decoder, Message
from sim.kernel.channel import Channel, Outbox
from sim.kernel.mmsg import DESCRIPTORS_MAX

__all__ = ["receive_descriptors", "send_descriptors"]

TIMEOUT_S = 5.0
RETRY_MS = 1  # when the kernel holds too many descriptors: only the receiver can change that


def send_descriptors(sock: socket.socket, descriptors: Sequence[int], timeout_s: float = TIMEOUT_S) -> None:
    """Send them all, in order; ``sock`` is a stream between our own processes and no longer blocks.

    Raises:
        RemoteProtocolError: the receiver has gone.
        HostError: it does not read, within ``timeout_s``.
        OSError: one of them is not open; part of the others may have been sent.
    """
    sock.setblocking(False)
    outbox = Outbox(sock, limit=len(descriptors) // DESCRIPTORS_MAX + 1)
    for at in range(0, len(descriptors), DESCRIPTORS_MAX):
        outbox.put(Message(len(descriptors) - at, tuple(descriptors[at : at + DESCRIPTORS_MAX])))
    deadline_s = time.monotonic() + timeout_s
    try:
        while not outbox.flush():
            if outbox.throttled:
                time.sleep(RETRY_MS / 1000)
                _wait(sock, 0, deadline_s)
            else:
                _wait(sock, select.POLLOUT, deadline_s)
    except ConnectionError as error:
        raise RemoteProtocolError(f"the receiver of {len(descriptors)} descriptors has gone") from error


def receive_descriptors(sock: socket.socket, count: int, timeout_s: float = TIMEOUT_S) -> list[int]:
    """Receive exactly ``count``, close-on-exec, in the order sent; they are the caller's. Either all or none.

    Raises:
        RemoteProtocolError: the sender has gone, sends something else, or this process may open no more.
        HostError: they did not come within ``timeout_s``.
    """
    channel, decoder = Channel(sock), Decoder[int]()
    received: list[int] = []
    deadline_s = time.monotonic() + timeout_s
    try:
        while len(received) < count:
            _wait(sock, select.POLLIN, deadline_s)
            arrived = channel.receive(decoder.missing_bytes)
            if arrived is None:
                continue
            data, descriptors = arrived
            if not data:
                raise RemoteProtocolError(f"the sender has gone after {len(received)} of {count} descriptors")
            for message in decoder.feed(data, descriptors):
                missing = count - len(received)
                received += message.descriptors
                if message.number != missing or len(message.descriptors) != min(missing, DESCRIPTORS_MAX):
                    raise RemoteProtocolError(
                        f"expected {min(missing, DESCRIPTORS_MAX)} of {missing} descriptors in a message of "
                        f"{MESSAGE_BYTES} bytes, got {len(message.descriptors)} of {message.number}"
                    )
    except BaseException:
        for descriptor in (*received, *decoder.unclaimed()):
            os.close(descriptor)
        raise
    return received


def _wait(sock: socket.socket, event: int, deadline_s: float) -> None:
    """Until the other side has read or written, or is gone."""
    left_s = deadline_s - time.monotonic()
    if left_s > 0:
        poll = select.poll()  # numbers above 1023 are usual where 512 descriptors are handed over
        poll.register(sock, event)
        if not event or poll.poll(left_s * 1000):
            return
    raise HostError("the other process neither reads nor writes: the descriptors were not handed over in time")
