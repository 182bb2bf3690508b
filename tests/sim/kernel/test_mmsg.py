"""sim.kernel.mmsg: many messages in one call are the same bytes and descriptors as one by one, whatever happens."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.wire.protocol import Message
from sim.kernel.channel import Channel, Outbox
from sim.kernel.mmsg import SLOTS, TABLE_SIZE, Batch, BatchWriter, ReceivedMessages, SendTable, join_neighbours
from tests.sim.kernel.test_channel import identity, read_all


@pytest.fixture
def sockets():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def read_many(channel):
    """As ``read_all``, by ``receive_many``."""
    messages = []
    while (arrived := channel.receive_many()) is not None:
        if isinstance(arrived, ReceivedMessages):
            pieces = [(Message(number).encode(), [descriptor]) for number, descriptor in zip(*arrived, strict=True)]
        else:
            pieces = arrived
        for data, descriptors in pieces:
            messages.append((data, [identity(descriptor) for descriptor in descriptors]))
            for descriptor in descriptors:
                os.close(descriptor)
        if messages and messages[-1] == (b"", []):
            break
    return messages


# Sending

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
MESSAGES = st.lists(st.tuples(NUMBERS, st.sampled_from(["none", "own", "other"])), max_size=600)


@settings(max_examples=30)
@given(messages=MESSAGES, sizes=st.lists(st.integers(1, 200), min_size=1), reads=st.lists(st.integers(0, 300)))
def test_a_batch_arrives_as_if_sent_one_by_one(messages, sizes, reads):
    """Whatever is read when: the kernel's own refusals, with a socket that takes twenty messages."""
    ends = [socket.socketpair() for _ in range(2)]
    plain, laid_out = ends
    try:
        for near, _ in ends:
            near.setblocking(False)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20 * 768 // 2)
        carried = {"none": (), "own": (plain[0].fileno(),), "other": (laid_out[0].fileno(),)}
        said = [Message(number, carried[what]) for number, what in messages]
        outboxes = [Outbox(near, 1000) for near, _ in ends]
        channels = [Channel(far) for _, far in ends]
        got = [[], []]
        for message in said:
            outboxes[0].put(message)
        roll, at = BatchWriter(), 0
        while at < len(said):
            for size in sizes:
                outboxes[1].put_batch(roll.lay_out(said[at : at + size]))
                at += size
        assert len(outboxes[0]) == len(outboxes[1]) == len(said)
        done = [False, False]
        for count in [*reads, *[1000] * (len(said) + 1)]:
            done = [outbox.flush() for outbox in outboxes]
            assert len(outboxes[0]) == len(outboxes[1])
            assert all(outbox.throttled is False for outbox in outboxes)
            for which, channel in enumerate(channels):
                for _ in range(count):
                    if (received := channel.receive(8)) is None:
                        break
                    got[which].append((received[0], [identity(descriptor) for descriptor in received[1]]))
                    for descriptor in received[1]:
                        os.close(descriptor)
            if all(done) and count == 1000:
                break
        assert done == [True, True]
        assert got[0] == got[1]
    finally:
        for end in (*plain, *laid_out):
            end.close()


class ScriptedKernel:
    """A socket and a table that send as much as a script says, and remember what came out."""

    def __init__(self, script):
        self.script = list(script)
        self.data = b""
        self.rights = []

    def fileno(self):
        return -1

    def next(self):
        what = self.script.pop(0) if self.script else (1000, 8)
        if isinstance(what, int):
            raise OSError(what, os.strerror(what))
        return what

    def sendmsg(self, buffers, rights, flags):
        assert flags == socket.MSG_NOSIGNAL
        _, last_bytes = self.next()
        data = b"".join(buffers)[:last_bytes]
        self.note(data, [each for _, _, carried in rights for each in array.array("i", carried)])
        return len(data)

    def note(self, data, descriptors):
        self.rights += [(len(self.data), descriptor) for descriptor in descriptors]
        self.data += data


class ScriptedTable(SendTable):
    kernel: ScriptedKernel

    def send(self, sock, start, stop):
        count, last_bytes = self.kernel.next()
        sent = min(count, stop - start)
        for at in range(start, start + sent):
            data, descriptors = self.message(at)
            self.kernel.note(data[: last_bytes if at == start + sent - 1 else 8], descriptors)
        return sent, last_bytes


EVENTS = st.one_of(st.sampled_from([errno.EAGAIN, errno.ETOOMANYREFS]), st.tuples(st.integers(1, 9), st.integers(1, 8)))


@given(
    batches=st.lists(st.lists(st.booleans(), max_size=12), max_size=5),
    alone=st.booleans(),
    script=st.lists(EVENTS, max_size=30),
)
def test_refused_and_cut_batches_lose_and_repeat_nothing(batches, alone, script):
    kernel = ScriptedKernel(script)
    table = ScriptedTable(100)
    table.kernel = kernel
    outbox = Outbox(kernel, 100)
    said = []
    for carries in batches:
        start = table.used
        messages = [Message(100 + len(said) + at, (at,) if carry else ()) for at, carry in enumerate(carries)]
        table.append(messages)
        assert outbox.put_batch(Batch(table, start, table.used))
        said += messages
        if alone:
            said.append(Message(-1, (77,)))
            outbox.put(said[-1])
    while not outbox.flush():
        assert len(outbox) > 0
    assert len(outbox) == 0
    assert kernel.data == b"".join(message.encode() for message in said)
    assert kernel.rights == [(8 * at, descriptor) for at, message in enumerate(said) for descriptor in message[1]]


