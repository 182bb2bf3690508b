"""sim.wire.server: real sockets, in this process; clients that behave, and clients that do not."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time

import pytest

from nodes.wire.protocol import LEGACY, V0_SHM_LAST, Message
from sim.kernel.eventfd import drain, signal
from sim.wire import server as server_module
from sim.wire.admission import AdmissionRules
from tests.serving import PATIENCE_S, Reader, SteppedServer, lines_of

# Clients that behave


def test_every_peer_is_announced_to_every_peer(site):
    clients = site.join(4)
    site.read_all()
    for peer, client in enumerate(clients):
        assert client.client.peer == peer
        assert set(client.lines) == lines_of(0, 1, 2, 3)
        assert client.left == []


def test_the_memory_is_the_servers_own(site):
    client = site.join()
    assert os.fstat(client.memory).st_ino == os.fstat(site.region.descriptor).st_ino


def test_a_doorbell_reaches_its_target_only(site):
    first, second = site.join(2)
    site.read_all()
    signal(first.lines[1, 1].descriptor, 1)
    assert drain(second.lines[1, 1].descriptor) == 1
    assert second.lines[1, 0].take() == 0
    assert site.server.peers[1].eventfds[1].take() == 0  # the server's copy is the same counter


@pytest.mark.parametrize("dialect", [V0_SHM_LAST])
def test_another_dialect_another_order(make_site, dialect):
    site = make_site(dialect=dialect)
    first, second = site.join(2)
    site.read_all()
    assert set(first.lines) == set(second.lines) == lines_of(0, 1)
    assert first.client.is_set_up
    assert second.client.is_set_up


def test_the_oldest_dialect_begins_with_the_id(make_site):
    site = make_site(dialect=LEGACY, vectors=1)
    sock = site.raw()
    site.until(lambda: 0 in site.server.peers)
    data, descriptors, *_ = socket.recv_fds(sock, 16, 4)
    for descriptor in descriptors:
        os.close(descriptor)
    assert struct.unpack("<2q", data) == (0, -1)


def test_a_leave_is_announced_to_those_present_and_once(site):
    first, second, third = site.join(3)
    site.read_all()
    second.close()
    site.until(lambda: site.gone == [(1, "left")])
    for client in (first, third):
        client.read()
        assert client.left == [1]
        assert set(client.lines) == lines_of(0, 2)
    assert site.server.departed == []


def test_a_dismissed_peer_is_disconnected_and_it_is_known_who_has_heard(site):
    """A peer has heard of a leave when it has read all, or has left; not when its server has closed its connection."""
    clients = site.join(5)
    site.read_all()
    dismissal = site.server.dismiss(1)
    assert dismissal is not None
    assert site.server.dismiss(1) is None
    assert site.gone == [(1, "left")]
    assert [peer.peer for peer in dismissal.unaware()] == [0, 2, 3, 4]  # none is told before the loop's next turn
    site.until(lambda: not site.server.is_waited_for)
    assert [peer.peer for peer in dismissal.unaware()] == [0, 2, 3, 4]
    clients[0].read()
    assert clients[0].left == [1]
    assert [peer.peer for peer in dismissal.unaware()] == [2, 3, 4]
    clients[2].close()
    site.until(lambda: len(site.gone) == 2)
    clients[3].read()
    assert [peer.peer for peer in dismissal.unaware()] == [4]
    for peer in site.server.retire():
        peer.close_eventfds()
    assert [peer.peer for peer in dismissal.unaware()] == [4]


def test_ids_are_not_given_again(site):
    for expected in range(3):
        client = site.join()
        assert client.client.peer == expected
        client.close()
        site.until(lambda expected=expected: len(site.gone) == expected + 1)
        site.clients.clear()


# Clients that do not


@pytest.mark.parametrize(
    ("farewell", "reason"),
    [
        (lambda sock: sock.send(b"x"), "spoke"),
        (lambda sock: sock.send(b"x" * 100_000), "spoke"),
        (lambda sock: sock.shutdown(socket.SHUT_WR), "left"),
        (lambda sock: sock.shutdown(socket.SHUT_RDWR), "left"),
        (lambda sock: sock.close(), "left"),
    ],
    ids=["a byte", "many bytes", "half closed", "shut down", "closed"],
)
def test_a_client_that_says_anything_at_all_has_left(site, farewell, reason):
    witness = site.join()
    sock = site.raw()
    site.until(lambda: 1 in site.server.peers)
    farewell(sock)
    site.until(lambda: site.gone == [(1, reason)])
    witness.read()
    assert witness.left == [1]
    if sock.fileno() >= 0:
        sock.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):
            while True:
                data, descriptors, *_ = socket.recv_fds(sock, 4096, 253)
                for descriptor in descriptors:
                    os.close(descriptor)
                if not data:
                    break


def test_descriptors_that_a_client_sends_are_closed(site):
    """The pipe's other end shows it: no process holds the end that was sent any more."""
    sock = site.raw()
    site.until(lambda: 0 in site.server.peers)
    read_end, write_end = os.pipe()
    for _ in range(5):
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(sock, [b"x"], [write_end] * 200)
    os.close(write_end)
    site.until(lambda: bool(site.gone))
    sock.close()
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_a_client_that_closes_before_its_greeting_does_no_harm(site):
    witness = site.join()
    for _ in range(20):
        site.raw().close()
    site.until(lambda: len(site.gone) == 20)
    witness.read()
    assert witness.left == list(range(1, 21))
    assert not witness.ended
    assert set(site.join().lines) == lines_of(0, 21)


