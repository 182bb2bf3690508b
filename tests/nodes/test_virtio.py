"""nodes.virtio: queues in shared memory, and what a driver may not set up."""

from __future__ import annotations

import itertools

import pytest

from nodes.errors import GuestError
from nodes.virtio.header import SIZES, VirtioHeader, VirtioRegister
from nodes.virtio.queues import DeviceQueue, DriverQueue, QueueAddresses

ADDRESSES = QueueAddresses(4, 4096, 4096 + 64, 4096 + 128)


def sides(writable):
    section = memoryview(bytearray(16384))
    driver = DriverQueue(section, ADDRESSES, buffers_at=8192, buffer_bytes=256, writable=writable)
    return section, driver, DeviceQueue(section, ADDRESSES)


def test_registers_lie_one_behind_the_other():
    places = [(register, register + SIZES[register]) for register in VirtioRegister]
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places))
    assert {end - begin for begin, end in places} == {1, 2, 4, 8}
    header = VirtioHeader(memoryview(bytearray(8192)))
    header.write(VirtioRegister.QUEUE_DESC, 0x1234_5678_9ABC)
    assert header.read(VirtioRegister.QUEUE_DESC) == 0x1234_5678_9ABC
    assert header.read(VirtioRegister.QUEUE_DRIVER) == 0


def test_buffers_go_to_the_device_and_come_back():
    _, driver, device = sides(writable=False)
    for turn in range(17_500):  # the indices pass 65536
        lines = [b"%d %d" % (turn, number) for number in range(4)]
        assert [driver.give(line) for line in lines] == [True] * 4
        assert not driver.give(b"no room")
        taken = [device.take() for _ in lines]
        assert [bytes(data) for _, data, _ in taken] == lines
        assert device.take() is None
        for descriptor, _, writable in taken:
            assert not writable
            device.use(descriptor, 0)
        assert list(driver.used()) == [b""] * 4


def test_the_device_writes_into_buffers_that_it_may_write():
    _, driver, device = sides(writable=True)
    driver.give()
    descriptor, data, writable = device.take()
    assert (len(data), writable) == (256, True)
    data[:5] = b"hello"
    device.use(descriptor, 5)
    assert list(driver.used()) == [b"hello"]


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        (QueueAddresses(3, 4096, 4160, 4224), "queue of 3"),
        (QueueAddresses(4, 4096, 4160, 16380), "ends at"),
        (QueueAddresses(0, 4096, 4160, 4224), "queue of 0"),
    ],
)
def test_a_queue_that_does_not_lie_in_the_section(addresses, words):
    with pytest.raises(GuestError, match=words):
        DeviceQueue(memoryview(bytearray(16384)), addresses)


def test_a_descriptor_that_is_none():
    section, driver, device = sides(writable=False)
    driver.give(b"x")
    section[4096 : 4096 + 8] = (1 << 20).to_bytes(8, "little")
    with pytest.raises(GuestError, match="expected one within the section"):
        device.take()
    section, driver, device = sides(writable=False)
    driver.give(b"x")
    section[4096 + 64 + 4] = 9
    with pytest.raises(GuestError, match="descriptor 9 of 4"):
        device.take()


def test_a_section_that_is_too_small():
    with pytest.raises(GuestError, match="virtio needs a read/write section of 8192 bytes, this one has 4096"):
        VirtioHeader(memoryview(bytearray(4096)))
