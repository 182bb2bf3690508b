"""sim.engines.qemu.relay: what a machine's process tells its QEMU, also when that does not read."""

from __future__ import annotations

import os
import socket

import pytest

from nodes.errors import QemuError
from nodes.wire.protocol import MEMORY, VERSION
from sim.engines.qemu.relay import Relay
from sim.kernel.channel import Channel
from sim.kernel.eventfd import EventFd

MESSAGE_BYTES = 8
VECTORS = 400  # more messages than the socket of a client has room for


def numbers(channel: Channel) -> list[int]:
    """What the other end reads until nothing waits; descriptors are closed."""
    heard = []
    while (received := channel.receive(MESSAGE_BYTES)) is not None:
        data, descriptors = received
        heard.append(int.from_bytes(data, "little", signed=True))
        for descriptor in descriptors:
            os.close(descriptor)
    return heard


def test_what_finds_no_room_is_sent_once_there_is() -> None:
    near, far = socket.socketpair()
    relay, channel, eventfd = Relay(near), Channel(far), EventFd.create()
    relay.greet(3, eventfd.descriptor)
    for _ in range(VECTORS):
        relay.connect(7, eventfd.descriptor)
    relay.leave(7)
    assert not relay.is_sent
    heard: list[int] = []
    relay.wait_until_read(lambda: heard.extend(numbers(channel)))
    assert relay.is_sent
    assert heard == [VERSION, 3, MEMORY, *[7] * (VECTORS + 1)]
    assert not relay.has_left
    channel.close()
    assert relay.has_left
    with pytest.raises(QemuError, match="closed its connection"):
        relay.leave(7)
    eventfd.close()
    relay.close()


def test_an_eventfd_stays_open_until_the_message_that_carries_it_is_sent() -> None:
    near, far = socket.socketpair()
    relay, channel, eventfd = Relay(near), Channel(far), EventFd.create()
    for _ in range(VECTORS):
        relay.connect(7, eventfd.descriptor)
    relay.leave(7)
    relay.retire(eventfd)
    assert eventfd.descriptor >= 0
    relay.wait_until_read(lambda: numbers(channel))
    assert eventfd.descriptor < 0
    channel.close()
    relay.close()
