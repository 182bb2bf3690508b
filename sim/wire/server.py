"""The ivshmem server as the network sees it: a listening socket, its clients, their eventfds.

What is said to whom is decided by ``nodes.wire.server``; here it is said. A client that does not read costs nobody
but itself: what it is told waits in its outbox, and when that is full, it is disconnected and announced as gone.
A client never speaks: a byte from it, or the end of its connection, means that it has left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from nodes.errors import HostError, LocalProtocolError
from nodes.wire.protocol import V0, Dialect, Message
from nodes.wire.server import Outbound, Server
from sim.kernel.channel import Outbox
from sim.kernel.eventfd import EventFd
from sim.kernel.loop import Loop
from sim.wire.listener import PATH_BYTES_MAX, Listener

__all__ = ["PATH_BYTES_MAX", "Arrival", "IvshmemServer", "Peer"]

_CREDENTIALS = struct.Struct("3i")
_NUMBER = struct.Struct("i")
RETRY_NS = 2_000_000
OUTBOX_SPARE = 4096
ACCEPTED_AT_ONCE = 64


class Arrival:
    """A client that has connected and has not joined yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.pid, self.uid, self.gid = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )


class Peer:
    """A client that has joined. Owns its socket; the server owns its eventfds for as long as anyone is told of them."""

    def __init__(self, peer: int, arrival: Arrival, eventfds: list[EventFd], limit: int) -> None:
        self.peer = peer
        self.socket = arrival.socket
        self.pid, self.uid, self.gid = arrival.pid, arrival.uid, arrival.gid
        self.eventfds = eventfds
        self.outbox = Outbox(arrival.socket, limit)
        self.told_until = 0  # it waits for no eventfd of those who left before: their number


