"""Between a server and its clients: everything is passed on as it comes, and written down.

Reads are as small as QEMU's, at most one message each, so that a descriptor leaves with the very bytes that it
came with. Who does not read holds up the other side of his own connection, as he would without us, and nobody
else. A client that only shuts down its sending side is taken to have closed: servers do not tell these apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from nodes.errors import RemoteProtocolError
from nodes.wire.capture import Bytes, Closes, Connects, Entry, Kind, Said
from nodes.wire.protocol import Decoder, Message
from sim.kernel.channel import Channel, Outbox
from sim.kernel.loop import Loop
from sim.wire.listener import Listener

__all__ = ["Proxy", "RawMessage", "kind_of"]

CLIENT_BYTES = 4096  # a client has nothing to say: what it says anyway is no message
QUEUE_MAX = 8
READS_MAX = 256  # of one side, before others have their turn
RETRY_NS = 2_000_000
ACCEPT_PAUSE_NS = 100_000_000

_EVENTFD_NUMBER = re.compile(r"^eventfd-id:\s*([0-9]+)", re.MULTILINE)  # proc_pid_fdinfo(5)
_FILES = {
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "pipe",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFDIR: "directory",
}


def kind_of(descriptor: int) -> Kind:
    """What a descriptor is, as the kernel tells it (proc_pid_fd(5), fstat(2))."""
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


class RawMessage(Message[int]):
    """Bytes that are sent as they are: a part of a message, or none at all."""

    data: bytes

    @classmethod
    def of(cls, data: bytes, descriptors: Sequence[int]) -> RawMessage:
        piece = cls(0, tuple(descriptors))
        piece.data = data
        return piece

    def encode(self) -> bytes:
        return self.data


class _Side:
    """One of the two sockets of a connection, and what waits to be sent there."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self.channel = Channel(sock)
        self._outbox = Outbox(sock, QUEUE_MAX)
        self._held: deque[Sequence[int]] = deque()  # descriptors of what waits, ours until it has gone
        self._deaf = False
        self.ended = False

    @property
    def blocked(self) -> bool:
        return len(self._outbox) > 0

    @property
    def throttled(self) -> bool:
        return self._outbox.throttled

    def send(self, data: bytes, descriptors: Sequence[int]) -> bool:
        """Pass on; False when the other side of this socket has gone. Takes the descriptors over."""
        self._held.append(descriptors)
        if self._deaf:
            self._release(0)
            return True
        self._outbox.put(RawMessage.of(data, descriptors))
        return self.flush()

    def drop(self) -> None:
        """It hears no more: forget what waits and what is still to come."""
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
    """One client's connection, through to the server."""

    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.client, self.server = _Side("client", client), _Side("server", server)
        self.decoder: Decoder[Kind] = Decoder()
        self.rest = bytearray()  # the bytes of a message that is not whole yet
        self.closed = False
        self.retrying = False

    def other(self, side: _Side) -> _Side:
        return self.client if side is self.server else self.server


class Proxy:
    """Listens on ``listen`` and connects each client to the server on ``server``.

    ``write`` is handed one entry for each thing that happens, in order; ``warn`` is told what is odd here. A
    context manager: leaving it ends all connections.
    """

    def __init__(
        self,
        loop: Loop,
        server: Path,
        listen: Path,
        write: Callable[[Entry], object],
        *,
        warn: Callable[[str], object] = lambda text: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._loop, self._server, self._warn, self._clock = loop, server, warn, clock
        self.path = listen
        self._write = write
        self._links: set[_ProxiedConnection] = set()
        self.connections = 0
        """How many clients have come."""
        self._start_ns = clock()
        self._listener = Listener(listen)
        loop.add(self._listener, self._accept_all)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections; what was said until now has been handed to ``write``."""
        for link in list(self._links):
            self._note_rest(link)
            self._finish(link)
        if self._listener.fileno() >= 0:
            self._loop.remove(self._listener)
        self._listener.close()

    # Clients that come

    def _accept_all(self) -> None:
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    server = stack.enter_context(
                        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
                    )
                    client = self._listener.accept()
                except OSError as error:
                    if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                        raise
                    self._pause_accepting()
                    return
                if client is None:
                    return
                stack.pop_all()
            self.connections += 1
            link = _ProxiedConnection(self.connections, client, server)
            self._links.add(link)
            self._note(link, "client", Connects())
            self._connect(link)

    def _pause_accepting(self) -> None:
        """No descriptor is left: wait for some to be closed, instead of spinning."""
        self._loop.remove(self._listener)
        self._loop.at(self._clock() + ACCEPT_PAUSE_NS, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add(self._listener, self._accept_all)

    def _connect(self, link: _ProxiedConnection) -> None:
        if link.closed:
            return
        try:
            link.server.channel.socket.connect(os.fspath(self._server))
        except BlockingIOError:
            # Its backlog is full: the client would wait in connect(2), and so do we.
            self._loop.at(self._clock() + RETRY_NS, lambda: self._connect(link))
            return
        except OSError as error:
            reason = f"no server listens on {self._server}: {error.strerror or error}"
            self._warn(f"connection {link.number}: {reason}")
            self._end(link, "server", reason)
            return
        self._watch(link)

    # What they say

    def _watch(self, link: _ProxiedConnection) -> None:
        """Listen to each side whose words there is room for, and to a blocked one for when it has room again."""
        retry = False
        for side in (link.client, link.server):
            listens = not (side.ended or link.other(side).blocked)
            writes = side.blocked and not side.throttled
            if listens:
                flush = (lambda: self._flush(link)) if writes else None
                self._loop.add(side.channel, lambda side=side: self._read(link, side), writable=flush)  # type: ignore[misc]
            else:
                self._loop.remove(side.channel)
            # Room alone is not waited for: epoll would tell of what is not to be read as well, again and again.
            retry = retry or (side.blocked and not (listens and writes))
        if retry and not link.retrying:
            link.retrying = True
            self._loop.at(self._clock() + RETRY_NS, lambda: self._retry(link))

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
            except RemoteProtocolError as error:  # this process may open no more descriptors
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
                if not link.server.ended:  # what a client says to a server that has gone is no part of the session
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
        """A side cannot be told more. A server may still have said something before; a client has just left."""
        if side is link.client:
            self._end(link, "client", "")
        else:
            side.drop()

    def _note_said(self, link: _ProxiedConnection, side: _Side, data: bytes, kinds: Sequence[Kind]) -> None:
        if side is link.client:
            self._note(link, "client", Bytes(data, tuple(kinds)))
            return
        link.rest += data
        for message in link.decoder.feed(data, kinds):
            del link.rest[: len(message.encode())]
            self._note(link, "server", Said(*message))

    def _end(self, link: _ProxiedConnection, side: str, reason: str) -> None:
        """One side has closed, or must: note it, and close the other as soon as it has been told everything."""
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
        """The bytes of a message that will never be whole."""
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
        self, link: _ProxiedConnection, side: str, act: Connects | Closes | Said | Bytes, remark: str = ""
    ) -> None:
        self._write(Entry(self._clock() - self._start_ns, link.number, side, act, remark))
