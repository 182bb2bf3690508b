"""sim.telemetry: snapshots for every subscriber, and nothing but snapshots."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.errors import UsageError
from sim.telemetry import Group, Publisher, RecentEvent, Snapshot, Subscriber, following, running
from sim.telemetry.publisher import GREETING, READY, RECEIVED_BYTES_MAX, SUBSCRIBERS_MAX
from sim.telemetry.subscriber import MESSAGE_BYTES_MAX
from tests.samples import examples

PATIENCE_S = 60.0


def snapshot(number):
    return Snapshot(
        number=number,
        time_ns=123_456_789_012_345,
        phase="running",
        machines=3,
        up=2,
        start_ns=1,
        stop_ns=None,
        heartbeats_late=0,
        groups={"storm": Group(3, 2, 10, 9, 8, 1)},
    )


@pytest.fixture
def path(short_path):
    return short_path / "telemetry"


@pytest.fixture
def publisher(path):
    with Publisher(path) as made:
        yield made


def subscribe(publisher):
    """A subscriber to whom something has come: before that, what is published is lost to it, unnoticed."""
    subscriber = Subscriber(publisher.endpoint)
    deadline = time.monotonic() + PATIENCE_S
    while subscriber.receive(0.01) is None:
        assert time.monotonic() < deadline, "nothing ever came"
        publisher.send(publisher._encode(snapshot(0)))
    # What else is on its way comes before this one.
    last = msgspec.structs.replace(snapshot(0), title="the last")
    publisher.send(publisher._encode(last))
    while receive(subscriber) != last:
        pass
    return subscriber


@pytest.fixture
def subscriber(publisher):
    with subscribe(publisher) as made:
        yield made


def receive(subscriber):
    """The snapshot that comes next."""
    deadline = time.monotonic() + PATIENCE_S
    while (received := subscriber.receive(0.1)) is None:
        assert time.monotonic() < deadline, "nothing came"
    return received


def test_a_snapshot_arrives_as_it_was_published(publisher, subscriber):
    publisher.publish(snapshot(1))
    assert receive(subscriber) == snapshot(1)
    assert (publisher.published, subscriber.lost) == (1, 0)


def test_several_may_look(publisher, subscriber):
    with subscribe(publisher) as second:
        publisher.publish(snapshot(5))
        assert receive(subscriber).number in (0, 5)
        assert receive(second) == snapshot(5)


def test_nothing_in_time_is_none(subscriber):
    assert subscriber.receive(0.0) is None


@pytest.mark.parametrize(
    ("numbers", "lost"), [([1, 2, 3], 0), ([1, 3], 1), ([5, 15, 16], 4 + 9), ([1, 2, 2, 1], 0), ([3, 1, 2], 2)]
)
def test_snapshots_that_never_came_are_counted(publisher, subscriber, numbers, lost):
    for number in numbers:
        publisher.publish(snapshot(number))
        assert receive(subscriber).number == number
    assert subscriber.lost == lost


def encoded(**changes):
    return msgspec.msgpack.encode(msgspec.to_builtins(snapshot(1)) | changes)


def test_what_an_older_or_a_newer_version_tells_is_understood(publisher, subscriber):
    """Fields that are new have defaults, and those that one does not know are left out."""
    told = msgspec.to_builtins(snapshot(1))
    older = {key: told[key] for key in told if key not in ("title", "path", "happened", "latency_ns")}
    publisher.send(msgspec.msgpack.encode(older))
    assert receive(subscriber) == snapshot(1)
    newer = {"title": "A title", "happened": [{"time_ns": 1, "kind": "action", "text": "kill"}], "mood": "good"}
    publisher.send(encoded(number=2, **newer))
    its = receive(subscriber)
    assert (its.title, its.happened) == ("A title", (RecentEvent(1, "action", "kill"),))


NO_SNAPSHOTS = {
    "empty": b"",
    "garbage": b"\xc1\x00\xff" * 100,
    "cut short": encoded()[:-1],
    "another type": msgspec.msgpack.encode([1, 2, 3]),
    "a field missing": msgspec.msgpack.encode({"number": 1}),
    "a field of another type": encoded(number="one"),
    "a group of another type": encoded(groups={"storm": 7}),
    "no text": encoded().replace(b"running", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9"),
    "deep": bytes([encoded()[0] + 1]) + b"\xa1x" + b"\x91" * 100_000,
}


@pytest.mark.parametrize("kind", NO_SNAPSHOTS)
def test_a_malformed_snapshot_counts_as_lost(publisher, subscriber, kind):
    publisher.publish(snapshot(1))
    publisher.send(NO_SNAPSHOTS[kind])
    publisher.publish(snapshot(3))
    assert [receive(subscriber).number for _ in range(2)] == [1, 3]
    assert subscriber.lost == 1


@settings(max_examples=examples(200))
@given(st.binary(max_size=300))
def test_no_frame_whatever_brings_the_reader_down(frame):
    """The decoder is all that stands between a frame and the reader."""
    frames = [frame]

    class Socket:
        def poll(self, timeout_ms):
            return bool(frames)

        def recv(self):
            return frames.pop()

    reader = object.__new__(Subscriber)
    reader._socket, reader._decode = Socket(), msgspec.msgpack.Decoder(Snapshot).decode
    reader._last, reader.lost = -1, 0
    assert reader.receive(0) is None or reader._last >= 0


def test_a_frame_that_is_too_large_is_not_even_taken_in(publisher, subscriber):
    """The library ends that connection; the publisher and other subscribers are not affected."""
    publisher.send(bytes(MESSAGE_BYTES_MAX + 1))
    assert subscriber.receive(0.1) is None
    with subscribe(publisher) as second:
        publisher.publish(snapshot(2))
        assert receive(second) == snapshot(2)


def test_a_subscriber_that_does_not_read_delays_no_other(publisher, subscriber):
    count = 5000
    for number in range(1, count + 1):
        publisher.publish(snapshot(number))
    assert publisher.published == count
    numbers = []
    while (received := subscriber.receive(0.2)) is not None:
        numbers.append(received.number)
    assert numbers == sorted(numbers)
    assert subscriber.lost + len(numbers) <= count


def test_a_follower_gets_every_snapshot(publisher):
    taken = []
    with following(publisher.endpoint, lambda its, lost: taken.append((its.number, lost))):
        deadline = time.monotonic() + PATIENCE_S
        while not taken:  # before that, what is published is lost to it, unnoticed
            assert time.monotonic() < deadline
            publisher.publish(snapshot(0))
            time.sleep(0.001)
        for number in (1, 2, 5):
            publisher.publish(snapshot(number))
        while taken[-1][0] != 5:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert [told for told in taken if told[0]] == [(1, 0), (2, 0), (5, 2)]
    publisher.publish(snapshot(6))
    assert taken[-1] == (5, 2)


def test_following_ends_with_the_run(publisher):
    with pytest.raises(RuntimeError, match="mine"), following(publisher.endpoint, print):
        raise RuntimeError("mine")


def test_without_a_subscriber_nothing_waits(publisher):
    for number in range(1000):
        publisher.publish(snapshot(number))


def test_the_file_is_gone_afterwards(path):
    publisher = Publisher(path)
    assert path.is_socket()
    publisher.close()
    assert not path.exists()


def test_a_subscriber_leaves_no_file_and_may_be_the_last_to_go(path):
    publisher = Publisher(path)
    subscriber = Subscriber(publisher.endpoint)
    publisher.close()
    assert subscriber.receive(0.0) is None
    subscriber.close()
    assert os.listdir(path.parent) == []


def test_an_early_subscriber_waits(path):
    with Subscriber(f"ipc://{path}") as subscriber:
        assert subscriber.receive(0.0) is None
        with Publisher(path) as publisher:
            deadline = time.monotonic() + PATIENCE_S
            while subscriber.receive(0.01) is None:
                assert time.monotonic() < deadline
                publisher.publish(snapshot(1))


@pytest.mark.parametrize("name", ["missing/telemetry", "t" * 120, "t" * 300], ids=["no directory", "long", "longer"])
def test_a_place_that_cannot_be_is_said(short_path, name):
    with pytest.raises(UsageError, match="cannot publish"):
        Publisher(short_path / name)


def test_only_runs_that_publish_are_found(path):
    with Publisher(path) as publisher:
        (found,) = running([path, path.parent / "." / path.name, path.parent / "none", path.parent])
        assert found.endpoint == publisher.endpoint
        assert found.held_by(os.getpid())
        assert not found.held_by(os.getppid())
    assert running([path]) == []


def test_a_socket_of_another_user_is_ignored(path, monkeypatch):
    with Publisher(path):
        monkeypatch.setattr(os, "getuid", lambda: 4242)
        assert running([path]) == []


# Hostile subscribers


def connect(publisher):
    made = socket.socket(socket.AF_UNIX)
    made.connect(publisher.endpoint.removeprefix("ipc://"))
    return made


def everything(connection):
    """All that has come so far, and whether the publisher has closed the connection."""
    connection.setblocking(False)
    data = b""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while chunk := connection.recv(1 << 16):
            data += chunk
        return data, True
    return data, False


PEER = GREETING + READY.replace(b"PUB", b"SUB")


@pytest.mark.parametrize("step", [1, 7, 63, 64, 65, len(PEER)])
def test_nothing_is_published_to_a_subscriber_before_its_ready_command(publisher, step):
    with connect(publisher) as connection:
        for at in range(0, len(PEER), step):
            publisher.publish(snapshot(1))
            assert everything(connection)[0] in (b"", GREETING + READY)
            connection.send(PEER[at : at + step])
        publisher.publish(snapshot(2))
        assert everything(connection)[0].endswith(msgspec.msgpack.encode(snapshot(2)))


def test_a_flood_of_subscriptions_ends_the_subscriber_and_nothing_else(publisher, subscriber):
    """Case 36: what a subscriber can make the publisher read and keep is bounded."""
    with zmq.Context() as context, context.socket(zmq.XSUB) as flood:
        flood.setsockopt(zmq.LINGER, 0)
        flood.setsockopt(zmq.RECONNECT_IVL, -1)  # it does not come back
        flood.connect(publisher.endpoint)
        for number in range(20_000):  # 4 MB, which are sent as soon as it is connected
            flood.send(b"\x01" + number.to_bytes(4, "big") * 50)
        deadline = time.monotonic() + PATIENCE_S
        has_come = False
        while not has_come or len(publisher._subscribers) > 1:
            publisher.publish(snapshot(1))
            assert sum(len(each._received) for each in publisher._subscribers) <= 2 * RECEIVED_BYTES_MAX
            has_come |= len(publisher._subscribers) > 1
            assert time.monotonic() < deadline, "it was not disconnected"
            time.sleep(0.001)
    publisher.publish(snapshot(2))
    while (received := receive(subscriber)).number != 2:
        pass
    assert received == snapshot(2)


def test_a_subscriber_that_sends_too_much_is_disconnected(publisher, subscriber):
    with connect(publisher) as connection:
        connection.send(PEER + bytes(RECEIVED_BYTES_MAX - len(PEER)))
        publisher.publish(snapshot(1))
        assert not everything(connection)[1]
        connection.send(b"\0")
        publisher.publish(snapshot(2))
        publisher.publish(snapshot(3))
        with pytest.raises(OSError):  # noqa: PT011  (reset, or a pipe without a reader)
            connection.send(b"\0")
    assert [receive(subscriber).number for _ in range(3)] == [1, 2, 3]


def test_more_than_it_takes_are_disconnected_and_one_that_leaves_makes_room(publisher, subscriber):
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(2 * SUBSCRIBERS_MAX):
            connections.append(stack.enter_context(connect(publisher)))
            publisher.publish(snapshot(1))
        closed = [everything(connection)[1] for connection in connections]
        assert closed == [False] * (SUBSCRIBERS_MAX - 1) + [True] * (SUBSCRIBERS_MAX + 1)
        connections[0].close()
        publisher.publish(snapshot(2))
        late = stack.enter_context(connect(publisher))
        publisher.publish(snapshot(3))
        assert everything(late) == (GREETING + READY, False)


def test_one_that_does_not_read_is_kept_one_snapshot_and_no_more(publisher):
    message = bytes(1 << 20)
    with connect(publisher) as connection:
        connection.send(PEER)
        for _ in range(5):
            publisher.send(message)
        (held,) = (len(each._unsent) for each in publisher._subscribers)
        assert 0 < held <= len(message) + 9
