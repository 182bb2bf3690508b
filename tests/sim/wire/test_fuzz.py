"""Seeded nonsense, both ways: hostile servers against our client, hostile clients against our server.

`-s` shows the outcomes; `--hypothesis-seed` repeats a session. Sound sessions run among the hostile ones, and the tests
assert all along that these are served.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import socket
import struct
from collections import Counter

import pytest

from nodes.device.profiles import PROFILES
from nodes.errors import RemoteProtocolError
from nodes.ledger import NoLedger
from nodes.vm import Vm
from nodes.wire.protocol import DIALECTS
from nodes.wire.server import Server
from nodes.wire.v2.protocol import DomainNumbers
from sim.kernel.eventfd import drain, signal
from sim.kernel.memory import map_region
from sim.wire.connection import Connection
from tests.serving import SteppedServer, lines_of

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


class ClientSetup:
    """Our client's end: a machine and its connection."""

    def __init__(self, sock):
        self.memories = 0
        self.vm = Vm(
            PROFILES["qemu-doorbell"],
            vectors=2,
            role="peer",
            signal=signal,
            ledger=NoLedger(),
            clock=lambda: 0,
            random=random.Random(0),
            sample_every=0,
        )
        self.connection = Connection(sock, self.vm, on_own=lambda descriptor: None, on_memory=self.map)
        self.read, self.close = self.connection.read, self.connection.close

    def map(self, peer, descriptor):
        map_region(descriptor).close()
        self.memories += 1

    @property
    def lines(self):
        peers = self.vm.device.peers
        return {(peer, vector): peers.line(peer, vector) for peer in peers for vector in range(peers.vectors(peer))}


def sound_script(rng, dialect):
    """What a server of this dialect sends to a newcomer, and then about joins and leaves, with kinds of descriptors;
    and the lines that lead to a peer at the end."""
    server = Server("memory", dialect=dialect)
    present = [server.join(["eventfd"] * 2)[0] for _ in range(rng.randrange(3))]
    me, messages = server.join(["eventfd"] * 2)
    for _ in range(rng.randrange(5)):
        if present and rng.random() < 0.5:
            messages += server.leave(present.pop(rng.randrange(len(present))))
        else:
            peer, more = server.join(["eventfd"] * 2)
            present.append(peer)
            messages += more
    return [(message.number, list(message.descriptors)) for to, message in messages if to == me], lines_of(me, *present)


def spoil(rng, said):
    """Wrong in some places: other numbers, kinds, counts, or another order."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(said))
        number, kinds = said[at]
        match rng.randrange(6):
            case 0:
                said[at] = rng.choice(NUMBERS), kinds
            case 1:
                said[at] = number, [rng.choice(["eventfd", "memory", "odd memory", "pipe", "null", "path"])]
            case 2:
                said[at] = number, (kinds * rng.choice((0, 2, 3, 200)))[:253]
            case 3:
                said.insert(at, said[rng.randrange(len(said))])
            case 4:
                other = rng.randrange(len(said))
                said[at], said[other] = said[other], said[at]
            case 5:
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
        yield data[begin:end], said[begin // 8][1] if begin % 8 == 0 or rng.random() < 0.2 else []
        begin = end


def cut_soundly(rng, said):
    """Each message in as many pieces as you like, its descriptor with the first."""
    for number, kinds in said:
        data = struct.pack("<q", number)
        ends = [*sorted(rng.sample(range(1, 8), rng.choice((0, 0, 1, 2, 7)))), 8]
        for begin, end in itertools.pairwise([0, *ends]):
            yield data[begin:end], kinds if begin == 0 else []


def send(sock, data, kinds, token=1):
    descriptors = [make(kind, token) for kind in kinds]
    try:
        socket.send_fds(sock, [data], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@contextlib.contextmanager
def few_descriptors(rng):
    """This process may open hardly any more: what does not fit is cut off on receipt."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + rng.randrange(3), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def be_told(rng, pieces, outcomes):
    """A station that has been told all this, and then the end; whatever it makes of it, it is closed."""
    ours, theirs = socket.socketpair()
    station = ClientSetup(ours)
    crowded = outcomes["sessions"] % 10 == 0
    outcomes["sessions"] += 1
    with theirs, contextlib.closing(station):
        try:
            for data, kinds in pieces:
                outcomes["messages"] += 1
                send(theirs, data, kinds)
                if crowded:
                    with few_descriptors(rng):
                        station.read()
                elif rng.random() < 0.5:
                    station.read()
            theirs.close()
            station.read()
        except RemoteProtocolError as error:
            outcomes["cut off" if "cut off" in str(error) else "errors"] += 1
        else:
            outcomes["understood"] += 1


