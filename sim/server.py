"""The ivshmem server as the network sees it: a listening socket, its clients, their eventfds.

What is said to whom is decided by ``nodes.server``; here it is said. A client that does not read costs nobody
but itself: what it is told waits in its outbox, and when that is full, it is disconnected and announced as gone.
A client never speaks: a byte from it, or the end of its connection, means that it has left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from nodes.errors import HostError, LocalProtocolError, UsageError
from nodes.protocol import V0, Dialect
from nodes.server import Outbound, Server
from sim.channel import Outbox
from sim.eventfd import EventFd
from sim.loop import Loop

__all__ = ["Arrival", "IvshmemServer", "Peer"]

_CREDENTIALS = struct.Struct("3i")
PATH_BYTES_MAX = 107  # sun_path less its end, unix(7)
RETRY_NS = 2_000_000
OUTBOX_SPARE = 4096


class Arrival:
    """A client that has connected and has not joined yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.pid, self.uid, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )


class Peer:
    """A client that has joined. Owns its socket; the server owns its eventfds for as long as anyone is told of them."""

    def __init__(self, peer: int, arrival: Arrival, eventfds: list[EventFd], limit: int) -> None:
        self.peer = peer
        self.socket = arrival.socket
        self.pid, self.uid = arrival.pid, arrival.uid
        self.eventfds = eventfds
        self.outbox = Outbox(arrival.socket, limit)


