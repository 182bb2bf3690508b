"""Seeded nonsense, both ways: hostile servers against our client, hostile clients against our server.

IVSIM_FUZZ is how many messages each test sends; `--hypothesis-seed` repeats a session.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct

import pytest

from nodes.errors import RemoteProtocolError
from nodes.wire.client import Client, Ignored, MemoryShared, PeerLeft, VectorConnected
from sim.kernel.channel import Channel
from sim.kernel.eventfd import EventFd
from sim.kernel.memory import map_region
from tests.serving import lines_of

MESSAGES = int(os.environ.get("IVSIM_FUZZ", "3000"))
NUMBERS = [0, 1, 2, 3, 65535, 65536, -1, -2, -(1 << 63), (1 << 63) - 1]


def make(kind, token):
    """A descriptor of that kind; an eventfd holds its token."""
    match kind:
        case "eventfd":
            return os.eventfd(token, os.EFD_CLOEXEC | (os.EFD_NONBLOCK if token % 2 else 0))
        case "memory" | "odd memory":
            descriptor = os.memfd_create("fuzz")
            os.ftruncate(descriptor, 4096 if kind == "memory" else 6000)
            return descriptor
        case "pipe":
            ends = os.pipe()
            os.close(ends[1])
            return ends[0]
        case _:
            return os.open("/dev/null", os.O_RDWR if kind == "null" else os.O_PATH)


class Station:
    """Our client's end: what a connection does with a channel, a client and what comes."""

    def __init__(self, sock):
        self.channel, self.client = Channel(sock), Client(2)
        self.lines = {}

    def read(self):
        while (received := self.channel.receive(self.client.missing_bytes)) is not None:
            if not received[0]:
                return self.client.end()
            for event in self.client.receive(*received):
                match event:
                    case MemoryShared(descriptor):
                        try:
                            map_region(descriptor).close()
                        finally:
                            os.close(descriptor)
                    case VectorConnected(peer, vector, descriptor):
                        self.lines[peer, vector] = EventFd.adopt(descriptor)
                    case PeerLeft(peer):
                        for at in [at for at in self.lines if at[0] == peer]:
                            self.lines.pop(at).close()
                    case Ignored(descriptors=descriptors):
                        for descriptor in descriptors:
                            os.close(descriptor)
        return None

    def close(self):
        for eventfd in self.lines.values():
            eventfd.close()
        for descriptor in self.client.unclaimed():
            os.close(descriptor)
        self.channel.close()


def script(rng):
    """Numbers that a server might say, with kinds of descriptors: mostly right, and somewhere wrong."""
    said = [(0, []), (rng.randrange(3), []), (-1, ["memory"])]
    for _ in range(rng.randrange(12)):
        said.append((rng.randrange(4), ["eventfd"] * (rng.random() < 0.8)))
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        at = rng.randrange(len(said))
        number, kinds = said[at]
        match rng.randrange(5):
            case 0:
                said[at] = rng.choice(NUMBERS), kinds
            case 1:
                said[at] = number, [rng.choice(["eventfd", "memory", "odd memory", "pipe", "null", "path"])]
            case 2:
                said[at] = number, (kinds * rng.choice((0, 2, 3, 200)))[:253]
            case 3:
                said.insert(at, said[rng.randrange(len(said))])
            case 4:
                del said[at]
                said = said or [(0, [])]
    return said


