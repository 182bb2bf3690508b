"""sim.engines.process.control: small messages between the coordinator and one worker."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engines.messages import Failed, Ping, Ready, Start, Stop, Stopped, Warned
from sim.engines.process.control import TEXT_MAX, Control

EVERY_KIND = [
    Start(123_456_789_012_345, 123_456_789_012_999),
    Stop(),
    Ping(1 << 40),
    Ready(),
    Stopped(),
    Warned("odd"),
    Failed("program", "ValueError: mine", "Traceback ..."),
]


@pytest.fixture
def ends():
    ours, theirs = Control.pair()
    yield ours, Control(theirs)
    ours.close()
    theirs.close()


@pytest.mark.parametrize("message", EVERY_KIND, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("sender", [0, 1])
def test_each_message_arrives_as_it_was_sent(ends, message, sender):
    assert ends[sender].send(message)
    assert ends[1 - sender].receive() == message
    assert ends[1 - sender].receive() is None


def test_messages_stay_apart_and_in_order(ends):
    for message in EVERY_KIND:
        ends[0].send(message)
    assert [ends[1].receive() for _ in EVERY_KIND] == EVERY_KIND


def test_the_end_is_an_eof_after_what_was_said_before(ends):
    ours, theirs = ends
    theirs.send(Stopped())
    theirs.close()
    assert ours.receive() == Stopped()
    for _ in range(2):
        with pytest.raises(EOFError):
            ours.receive()


def test_a_worker_that_dies_with_orders_unread_is_an_end_too(ends):
    ours, theirs = ends
    ours.send(Stop())
    theirs.close()
    with pytest.raises(EOFError):
        ours.receive()


def test_nothing_is_sent_to_a_closed_end(ends):
    ours, theirs = ends
    theirs.close()
    assert not ours.send(Ping(1))


def test_an_end_that_does_not_read_holds_up_no_other(ends):
    ours, theirs = ends
    sent = 0
    while ours.send(Ping(sent)):
        sent += 1
        assert sent < 1_000_000
    received = []
    while (message := theirs.receive()) is not None:
        received.append(message)
    assert received == [Ping(number) for number in range(sent)]
    assert ours.send(Ping(0))


@pytest.mark.parametrize("size", [TEXT_MAX, TEXT_MAX + 1, 100_000, 1_000_000])
@pytest.mark.parametrize("letter", ["x", "é", "\U0001f514", "\udc80"], ids=["1 byte", "2 bytes", "4 bytes", "none"])
def test_texts_of_any_length_and_kind_arrive_in_part(ends, size, letter):
    """A guest program may raise whatever it likes; that it did must come through."""
    ours, theirs = ends
    text = letter * size
    for message in (Failed("program", "first " + text, text + " last"), Warned("first " + text)):
        assert theirs.send(message)
        arrived = ours.receive()
        assert type(arrived) is type(message)
        assert (arrived.summary if isinstance(arrived, Failed) else arrived.text).startswith("first ")
        if isinstance(arrived, Failed):
            assert arrived.traceback.endswith(" last")
            assert len(arrived.traceback) > 1000


NO_MESSAGES = {
    "garbage": b"\xc1\xff\x00",
    "another kind": b"\x81\xa4type\xa4Nope",
    "no text": b"\x82\xa4type\xa6Warned\xa4text\xa2\xff\xfe",
    "a wrong type": b"\x82\xa4type\xa4Ping\xa6number\xa1x",
    "a missing field": b"\x81\xa4type\xa4Ping",
    "deep": b"\x82\xa4type\xa4Stop\xa1x" + b"\x91" * 60_000,
    "long": b"\x82\xa4type\xa6Warned\xa4text\xdb\x00\x01\x86\xa0" + b"x" * 100_000,
}


@pytest.mark.parametrize("kind", NO_MESSAGES)
def test_a_malformed_message_is_a_warning_and_harms_no_other(ends, kind):
    """Only a program that writes into its machine's descriptors can send such a thing: the run's events say so."""
    ours, theirs = ends
    theirs.socket.send(NO_MESSAGES[kind])
    theirs.send(Ready())
    warned = ours.receive()
    assert isinstance(warned, Warned)
    assert "bytes on the control socket are no message of ours" in warned.text
    assert ours.receive() == Ready()


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=10))
def test_no_bytes_bring_the_receiver_down(frames):
    ours, sock = Control.pair()
    with sock:
        for frame in frames:
            sock.send(frame)
        sock.send(b"\x81\xa4type\xa7Stopped")
        received = []
        while (message := ours.receive()) is not None:
            received.append(message)
        assert received[-1] == Stopped()
        assert len(received) - 1 == len(frames)
    ours.close()


def test_the_pair_is_private_to_the_two(ends):
    for end in ends:
        assert not end.socket.get_inheritable()
        assert end.socket.type & socket.SOCK_SEQPACKET == socket.SOCK_SEQPACKET
        assert end.fileno() == end.socket.fileno()
