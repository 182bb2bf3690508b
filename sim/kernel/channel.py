"""A stream socket that carries ivshmem messages: the only module that calls ``sendmsg`` and ``recvmsg``.

Descriptors are plain numbers here: those received belong to the caller, who closes them.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections import deque

from nodes.errors import RemoteProtocolError
from nodes.wire.protocol import Message

__all__ = ["Channel", "Outbox"]

# SCM_MAX_FD, the most the kernel passes in one message (unix(7)): with room for all, nothing is cut off unseen.
DESCRIPTORS_MAX = 253
_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
# Plain numbers: the flags of the socket module are enumerations, and each "&" of one costs as much as a system call.
_CLOSE_ON_EXEC, _CUT_OFF = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_DESCRIPTOR = struct.Struct("i")


class Channel:
    """The receiving end: bytes and descriptors as they come. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock

    def fileno(self) -> int:
        return self.socket.fileno()

    def receive(self, size_bytes: int) -> tuple[bytes, list[int]] | None:
        """Up to ``size_bytes`` and the descriptors that came with them; None when nothing waits, b"" at the end.

        Raises ``RemoteProtocolError`` when descriptors were cut off (this process has no room for more): without
        its descriptor, "peer 7, vector 0" reads as "peer 7 left".
        """
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
            raise RemoteProtocolError(
                "descriptors were cut off on receipt: this process may open no more (see ulimit -n); "
                "the messages that follow cannot be understood"
            )
        return data, list(descriptors)

    def close(self) -> None:
        self.socket.close()


class Outbox:
    """The sending end: messages wait here while the other side does not read, up to ``limit``.

    ``flush`` sends what can be sent. A message leaves whole or not at all as far as the kernel allows; the rest
    of one that was cut is sent first, without its descriptor, which has gone with the first byte.
    """

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self._socket = sock
        self._limit = limit
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.throttled = False
        """The kernel holds too many descriptors of this user; trying again takes time, not room in the socket."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Message[int]) -> bool:
        """Queue one message; False when the limit is reached, and then nothing was queued."""
        if len(self._waiting) >= self._limit:
            return False
        self._waiting.append((message.encode(), message.descriptors))
        return True

    def flush(self) -> bool:
        """Send until all is sent (True) or the other side takes no more for now (False).

        Raises ``OSError`` when the connection is broken.
        """
        waiting, sendmsg = self._waiting, self._socket.sendmsg
        self.throttled = False
        while waiting:
            data, descriptors = waiting[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = sendmsg([data], rights, _NO_SIGNAL)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                self.throttled = True  # unix(7): the readers have to catch up
                return False
            if sent == len(data):
                waiting.popleft()
            else:
                waiting[0] = (data[sent:], ())
        return True
