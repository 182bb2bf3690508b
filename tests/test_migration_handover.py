"""Descriptors that go to another process in few messages: all of them or none, and none left behind."""

from __future__ import annotations

import array
import contextlib
import fcntl
import itertools
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.errors import HostError, RemoteProtocolError
from sim.kernel.eventfd import EventFd
from sim.kernel.handover import receive_descriptors, send_descriptors
from sim.kernel.mmsg import DESCRIPTORS_MAX


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextlib.contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    made = [EventFd.create() for _ in range(count)]
    try:
        yield [eventfd.descriptor for eventfd in made]
    finally:
        for eventfd in made:
            eventfd.close()


@contextlib.contextmanager
def received(sock: socket.socket, count: int) -> Iterator[list[int]]:
    got = receive_descriptors(sock, count)
    try:
        yield got
    finally:
        for descriptor in got:
            os.close(descriptor)


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do ``work`` in a thread meanwhile; what it raises, this raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # handed to the test
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


@pytest.mark.parametrize("count", [0, 1, 2, 252, 253, 254, 506, 507, 512])
def test_all_arrive_in_order_and_are_closed_on_exec(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    with eventfds(count) as sent:
        for at, descriptor in enumerate(sent):
            os.eventfd_write(descriptor, at + 1)
        with beside(lambda: send_descriptors(pair[0], sent)), received(pair[1], count) as got:
            assert [os.eventfd_read(descriptor) for descriptor in got] == list(range(1, count + 1))
            assert all(fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for descriptor in got)
            assert not set(got) & set(sent)
        for descriptor in sent:  # the sender still has its own
            os.eventfd_write(descriptor, 1)


def test_what_follows_on_the_socket_is_left_to_others(pair: tuple[socket.socket, socket.socket]) -> None:
    with eventfds(300) as sent:
        send_descriptors(pair[0], sent)
        pair[0].send(b"and so on")
        with received(pair[1], 300):
            assert pair[1].recv(64) == b"and so on"


def raw(sock: socket.socket, number: int, descriptors: list[int], data: slice = slice(None)) -> None:
    """One message, or a part of its bytes, as a process that is not ours might send it."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([number.to_bytes(8, "little", signed=True)[data]], rights)


@given(cuts=st.sets(st.integers(1, 7)))
def test_partial_reads(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 8]
    ours, theirs = socket.socketpair()
    with ours, theirs, eventfds(3) as sent:
        for begin, end in itertools.pairwise(edges):
            raw(ours, 3, sent if begin == 0 else [], slice(begin, end))
        with received(theirs, 3) as got:
            assert len(got) == 3


@pytest.mark.parametrize(
    ("number", "count", "text"),
    [
        (3, 2, "expected 3 of 3 descriptors in a message of 8 bytes, got 2 of 3"),
        (2, 2, "got 2 of 2"),
        (-1, 3, "got 3 of -1"),
        (4, 4, "got 4 of 4"),
        (3, 0, "got 0 of 3"),
    ],
)
def test_something_else_is_refused_and_closed(
    pair: tuple[socket.socket, socket.socket], number: int, count: int, text: str
) -> None:
    with eventfds(count) as sent:
        raw(pair[0], number, sent)
        with pytest.raises(RemoteProtocolError, match=text):
            receive_descriptors(pair[1], 3)


@pytest.mark.parametrize("whole", [0, 1, 2])
@pytest.mark.parametrize("partial", [False, True])
def test_sender_dies_in_between(pair: tuple[socket.socket, socket.socket], whole: int, partial: bool) -> None:
    with eventfds(DESCRIPTORS_MAX) as sent:
        for at in range(whole):
            raw(pair[0], 3 * DESCRIPTORS_MAX - at * DESCRIPTORS_MAX, sent)
        if partial:
            raw(pair[0], 3 * DESCRIPTORS_MAX - whole * DESCRIPTORS_MAX, sent, slice(0, 5))
        pair[0].close()
        with pytest.raises(RemoteProtocolError, match=f"after {whole * DESCRIPTORS_MAX} of {3 * DESCRIPTORS_MAX}"):
            receive_descriptors(pair[1], 3 * DESCRIPTORS_MAX)


def test_receiver_dies(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with eventfds(2) as sent, pytest.raises(RemoteProtocolError, match="the receiver of 2 descriptors has gone"):
        send_descriptors(pair[0], sent)


def test_nobody_reads_or_writes(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(HostError, match="not handed over in time"):
        receive_descriptors(pair[1], 1, timeout_s=0.01)
    pair[0].setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            pair[0].send(bytes(4096))
    with eventfds(1) as sent, pytest.raises(HostError, match="not handed over in time"):
        send_descriptors(pair[0], sent, timeout_s=0.01)


def test_no_room_for_them_is_an_error_and_no_leak(pair: tuple[socket.socket, socket.socket]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with eventfds(100) as sent:
        send_descriptors(pair[0], sent)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(sent) + 20, hard))
        try:
            with pytest.raises(RemoteProtocolError, match="cut off"):
                receive_descriptors(pair[1], 100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptor_that_is_not_open(pair: tuple[socket.socket, socket.socket]) -> None:
    with eventfds(1) as sent, pytest.raises(OSError, match="Bad file descriptor"):
        send_descriptors(pair[0], [*sent, 1 << 20])
