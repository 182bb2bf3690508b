"""A stream socket that carries ivshmem messages: the only module that calls ``sendmsg`` and ``recvmsg``.

It sends and receives single messages; where many wait, ``sim.kernel.mmsg`` does. Descriptors are plain numbers: the
caller owns and closes those that it receives.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from typing import NamedTuple

from nodes.errors import RemoteProtocolError
from nodes.wire.protocol import Message
from sim.kernel.mmsg import DESCRIPTORS_MAX, Batch, ReceivedMessages, ReceiveTable

# With room for all descriptors that the kernel passes, none is cut off unnoticed.
_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
# Plain numbers: the flags of the socket module are enumerations, and each "&" of one costs as much as a system call.
_CLOSE_ON_EXEC, _CUT_OFF = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_DESCRIPTOR = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")  # struct ucred


class Channel:
    """The receiving end: bytes and descriptors as they arrive. Owns the socket."""

    def __init__(self, sock: socket.socket, table: ReceiveTable | None = None) -> None:
        """``table``: for `receive_many`, which makes one if need be; channels of one thread can share it."""
        sock.setblocking(False)
        self.socket = sock
        self._table = table
        self._cut_off = False

    def fileno(self) -> int:
        return self.socket.fileno()

    def receive(self, size_bytes: int) -> tuple[bytes, list[int]] | None:
        """Receive up to ``size_bytes`` and the descriptors that came with them.

        Returns:
            None when nothing waits, b"" at the end of the connection.

        Raises:
            RemoteProtocolError: descriptors were cut off, as this process may open no more. Without its descriptor,
                "peer 7, vector 0" reads as "peer 7 left".
        """
        if self._cut_off:
            raise _cut_off()
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(size_bytes, _ANCILLARY_BYTES, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b"", []
        if not flags & _CUT_OFF:
            if not ancillary:
                return data, []
            level, kind, payload = ancillary[0]
            if (
                len(ancillary) == 1
                and kind == socket.SCM_RIGHTS
                and level == socket.SOL_SOCKET
                and len(payload) == _DESCRIPTOR.size
            ):
                return data, [*_DESCRIPTOR.unpack(payload)]
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        if flags & _CUT_OFF:
            for descriptor in descriptors:
                os.close(descriptor)
            raise _cut_off()
        return data, list(descriptors)

    def receive_many(self) -> ReceivedMessages | list[tuple[bytes, list[int]]] | None:
        """Receive what waits, up to a number of messages of 8 bytes, as ``receive`` would return them one by one.

        Call it only between messages, not after a part of one. Raises as ``receive`` does, but returns the messages
        before those that were cut off first.
        """
        if self._cut_off:
            raise _cut_off()
        if self._table is None:
            self._table = ReceiveTable()
        try:
            arrived = self._table.receive(self.socket.fileno())
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return [(b"", [])]
        if isinstance(arrived, ReceivedMessages):
            return arrived
        pieces = []
        for at, (data, descriptors, cut_off) in enumerate(arrived):
            if cut_off:
                self._cut_off = True
                for _, descriptors, _ in arrived[at:]:
                    for descriptor in descriptors:
                        os.close(descriptor)
                break
            pieces.append((data, descriptors))
            if not data:
                break
        if not pieces:
            raise _cut_off()
        return pieces

    def close(self) -> None:
        self.socket.close()


class Credentials(NamedTuple):
    """A process, as it was when it connected or listened (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def credentials_of(sock: socket.socket) -> Credentials:
    """The process at the other end of a unix socket, as the kernel reports it."""
    return Credentials(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


def unread_bytes(sock: socket.socket) -> int:
    """The bytes that the other end has not read, with the kernel's overhead (unix(7), SIOCOUTQ, which is TIOCOUTQ)."""
    return int(_DESCRIPTOR.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_DESCRIPTOR.size)))[0])


def has_ended(sock: socket.socket) -> bool:
    """Whether the other end has closed; a byte from it, which stays in the socket, means that, too."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def send_descriptors(sock: socket.socket, data: bytes, descriptors: tuple[int, ...]) -> None:
    """Send one message of a socket that keeps messages apart. Raises ``OSError``, ``BlockingIOError`` when full."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    sock.sendmsg([data], rights, _NO_SIGNAL)


def _cut_off() -> RemoteProtocolError:
    return RemoteProtocolError(
        "descriptors were cut off on receipt: this process may open no more (see ulimit -n); "
        "the messages that follow cannot be understood"
    )


class Outbox:
    """The sending end: up to ``limit`` messages wait here while the other side does not read.

    ``flush`` sends what can be sent. When the kernel takes only a part of a message, its rest is sent next, without its
    descriptor, which was sent with the first byte.
    """

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self._socket = sock
        self.limit = limit
        self._waiting: deque[Batch | tuple[bytes, tuple[int, ...]]] = deque()
        self._count = 0
        self.throttled = False
        """Whether too many descriptors of this user wait in sockets: then room in this socket does not help."""

    def __len__(self) -> int:
        return self._count

    def put(self, message: Message[int]) -> bool:
        """Queue one message; False when the limit is reached, and then nothing was queued."""
        if self._count >= self.limit:
            return False
        self._waiting.append((message.encode(), message.descriptors))
        self._count += 1
        return True

    def put_batch(self, batch: Batch) -> bool:
        """Queue messages that are laid out already; False when not all fit, and then nothing was queued."""
        table, start, stop = batch
        if self._count + stop - start > self.limit:
            return False
        waiting = self._waiting
        if waiting and isinstance(last := waiting[-1], Batch) and last.table is table and last.stop == start:
            waiting[-1] = Batch(table, last.start, stop)
        elif start < stop:
            waiting.append(batch)
        self._count += stop - start
        return True

    def flush(self) -> bool:
        """Send until all is sent (True) or the socket takes no more for now (False).

        Raises:
            OSError: the connection is broken.
        """
        self.throttled = False
        try:
            while self._waiting:
                first = self._waiting[0]
                if not isinstance(first, Batch):
                    self._send(*first)
                elif first.stop - first.start == 1:  # for a single message this is faster
                    self._send(*first.table.message(first.start))
                else:
                    self._send_batch(first)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            self.throttled = True  # unix(7): until other clients have read
            return False
        return True

    def _send(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        """Send the first message, by itself."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        sent = self._socket.sendmsg([data], rights, _NO_SIGNAL)
        if sent == len(data):
            self._waiting.popleft()
            self._count -= 1
        else:
            self._waiting[0] = (data[sent:], ())

    def _send_batch(self, batch: Batch) -> None:
        """Send as much as possible of the first batch."""
        table, start, stop = batch
        sent, last_bytes = table.send(self._socket.fileno(), start, stop)
        self._waiting.popleft()
        start += sent
        self._count -= sent
        if start < stop:
            self._waiting.appendleft(Batch(table, start, stop))
        if last_bytes < table.message_bytes:
            self._waiting.appendleft((table.message(start - 1)[0][last_bytes:], ()))
            self._count += 1
