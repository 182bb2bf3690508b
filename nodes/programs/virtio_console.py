"""Programs that speak virtio console over ivshmem v2: the back end, and a driver that writes lines to it."""

from __future__ import annotations

from nodes.guest import FOREVER, Guest, Program
from nodes.programs.arrivals import SECOND_NS
from nodes.virtio.device import VirtioDevice
from nodes.virtio.driver import VirtioDriver
from nodes.virtio.header import READY

RECEIVE, TRANSMIT = 0, 1
"""The queues of a console (virtio 1.1, 5.3.2)."""
BUFFER_BYTES = 256


def virtio_console(guest: Guest, *, queue_size: int = 16, echo: bool = True) -> Program:
    """The back end of a virtio console, which gives back what the driver writes.

    The domain has two peers, a read/write section and a protocol such as 0x8003; this machine is peer 0, so it comes
    first in the file. Its statistics: ``transactions`` of the driver, ``bytes`` written by it, ``echoed``.

    Args:
        queue_size: descriptors of each queue at most.
        echo: give back what is written.
    """
    device = VirtioDevice(guest, queues=2, queue_size=queue_size)
    statistics = guest.statistics
    statistics.update(transactions=0, bytes=0, echoed=0)
    waiting: list[bytes] = []
    while True:
        yield FOREVER
        while device.carry_out():
            statistics["transactions"] += 1
        if not device.is_running:
            waiting.clear()
            continue
        transmit, receive = device.queue(TRANSMIT), device.queue(RECEIVE)
        done = False
        while transmit is not None and (taken := transmit.take()) is not None:
            descriptor, data, _ = taken
            statistics["bytes"] += len(data)
            if echo:
                waiting.append(bytes(data))
            transmit.use(descriptor, 0)
            done = True
        if done:
            device.notify(TRANSMIT)
        done = False
        while waiting and receive is not None and (taken := receive.take()) is not None:
            descriptor, data, _ = taken
            said = waiting.pop(0)[: len(data)]
            data[: len(said)] = said
            receive.use(descriptor, len(said))
            statistics["echoed"] += len(said)
            done = True
        if done:
            device.notify(RECEIVE)


def virtio_console_driver(guest: Guest, *, rate_hz: float = 100.0, queue_size: int = 16) -> Program:
    """A driver of a virtio console that writes lines, and compares what comes back.

    This machine is peer 1. It waits for the back end's State, sets up the device by transactions as a stock driver
    does, and starts again when the back end has gone and comes back. Its statistics: ``starts``, ``written`` and
    ``read`` lines, ``wrong`` ones, ``rtt_mean_us``.

    Args:
        rate_hz: lines in a second.
        queue_size: descriptors of each queue.
    """
    statistics = guest.statistics
    statistics.update(starts=0, written=0, read=0, wrong=0, rtt_mean_us=0)
    driver = VirtioDriver(guest)
    guest.set_state(READY)
    period_ns = round(SECOND_NS / rate_hz)
    total_ns = 0
    while True:
        while not driver.is_alive:
            yield FOREVER
        if not (yield from driver.start([(queue_size, BUFFER_BYTES, True), (queue_size, BUFFER_BYTES, False)])):
            continue
        statistics["starts"] += 1
        receive, transmit = driver.queues
        while receive.give():
            pass
        expected: list[tuple[bytes, int]] = []
        due_ns = guest.clock()
        while driver.is_started:
            driver.acknowledge()
            for line in receive.used():
                said, sent_ns = expected.pop(0) if expected else (b"", 0)
                statistics["read"] += 1
                statistics["wrong"] += line != said
                total_ns += guest.clock() - sent_ns
                statistics["rtt_mean_us"] = total_ns / statistics["read"] / 1e3
                receive.give()
            for _ in transmit.used():
                pass
            now_ns = guest.clock()
            if now_ns >= due_ns:
                line = b"line %d of peer %d\n" % (statistics["written"], guest.peer)
                if transmit.give(line):
                    expected.append((line, now_ns))
                    statistics["written"] += 1
                    driver.notify()
                due_ns = max(due_ns + period_ns, now_ns)
            yield due_ns
