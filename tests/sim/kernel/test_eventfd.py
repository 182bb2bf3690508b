"""sim.kernel.eventfd: one owner for each descriptor, and a counter that never blocks."""

from __future__ import annotations

import fcntl
import os
import socket

import pytest

from nodes.errors import RemoteProtocolError
from sim.kernel.eventfd import COUNTER_MAX, EventFd, drain, signal


@pytest.fixture
def eventfd():
    made = EventFd.create()
    yield made
    made.close()


def flags(descriptor):
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def test_it_is_made_non_blocking_and_is_not_inherited(eventfd):
    assert flags(eventfd.descriptor) & os.O_NONBLOCK
    assert fcntl.fcntl(eventfd.descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_signals_add_up_and_a_take_takes_them_all(eventfd):
    assert eventfd.take() == 0
    for _ in range(5):
        signal(eventfd.descriptor, 1)
    assert eventfd.take() == 5
    assert eventfd.take() == 0


def test_drain_is_the_bare_call_and_says_when_there_is_nothing(eventfd):
    signal(eventfd.descriptor, 3)
    assert drain(eventfd.descriptor) == 3
    with pytest.raises(BlockingIOError):
        drain(eventfd.descriptor)


def test_a_full_counter_refuses_one_more_and_takes_it_after_a_drain(eventfd):
    signal(eventfd.descriptor, COUNTER_MAX)
    with pytest.raises(BlockingIOError):
        signal(eventfd.descriptor, 1)
    assert eventfd.take() == COUNTER_MAX
    signal(eventfd.descriptor, 1)
    assert eventfd.take() == 1


def test_closing_twice_is_no_error_and_closes_no_other_descriptor(eventfd):
    other = EventFd.create()
    number = other.descriptor
    other.close()
    replacement = os.eventfd(0)
    assert replacement == number
    other.close()
    os.fstat(replacement)
    os.close(replacement)


def test_an_adopted_one_never_blocks_whatever_others_did_to_it(eventfd):
    """The flag belongs to the description that all share; a real QEMU clears it."""
    received = os.dup(eventfd.descriptor)
    os.set_blocking(eventfd.descriptor, True)
    adopted = EventFd.adopt(received)
    assert flags(eventfd.descriptor) & os.O_NONBLOCK
    assert adopted.take() == 0
    signal(adopted.descriptor, 1)
    assert eventfd.take() == 1
    adopted.close()


@pytest.mark.parametrize("kind", ["memfd", "null", "directory", "socket"])
def test_a_descriptor_that_is_no_eventfd_is_refused_and_closed(kind):
    match kind:
        case "memfd":
            descriptor = os.memfd_create("no-eventfd")
        case "null":
            descriptor = os.open("/dev/null", os.O_RDWR)
        case "directory":
            descriptor = os.open("/", os.O_PATH)
        case "socket":
            descriptor = socket.socket(socket.AF_UNIX).detach()
    with pytest.raises(RemoteProtocolError, match="where an eventfd belongs"):
        EventFd.adopt(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
