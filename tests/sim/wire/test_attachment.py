"""sim.wire.attachment: a peer in this process, on one loop with a real server."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest

from nodes.errors import GuestError, RemoteProtocolError, UsageError
from nodes.wire.protocol import DIALECTS, LEGACY, Message
from sim.kernel.channel import Outbox
from sim.kernel.eventfd import COUNTER_MAX, signal
from sim.kernel.loop import Loop
from sim.kernel.memory import Region
from sim.wire import attachment as attachment_module
from sim.wire.admission import AdmissionRules
from sim.wire.attachment import Attachment
from sim.wire.server import IvshmemServer


class AttachmentSetup:
    """A loop, a server on it, and peers that attach; everything is closed at the end."""

    def __init__(self, path):
        self.path = path
        self.stack = contextlib.ExitStack()
        self.loop = Loop()
        self.stack.callback(self.loop.close)
        self.region = Region.create(4096, kind="memfd")
        self.stack.callback(self.region.close)

    def serve(self, vectors=2, **options):
        server = IvshmemServer(self.loop, self.path, self.region.descriptor, vectors=vectors, **options)
        self.stack.callback(server.close)
        return server

    def attach(self, vectors=8, *, meet=True, **options):
        told = {"say": self.said.append, "on_change": lambda change: self.said.append(str(change))}
        peer = Attachment(self.loop, self.path, vectors=vectors, **told, **options)
        self.stack.callback(peer.close)
        if meet:
            peer.meet()
        return peer

    said: list[str]

    def until(self, condition):
        while not condition():
            self.loop.step()


@pytest.fixture
def site(short_path):
    site = AttachmentSetup(short_path / "s")
    site.said = []
    with site.stack:
        yield site


def test_it_meets_all_peers_and_shares_their_memory(site):
    server = site.serve(vectors=3)
    first, second = site.attach(), site.attach()
    site.until(lambda: len(first.peers) == 2)
    for peer, number in ((first, 0), (second, 1)):
        assert (peer.peer, peer.peers, peer.own_vectors, peer.served) == (number, {0: 3, 1: 3}, 3, True)
    first.memory[100:103] = b"abc"
    assert bytes(second.memory[100:103]) == b"abc"
    assert len(first.memory) == site.region.size_bytes
    assert set(server.peers) == {0, 1}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
@pytest.mark.parametrize("vectors", [1, 2, 3])  # fewer than the server's, as many, more
def test_every_dialect_is_met_and_told(site, dialect, vectors):
    site.serve(dialect=dialect)
    kept = min(vectors, 2)
    peers = [site.attach(vectors=vectors) for _ in range(3)]
    assert [peer.dialect for peer in peers] == [dialect] * 3
    assert [peer.peers for peer in peers[2:]] == [dict.fromkeys(range(3), kept)]  # at once
    site.until(lambda: all(peer.peers == dict.fromkeys(range(3), kept) for peer in peers))
    peers[0].memory[:5] = b"hello"
    assert bytes(peers[2].memory[:5]) == b"hello"


def test_legacy_with_others_behind_the_own_id(site):
    """An ID that was given again is in the middle: peers above it come after the own eventfds."""
    site.serve(dialect=LEGACY, reuse_peers=True)
    peers = [site.attach(vectors=2) for _ in range(3)]
    peers[1].close()
    site.until(lambda: peers[2].peers == {0: 2, 2: 2})
    again = site.attach(vectors=2)
    assert (again.peer, again.peers) == (1, {0: 2, 1: 2, 2: 2})


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
def test_it_rings_and_hears(site, dialect):
    site.serve(dialect=dialect)
    heard = []
    first = site.attach(on_interrupt=lambda time_ns, *what: heard.append((time_ns > 0, *what)))
    second = site.attach()
    assert second.ring(0, 1)
    assert second.ring(0, 1)
    assert second.ring(1, 0)  # itself
    site.until(lambda: heard and second.unseen)
    assert heard == [(True, 1, 2)]  # two doorbells, one wake-up
    assert (first.unseen, second.unseen) == ({1: 2}, {0: 1})


def test_a_peer_that_is_not_there_cannot_be_rung(site):
    site.serve(vectors=2)
    peer = site.attach()
    with pytest.raises(GuestError, match="peer 7 is not there: expected one of 0"):
        peer.ring(7, 0)
    for vector in (2, -1):
        with pytest.raises(GuestError, match=rf"peer 0 has no vector {vector}: expected 0..1"):
            peer.ring(0, vector)


def test_a_full_counter_is_told(site):
    server = site.serve()
    peer = site.attach()
    other = site.attach()
    line = server.peers[0].eventfds[0].descriptor
    signal(line, COUNTER_MAX)
    assert not other.ring(0, 0)
    site.until(lambda: peer.unseen)
    assert other.ring(0, 0)


def test_it_keeps_no_more_vectors_than_it_has(site):
    site.serve(vectors=5)
    peer = site.attach(vectors=2)
    assert peer.peers == {0: 2}
    other = site.attach(vectors=5)
    site.until(lambda: len(site.said) == 3)
    assert sorted(site.said) == [  # three too many of each, each told of once
        "peer 1 has joined",
        "too many eventfds for peer 0, the device has 2 vectors",
        "too many eventfds for peer 1, the device has 2 vectors",
    ]
    other.close()


def test_joins_and_leaves_are_told(site):
    server = site.serve()
    peer = site.attach()
    site.attach()
    site.until(lambda: peer.peers == {0: 2, 1: 2})
    assert site.said == ["peer 1 has joined"]
    site.said.clear()
    third = site.attach()
    third.close()
    site.until(lambda: site.said.count("peer 2 has left") == 2)  # to both
    assert set(server.peers) == {0, 1}
    with pytest.raises(GuestError, match="peer 2 is not there: expected one of 0, 1"):
        peer.ring(2, 0)


def test_a_server_that_goes_is_told_and_doorbells_go_on(site):
    server = site.serve()
    first, second = site.attach(), site.attach()
    server.close()
    site.until(lambda: not (first.served or second.served))
    assert site.said[-1] == "the server has closed the connection; doorbells and interrupts go on without it"
    assert second.ring(0, 1)
    site.until(lambda: first.unseen)
    assert first.unseen == {1: 1}


def test_it_connects_again_when_asked_to(site, monkeypatch):
    monkeypatch.setattr(attachment_module, "RECONNECT_NS", 1_000_000)
    peer = site.attach(reconnect=True, meet=False)
    assert site.said.pop().endswith("No such file or directory; trying again every second")
    assert (peer.served, peer.peer, peer.peers, len(peer.memory)) == (False, None, {}, 0)
    server = site.serve(vectors=2)
    peer.meet()
    assert (peer.peer, peer.peers) == (0, {0: 2})
    server.close()
    site.until(lambda: not peer.served)
    assert site.said == ["the server has closed the connection; trying again every second"]
    assert (peer.peer, peer.peers) == (None, {})
    site.serve(vectors=3)
    peer.meet()
    assert (peer.peer, peer.peers, peer.own_vectors) == (0, {0: 3}, 3)
    assert peer.ring(0, 2)
    site.until(lambda: peer.unseen)


def test_a_client_that_is_refused_tries_again_when_asked_to(site, monkeypatch):
    monkeypatch.setattr(attachment_module, "RECONNECT_NS", 1_000_000)
    server = site.serve(rules=AdmissionRules(clients_max=1, refusal=Message(-87)))
    first, second = site.attach(), site.attach(reconnect=True, meet=False)
    site.until(lambda: site.said)
    tries = 0
    refused, site.said[:] = site.said[0], []

    def counted(original=second._connect):
        nonlocal tries
        tries += 1
        original()

    second._connect = counted
    site.until(lambda: tries == 3)
    assert "does not let this client in (too many, " in refused
    assert refused.endswith("; trying again every second")
    assert site.said == []  # told once
    first.close()
    second.meet()
    assert (second.peer, second.peers, list(server.peers)) == (1, {1: 2}, [1])


def test_closed_while_it_tries_again_it_does_not(site, monkeypatch):
    monkeypatch.setattr(attachment_module, "RECONNECT_NS", 1_000_000)
    peer = site.attach(reconnect=True, meet=False)
    tried_ns = time.monotonic_ns() + attachment_module.RECONNECT_NS
    peer.close()
    server = site.serve()
    joined = []
    site.loop.at(tried_ns, lambda: joined.append(set(server.peers)))  # after the next try, which was due before
    site.until(lambda: joined)
    site.attach()
    assert set(server.peers) == {0}


def test_no_server(site):
    with pytest.raises(UsageError, match="no server listens on"):
        site.attach()


def test_a_path_that_no_socket_can_have(site):
    site.path = site.path.parent / ("x" * 120)
    with pytest.raises(UsageError, match="may have 107 bytes"):
        site.attach(reconnect=True)


def test_a_server_without_eventfds_for_us_is_not_waited_for_for_ever(site, monkeypatch):
    monkeypatch.setattr(attachment_module, "DEAF_NS", 1_000_000)
    site.serve(vectors=0)
    peer = site.attach()
    assert (peer.peer, peer.own_vectors) == (0, 0)
    assert site.said == ["no eventfds of its own have come: no peer can interrupt this one"]


@pytest.fixture
def scripted(site):
    """A listener that sends given messages to a peer that attaches."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(site.path))
        listener.listen()

        def say(*messages):
            accepted, _ = listener.accept()
            site.stack.enter_context(accepted)
            outbox = Outbox(accepted, 100)
            for message in messages:
                outbox.put(message)
            assert outbox.flush()
            return accepted

        yield say
    site.path.unlink()


