"""sim.kernel.channel: messages with descriptors over a real socket; none is lost, none leaks."""

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

from nodes.wire.protocol import Decoder, Message
from sim.kernel.channel import DESCRIPTORS_MAX, Channel, Outbox


@pytest.fixture
def sockets():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def pipes():
    """Descriptors to send: each has an identity that survives the journey."""
    made = []

    def make(count):
        for _ in range(count):
            made.extend(os.pipe())
        return made[-2 * count :: 2]

    yield make
    for descriptor in made:
        os.close(descriptor)


def identity(descriptor):
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def read_all(channel, size=8):
    """(number, identities) of every message that is there, read as a client reads; closes what came."""
    messages = []
    while (received := channel.receive(size)) not in (None, (b"", [])):
        data, descriptors = received
        messages.append((data, [identity(descriptor) for descriptor in descriptors]))
        for descriptor in descriptors:
            os.close(descriptor)
    return messages


def send(sock, data, descriptors=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([data], rights)


# Receiving


def test_an_empty_socket_gives_none_and_its_end_gives_no_bytes(sockets):
    ours, theirs = sockets
    channel = Channel(ours)
    assert channel.receive(8) is None
    theirs.close()
    assert channel.receive(8) == (b"", [])


def test_a_connection_that_was_reset_has_ended(sockets):
    ours, theirs = sockets
    channel = Channel(ours)
    ours.send(b"unread")  # to close with unread data resets
    theirs.close()
    assert channel.receive(8) == (b"", [])


def test_received_descriptors_are_not_inherited(sockets, pipes):
    ours, theirs = sockets
    send(theirs, bytes(8), pipes(1))
    _, (descriptor,) = Channel(ours).receive(8)
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(descriptor)


@pytest.mark.parametrize("count", [0, 1, 2, 17, DESCRIPTORS_MAX])
def test_as_many_descriptors_as_the_kernel_passes_arrive_in_order(sockets, pipes, count):
    ours, theirs = sockets
    sent = pipes(count)
    send(theirs, bytes(8), sent)
    assert read_all(Channel(ours)) == [(bytes(8), [identity(descriptor) for descriptor in sent])]


@pytest.mark.parametrize("holder", [0, 1])
@pytest.mark.parametrize("cut", range(1, 8))
def test_a_message_in_two_pieces_has_its_descriptor_on_either(sockets, cut, holder):
    ours, theirs = sockets
    channel, decoder = Channel(ours), Decoder()
    wire = Message(7).encode()
    for at, piece in enumerate((wire[:cut], wire[cut:])):
        send(theirs, piece, [theirs.fileno()] if at == holder else [])
    messages = []
    while not messages:
        data, descriptors = channel.receive(decoder.missing_bytes)
        messages += decoder.feed(data, descriptors)
    ((number, (descriptor,)),) = messages
    assert number == 7
    os.close(descriptor)


CUT_OFF = """
    import os, resource, socket, sys
    sys.path[:0] = {path!r}
    from nodes.errors import RemoteProtocolError
    from sim.kernel.channel import Channel

    ours, theirs = socket.socketpair()
    pipe, more = os.pipe()
    socket.send_fds(theirs, [bytes(8)], [pipe] * {sent})
    channel = Channel(ours)
    before = os.listdir("/proc/self/fd")  # its own is the first free number
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + {room}, hard))
    try:
        print("received", channel.receive(8))
    except RemoteProtocolError as error:
        print("refused" if "ulimit -n" in str(error) else error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print("clean" if len(os.listdir("/proc/self/fd")) == len(before) else "leaked")
"""


@pytest.mark.parametrize(("sent", "room"), [(1, 0), (3, 0), (3, 1), (3, 2), (200, 5)])
def test_descriptors_that_were_cut_off_are_an_error_and_leak_nothing(sent, room):
    """A process that has ``room`` for fewer than come: in a child, for the limit is one of the process."""
    script = textwrap.dedent(CUT_OFF.format(path=sys.path, sent=sent, room=room))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["refused", "clean"], "")


# Sending