@pytest.mark.fault("F10", full=1_000_000, sample=3000, unit="messages")
def test_hostile_servers_get_an_error_or_are_understood(seed, fault_count):
    rng, outcomes = random.Random(seed), Counter()
    held = len(os.listdir("/proc/self/fd"))
    while outcomes["messages"] < fault_count:
        dialect = rng.choice(list(DIALECTS.values()))
        for _ in range(20):
            be_told(rng, cut(rng, spoil(rng, sound_script(rng, dialect)[0])), outcomes)
        # And a sound one, as if nothing had been.
        ours, theirs = socket.socketpair()
        station = ClientSetup(ours)
        said, expected = sound_script(rng, dialect)
        with theirs, contextlib.closing(station):
            for data, kinds in cut_soundly(rng, said):
                send(theirs, data, kinds)
                if rng.random() < 0.5:
                    station.read()
            station.read()
            assert (set(station.lines), station.memories, station.connection.endpoint.dialect) == (expected, 1, dialect)
        outcomes["sound"] += 1
        assert len(os.listdir("/proc/self/fd")) == held
    print(f"hostile servers: {dict(outcomes)}")
    assert all(outcomes[kind] for kind in ("errors", "understood", "cut off"))


@pytest.mark.fault("F10", full=1_000_000, sample=3000, unit="messages")
def test_the_right_peer_or_none(seed, fault_count):
    """Whatever else comes, an eventfd is connected to the peer whose number it came with."""
    rng, sent = random.Random(seed + 1), 0
    while sent < fault_count:
        ours, theirs = socket.socketpair()
        station, meant = ClientSetup(ours), {}
        with theirs, contextlib.closing(station):
            said = [(0, []), (0, []), (-1, ["memory"])]
            said += [(rng.randrange(6), ["eventfd"] * (rng.random() < 0.7)) for _ in range(12)]
            for token, (number, kinds) in enumerate(said, 1):
                meant[token] = number
                data, at = struct.pack("<q", number), rng.randrange(1, 9)
                send(theirs, data[:at], kinds, token)
                theirs.sendall(data[at:])
                sent += 1
                if rng.random() < 0.3:
                    station.read()
            station.read()
            for (peer, _), line in station.lines.items():
                assert meant[drain(line)] == peer


NUMBERS_V2 = DomainNumbers(max_peers=1024, vectors=2, protocol=0, output_bytes=0)
IDS_MAX = 50_000  # of 65536: then the server is started anew
TOO_MUCH = 3000  # joins and leaves: more than the server keeps for a client that does not read
ATTACKS = ["close", "bytes", "much", "descriptors", "half", "both", "mute", "read a little"]
EXPECTED = {errno.EAGAIN, errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETOOMANYREFS}


def attack(rng, sock, null, outcomes):
    """What a client does that has connected; False if it then stays, and never reads."""
    what = rng.choice(ATTACKS)
    outcomes[what] += 1
    match what:
        case "bytes":
            for _ in range(rng.randrange(1, 20)):
                sock.send(rng.randbytes(rng.randrange(1, 9)))
                outcomes["messages"] += 1
        case "much":
            sock.send(rng.randbytes(rng.randrange(1, 60_000)))
            outcomes["messages"] += 1
        case "descriptors":
            for _ in range(rng.randrange(1, 10)):
                socket.send_fds(sock, [rng.randbytes(rng.randrange(1, 16))], [null] * rng.choice((1, 1, 2, 253)))
                outcomes["messages"] += 1
        case "half":
            sock.shutdown(socket.SHUT_WR)
        case "both":
            sock.shutdown(socket.SHUT_RDWR)
        case "read a little":
            sock.recv(rng.randrange(1, 64))
    return what != "mute"


