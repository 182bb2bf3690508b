"""nodes.ethernet: the link reaches RUN/RUN from every order and after every death; frames arrive whole and in order."""

from __future__ import annotations

import random
from collections import deque

import pytest

from nodes.errors import GuestError
from nodes.ethernet import LinkState, QueueLayout, ReceiveQueue, TransmitQueue, next_state

RESET, INIT, READY, RUN = LinkState


def steps(pair):
    """What can happen next without a death: one of the sides follows the other's State."""
    a, b = pair
    return {(next_state(a, b), b), (a, next_state(b, a))} - {pair}


def test_every_order_ends_in_run_and_run_and_so_does_every_death():
    reached, waiting = set(), [(RESET, RESET)]
    while waiting:
        pair = waiting.pop()
        if pair in reached:
            continue
        reached.add(pair)
        a, b = pair
        waiting += [*steps(pair), (RESET, b), (a, RESET)]  # a side that dies, or is reset, has State 0
    assert len(reached) > 10
    ends = {pair: None for pair in reached if not steps(pair)}
    assert set(ends) == {(RUN, RUN)}

    def longest(pair, path=()):
        assert pair not in path, f"the States of {pair} come again: {path}"
        return max((1 + longest(each, (*path, pair)) for each in steps(pair)), default=0)

    assert max(map(longest, reached)) < 20


def test_a_side_that_is_not_initialised_waits_for_one_that_has_not_heard_of_the_reset():
    assert next_state(RESET, READY) is RESET
    assert next_state(RESET, RUN) is RESET
    assert next_state(INIT, RESET) is INIT
    assert next_state(RUN, RESET) is RESET


@pytest.mark.parametrize(
    ("section_bytes", "length"), [(1 << 20, 4096), (256 << 10, 1024), (64 << 10, 256), (8192, 32), (4096, 32)]
)
def test_the_layout_is_that_of_the_drivers(section_bytes, length):
    layout = QueueLayout.of(section_bytes)
    assert layout.length == length
    assert layout.available_at == 16 * length
    assert layout.used_at % 64 == 0
    assert layout.used_at >= 16 * length + 2 * (3 + length)
    assert layout.data_at >= layout.used_at + 6 + 8 * length


def test_a_section_that_is_too_small():
    with pytest.raises(GuestError, match="1024 bytes is too small for Ethernet"):
        QueueLayout.of(1024)


class QueuePair:
    """The queues of both sides, each with the rights that it has."""

    def __init__(self, section_bytes=8192):
        self.memory = [memoryview(bytearray(section_bytes)) for _ in range(2)]
        layout = QueueLayout.of(section_bytes)
        self.transmit = TransmitQueue(layout, self.memory[0], self.memory[1].toreadonly())
        self.receive = ReceiveQueue(layout, self.memory[1], self.memory[0].toreadonly())


@pytest.mark.parametrize("seed", range(10))
def test_frames_arrive_whole_in_order_and_their_room_comes_back(seed):
    draw, cable, sent, count = random.Random(seed), QueuePair(), deque(), 0
    for _ in range(3000):
        frame = draw.randbytes(draw.randint(60, 1514))
        if draw.random() < 0.6:
            if cable.transmit.send(frame):
                sent.append(frame)
        else:
            for received in cable.receive.receive():
                assert received == sent.popleft()
                count += 1
            assert not sent
    assert count > 500


def test_a_queue_that_is_full_refuses_and_takes_again():
    cable = QueuePair()
    frame = bytes(1000)
    held = 0
    while cable.transmit.send(frame):
        held += 1
    assert held == 7
    assert len(list(cable.receive.receive())) == 7
    assert cable.transmit.reclaim() == 7
    assert cable.transmit.send(frame)


def test_what_the_other_side_may_not_send():
    cable = QueuePair()
    cable.transmit.send(bytes(64))
    cable.memory[0][0:8] = (1 << 20).to_bytes(8, "little")
    with pytest.raises(GuestError, match="outside its data"):
        list(cable.receive.receive())
    cable = QueuePair()
    cable.transmit.send(bytes(64))
    available = QueueLayout.of(8192).available_at
    cable.memory[0][available + 4 : available + 6] = b"\xff\xff"
    with pytest.raises(GuestError, match="descriptor 65535 of 32"):
        list(cable.receive.receive())
    cable = QueuePair()
    cable.memory[1][QueueLayout.of(8192).used_at + 2] = 1
    with pytest.raises(GuestError, match="which was not available"):
        cable.transmit.reclaim()
