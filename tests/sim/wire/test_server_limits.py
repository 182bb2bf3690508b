"""sim.wire.server at its limits, and with a caller that decides which clients join."""

from __future__ import annotations

import errno
import os
import resource
import socket

import pytest

from nodes.errors import HostError
from nodes.wire.protocol import PEERS_MAX
from sim.kernel.eventfd import EventFd
from tests.serving import PATIENCE_S, Reader, lines_of


class Throttled:
    """An outbox whose kernel holds too many descriptors for a while, and then has no room either."""

    def __init__(self, peer, script):
        self.real, self.script, self.calls = peer.outbox, list(script), 0
        self.throttled = False
        self.limit = 0
        peer.outbox = self

    def __len__(self):
        return len(self.real)

    def put(self, message):
        return self.real.put(message)

    def put_batch(self, batch):
        return self.real.put_batch(batch)

    def flush(self):
        self.calls += 1
        what = self.script.pop(0) if self.script else "done"
        self.throttled = what == "throttled"
        return self.real.flush() if what == "done" else False


@pytest.mark.parametrize(
    "script",
    [
        ["throttled"],
        ["throttled"] * 3,
        ["full"],
        ["throttled", "full"],
        ["full", "throttled"],
        ["throttled", "full", "throttled", "full"],
    ],
    ids="-".join,
)
def test_a_delayed_message_is_sent_in_the_end(site, script):
    """Each cause is waited for in its way: room in the socket, or time; and neither by spinning."""
    reader = site.join()
    outbox = Throttled(site.server.peers[0], script)
    other = site.join()
    site.until(lambda: not outbox.script and not len(outbox))
    reader.read()
    assert set(reader.lines) == lines_of(0, 1)
    assert site.server._announcements.stuck == {}
    assert outbox.calls <= len(script) + 3
    other.close()
    site.until(lambda: site.gone == [(1, "left")])
    site.until(lambda: site.server.departed == [])


def test_a_throttled_client_does_not_pile_up_moments(site):
    site.join()
    outbox = Throttled(site.server.peers[0], ["throttled"] * 60)
    for _ in range(30):
        site.join()
    assert len(site.loop._moments) <= 2  # the next try, and the end of a short time slice
    site.until(lambda: not len(outbox))
    site.read_all()
    assert set(site.clients[0].lines) == lines_of(*range(31))


# Limits


def test_when_descriptors_run_out_accepting_pauses_and_resumes(site):
    """Clients that connect meanwhile wait in the backlog; nothing spins."""
    witness = site.join()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = site.raw()
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        site.idle()
        assert len(site.loop._moments) == 1  # it will try again, in a while
        assert list(site.server.peers) == [0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    site.until(lambda: 1 in site.server.peers)
    witness.read()
    assert set(witness.lines) == lines_of(0, 1)
    waiting.close()


@pytest.mark.parametrize("spare", [1, 2])
def test_a_client_without_eventfds_is_refused_and_others_stay(site, spare):
    witness = site.join()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    refused = site.raw()
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + spare, hard))
    try:
        site.idle()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    refused.settimeout(PATIENCE_S)
    assert refused.recv(8) == b""
    assert list(site.server.peers) == [0]
    assert site.server._admission._waiting == {}
    assert set(site.join().lines) == lines_of(0, 1)
    assert not witness.ended


def test_an_error_of_accept_that_is_none_of_these_is_raised(site, monkeypatch):
    def accept():
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(site.server._admission._listener, "accept", accept)
    with pytest.raises(OSError, match="broken"):
        site.server._admission._accept_all()


def test_when_all_ids_are_given_out_the_next_is_sent_away_and_others_stay(site):
    witness = site.join()
    site.server._server.next_peer = PEERS_MAX - 1
    last = site.join()
    assert last.client.peer == 65535
    refused = site.raw()
    refused.settimeout(PATIENCE_S)
    site.until(lambda: not site.server._admission._waiting and len(site.server.peers) == 2)
    for _ in range(3):
        site.idle()
    assert refused.recv(8) == b""
    site.read_all()
    assert not witness.ended
    assert not last.ended


# Those who decide


def test_clients_can_be_admitted_later_and_in_any_order(make_site):
    arrivals = []
    site = make_site(on_arrival=arrivals.append)
    socks = [site.raw() for _ in range(3)]
    site.until(lambda: len(arrivals) == 3)
    assert all(arrival.pid == os.getpid() and arrival.uid == os.getuid() for arrival in arrivals)
    joined = [site.server.join(arrivals[at], vectors).peer for at, vectors in ((2, 1), (0, 2), (1, 3))]
    assert joined == [0, 1, 2]
    reader = Reader(socks[1])
    reader.read()
    assert reader.client.peer == 2
    assert set(reader.lines) == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
    reader.close()