def test_neighbours_wait_together_and_others_do_not(sockets):
    roll, outbox = BatchWriter(), Outbox(sockets[0], 10_000)
    batches = [roll.lay_out([Message(at)] * 3) for at in range(4)]
    for at in (0, 1, 3, 2):
        outbox.put_batch(batches[at])
    assert [(start, stop) for _, start, stop in outbox._waiting] == [(0, 6), (9, 12), (6, 9)]
    assert len(outbox) == 12
    assert [(start, stop) for _, start, stop in join_neighbours(batches)] == [(0, 12)]
    assert [(start, stop) for _, start, stop in join_neighbours(batches[::2])] == [(0, 3), (6, 9)]


@pytest.mark.parametrize("size", [0, 1, TABLE_SIZE - 1, TABLE_SIZE, TABLE_SIZE + 1, 3 * TABLE_SIZE])
def test_a_roll_has_room_for_any_number(sockets, size):
    roll, outbox = BatchWriter(), Outbox(sockets[0], 10_000)
    channel, got = Channel(sockets[1]), []
    for first in (0, size):
        outbox.put_batch(roll.lay_out([Message(first + at) for at in range(size)]))
    while not outbox.flush():
        got += read_all(channel)
    got += read_all(channel)
    assert got == [(Message(at).encode(), []) for at in range(2 * size)]


def test_a_batch_beyond_the_limit_is_not_queued(sockets):
    roll, outbox = BatchWriter(), Outbox(sockets[0], 5)
    assert outbox.put_batch(roll.lay_out([Message(1)] * 3))
    assert not outbox.put_batch(roll.lay_out([Message(2)] * 3))
    assert outbox.put_batch(roll.lay_out([Message(3)] * 2))
    assert not outbox.put(Message(4))
    assert len(outbox) == 5


def test_a_broken_connection_is_an_error_without_a_signal(sockets):
    ours, theirs = sockets
    theirs.close()
    outbox = Outbox(ours, 10)
    outbox.put_batch(BatchWriter().lay_out([Message(0), Message(1)]))
    with pytest.raises(BrokenPipeError):
        outbox.flush()


# Receiving


@settings(max_examples=50)
@given(st.lists(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), max_size=90), max_size=3))
def test_the_same_is_received_many_at_once_as_one_by_one(turns):
    """Whatever a server sends, in whatever pieces: each read of eight bytes is one of the many."""
    ends = [socket.socketpair() for _ in range(2)]
    try:
        channels = [Channel(far) for _, far in ends]
        one_by_one, many = [], []
        for turn in turns:
            for size, count in turn:
                for near, _ in ends:
                    rights = array.array("i", [near.fileno()] * count) if count else array.array("i")
                    near.sendmsg(
                        [b"12345678abcd"[:size]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] * bool(count)
                    )
            one_by_one += [(data, len(names)) for data, names in read_all(channels[0])]
            many += [(data, len(names)) for data, names in read_many(channels[1])]
        assert many == one_by_one
    finally:
        for end in (*ends[0], *ends[1]):
            end.close()


@pytest.mark.parametrize("count", [1, SLOTS - 1, SLOTS, SLOTS + 1, 5 * SLOTS])
def test_whole_messages_with_a_descriptor_each_are_received(sockets, count):
    ours, theirs = sockets
    outbox = Outbox(ours, 1000)
    outbox.put_batch(BatchWriter().lay_out([Message(at, (ours.fileno(),)) for at in range(count)]))
    assert outbox.flush()
    channel, numbers = Channel(theirs), []
    while (arrived := channel.receive_many()) is not None:
        assert isinstance(arrived, ReceivedMessages)
        numbers += arrived.numbers
        for descriptor in arrived.descriptors:
            assert identity(descriptor) == identity(ours.fileno())
            assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            os.close(descriptor)
    assert numbers == list(range(count))


@pytest.mark.parametrize("count", [0, 3, SLOTS])
def test_the_end_comes_behind_what_was_said(sockets, count):
    ours, theirs = sockets
    for at in range(count):
        ours.send(Message(at).encode())
    ours.close()
    channel = Channel(theirs)
    assert read_many(channel) == [*((Message(at).encode(), []) for at in range(count)), (b"", [])]
    assert channel.receive_many() == [(b"", [])]


def test_a_connection_that_was_reset_has_ended(sockets):
    ours, theirs = sockets
    channel = Channel(ours)
    ours.send(b"unread")
    theirs.close()
    assert channel.receive_many() == [(b"", [])]


CUT_OFF = """
    import os, resource, socket, sys
    sys.path[:0] = {path!r}
    from nodes.errors import RemoteProtocolError
    from sim.kernel.channel import Channel

    ours, theirs = socket.socketpair()
    pipe, more = os.pipe()
    for at in range({sent}):
        socket.send_fds(theirs, [bytes(8)], [pipe] * {each})
    channel = Channel(ours)
    before = os.listdir("/proc/self/fd")  # its own is the first free number
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + {room}, hard))
    received = []
    try:
        while True:
            received += channel.receive_many()
    except RemoteProtocolError as error:
        print(len(received), "refused" if "ulimit -n" in str(error) else error)
    for receive in (channel.receive_many, lambda: channel.receive(8)):
        try:
            print(receive())
        except RemoteProtocolError:
            print("still")
    for _, descriptors in received:
        for descriptor in descriptors:
            os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print("clean" if len(os.listdir("/proc/self/fd")) == len(before) else "leaked")
"""


@pytest.mark.parametrize(("sent", "each", "room", "whole"), [(1, 1, 0, 0), (9, 1, 4, 4), (9, 2, 5, 2), (3, 200, 5, 0)])
def test_messages_before_a_truncation_are_not_lost(sent, each, room, whole):
    script = textwrap.dedent(CUT_OFF.format(path=sys.path, sent=sent, each=each, room=room))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == ([str(whole), "refused", "still", "still", "clean"], "")
