"""sim.wire.proxy: between a server and its clients, everything is passed on and written down."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

import pytest

from nodes.errors import UsageError
from nodes.wire.analyzer import explain
from nodes.wire.capture import Bytes, Closes, Connects, Entry, Kind, SentMessage, format_entry, parse
from nodes.wire.protocol import DIALECTS, Message, RawMessage
from sim.kernel.channel import Channel, Outbox
from sim.kernel.eventfd import EventFd
from sim.kernel.eventfd import signal as ring
from sim.kernel.loop import Loop
from sim.kernel.memory import Region
from sim.wire import listener as listener_module
from sim.wire.attachment import Attachment
from sim.wire.proxy import Proxy, kind_of
from sim.wire.server import IvshmemServer

PATIENCE_S = 60.0


class ProxySetup:
    """One loop with a proxy on it; what it writes is kept."""

    def __init__(self, directory):
        self.stack = contextlib.ExitStack()
        self.loop = Loop()
        self.stack.callback(self.loop.close)
        self.server_path, self.path = directory / "s", directory / "p"
        self.written: list[Entry] = []
        self.odd: list[str] = []
        self.proxy = Proxy(self.loop, self.server_path, self.path, self.written.append, warn=self.odd.append)
        self.stack.callback(self.proxy.close)

    def until(self, condition):
        while not condition():
            self.loop.step()

    def settle(self):
        """Until nothing is left to do, which a loop that spins never reaches."""
        for _ in range(1000):
            if not select.select([self.loop._epoll], [], [], 0)[0]:
                return
            self.loop.step(time.monotonic_ns())
        pytest.fail("there is always something to do")

    def serve(self, vectors=2, **options):
        region = Region.create(8192, kind="memfd")
        self.stack.callback(region.close)
        server = IvshmemServer(self.loop, self.server_path, region.descriptor, vectors=vectors, **options)
        self.stack.callback(server.close)
        return server

    def listen(self):
        """A server of our own: it says nothing by itself."""
        listener = socket.socket(socket.AF_UNIX)
        self.stack.callback(self.server_path.unlink)
        self.stack.callback(listener.close)
        listener.bind(os.fspath(self.server_path))
        listener.listen(200)
        return listener

    def connect(self):
        """A client of the proxy: its raw socket."""
        client = socket.socket(socket.AF_UNIX)
        self.stack.callback(client.close)
        client.connect(os.fspath(self.path))
        return client

    def pair(self, listener):
        """A client through to our own server: both raw sockets."""
        client = self.connect()
        self.until(lambda: select.select([listener], [], [], 0)[0])
        server, _ = listener.accept()
        self.stack.callback(server.close)
        return client, server

    def receive(self, sock, size_bytes=8):
        """What comes next at a client or a server, with its descriptors."""
        channel = Channel(sock)
        while (received := channel.receive(size_bytes)) is None:
            self.loop.step()
        return received

    def said(self, connection=1):
        return [(entry.side, entry.act) for entry in self.written if entry.connection == connection]


@pytest.fixture
def site(short_path):
    site = ProxySetup(short_path)
    with site.stack:
        yield site


def send(sock, data, descriptors=()):
    outbox = Outbox(sock, 10)
    outbox.put(RawMessage.of(data, descriptors))
    assert outbox.flush()


@pytest.fixture
def eventfds():
    made = [EventFd.create() for _ in range(4)]
    yield [eventfd.descriptor for eventfd in made]
    for eventfd in made:
        eventfd.close()


@pytest.mark.parametrize("dialect", ["v0", "v0-shm-last"])
def test_peers_meet_ring_and_share_memory_through_it(site, dialect):
    server = site.serve(dialect=DIALECTS[dialect])
    first, second = (Attachment(site.loop, site.path, vectors=4) for _ in range(2))
    with contextlib.closing(first), contextlib.closing(second):
        first.meet()
        second.meet()
        site.until(lambda: first.peers == second.peers == {0: 2, 1: 2})
        first.ring(1, 1)
        second.memory[0] = 0x42
        site.until(lambda: second.unseen)
        assert (second.unseen, first.memory[0]) == ({1: 1}, 0x42)
    site.until(lambda: not server.peers and sum(act == Closes() for _, act in site.said(1) + site.said(2)) == 2)
    for connection in (1, 2):
        explanation = explain(connection, [entry for entry in site.written if entry.connection == connection])
        assert explanation.dialect is DIALECTS[dialect]
        assert explanation.peer == connection - 1
        assert explanation.memory_bytes == 8192
        assert (explanation.problems == []) == (dialect == "v0")


def test_what_is_written_is_what_was_said(site, eventfds):
    listener = site.listen()
    client, server = site.pair(listener)
    memory = Region.create(4096, kind="memfd")
    site.stack.callback(memory.close)
    said = [Message(0), Message(7), Message(-1, (memory.descriptor,)), Message(7, (eventfds[0],)), Message(-(2**63))]
    for message in said:
        send(server, message.encode(), message.descriptors)
    received = []
    for message in said:
        data, descriptors = site.receive(client)
        assert (data, len(descriptors)) == (message.encode(), len(message.descriptors))
        received += descriptors
    # The very ones: what is rung here is heard there, and the memory is the same file.
    assert os.path.sameopenfile(received[0], memory.descriptor)
    ring(received[1], 5)
    assert os.read(eventfds[0], 8) == (5).to_bytes(8, "little")
    number = kind_of(eventfds[0])
    assert number.number is not None
    for descriptor in received:
        os.close(descriptor)
    server.close()
    assert site.receive(client) == (b"", [])
    assert site.said() == [
        ("client", Connects()),
        ("server", SentMessage(0)),
        ("server", SentMessage(7)),
        ("server", SentMessage(-1, (Kind("memfd", 4096),))),
        ("server", SentMessage(7, (number,))),
        ("server", SentMessage(-(2**63))),
        ("server", Closes()),
    ]
    times = [entry.time_ns for entry in site.written]
    assert times == sorted(times)


def test_pieces_joined_messages_and_many_descriptors_come_out_as_they_went_in(site, eventfds):
    listener = site.listen()
    client, server = site.pair(listener)
    three = b"".join(Message(number).encode() for number in (1, 2, 3))
    for data, descriptors in [
        (three, eventfds[:1]),  # the first read has the descriptor, as QEMU's would
        (three[:3], ()),
        (three[3:8], eventfds[1:2]),
        (three[:5], eventfds[2:3]),
        (three[5:8], ()),
        (three[:8], eventfds),
        (three[:6], eventfds[:2]),  # never whole
    ]:
        send(server, data, descriptors)
    server.shutdown(socket.SHUT_WR)
    got, brought = b"", []
    while True:
        data, descriptors = site.receive(client, 8 - len(got) % 8)
        if not data:
            break
        got += data
        for descriptor in descriptors:
            os.close(descriptor)
        if descriptors:
            brought.append((len(got), len(descriptors)))
    assert got == three + three[:8] * 3 + three[:6]
    # Up to which byte each read went that had descriptors: they stay with their own bytes.
    assert brought == [(8, 1), (32, 1), (37, 1), (48, 4), (54, 2)]
    numbers = [(act.number, len(act.kinds)) for _, act in site.said() if isinstance(act, SentMessage)]
    assert numbers == [(1, 1), (2, 0), (3, 0), (1, 1), (1, 1), (1, 4)]
    *_, rest, end = site.said()
    assert rest == ("server", Bytes(three[:6], tuple(map(kind_of, eventfds[:2]))))
    assert end == ("server", Closes())


def test_what_a_client_says_reaches_the_server(site, eventfds):
    listener = site.listen()
    client, server = site.pair(listener)
    send(client, b"hello", eventfds[:2])
    data, descriptors = site.receive(server, 100)
    assert (data, len(descriptors)) == (b"hello", 2)
    for descriptor in descriptors:
        os.close(descriptor)
    client.close()
    assert site.receive(server) == (b"", [])
    assert site.said() == [
        ("client", Connects()),
        ("client", Bytes(b"hello", tuple(map(kind_of, eventfds[:2])))),
        ("client", Closes()),
    ]


def test_a_client_that_leaves_is_announced_as_without_us(site):
    server = site.serve()
    first = site.connect()
    second = site.connect()
    site.until(lambda: len(server.peers) == 2)
    first.close()
    site.until(lambda: set(server.peers) == {1} and ("server", SentMessage(0)) in site.said(2)[7:])
    second.shutdown(socket.SHUT_WR)
    site.until(lambda: not server.peers)


def test_no_server_is_the_end_of_the_connection_and_no_more(site):
    assert site.receive(site.connect()) == (b"", [])
    assert site.said() == [("client", Connects()), ("server", Closes())]
    assert f"no server listens on {site.server_path}: No such file or directory" in site.written[-1].remark
    assert site.odd == [f"connection 1: {site.written[-1].remark}"]
    server = site.serve()
    site.connect()
    site.until(lambda: server.peers)


def test_a_client_that_does_not_read_delays_no_other_connection(site):
    listener = site.listen()
    lazy, lazy_server = site.pair(listener)
    busy, busy_server = site.pair(listener)
    lazy_server.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += lazy_server.send(Message(sent // 8).encode())
            if sent % 4096 == 0:
                send(busy_server, Message(sent).encode())
                assert site.receive(busy) == (Message(sent).encode(), [])
    # The proxy holds a bounded part of it, so the server notices that there is no reader. The proxy does not spin.
    assert len(site.said(1)) * 8 < sent
    site.settle()
    lazy_server.close()
    got = b""
    while data := site.receive(lazy, 4096)[0]:
        got += data
    assert len(got) == sent
    assert got == b"".join(Message(number).encode() for number in range(sent // 8))


def test_both_sides_may_not_read(site):
    """Neither is read from then, and nothing is lost."""
    listener = site.listen()
    client, server = site.pair(listener)
    sent = {client: 0, server: 0}
    for _ in range(50):
        for sock in (client, server):
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent[sock] += sock.send(bytes(800))
        site.loop.step()
    site.settle()
    got = {client: 0, server: 0}
    while got[server] < sent[client] or got[client] < sent[server]:
        for sock in (client, server):
            received = Channel(sock).receive(65536)
            got[sock] += len(received[0]) if received else 0
        site.loop.step(time.monotonic_ns())
    assert (got[server], got[client]) == (sent[client], sent[server])


def test_a_server_that_dies_under_what_a_client_says_is_still_heard(site):
    listener = site.listen()
    client, server = site.pair(listener)
    send(server, Message(0).encode())
    server.close()
    with contextlib.suppress(BrokenPipeError):
        send(client, b"x" * 100)
    assert site.receive(client) == (Message(0).encode(), [])
    while (received := site.receive(client))[0]:
        raise AssertionError(received)
    assert site.said()[-1][1] == Closes()
    assert parse(["ivshmem-session 1", *map(format_entry, site.written)]).entries


def test_many_clients_at_once(site):
    server = site.serve(vectors=1)
    clients = [site.connect() for _ in range(60)]
    site.until(lambda: len(server.peers) == 60)
    for number, client in enumerate(clients):
        numbers = [int.from_bytes(site.receive(client)[0], "little", signed=True) for _ in range(2)]
        assert numbers == [0, number]
        os.close(site.receive(client)[1][0])
    for client in clients[::2]:
        client.close()
    site.until(lambda: len(server.peers) == 30)
    assert parse(["ivshmem-session 1", *map(format_entry, site.written)]).connections.keys() == set(range(1, 61))


def test_no_descriptors_left_is_a_pause(site, monkeypatch):
    monkeypatch.setattr(listener_module, "PAUSE_NS", 1_000_000)
    server = site.serve()
    failed = []

    def accept():
        failed.append(True)
        if len(failed) < 3:
            raise OSError(24, "Too many open files")
        return accept_really()

    accept_really = site.proxy._listener.accept
    monkeypatch.setattr(site.proxy._listener, "accept", accept)
    site.connect()
    site.until(lambda: server.peers)
    assert len(failed) >= 3


def test_its_socket_is_private(site, short_path):
    assert site.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="another server is listening there"):
        Proxy(site.loop, site.server_path, site.path, site.written.append)
    (short_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="exists and is not a socket"):
        Proxy(site.loop, site.server_path, short_path / "file", site.written.append)
    with pytest.raises(UsageError, match="may have 107 bytes"):
        Proxy(site.loop, site.server_path, short_path / ("x" * 107), site.written.append)
    site.proxy.close()
    assert not site.path.exists()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(site.path))
    with Proxy(site.loop, site.server_path, site.path, site.written.append):
        assert site.path.exists()


def test_kinds_of_descriptors(tmp_path):
    with contextlib.ExitStack() as stack:

        def keep(descriptor):
            stack.callback(os.close, descriptor)
            return descriptor

        (tmp_path / "f").write_bytes(bytes(10))
        read_end, write_end = map(keep, os.pipe())
        near, far = map(stack.enter_context, socket.socketpair())
        region = Region.create(4096, name=f"ivt-kind-{os.getpid()}")
        stack.callback(region.close)
        epoll = stack.enter_context(contextlib.closing(select.epoll()))
        memfd = keep(os.memfd_create("x"))
        os.ftruncate(memfd, 5)
        expected = {
            memfd: "memfd:5",
            keep(os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)): "memfd:5:ro",
            region.descriptor: "shm:4096",
            keep(os.open(tmp_path / "f", os.O_RDWR)): "file:10",
            keep(os.open(tmp_path / "f", os.O_RDONLY)): "file:10:ro",
            read_end: "pipe",
            write_end: "pipe",
            near.fileno(): "socket",
            far.fileno(): "socket",
            keep(os.open("/dev/null", os.O_RDWR)): "char",
            keep(os.open(tmp_path, os.O_RDONLY)): "directory",
            epoll.fileno(): "other",
        }
        assert {descriptor: str(kind_of(descriptor)) for descriptor in expected} == expected