@pytest.mark.parametrize("farewell", [socket.socket.close, lambda sock: sock.send(b"x")], ids=["closed", "spoke"])
def test_a_client_that_left_before_it_was_admitted_is_no_peer(make_site, farewell):
    arrivals = []
    site = make_site(on_arrival=arrivals.append)
    sock = site.raw()
    site.until(lambda: bool(arrivals))
    farewell(sock)
    site.until(lambda: not site.server._admission._waiting)
    assert site.server.join(arrivals[0], 2) is None
    assert site.server.peers == {}
    assert site.server._server.next_peer == 0


def test_clients_that_join_together_are_told_as_if_one_after_the_other(make_site):
    arrivals = []
    site = make_site(on_arrival=arrivals.append)
    early, *clients = [Reader(site.raw()) for _ in range(5)]
    for reader in (early, *clients):
        site.stack.callback(reader.close)
    site.until(lambda: len(arrivals) == 5)
    site.server.join(arrivals[0], 2)
    clients.pop(1).close()
    site.until(lambda: len(site.server._admission._waiting) == 3)
    joined = site.server.join_all([(arrival, 3) for arrival in arrivals[1:]])
    assert [peer and peer.peer for peer in joined] == [1, None, 2, 3]
    site.catch_up(early, *clients)
    for reader in (early, *clients):
        assert list(reader.lines) == [(0, 0), (0, 1), *((peer, vector) for peer in (1, 2, 3) for vector in range(3))]
        assert reader.memory is not None
    assert [reader.client.peer for reader in clients] == [1, 2, 3]


def test_one_of_many_clients_without_eventfds_is_reported_and_others_join(make_site, monkeypatch):
    arrivals, refused = [], []
    site = make_site(on_arrival=arrivals.append, on_refuse=lambda arrival, reason: refused.append(arrival))
    clients = [Reader(site.raw()) for _ in range(3)]
    for reader in clients:
        site.stack.callback(reader.close)
    site.until(lambda: len(arrivals) == 3)
    real, made = EventFd.create, []

    def create():
        made.append(None)
        if len(made) == 4:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real()

    monkeypatch.setattr(EventFd, "create", create)
    with pytest.raises(HostError, match="Too many open files"):
        site.server.join_all([(arrival, 2) for arrival in arrivals])
    assert refused == [arrivals[1]]
    site.catch_up(clients[0], clients[2])
    clients[1].read()
    assert clients[1].ended
    assert set(clients[0].lines) == set(clients[2].lines) == lines_of(0, 1)


def test_peers_that_leave_together_are_announced_together(make_site):
    """Each leave is one message, but no client that has left is told of another."""
    site = make_site(vectors=1)
    witness = site.join()
    socks = [site.raw() for _ in range(20)]
    site.until(lambda: len(site.server.peers) == 21)
    site.idle()
    sent = site.server.sent
    for sock in socks:
        sock.close()
    site.until(lambda: len(site.gone) == 20)
    site.idle()
    assert site.server.sent == sent + 20
    site.catch_up(witness)
    assert sorted(witness.left) == list(range(1, 21))


def test_join_and_leave_are_told_in_that_order(make_site):
    told = []
    site = make_site(
        on_join=lambda peer: told.append(("join", peer.peer)),
        on_leave=lambda peer, why: told.append(("leave", peer.peer)),
    )
    site.raw().close()
    site.until(lambda: len(told) == 2)
    assert told == [("join", 0), ("leave", 0)]


def test_a_lack_of_descriptors_is_raised_by_join(make_site, monkeypatch):
    arrivals = []
    site = make_site(on_arrival=arrivals.append)
    site.raw()
    site.until(lambda: bool(arrivals))

    def exhausted(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "eventfd", exhausted)
    with pytest.raises(HostError, match="Too many open files"):
        site.server.join(arrivals[0], 2)


def test_eventfds_of_a_peer_that_left_in_its_greeting_stay_open_until_all_are_told(make_site):
    """Peer 0, which has been waited for, is told in full before peer 1 is told at all."""
    arrivals = []
    site = make_site(on_arrival=arrivals.append)
    clients = [Reader(site.raw()) for _ in range(2)]
    for client in clients:
        site.stack.callback(client.close)
    site.until(lambda: len(arrivals) == 2)
    for arrival in arrivals:
        site.server.join(arrival, 2)
    site.catch_up(*clients)
    sock = site.raw()
    site.until(lambda: len(arrivals) == 3)
    sock.close()
    site.server._announcements.sticks(site.server.peers[0], "full")
    site.server.join(arrivals[2], 2)
    assert [peer for peer, _ in site.gone] == [2]
    site.server._flush(site.server.peers[0])  # as when there is room again
    site.idle()
    assert site.server.departed == []
    for client in clients:
        client.read()
        assert client.left == [2]
        assert set(client.lines) == lines_of(0, 1)