def cut(rng, said):
    """As bytes and descriptors per ``sendmsg``: whole messages, or split and joined anywhere."""
    data = b"".join(struct.pack("<q", number) for number, _ in said)
    ends = list(range(8, len(data) + 1, 8))
    if rng.random() < 0.4:
        ends = sorted({*rng.sample(range(1, len(data)), rng.randrange(len(data) - 1)), len(data)})
    if rng.random() < 0.2:
        ends = ends[: rng.randrange(len(ends))]
    begin = 0
    for end in ends:
        yield begin, data[begin:end], said[begin // 8][1] if begin % 8 == 0 or rng.random() < 0.2 else []
        begin = end


def test_a_hostile_server_gets_an_error_or_is_understood(seed):
    rng = random.Random(seed)
    sent = 0
    while sent < MESSAGES:
        said, meant, token = script(rng), {}, 0
        ours, theirs = socket.socketpair()
        station = Station(ours)
        with theirs, contextlib.closing(station), contextlib.suppress(RemoteProtocolError):
            for begin, data, kinds in cut(rng, said):
                token += len(kinds)
                descriptors = [make(kind, token) for kind in kinds]
                meant[token] = said[begin // 8][0]
                sent += 1
                try:
                    socket.send_fds(theirs, [data], descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
                if rng.random() < 0.5:
                    station.read()
            theirs.close()
            station.read()


def test_the_right_peer_or_none(seed):
    """Whatever else comes, an eventfd is connected to the peer whose number it came with."""
    rng = random.Random(seed + 1)
    sent = 0
    while sent < MESSAGES // 4:
        ours, theirs = socket.socketpair()
        station, meant = Station(ours), {}
        with theirs, contextlib.closing(station):
            said = [(0, []), (0, []), (-1, ["memory"])]
            said += [(rng.randrange(6), ["eventfd"] * (rng.random() < 0.7)) for _ in range(12)]
            for token, (number, kinds) in enumerate(said, 1):
                meant[token] = number
                data, at = struct.pack("<q", number), rng.randrange(1, 9)
                descriptors = [make(kind, token) for kind in kinds]
                socket.send_fds(theirs, [data[:at]], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                theirs.sendall(data[at:])
                sent += 1
                if rng.random() < 0.3:
                    station.read()
            station.read()
            for (peer, _), eventfd in station.lines.items():
                assert meant[eventfd.take()] == peer


FAREWELLS = ["close", "byte", "much", "descriptors", "half", "both", "mute", "read a little"]


def attack(rng, sock, null):
    match rng.choice(FAREWELLS):
        case "byte":
            sock.send(b"\0")
        case "much":
            sock.send(rng.randbytes(rng.randrange(1, 60_000)))
        case "descriptors":
            for _ in range(rng.randrange(1, 4)):
                socket.send_fds(sock, [rng.randbytes(rng.randrange(1, 16))], [null] * rng.choice((1, 2, 253)))
        case "half":
            sock.shutdown(socket.SHUT_WR)
        case "both":
            sock.shutdown(socket.SHUT_RDWR)
        case "mute":
            return False
        case "read a little":
            sock.recv(rng.randrange(1, 64))
    return True


def test_hostile_clients_hurt_nobody_else(seed, make_site):
    rng = random.Random(seed)
    site = make_site()
    witness = site.join()
    sent, mute = 0, []
    with open("/dev/null", "rb") as null:
        while sent < min(MESSAGES, 60_000):  # each costs an ID, and there are 65536
            for _ in range(rng.randrange(1, 20)):
                sock = socket.socket(socket.AF_UNIX)
                sock.setblocking(False)
                try:
                    sock.connect(os.fspath(site.server.path))
                    if rng.random() < 0.5:
                        site.idle()
                    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                        if not attack(rng, sock, null.fileno()):
                            mute.append(sock)
                except BlockingIOError:  # the backlog is full
                    pass
                if sock not in mute:
                    sock.close()
                sent += 1
            while len(mute) > 20:
                mute.pop(rng.randrange(len(mute))).close()
            site.idle()
            witness.read()
            assert not witness.ended
    for sock in mute:
        sock.close()
    site.until(lambda: list(site.server.peers) == [0] and not site.server._waiting)
    site.catch_up(witness)
    assert sorted(witness.left) == list(range(1, site.server._server.next_peer))
    assert set(witness.lines) == lines_of(0)
    assert site.server.departed == []
    newcomer = site.join()
    assert len(newcomer.lines) == 4


@pytest.mark.parametrize("count", [300])
def test_a_storm_of_connections_is_let_in_by_turns(make_site, count):
    site = make_site(vectors=1)
    socks = [site.raw() for _ in range(count)]
    site.until(lambda: len(site.server.peers) == count)
    assert {peer.pid for peer in site.server.peers.values()} == {os.getpid()}
    for sock in socks:
        sock.close()
    site.until(lambda: not site.server.peers)
