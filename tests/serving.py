"""A server with real sockets in this process, and clients that read: stepped by hand."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

from nodes.wire.client import Client, MemoryShared, PeerLeft, VectorConnected
from nodes.wire.v2.client import FramedClient
from nodes.wire.v2.protocol import V2
from sim.kernel.channel import Channel
from sim.kernel.eventfd import EventFd
from sim.kernel.loop import Loop
from sim.kernel.memory import Region
from sim.wire.server import IvshmemServer

PATIENCE_S = 60.0


def lines_of(*peers, vectors=2):
    return {(peer, vector) for peer in peers for vector in range(vectors)}


class SteppedServer:
    """A server and its clients, stepped by hand."""

    def __init__(self, path, size_bytes=4096, **options):
        self.stack = contextlib.ExitStack()
        self.loop = Loop()
        self.stack.callback(self.loop.close)
        self.region = Region.create(size_bytes, kind="memfd")
        self.stack.callback(self.region.close)
        self.gone = []
        options = {"vectors": 2, "on_leave": lambda peer, reason: self.gone.append((peer.peer, reason))} | options
        self.server = IvshmemServer(self.loop, path, self.region.descriptor, **options)
        self.stack.callback(self.server.close)
        self.clients = []

    def raw(self):
        """Connect, and no more."""
        sock = socket.socket(socket.AF_UNIX)
        self.stack.callback(sock.close)
        sock.connect(os.fspath(self.server.path))
        return sock

    def reader(self):
        """Connect a client that reads."""
        return Reader(self.raw(), framed=self.server._server.dialect is V2)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline_ns = time.monotonic_ns() + round(PATIENCE_S * 1e9)
        while not condition():
            assert time.monotonic_ns() < deadline_ns, "it never happened"
            self.loop.step(time.monotonic_ns() + 1_000_000)

    def idle(self):
        """Until nothing more happens by itself."""
        for _ in range(3):
            self.loop.step(time.monotonic_ns())

    def join(self, count=None):
        """One client that reads, or a list of them."""
        if count is not None:
            return [self.join() for _ in range(count)]
        expected = self.server._server.next_peer
        reader = self.reader()
        self.stack.callback(reader.close)
        self.until(lambda: expected in self.server.peers)
        self.clients.append(reader)
        self.catch_up(reader)
        assert reader.client.peer == expected
        return reader

    def catch_up(self, *readers):
        """Until these have read all that they were told."""
        for reader in readers:
            reader.read()
            while (peer := self.server.peers.get(reader.client.peer)) and len(peer.outbox):
                self.idle()
                reader.read()

    def read_all(self):
        self.catch_up(*(client for client in self.clients if client.channel.fileno() >= 0))


class Reader:
    """A client that reads whatever there is, and owns what it is sent."""

    def __init__(self, sock, *, framed=False):
        self.channel = Channel(sock)
        self.client = FramedClient() if framed else Client(256)
        self.lines = {}
        self.left = []
        self.memory = None
        self.ended = False

    def read(self):
        while (received := self.channel.receive(self.client.missing_bytes)) is not None:
            data, descriptors = received
            if not data:
                self.ended = True
                return
            for event in self.client.receive(data, descriptors):
                match event:
                    case MemoryShared(descriptor):
                        self.memory = descriptor
                    case VectorConnected(peer, vector, descriptor):
                        self.lines[peer, vector] = EventFd.adopt(descriptor)
                    case PeerLeft(peer):
                        self.left.append(peer)
                        for at in [at for at in self.lines if at[0] == peer]:
                            self.lines.pop(at).close()
                    case _:
                        assert not getattr(event, "descriptors", ()), event

    def close(self):
        for eventfd in self.lines.values():
            eventfd.close()
        self.lines.clear()
        if self.memory is not None:
            os.close(self.memory)
            self.memory = None
        self.channel.close()
