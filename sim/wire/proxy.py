"""A proxy between a server and its clients, which forwards all bytes and descriptors as they arrive and records them.

Reads are as small as QEMU's, at most one message each, so that a descriptor is sent with the bytes that it came with. A
side that does not read delays the other side of its own connection, as it would without the proxy, and no other
connection. A client that only shuts down its sending side counts as closed: servers do not distinguish the two.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from nodes.errors import RemoteProtocolError
from nodes.wire.capture import Bytes, Closes, Connects, Entry, Kind, SentMessage
from nodes.wire.client import is_framed
from nodes.wire.protocol import Decoder, RawMessage
from nodes.wire.v2.protocol import HEADER_BYTES, Frame, FrameDecoder
from sim.kernel.channel import Channel, Outbox
from sim.kernel.closeable import Closeable
from sim.kernel.loop import Loop
from sim.wire.listener import Listener

CLIENT_BYTES = 4096  # a client of the protocol sends nothing; what it sends is not a message
QUEUE_MAX = 8
READS_MAX = 256  # from one side in a turn of the loop
RETRY_NS = 2_000_000

_EVENTFD_NUMBER = re.compile(r"^eventfd-id:\s*([0-9]+)", re.MULTILINE)  # proc_pid_fdinfo(5)
_FILES = {
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "pipe",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFDIR: "directory",
}


def kind_of(descriptor: int) -> Kind:
    """The kind of file behind a descriptor, from the kernel (proc_pid_fd(5), fstat(2))."""
    link = os.readlink(f"/proc/self/fd/{descriptor}")
    if link == "anon_inode:[eventfd]":
        match = _EVENTFD_NUMBER.search(Path(f"/proc/self/fdinfo/{descriptor}").read_text())
        return Kind("eventfd", int(match[1]) if match else None)
    found = os.fstat(descriptor)
    read_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    if stat.S_ISREG(found.st_mode):
        name = "memfd" if link.startswith("/memfd:") else "shm" if link.startswith("/dev/shm/") else "file"
        return Kind(name, found.st_size, read_only)
    return Kind(_FILES.get(stat.S_IFMT(found.st_mode), "other"))


class _Side:
    """One of the two sockets of a connection, with the bytes that wait to be sent there."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self.channel = Channel(sock)
        self._outbox = Outbox(sock, QUEUE_MAX)
        self._held: deque[Sequence[int]] = deque()  # descriptors of the bytes that wait, owned until those are sent
        self._deaf = False
        self.ended = False

    @property
    def blocked(self) -> bool:
        return len(self._outbox) > 0

    @property
    def throttled(self) -> bool:
        return self._outbox.throttled

    def send(self, data: bytes, descriptors: Sequence[int]) -> bool:
        """Send, and own the descriptors; False when the process at the other end has closed."""
        self._held.append(descriptors)
        if self._deaf:
            self._release(0)
            return True
        self._outbox.put(RawMessage.of(data, descriptors))
        return self.flush()

    def drop(self) -> None:
        """Discard what waits and what is still to be sent: the process at the other end has closed."""
        self._deaf = True
        self._outbox = Outbox(self.channel.socket, QUEUE_MAX)
        self._release(0)

    def flush(self) -> bool:
        try:
            self._outbox.flush()
        except OSError:
            return False
        self._release(len(self._outbox))
        return True

    def _release(self, waiting: int) -> None:
        while len(self._held) > waiting:
            for descriptor in self._held.popleft():
                os.close(descriptor)

    def close(self) -> None:
        self._release(0)
        self.channel.close()


class _ProxiedConnection:
    """The connection of one client, and that to the server for it."""

    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.client, self.server = _Side("client", client), _Side("server", server)
        self.decoder: Decoder[Kind] | FrameDecoder[Kind] = Decoder()
        self._recognised = False
        self.rest = bytearray()  # the bytes of a message that is not whole yet
        self.closed = False
        self.retrying = False

    def feed(self, data: bytes, kinds: Sequence[Kind]) -> Iterator[SentMessage | Bytes]:
        """What the server's bytes complete: messages, or bytes that are no message of ivshmem v2."""
        before, self.rest = len(self.rest), self.rest + data
        if not self._recognised and len(self.rest) >= HEADER_BYTES:
            self._recognised = True
            if is_framed(int.from_bytes(self.rest[:HEADER_BYTES], "little", signed=True)):
                earlier = tuple(self.decoder.unclaimed())
                self.decoder = FrameDecoder()
                self.decoder.feed(bytes(self.rest[:before]), earlier)
        try:
            for message in self.decoder.feed(data, kinds):
                del self.rest[: len(message.encode())]
                yield SentMessage(
                    message.number, message.descriptors, message.body if isinstance(message, Frame) else b""
                )
            if isinstance(self.decoder, FrameDecoder):
                self.decoder.check()
        except RemoteProtocolError:  # a header that is none: what follows cannot be told apart
            yield Bytes(bytes(self.rest), tuple(self.decoder.unclaimed()))
            self.rest.clear()
            self.decoder = Decoder()

    def other(self, side: _Side) -> _Side:
        return self.client if side is self.server else self.server