class HostileClients:
    """A server, two peers that were there before, and hostile clients."""

    def __init__(self, path, rng, null, outcomes, *, framed):
        self.rng, self.null, self.outcomes = rng, null, outcomes
        if framed:
            self.reuses, self.site = True, SteppedServer(path, numbers=NUMBERS_V2)
        else:
            self.reuses = rng.random() < 0.3
            self.site = SteppedServer(path, dialect=rng.choice(list(DIALECTS.values())), reuse_peers=self.reuses)
        self.mute = []
        self.joined = 0

    def __enter__(self):
        self.witnesses = self.site.join(2)
        self.deaf = self.site.raw()  # from the beginning to the end it reads nothing
        self.site.until(lambda: 2 in self.site.server.peers)
        return self

    def __exit__(self, *_):
        for sock in self.mute:
            sock.close()
        self.site.stack.close()

    def storm(self):
        """Some connect at once and attack, now and then after the server has begun to greet them."""
        rng, outcomes = self.rng, self.outcomes
        for _ in range(rng.choice((1, 5, 20, 100))):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            stays = False
            try:
                sock.connect(os.fspath(self.site.server.path))
                outcomes["connections"] += 1
                if rng.random() < 0.3:
                    self.site.idle()
                stays = not attack(rng, sock, self.null, outcomes)
            except OSError as error:  # gone already, or the kernel holds too many descriptors of ours
                if error.errno not in EXPECTED:
                    raise
                outcomes[errno.errorcode[error.errno]] += 1
            if stays:
                self.mute.append(sock)
            else:
                sock.close()
        while len(self.mute) > 20:
            self.mute.pop(rng.randrange(len(self.mute))).close()

    def serve_the_sound(self):
        """A further peer joins meanwhile, is told of all others, rings one of them, and leaves."""
        newcomer = self.site.reader()
        self.storm()

        def is_met():
            newcomer.read()
            assert not newcomer.ended
            return lines_of(0, 1, newcomer.client.peer) <= set(newcomer.lines)

        self.site.until(is_met)
        signal(newcomer.lines[1, 1].descriptor, 1)
        assert self.witnesses[1].lines[1, 1].take() == 1
        newcomer.close()
        self.outcomes["sound"] += 1

    def settle(self):
        """All the hostile ones go, and everything is as if they had never come."""
        site, server = self.site, self.site.server
        for sock in (*self.mute, self.deaf):
            sock.close()
        site.until(lambda: sorted(server.peers) == [0, 1] and not server._admission._waiting)
        site.read_all()
        for witness in self.witnesses:
            assert not witness.ended
            assert set(witness.lines) == lines_of(0, 1)
            if not self.reuses:
                assert sorted(witness.left) == list(range(2, server._server.next_peer))
        assert (server.departed, server._announcements.stuck) == ([], {})
        deaf = any("does not read" in reason for peer, reason in site.gone if peer == 2)
        assert deaf or len(site.gone) < TOO_MUCH
        self.outcomes["deaf"] += deaf
        self.outcomes["servers"] += 1


@pytest.mark.parametrize("framed", [False, True], ids=["v1", "v2"])
@pytest.mark.fault("F11", full=1_000_000, sample=2000, unit="messages to a server of each version")
def test_hostile_clients_do_not_disturb_others(seed, short_path, fault_count, framed):
    rng, outcomes = random.Random(seed), Counter()
    with open("/dev/null", "rb") as null:
        while outcomes["messages"] < fault_count:
            begun = outcomes["connections"]
            with HostileClients(short_path / "s", rng, null.fileno(), outcomes, framed=framed) as siege:
                while outcomes["messages"] < fault_count and outcomes["connections"] - begun < IDS_MAX:
                    for _ in range(rng.randrange(1, 8)):
                        siege.storm()
                        siege.site.idle()
                        siege.site.read_all()
                    siege.serve_the_sound()
                siege.settle()
    print(f"hostile clients: {dict(outcomes)}")
    assert outcomes["sound"]
    assert all(outcomes[what] for what in ATTACKS)


@pytest.mark.parametrize("count", [300])
def test_a_storm_of_connections_is_let_in_by_turns(make_site, count):
    site = make_site(vectors=1)
    socks = [site.raw() for _ in range(count)]
    site.until(lambda: len(site.server.peers) == count)
    assert {peer.pid for peer in site.server.peers.values()} == {os.getpid()}
    for sock in socks:
        sock.close()
    site.until(lambda: not site.server.peers)