class IvshmemServer:
    """A server on ``path``, for one region of memory.

    ``on_arrival`` decides about each client that connects (it calls ``join``, at once or later); by default
    everyone joins at once with ``vectors`` eventfds. ``on_join`` and ``on_leave`` tell what has happened.
    With ``retain_departed`` the eventfds of peers that have left stay open, in ``departed``, for whoever counts
    what nobody took. A context manager: leaving it disconnects everybody and removes the socket.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        memory: int,
        *,
        vectors: int,
        dialect: Dialect = V0,
        on_arrival: Callable[[Arrival], None] | None = None,
        on_join: Callable[[Peer], None] = lambda peer: None,
        on_leave: Callable[[Peer, str], None] = lambda peer, reason: None,
        retain_departed: bool = False,
    ) -> None:
        self._loop = loop
        self.path = path
        self._vectors = vectors
        self._server: Server[int] = Server(memory, dialect=dialect)
        self.peers: dict[int, Peer] = {}
        self._waiting: dict[int, Arrival] = {}  # socket number -> not joined yet
        self.departed: list[Peer] = []
        self._retain_departed = retain_departed
        self._stuck: dict[int, str] = {}  # peer -> why it is not told more for now
        self._news: deque[Outbound[int]] = deque()
        self._telling = False
        self._on_arrival = on_arrival or self._join_default
        self._on_join, self._on_leave = on_join, on_leave
        self._listener = self._listen(path)
        self._identity = os.stat(path).st_dev, os.stat(path).st_ino
        loop.add(self._listener, self._accept_all)

    @staticmethod
    def _listen(path: Path) -> socket.socket:
        if len(os.fsencode(path)) > PATH_BYTES_MAX:
            raise UsageError(
                f"the socket's path may have {PATH_BYTES_MAX} bytes, {path} has {len(os.fsencode(path))}"
            )
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind: there is no moment in which others can connect
            _remove_stale(path)
            listener.bind(os.fspath(path))
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise UsageError(f"{path} is in use by another server, or is not a socket of ours") from error
            raise UsageError(f"cannot listen on {path}: {error.strerror}") from error
        except UsageError:
            listener.close()
            raise
        return listener

    # Clients that come

    def _accept_all(self) -> None:
        """Admit everyone who waits; when descriptors run out, pause instead of spinning."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._loop.remove(self._listener)
                    self._loop.at(time.monotonic_ns() + 50 * RETRY_NS, self._resume_accepting)
                    return
                raise
            sock.setblocking(False)
            arrival = Arrival(sock)
            self._waiting[sock.fileno()] = arrival
            # One who leaves before he has joined is noticed too.
            self._loop.add(sock, lambda arrival=arrival: self._dismiss(arrival))  # type: ignore[misc]
            self._on_arrival(arrival)

    def _resume_accepting(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add(self._listener, self._accept_all)

    def _dismiss(self, arrival: Arrival) -> None:
        if self._waiting.pop(arrival.socket.fileno(), None) is not None:
            self._loop.remove(arrival.socket)
            arrival.socket.close()

    def _join_default(self, arrival: Arrival) -> None:
        with contextlib.suppress(HostError):  # he was told by the end of his connection; others go on
            self.join(arrival, self._vectors)

    def join(self, arrival: Arrival, vectors: int) -> Peer | None:
        """Make a client a peer with so many eventfds, and tell everybody.

        None when it has left already. Raises ``HostError`` when there are no descriptors or no IDs for it (it is
        then disconnected).
        """
        if self._waiting.pop(arrival.socket.fileno(), None) is None:
            return None
        eventfds: list[EventFd] = []
        try:
            for _ in range(vectors):
                eventfds.append(EventFd.create())
            number, messages = self._server.join([eventfd.descriptor for eventfd in eventfds])
        except (OSError, LocalProtocolError) as error:
            for eventfd in eventfds:
                eventfd.close()
            self._loop.remove(arrival.socket)
            arrival.socket.close()
            raise HostError(f"no further peer with {vectors} eventfds can join: {error}") from error
        # Room for the whole greeting and for a neighbour's coming and going; beyond that, it does not read.
        limit = 2 * len(messages) + OUTBOX_SPARE
        peer = Peer(number, arrival, eventfds, limit)
        self.peers[number] = peer
        self._loop.add(peer.socket, lambda: self._leave(peer, "left"))
        self._on_join(peer)
        self._send(messages)
        return peer

    # Messages that go

    def _send(self, messages: list[Outbound[int]]) -> None:
        """Queue and send. A peer that cannot be told leaves, which is news in turn: it goes behind these."""
        self._news.extend(messages)
        if self._telling:
            return
        self._telling = True
        try:
            while self._news:
                touched: dict[int, Peer] = {}
                while self._news:
                    number, message = self._news.popleft()
                    peer = self.peers.get(number)
                    if peer is None:
                        continue
                    if peer.outbox.put(message):
                        touched[number] = peer
                    else:
                        self._leave(peer, f"does not read: {len(peer.outbox)} messages wait for it")
                for peer in touched.values():
                    self._flush(peer)
        finally:
            self._telling = False
        self._release_departed()

    def _flush(self, peer: Peer) -> None:
        if self.peers.get(peer.peer) is not peer:
            return
        try:
            done = peer.outbox.flush()
        except OSError as error:
            self._leave(peer, error.strerror or "connection broken")
            return
        if done:
            if self._stuck.pop(peer.peer, None):
                self._loop.add(peer.socket, lambda: self._leave(peer, "left"))
                self._release_departed()
            return
        cause = "throttled" if peer.outbox.throttled else "full"
        if self._stuck.get(peer.peer) == cause:
            return
        self._stuck[peer.peer] = cause
        if cause == "full":
            self._loop.add(peer.socket, lambda: self._leave(peer, "left"), writable=lambda: self._flush(peer))
        else:
            # There may be room in the socket: being told so again and again would help nobody.
            self._loop.add(peer.socket, lambda: self._leave(peer, "left"))
            self._loop.at(time.monotonic_ns() + RETRY_NS, lambda: self._retry(peer))

    def _retry(self, peer: Peer) -> None:
        if self._stuck.get(peer.peer) == "throttled":
            self._stuck[peer.peer] = "retried"
            self._flush(peer)

    def _leave(self, peer: Peer, reason: str) -> None:
        if self.peers.pop(peer.peer, None) is None:
            return
        self._stuck.pop(peer.peer, None)
        self._loop.remove(peer.socket)
        peer.socket.close()
        # Messages that carry its eventfds may still wait in somebody's outbox.
        self.departed.append(peer)
        self._on_leave(peer, reason)
        self._send(self._server.leave(peer.peer))

    def _release_departed(self) -> None:
        if self.departed and not (self._stuck or self._telling or self._retain_departed):
            self._close_departed()

    def _close_departed(self) -> None:
        for peer in self.departed:
            for eventfd in peer.eventfds:
                eventfd.close()
        self.departed.clear()

    @property
    def backlog(self) -> int:
        """Messages that wait for clients to read."""
        return sum(len(self.peers[number].outbox) for number in self._stuck)

    def close(self) -> None:
        for arrival in list(self._waiting.values()):
            self._dismiss(arrival)
        for peer in self.peers.values():
            self._loop.remove(peer.socket)
            peer.socket.close()
            self.departed.append(peer)
        self.peers.clear()
        self._stuck.clear()
        self._close_departed()
        self._loop.remove(self._listener)
        self._listener.close()
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:  # never somebody else's
                self.path.unlink()

    def __enter__(self) -> IvshmemServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more; raise ``UsageError`` for anything that is not such."""
    try:
        is_socket = path.is_socket() and not path.is_symlink()
        if not is_socket:
            if os.path.lexists(path):
                raise UsageError(f"{path} exists and is not a socket: choose another path or remove it")
            return
    except OSError as error:
        raise UsageError(f"cannot look at {path}: {error.strerror}") from error
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    ) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise UsageError(f"{path} is a socket that does not answer: {error.strerror}") from error
    raise UsageError(f"{path}: another server is listening there")