@pytest.mark.parametrize(
    ("messages", "missing"),
    [
        ([], "a version"),
        ([0], "its ID"),
        ([0, 3], "the shared memory"),
        ([3], "the shared memory after 3, the ID of a server of 2012 or a version that is not 0"),
    ],
)
def test_a_silent_server_is_given_up(site, scripted, monkeypatch, messages, missing):
    monkeypatch.setattr(attachment_module, "GREETING_NS", 20_000_000)
    peer = site.attach(meet=False)
    scripted(*map(Message, messages))
    with pytest.raises(RemoteProtocolError, match=f"is silent: expected {missing} within"):
        peer.meet()


def test_a_peer_that_stood_still_hears_what_was_said_before_it_gives_up(site, scripted, monkeypatch):
    monkeypatch.setattr(attachment_module, "GREETING_NS", 0)
    peer = site.attach(meet=False)
    scripted(Message(0), Message(3))
    with pytest.raises(RemoteProtocolError, match="is silent: expected the shared memory within"):
        peer.meet()


def test_a_server_that_errs_or_closes_in_its_greeting(site, scripted):
    for greeting, error in (
        ([1, 2], "version 1, expecting 0"),
        ([-87], "version -87, expecting 0: it does not let"),
    ):
        peer = site.attach(meet=False)
        scripted(*map(Message, greeting))
        with pytest.raises(RemoteProtocolError, match=error):
            peer.meet()
        peer.close()
    peer = site.attach(meet=False)
    scripted(Message(0)).close()
    with pytest.raises(RemoteProtocolError, match="closed the connection before it sent its ID"):
        peer.meet()


def test_closing_twice_is_no_error(site):
    server = site.serve()
    peer = site.attach()
    peer.close()
    peer.close()
    site.until(lambda: not server.peers)