def test_a_client_that_closes_between_two_messages_of_its_greeting(make_site):
    """It has more to be told than its socket holds, and closes in the middle."""
    site = make_site(vectors=200)
    witness = site.join()
    sock = site.raw()
    site.until(lambda: site.server._announcements.stuck)
    site.catch_up(witness)
    sock.close()
    site.until(lambda: [peer for peer, _ in site.gone] == [1])
    site.catch_up(witness)
    assert witness.left == [1]
    assert site.server.departed == []


@pytest.mark.parametrize("count", [2, 400])
def test_any_number_of_clients_may_vanish_together(make_site, count):
    """Each is told of the other's end, and cannot be told: no recursion, no message too many."""
    site = make_site(vectors=1)
    witness = site.join()
    site.server._flush, real = lambda peer: None, site.server._flush  # the greetings stay unread anyway
    socks = [site.raw() for _ in range(count)]
    site.until(lambda: len(site.server.peers) == count + 1)
    site.server._flush = real
    for sock in socks:
        sock.close()
    site.until(lambda: len(site.gone) == count)
    for _ in range(20):
        witness.read()
        site.idle()
    assert sorted(witness.left) == list(range(1, count + 1))
    assert list(site.server.peers) == [0]
    assert site.server.departed == []


def test_a_client_that_never_reads_is_dropped_at_its_limit_and_announced(make_site, monkeypatch):
    monkeypatch.setattr(server_module, "OUTBOX_SPARE", 50)
    site = make_site(vectors=20)
    witness = site.join()
    site.raw()
    site.until(lambda: 1 in site.server.peers)
    mute = site.server.peers[1]
    comers = 0
    while not site.gone:
        comer = site.join()
        comers += 1
        comer.close()
        site.until(lambda comer=comer: comer.client.peer not in site.server.peers)
        site.catch_up(witness)
        site.gone = [(peer, why) for peer, why in site.gone if why != "left"]
        assert comers < 100
    ((peer, why),) = site.gone
    assert peer == 1
    assert why == f"does not read: {len(mute.outbox)} messages wait for it"
    site.catch_up(witness)
    assert 1 in witness.left
    assert sorted(witness.left) == list(range(1, comers + 2))  # not a message was lost
    assert set(witness.lines) == lines_of(0, vectors=20)
    assert site.server.departed == []


