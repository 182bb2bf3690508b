"""A client of the server, before and after it has joined: its socket, its eventfds, the messages that wait for it."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterable

from sim.kernel.channel import Outbox, credentials_of, unread_bytes
from sim.kernel.eventfd import EventFd
from sim.kernel.mmsg import Batch

MESSAGE_BUFFER_BYTES = 768  # what a message takes in a socket, measured in tests/sim/kernel/test_channel.py
SOCKET_SHARE = 64


class PendingClient:
    """A client that has connected and has not joined yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.pid, self.uid, self.gid = credentials_of(sock)
        # The socket takes so little that many clients which do not read leave descriptors for those that do.
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        share_bytes = limit * MESSAGE_BUFFER_BYTES // SOCKET_SHARE
        if share_bytes < sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, share_bytes // 2)  # which the kernel doubles


class JoinedClient:
    """A client that has joined. Owns its socket; the server owns its eventfds until no message with them waits."""

    def __init__(self, peer: int, arrival: PendingClient, eventfds: list[EventFd], vectors: Batch) -> None:
        self.peer = peer
        self.socket = arrival.socket
        self.pid, self.uid, self.gid = arrival.pid, arrival.uid, arrival.gid
        self.eventfds = eventfds
        self.vectors = vectors  # the messages that tell of them
        self.outbox = Outbox(arrival.socket, 0)  # the server sets its limit
        self.told_until = 0  # how many peers that left have no eventfd in a message that waits for it
        self.joined_at = 0  # how many had joined before it
        self.stuck_by = ""  # why it takes no more for now
        self.misses_from = 0  # of the leaves that it is told of later
        self.has_left = False

    @property
    def unread_bytes(self) -> int:
        """The bytes that the kernel holds for it, with overhead: 0 when it has read all."""
        return unread_bytes(self.socket)

    @property
    def has_read_all(self) -> bool:
        """Whether it is connected, and nothing waits for it."""
        return self.socket.fileno() >= 0 and not (self.stuck_by or len(self.outbox) or self.unread_bytes)

    @property
    def has_spoken(self) -> bool:
        """Whether it has sent something, which a client of this protocol never does."""
        try:
            # Descriptors that came with the byte stay in the socket, and are closed with it.
            return bool(self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def unblock(self) -> None:
        """Make its eventfds non-blocking again."""
        for eventfd in self.eventfds:
            os.set_blocking(eventfd.descriptor, False)

    def close_eventfds(self) -> None:
        for eventfd in self.eventfds:
            eventfd.close()


class Dismissal:
    """A peer that its server has disconnected: tells which others may still ring it.

    A peer rings it no more once it has read all that its server has sent, the leave included.

    Args:
        others: those that are connected.
        is_told: whether a leave is in the socket of each of them that takes more for now.
    """

    def __init__(self, others: Iterable[JoinedClient], is_told: Callable[[], bool]) -> None:
        self._others, self._is_told = list(others), is_told

    def unaware(self) -> list[JoinedClient]:
        """The peers that may not know yet."""
        if self._others and self._is_told():
            self._others = [other for other in self._others if not (other.has_left or other.has_read_all)]
        return self._others