def test_a_message_is_its_bytes_and_its_descriptor(sockets, pipes):
    ours, theirs = sockets
    (descriptor,) = pipes(1)
    outbox = Outbox(ours, limit=10)
    assert outbox.put(Message(-1, (descriptor,)))
    assert outbox.put(Message(7))
    assert outbox.flush()
    assert len(outbox) == 0
    messages = read_all(Channel(theirs))
    assert messages == [(b"\xff" * 8, [identity(descriptor)]), (Message(7).encode(), [])]


def test_a_client_that_does_not_read_takes_278_messages_then_the_rest_in_order(sockets, pipes):
    """The figure is the kernel's for a socket of 212,992 bytes, a message being a 768-byte buffer to it."""
    ours, theirs = sockets
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992 // 2)  # the kernel doubles it
    kinds = pipes(3)
    outbox = Outbox(ours, limit=1000)
    sent = [Message(number, (kinds[number % 3],) if number % 4 else ()) for number in range(1000)]
    assert all(outbox.put(message) for message in sent)
    assert not outbox.put(Message(1000))
    assert not outbox.flush()
    assert 1000 - len(outbox) == 278
    assert not outbox.throttled
    channel = Channel(theirs)
    read = []
    while len(outbox):
        read += read_all(channel)
        outbox.flush()
    read += read_all(channel)
    expected = [(message.encode(), [identity(d) for d in message.descriptors]) for message in sent]
    assert read == expected


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400)), max_size=12))
def test_every_interleaving_of_reads_keeps_the_order(turns):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        channel, outbox = Channel(theirs), Outbox(ours, limit=10_000)
        put, read = 0, []
        for kind, count in turns:
            if kind == 0:
                for _ in range(count):
                    outbox.put(Message(put, (ours.fileno(),) if put % 3 == 0 else ()))
                    put += 1
            elif kind == 1:
                outbox.flush()
            else:
                for _ in range(count):
                    if (received := channel.receive(8)) is not None:
                        read.append((received[0], len(received[1])))
                        for descriptor in received[1]:
                            os.close(descriptor)
        while not outbox.flush():
            read += [(data, len(names)) for data, names in read_all(channel)]
        read += [(data, len(names)) for data, names in read_all(channel)]
        assert read == [(Message(number).encode(), int(number % 3 == 0)) for number in range(put)]


def test_an_outbox_has_a_limit_and_what_was_refused_is_not_in_it(sockets):
    outbox = Outbox(sockets[0], limit=2)
    assert [outbox.put(Message(number)) for number in range(4)] == [True, True, False, False]
    assert len(outbox) == 2


def test_a_broken_connection_is_an_error_without_a_signal(sockets):
    ours, theirs = sockets
    theirs.close()
    outbox = Outbox(ours, limit=2)
    outbox.put(Message(0))
    with pytest.raises(BrokenPipeError):
        outbox.flush()


class ScriptedSocket:
    """A socket whose ``sendmsg`` does what it is told to."""

    def __init__(self, *results):
        self.results = list(results)
        self.sent = []

    def sendmsg(self, buffers, rights, flags):
        assert flags & socket.MSG_NOSIGNAL
        result = self.results.pop(0)
        if isinstance(result, OSError):
            raise result
        self.sent.append((b"".join(buffers)[:result], [list(array.array("i", data)) for _, _, data in rights]))
        return result


def test_the_rest_of_a_message_that_was_cut_goes_first_and_without_its_descriptor():
    sock = ScriptedSocket(3, BlockingIOError(), 5, 8)
    outbox = Outbox(sock, limit=9)
    outbox.put(Message(-1, (77,)))
    outbox.put(Message(1))
    assert not outbox.flush()
    assert outbox.flush()
    assert sock.sent == [(b"\xff" * 3, [[77]]), (b"\xff" * 5, []), (Message(1).encode(), [])]


def test_too_many_descriptors_under_way_is_not_the_readers_fault():
    refusal = OSError(errno.ETOOMANYREFS, "too many references")
    sock = ScriptedSocket(refusal, refusal, 8)
    outbox = Outbox(sock, limit=9)
    outbox.put(Message(-1, (77,)))
    for _ in range(2):
        assert not outbox.flush()
        assert outbox.throttled
    assert outbox.flush()
    assert not outbox.throttled
    assert len(sock.sent) == 1