def test_others_get_everything_while_one_does_not_read(make_site):
    site = make_site(vectors=100)
    mute = site.raw()
    site.until(lambda: 0 in site.server.peers)
    readers = site.join(4)
    site.read_all()
    for reader in readers:
        assert set(reader.lines) == lines_of(*range(5), vectors=100)
    assert site.server._announcements.stuck
    assert site.gone == []
    mute.close()
    site.until(lambda: [peer for peer, _ in site.gone] == [0])
    assert not site.server._announcements.stuck


def test_a_slow_client_gets_everything_once_it_reads(make_site):
    site = make_site(vectors=64)
    slow = Reader(site.raw())
    site.stack.callback(slow.close)
    site.until(lambda: 0 in site.server.peers)
    others = site.join(8)
    assert site.server._announcements.stuck
    others[0].close()
    site.until(lambda: len(site.gone) == 1)
    # Its messages carry eventfds of a client that has left: these stay open until it has them.
    assert [peer.peer for peer in site.server.departed] == [1]
    os.fstat(site.server.departed[0].eventfds[0].descriptor)
    site.read_all()
    slow.read()
    site.catch_up(slow)
    assert set(slow.lines) == lines_of(0, *range(2, 9), vectors=64)
    assert slow.left == [1]
    assert site.server.departed == []


def test_departed_eventfds_can_be_kept_to_be_counted(make_site):
    site = make_site(retain_departed=True)
    client, other = site.join(2)
    client.read()
    signal(client.lines[1, 0].descriptor, 5)
    other.close()
    site.until(lambda: site.gone == [(1, "left")])
    (departed,) = site.server.departed
    assert [eventfd.take() for eventfd in departed.eventfds] == [5, 0]


def test_closing_disconnects_everybody(site):
    clients = site.join(3)
    waiting = site.raw()
    site.server.close()
    site.read_all()
    assert all(client.ended for client in clients)
    assert site.server.departed == []
    waiting.close()


def test_a_storm_of_connections_from_another_thread(site):
    """While clients join and leave one after the other, those that stay are told of each once."""
    witness = site.join()
    count = 300

    def knock():
        for _ in range(count):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(os.fspath(site.server.path))

    thread = threading.Thread(target=knock)
    thread.start()
    deadline_ns = time.monotonic_ns() + round(PATIENCE_S * 1e9)
    while len(site.gone) < count and time.monotonic_ns() < deadline_ns:
        site.loop.step(time.monotonic_ns() + 1_000_000)
        witness.read()
    thread.join()
    site.catch_up(witness)
    assert sorted(witness.left) == list(range(1, count + 1))
    assert set(witness.lines) == lines_of(0)


def test_a_client_that_sent_data_is_distinguished_from_one_that_left(site):
    files = sorted(os.listdir("/proc/self/fd"))
    silent, speaker, sender = site.join(3)
    speaker.channel.socket.send(b"x")
    with contextlib.closing(speaker), contextlib.closing(sender):
        socket.send_fds(sender.channel.socket, [b"y"], [0, 1, 2])
    site.until(lambda: len(site.gone) == 2)
    assert sorted(site.gone) == [(1, "spoke"), (2, "spoke")]
    silent.close()
    site.until(lambda: (0, "left") in site.gone)
    assert sorted(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("admits", [True, False])
def test_only_certain_users_are_let_in(short_path, admits):
    refused = []
    uids = (os.getuid() + 1, os.getuid() + 2, *[os.getuid()] * admits)
    rules = AdmissionRules(uids=uids, refusal=Message(-87))
    options = {"rules": rules, "on_refuse": lambda arrival, why: refused.append(why)}
    site = SteppedServer(short_path / "s", **options)
    with site.stack:
        if admits:
            assert site.join().client.peer == 0
            return
        visitor = site.raw()
        site.until(lambda: refused)
        assert visitor.recv(16) == Message(-87).encode()
        assert refused == [f"expected a process of user {uids[0]} or {uids[1]}"]
