"""nodes.wire.protocol: the decoder gives the same messages however the bytes were cut."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.wire.protocol import DIALECTS, LEGACY, MEMORY, V0, V0_SHM_LAST, Decoder, Message, Step

MESSAGES = (Message(0), Message(-1), Message(65535))
STREAM = b"".join(message.encode() for message in MESSAGES)

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)


def expected(numbers, pieces):
    """Descriptors of one piece belong to the message that holds the piece's last byte."""
    carried = [[] for _ in numbers]
    end = 0
    for data, descriptors in pieces:
        end += len(data)
        if descriptors:
            carried[(end - 1) // 8] += descriptors
    return [Message(number, tuple(own)) for number, own in zip(numbers, carried, strict=True)]


def decode(pieces):
    decoder = Decoder()
    messages = [message for data, descriptors in pieces for message in decoder.feed(data, descriptors)]
    return messages, list(decoder.unclaimed())


@pytest.mark.parametrize(
    ("number", "wire"),
    [
        (0, "0000000000000000"),
        (1, "0100000000000000"),
        (MEMORY, "ffffffffffffffff"),
        (65535, "ffff000000000000"),
        (-(1 << 63), "0000000000000080"),
    ],
)
def test_a_message_is_a_signed_little_endian_64_bit_number(number, wire):
    assert Message(number).encode().hex() == wire
    assert decode([(bytes.fromhex(wire), ())]) == ([Message(number)], [])


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_every_cut_with_descriptors_on_any_piece(pieces):
    for cuts in itertools.combinations(range(1, len(STREAM)), pieces - 1):
        edges = (0, *cuts, len(STREAM))
        for holder in range(pieces):
            read = [
                (STREAM[start:stop], ["fd"] if at == holder else [])
                for at, (start, stop) in enumerate(itertools.pairwise(edges))
            ]
            assert decode(read) == (expected([message.number for message in MESSAGES], read), [])


@given(st.data())
def test_any_cutting_of_any_messages(data):
    numbers = data.draw(st.lists(NUMBERS, min_size=1, max_size=8))
    stream = struct.pack(f"<{len(numbers)}q", *numbers)
    cuts = data.draw(st.sets(st.integers(1, len(stream) - 1)))
    names = itertools.count()
    pieces = [
        (stream[start:stop], [next(names) for _ in range(data.draw(st.integers(0, 3)))])
        for start, stop in itertools.pairwise((0, *sorted(cuts), len(stream)))
    ]
    assert decode(pieces) == (expected(numbers, pieces), [])


@pytest.mark.parametrize("size", range(1, 8))
def test_a_cut_message_keeps_its_descriptors_for_the_caller(size):
    decoder = Decoder()
    assert decoder.feed(STREAM[:size], ("early", "late")) == []
    assert decoder.missing_bytes == 8 - size
    assert list(decoder.unclaimed()) == ["early", "late"]
    assert list(decoder.unclaimed()) == []


def test_descriptors_of_a_piece_that_ends_within_a_message_wait_for_its_end():
    decoder = Decoder()
    assert decoder.feed(STREAM[:12], ["fd"]) == [Message(0)]
    assert decoder.feed(STREAM[12:16]) == [Message(-1, ("fd",))]


def test_reading_what_is_missing_never_joins_two_messages():
    decoder, at = Decoder(), 0
    for size in itertools.cycle((3, 8, 1)):
        piece = STREAM[at : at + min(size, decoder.missing_bytes)]
        at += len(piece)
        assert len(decoder.feed(piece)) <= 1
        if at == len(STREAM):
            break
    assert decoder.missing_bytes == 8


@pytest.mark.parametrize(
    ("dialect", "steps"),
    [
        (V0, "VERSION ID MEMORY ANNOUNCE PEERS OWN"),
        (LEGACY, "ID MEMORY PEERS_AND_OWN ANNOUNCE"),
        (V0_SHM_LAST, "VERSION ID ANNOUNCE PEERS OWN MEMORY"),
    ],
)
def test_the_dialects_are_their_orders(dialect, steps):
    assert dialect.steps == tuple(Step[step] for step in steps.split())
    assert DIALECTS[dialect.name] is dialect