class IvshmemServer:
    """A server on a path, or on a socket that listens already, for one region of memory.

    ``on_arrival`` decides about each client that connects (it calls ``join``, at once or later); by default
    everyone joins at once with ``vectors`` eventfds. ``on_join`` and ``on_leave`` tell what has happened,
    ``on_refuse`` who was not let in and why: beyond ``clients_max``, without IDs or descriptors. Such a one is
    told ``refusal``, if given: a real QEMU waits for ever for a server that closes without a word.
    ``on_pause`` tells that accepting pauses for lack of descriptors.
    With ``retain_departed`` the eventfds of peers that have left stay open, in ``departed``, for whoever counts
    what nobody took. A context manager: leaving it disconnects everybody and removes the socket.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path | Listener,
        memory: int,
        *,
        vectors: int,
        dialect: Dialect = V0,
        first_peer: int = 0,
        reuse_peers: bool = False,
        clients_max: int | None = None,
        refusal: Message[int] | None = None,
        on_arrival: Callable[[Arrival], None] | None = None,
        on_join: Callable[[Peer], None] = lambda peer: None,
        on_leave: Callable[[Peer, str], None] = lambda peer, reason: None,
        on_refuse: Callable[[Arrival, str], None] = lambda arrival, reason: None,
        on_pause: Callable[[str], None] = lambda reason: None,
        retain_departed: bool = False,
    ) -> None:
        self._loop = loop
        self._vectors = vectors
        self._server: Server[int] = Server(memory, dialect=dialect, first_peer=first_peer, reuse_peers=reuse_peers)
        self._clients_max, self._refusal = clients_max, refusal
        self.peers: dict[int, Peer] = {}
        self._waiting: dict[int, Arrival] = {}  # socket number -> not joined yet
        self.departed: list[Peer] = []
        self._released = 0  # how many departed ones are gone from the list
        self._retain_departed = retain_departed
        self._stuck: dict[int, str] = {}  # peer -> why it is not told more for now
        self._news: deque[Outbound[int]] = deque()
        self._telling = False
        self._on_arrival = on_arrival or self._join_default
        self._on_join, self._on_leave = on_join, on_leave
        self._on_refuse, self._on_pause = on_refuse, on_pause
        self._listener = path if isinstance(path, Listener) else Listener(path)
        self.path = self._listener.path
        loop.add(self._listener, self._accept_all)

    # Clients that come

    def _accept_all(self) -> None:
        """Admit those who wait, but let others have their turn; when descriptors run out, pause instead of spinning."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._loop.remove(self._listener)
                    self._loop.at(time.monotonic_ns() + 50 * RETRY_NS, self._resume_accepting)
                    self._on_pause(os.strerror(error.errno))
                    return
                raise
            if sock is None:
                return
            arrival = Arrival(sock)
            if self._clients_max is not None and len(self.peers) + len(self._waiting) >= self._clients_max:
                self._refuse(arrival, f"there are {self._clients_max} clients already")
                continue
            self._waiting[sock.fileno()] = arrival
            # One who leaves before he has joined is noticed too.
            self._loop.add(sock, lambda arrival=arrival: self._dismiss(arrival))  # type: ignore[misc]
            self._on_arrival(arrival)

    def _refuse(self, arrival: Arrival, reason: str) -> None:
        if self._refusal is not None:
            with contextlib.suppress(OSError):  # gone already
                farewell = Outbox(arrival.socket, 1)
                farewell.put(self._refusal)
                farewell.flush()
        arrival.socket.close()
        self._on_refuse(arrival, reason)

    def _resume_accepting(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add(self._listener, self._accept_all)

    def _dismiss(self, arrival: Arrival) -> None:
        if self._waiting.pop(arrival.socket.fileno(), None) is not None:
            self._loop.remove(arrival.socket)
            arrival.socket.close()

    def _join_default(self, arrival: Arrival) -> None:
        with contextlib.suppress(HostError):  # he was told, and so was on_refuse; others go on
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
            reason = f"no further peer with {vectors} eventfds can join: {error}"
            self._refuse(arrival, reason)
            raise HostError(reason) from error
        # Room for the whole greeting and for a neighbour's coming and going; beyond that, it does not read.
        limit = 2 * len(messages) + OUTBOX_SPARE
        peer = Peer(number, arrival, eventfds, limit)
        peer.told_until = self._released + len(self.departed)
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
            peer.told_until = self._released + len(self.departed)
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
        if self._stuck.get(peer.peer) == "throttled" and self.peers.get(peer.peer) is peer:
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
        _unblock(peer)
        self._on_leave(peer, reason)
        self._send(self._server.leave(peer.peer))

    def _release_departed(self) -> None:
        """Close the eventfds that nobody waits for any more: who is stuck was told of all that left before."""
        if self.departed and not (self._telling or self._retain_departed):
            left = self._released + len(self.departed)
            until = min((self.peers[number].told_until for number in self._stuck), default=left)
            self._close_departed(until - self._released)

    def _close_departed(self, count: int) -> None:
        for peer in self.departed[:count]:
            for eventfd in peer.eventfds:
                eventfd.close()
        del self.departed[:count]
        self._released += count

    def unblock(self) -> None:
        """Make every eventfd non-blocking again, for everyone who holds it.

        The flag belongs to the description that all share. A real QEMU clears it on each that it receives and
        sets it again on those that it keeps: one that it has no vector for would block whoever rings it when its
        counter is full (io/channel-socket.c, qio_channel_socket_copy_fds).
        """
        for peer in (*self.peers.values(), *self.departed):
            _unblock(peer)

    @property
    def is_unread(self) -> bool:
        """Whether anybody has not read everything yet: it waits here, or in his socket."""
        return bool(self._stuck) or any(_unread_bytes(peer.socket) for peer in self.peers.values())

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
        self._close_departed(len(self.departed))
        if self._listener.fileno() >= 0:
            self._loop.remove(self._listener)
        self._listener.close()

    def __enter__(self) -> IvshmemServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unblock(peer: Peer) -> None:
    for eventfd in peer.eventfds:
        os.set_blocking(eventfd.descriptor, False)


def _unread_bytes(sock: socket.socket) -> int:
    """What the kernel holds for the other side, with its own overhead: 0 when all has been read (unix(7), SIOCOUTQ)."""
    return int(_NUMBER.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, _NUMBER.pack(0)))[0])
