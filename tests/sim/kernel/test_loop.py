"""sim.kernel.loop: descriptors and moments, one at a time."""

from __future__ import annotations

import os
import socket
import time

import pytest

from sim.kernel.loop import Loop

PATIENCE_NS = 10_000_000_000


@pytest.fixture
def loop():
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def now(delay_ns=0):
    return time.monotonic_ns() + delay_ns


def patience():
    """A deadline that only a failure reaches."""
    return now(PATIENCE_NS)


def test_readable_is_called_for_bytes_and_for_the_end(loop, pair):
    ours, theirs = pair
    heard = []
    loop.add(ours, lambda: heard.append(ours.recv(9)))
    theirs.send(b"one")
    loop.step(patience())
    theirs.close()
    loop.step(patience())
    assert heard == [b"one", b""]


def test_writable_is_called_only_if_asked_for(loop, pair):
    ours, _ = pair
    heard = []
    loop.add(ours, lambda: heard.append("readable"), writable=lambda: heard.append("writable"))
    loop.step(patience())
    assert heard == ["writable"]
    loop.add(ours, lambda: heard.append("readable"))  # replaces
    loop.step(now())
    assert heard == ["writable"]


def test_writable_comes_before_readable(loop, pair):
    ours, theirs = pair
    heard = []
    theirs.send(b"x")
    loop.add(ours, lambda: heard.append("readable"), writable=lambda: heard.append("writable"))
    loop.step(patience())
    assert heard == ["writable", "readable"]


def test_a_bare_number_will_do(loop):
    eventfd = os.eventfd(1)
    heard = []
    loop.add(eventfd, lambda: heard.append(os.eventfd_read(eventfd)))
    loop.step(patience())
    loop.remove(eventfd)
    os.close(eventfd)
    assert heard == [1]


def test_a_removed_file_is_not_called_and_removing_twice_is_no_error(loop, pair):
    ours, theirs = pair
    loop.add(ours, lambda: pytest.fail("it was removed"))
    loop.remove(ours)
    loop.remove(ours)
    theirs.send(b"x")
    loop.step(now())


def test_a_descriptor_removed_in_the_same_step_is_not_called(loop):
    pairs = [socket.socketpair() for _ in range(2)]
    heard = []

    def take(mine, other):
        heard.append(mine)
        loop.remove(pairs[other][0])

    for at in range(2):
        loop.add(pairs[at][0], lambda at=at: take(at, 1 - at))
        pairs[at][1].send(b"x")
    loop.step(patience())
    assert len(heard) == 1
    for sock in (sock for pair in pairs for sock in pair):
        sock.close()


def test_a_number_reused_in_the_same_step_is_not_mistaken(loop):
    """The first to be called closes the others and opens a new one, which gets a number of theirs."""
    pairs = [socket.socketpair() for _ in range(4)]
    called = []
    opened = []

    def take(at):
        called.append(at)
        if opened:
            return
        for other, (near, far) in enumerate(pairs):
            if other != at:
                loop.remove(near)
                near.close()
                far.close()
        opened.append(os.eventfd(0))
        loop.add(opened[0], lambda: called.append("somebody else"))

    for at, (near, far) in enumerate(pairs):
        loop.add(near, lambda at=at: take(at))
        far.send(b"x")
    numbers = [near.fileno() for near, _ in pairs]
    loop.step(patience())
    assert len(called) == 1
    assert opened[0] in numbers
    loop.remove(opened[0])
    os.close(opened[0])
    for near, far in pairs:
        near.close()
        far.close()


def test_a_callback_that_closes_the_loop_is_the_last_one(loop):
    pairs = [socket.socketpair() for _ in range(2)]
    called = []

    def end():
        called.append(True)
        loop.close()

    for near, far in pairs:
        loop.add(near, end)
        far.send(b"x")
    loop.at(now(), lambda: called.append("moment"))
    loop.step(patience())
    assert called == [True]
    for sock in (sock for pair in pairs for sock in pair):
        sock.close()


def test_moments_come_in_their_order_and_never_early(loop):
    came = []
    begun = now()
    for delay_ns in (3_000_000, 1_000_000, 2_000_000, 1_000_000):
        loop.at(begun + delay_ns, lambda delay_ns=delay_ns: came.append((delay_ns, now() - begun)))
    while len(came) < 4:
        loop.step(patience())
    assert [delay for delay, _ in came] == sorted(delay for delay, _ in came)
    assert all(at >= delay for delay, at in came)


def test_moments_of_the_same_time_come_in_the_order_they_were_asked_for(loop):
    came, moment = [], now()
    for at in range(5):
        loop.at(moment, lambda at=at: came.append(at))
    loop.step(patience())
    assert came == [0, 1, 2, 3, 4]


def test_a_moment_that_asks_for_the_next_one_does_not_hold_the_loop(loop):
    came = []

    def again():
        came.append(True)
        loop.at(now(1), again)

    loop.at(now(), again)
    loop.step(patience())
    assert len(came) == 1


def test_a_step_ends_at_its_deadline_when_nothing_happens(loop, pair):
    loop.add(pair[0], lambda: pytest.fail("nothing was sent"))
    deadline_ns = now(2_000_000)
    loop.step(deadline_ns)
    assert now() >= deadline_ns


def test_a_later_moment_does_not_come_at_the_deadline(loop):
    loop.at(patience(), lambda: pytest.fail("too early"))
    loop.step(now())


def test_a_callback_that_raises_leaves_the_loop_usable(loop, pair):
    ours, theirs = pair
    came = []

    def fail():
        raise ValueError("mine")

    loop.at(now(), fail)
    with pytest.raises(ValueError, match="mine"):
        loop.step(patience())
    loop.add(ours, lambda: came.append(ours.recv(1)))
    theirs.send(b"x")
    loop.step(patience())
    assert came == [b"x"]
