"""One message of the server with its descriptor, sent and received, against ``sendmsg`` and ``recvmsg`` in C."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

from nodes.wire.protocol import Message
from sim.kernel.channel import Channel, Outbox
from sim.kernel.eventfd import EventFd
from sim.kernel.mmsg import BatchWriter, ReceivedMessages
from tests.bench.figure import Bar, Figure, alternate
from tests.bench.placement import pinned
from tests.bench.setting import Setting

__all__ = ["measure_messages"]

MESSAGE = Bar(1.02, 0.98)
# A unix stream socket holds 278 messages that are not read.
BATCH = 128


def measure_messages(setting: Setting) -> Iterator[Figure]:
    """A greeting: 128 messages are encoded, queued, sent, and received, each by itself.

    A server encodes them once for all clients; this benchmark encodes them each time.
    """
    batches, rounds = setting.size(4, 1), setting.size(201, 2)
    eventfd = EventFd.create()
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with sender, receiver, pinned(setting.cpu):
            sender.setblocking(False)
            pairs = alternate(
                rounds,
                _pass_messages(sender, receiver, eventfd.descriptor, batches),
                lambda: setting.reference.pass_messages(
                    sender.fileno(), receiver.fileno(), eventfd.descriptor, BATCH, batches
                ),
            )
    finally:
        eventfd.close()
    yield Figure("messages", "sent and received", "ns", pairs, MESSAGE)


def _pass_messages(
    sender: socket.socket, receiver: socket.socket, descriptor: int, batches: int
) -> Callable[[], float]:
    outbox, channel = Outbox(sender, BATCH), Channel(receiver)
    messages = [Message(number, (descriptor,)) for number in range(BATCH)]

    def measure() -> float:
        spent_ns = 0
        for _ in range(batches):
            numbers: list[int] = []
            descriptors: list[int] = []
            roll = BatchWriter()
            begin_ns = time.thread_time_ns()
            outbox.put_batch(roll.lay_out(messages))
            sent = outbox.flush()
            while len(numbers) < BATCH:
                arrived = channel.receive_many()
                assert isinstance(arrived, ReceivedMessages)
                numbers += arrived.numbers
                descriptors += arrived.descriptors
            spent_ns += time.thread_time_ns() - begin_ns
            assert sent
            assert numbers == list(range(BATCH))
            for received in descriptors:
                os.close(received)
        return spent_ns / (batches * BATCH)

    return measure