class Proxy(Closeable):
    """Listens on ``listen`` and connects each client to the server on ``server``.

    ``write`` is called with an entry for each event, in order; ``warn`` with problems of the proxy itself. Leaving it
    ends all connections.
    """

    def __init__(
        self,
        loop: Loop,
        server: Path,
        listen: Path,
        write: Callable[[Entry], object],
        *,
        warn: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._loop, self._server, self._warn = loop, server, warn
        self.path = listen
        self._write = write
        self._links: set[_ProxiedConnection] = set()
        self.connections = 0
        """How many clients have connected."""
        self._start_ns = time.monotonic_ns()
        self._listener = Listener(listen)
        loop.add(self._listener, self._accept_all)

    def close(self) -> None:
        """End all connections; ``write`` has been called for all that was sent until now."""
        for link in list(self._links):
            self._note_rest(link)
            self._finish(link)
        if self._listener.fileno() >= 0:
            self._loop.remove(self._listener)
        self._listener.close()

    # Connections of clients

    def _accept_all(self) -> None:
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    server = stack.enter_context(
                        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
                    )
                    client = self._listener.accept()
                except OSError as error:
                    self._listener.pause(self._loop, self._accept_all, error)
                    return
                if client is None:
                    return
                stack.pop_all()
            self.connections += 1
            link = _ProxiedConnection(self.connections, client, server)
            self._links.add(link)
            self._note(link, "client", Connects())
            self._connect(link)

    def _connect(self, link: _ProxiedConnection) -> None:
        if link.closed:
            return
        try:
            link.server.channel.socket.connect(os.fspath(self._server))
        except BlockingIOError:
            # The server's backlog is full. Without the proxy, the client would wait in connect(2).
            self._loop.at(time.monotonic_ns() + RETRY_NS, lambda: self._connect(link))
            return
        except OSError as error:
            reason = f"no server listens on {self._server}: {error.strerror or error}"
            self._warn(f"connection {link.number}: {reason}")
            self._end(link, "server", reason)
            return
        self._watch(link)

    # Bytes that are forwarded

    def _watch(self, link: _ProxiedConnection) -> None:
        """Watch each side for bytes that the other has room for, and each blocked side for room."""
        retry = False
        for side in (link.client, link.server):
            listens = not (side.ended or link.other(side).blocked)
            writes = side.blocked and not side.throttled
            if listens:
                flush = (lambda: self._flush(link)) if writes else None
                self._loop.add(side.channel, partial(self._read, link, side), writable=flush)
            else:
                self._loop.remove(side.channel)
            # A side is not watched for room alone: epoll would report unread bytes too, again and again.
            retry = retry or (side.blocked and not (listens and writes))
        if retry and not link.retrying:
            link.retrying = True
            self._loop.at(time.monotonic_ns() + RETRY_NS, lambda: self._retry(link))

    def _retry(self, link: _ProxiedConnection) -> None:
        link.retrying = False
        self._flush(link)

    def _flush(self, link: _ProxiedConnection) -> None:
        for side in (link.client, link.server):
            if not link.closed and side.blocked and not side.flush():
                self._lost(link, side)
        if link.closed:
            return
        if link.server.ended and not link.client.blocked:
            self._finish(link)
            return
        self._watch(link)

    def _read(self, link: _ProxiedConnection, side: _Side) -> None:
        other = link.other(side)
        for _ in range(READS_MAX):
            if link.closed or side.ended or other.blocked:
                break
            size_bytes = link.decoder.missing_bytes if side is link.server else CLIENT_BYTES
            try:
                received = side.channel.receive(size_bytes)
            except RemoteProtocolError as error:  # this process cannot open more descriptors
                self._warn(f"connection {link.number}: {error}")
                self._end(link, side.name, str(error))
                return
            if received is None:
                break
            data, descriptors = received
            if not data:
                self._end(link, side.name, "")
                return
            try:
                if not link.server.ended:  # bytes to a server that has closed are not part of the session
                    self._note_said(link, side, data, [kind_of(descriptor) for descriptor in descriptors])
            except BaseException:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise
            if not other.send(data, descriptors):
                self._lost(link, other)
        if not link.closed and (other.blocked or side.blocked):
            self._watch(link)

    def _lost(self, link: _ProxiedConnection, side: _Side) -> None:
        """A side has closed. Bytes that a server sent before may still have to be read; a client has left."""
        if side is link.client:
            self._end(link, "client", "")
        else:
            side.drop()

    def _note_said(self, link: _ProxiedConnection, side: _Side, data: bytes, kinds: Sequence[Kind]) -> None:
        if side is link.client:
            self._note(link, "client", Bytes(data, tuple(kinds)))
            return
        for act in link.feed(data, kinds):
            self._note(link, "server", act)

    def _end(self, link: _ProxiedConnection, side: str, reason: str) -> None:
        """Record that one side has closed, and close the other as soon as everything has been sent to it."""
        if link.server.ended:
            self._finish(link)
            return
        self._note_rest(link)
        self._note(link, side, Closes(), reason)
        if side == "client" or not link.client.blocked:
            self._finish(link)
            return
        link.server.ended = True
        link.server.drop()
        self._loop.remove(link.server.channel)
        link.server.close()
        self._watch(link)

    def _note_rest(self, link: _ProxiedConnection) -> None:
        """Record the bytes of an incomplete message whose rest will not come."""
        if link.rest:
            self._note(link, "server", Bytes(bytes(link.rest), tuple(link.decoder.unclaimed())))
            link.rest.clear()

    def _finish(self, link: _ProxiedConnection) -> None:
        link.closed = True
        self._links.discard(link)
        for side in (link.client, link.server):
            if side.channel.fileno() >= 0:
                self._loop.remove(side.channel)
            side.close()

    def _note(
        self, link: _ProxiedConnection, side: str, act: Connects | Closes | SentMessage | Bytes, remark: str = ""
    ) -> None:
        self._write(Entry(time.monotonic_ns() - self._start_ns, link.number, side, act, remark))
