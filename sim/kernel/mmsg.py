"""Many messages in one system call: the only module that calls ``sendmmsg`` and ``recvmmsg``.

The standard library has neither, so this module calls the C library, with tables in its layout (sendmmsg(2), cmsg(3)).
On the wire nothing differs: each message is sent and received by itself, with its descriptor.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from nodes.wire.protocol import MESSAGE_BYTES, Message

DESCRIPTORS_MAX = 253
"""SCM_MAX_FD, the most the kernel passes in one message (unix(7))."""

TABLE_SIZE = 512
SLOTS = 32
# struct mmsghdr: name, its length, iovec, how many, control, its length, flags; what was sent or received.
_HEADER = struct.Struct("@PIPNPNi0PI0P")
_PIECE = struct.Struct("@PN")  # struct iovec
_RIGHTS = struct.Struct("@Niii0N")  # struct cmsghdr with one descriptor
_RIGHTS_BYTES = struct.calcsize("@Niii")
_CONTROL_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * struct.calcsize("i"))
_PIECE_AT, _PIECES_AT = struct.calcsize("@PI0P"), struct.calcsize("@PIP")
_CONTROL_AT, _CONTROL_BYTES_AT = struct.calcsize("@PIPN"), struct.calcsize("@PIPNP")
_FLAGS_AT, _LENGTH_AT = struct.calcsize("@PIPNPN"), struct.calcsize("@PIPNPNi0P")
_ALIGNMENT_BYTES = 8  # of control messages, cmsg(3)
_KIND_AT, _DESCRIPTOR_AT = struct.calcsize("@N"), struct.calcsize("@Nii")
_RIGHTS_KIND = struct.pack("@ii", socket.SOL_SOCKET, socket.SCM_RIGHTS)
_CLOSE_ON_EXEC, _CUT_OFF = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)

_libc = ctypes.CDLL(None, use_errno=True)
_sendmmsg: Callable[[int, int, int, int], int] = _libc.sendmmsg
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_recvmmsg: Callable[[int, int, int, int, None], int] = _libc.recvmmsg
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)


class _Table:
    """Memory for ``size`` messages: their headers, iovecs, bytes and control messages, each a column."""

    def __init__(self, size: int, control_bytes: int, message_bytes: int = MESSAGE_BYTES) -> None:
        self.size = size
        pieces_at = size * _HEADER.size
        numbers_at = pieces_at + size * _PIECE.size
        control_at = numbers_at + -(-size * message_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._buffer = ctypes.create_string_buffer(control_at + size * control_bytes)
        self.address = address = ctypes.addressof(self._buffer)
        memory = memoryview(self._buffer).cast("B")
        headers, pieces = memory[:pieces_at], memory[pieces_at:numbers_at]
        self.data = memory[numbers_at:control_at]
        self.control = memory[control_at:]
        self.control_bytes = _column(headers, _HEADER.size, _CONTROL_BYTES_AT, "L")
        self.flags = _column(headers, _HEADER.size, _FLAGS_AT, "i")
        self.lengths = _column(headers, _HEADER.size, _LENGTH_AT, "I")
        self.rights_bytes = _column(self.control, control_bytes, 0, "L")
        self.kinds = _column(self.control, control_bytes, _KIND_AT, "Q")
        self.descriptors = _column(self.control, control_bytes, _DESCRIPTOR_AT, "i")
        for offset, begin, step in (
            (_PIECE_AT, address + pieces_at, _PIECE.size),
            (_CONTROL_AT, address + control_at, control_bytes),
        ):
            _column(headers, _HEADER.size, offset, "L")[:] = array.array("L", range(begin, begin + size * step, step))
        _column(headers, _HEADER.size, _PIECES_AT, "L")[:] = array.array("L", [1]) * size
        begin = address + numbers_at
        starts = array.array("L", range(begin, begin + size * message_bytes, message_bytes))
        _column(pieces, _PIECE.size, 0, "L")[:] = starts
        _column(pieces, _PIECE.size, struct.calcsize("@P"), "L")[:] = array.array("L", [message_bytes]) * size


def _column(memory: memoryview, stride_bytes: int, offset: int, kind: Literal["i", "I", "L", "Q"]) -> memoryview:
    """The same field of all records, as a sequence."""
    size_bytes = struct.calcsize(kind)
    return memory.cast(kind)[offset // size_bytes :: stride_bytes // size_bytes]


class SendTable:
    """Messages with at most one descriptor each, laid out for the kernel, to be sent to one or many sockets.

    It only grows, so that any number of queues can refer to a part of it. The descriptors stay the caller's. All
    messages of a table have ``message_bytes``.
    """

    def __init__(self, size: int, message_bytes: int = MESSAGE_BYTES) -> None:
        self.message_bytes = message_bytes
        self._table = table = _Table(size, _RIGHTS.size, message_bytes)
        self.used = 0
        table.rights_bytes[:] = array.array("L", [_RIGHTS_BYTES]) * size
        table.kinds[:] = array.array("Q", _RIGHTS_KIND * size)

    @property
    def room(self) -> int:
        return self._table.size - self.used

    def append(self, messages: Sequence[Message[int]]) -> None:
        """Lay out further messages; there must be room for them."""
        table, start = self._table, self.used
        stop = self.used = start + len(messages)
        begin, end = start * self.message_bytes, stop * self.message_bytes
        if self.message_bytes == MESSAGE_BYTES:
            table.data[begin:end] = struct.pack(f"<{len(messages)}q", *[number for number, _ in messages])
        else:
            table.data[begin:end] = b"".join([message.encode() for message in messages])
        carried = [descriptors for _, descriptors in messages]
        table.descriptors[start:stop] = array.array(
            "i", [descriptors[0] if descriptors else -1 for descriptors in carried]
        )
        table.control_bytes[start:stop] = array.array(
            "L", [_RIGHTS.size if descriptors else 0 for descriptors in carried]
        )

    def message(self, at: int) -> tuple[bytes, tuple[int, ...]]:
        """The bytes of one message, and its descriptors."""
        table = self._table
        size_bytes = self.message_bytes
        data = bytes(table.data[at * size_bytes : (at + 1) * size_bytes])
        return data, (table.descriptors[at],) if table.control_bytes[at] else ()

    def send(self, sock: int, start: int, stop: int) -> tuple[int, int]:
        """Send messages ``start`` to ``stop``.

        Returns:
            How many of them have been sent, and how many bytes of the last one.

        Raises:
            OSError: none has been sent; ``BlockingIOError`` when the socket takes no more for now.
        """
        table = self._table
        while (sent := _sendmmsg(sock, table.address + start * _HEADER.size, stop - start, _NO_SIGNAL)) < 0:
            _raise_unless_interrupted()
        return sent, table.lengths[start + sent - 1]


class Batch(NamedTuple):
    """Consecutive messages in a table."""

    table: SendTable
    start: int
    stop: int


class BatchWriter:
    """Lays out messages one after the other, in one table after the other, so that neighbours can be sent together."""

    def __init__(self, message_bytes: int = MESSAGE_BYTES) -> None:
        self._message_bytes = message_bytes
        self._table = SendTable(TABLE_SIZE, message_bytes)

    def lay_out(self, messages: Sequence[Message[int]]) -> Batch:
        if self._table.room < len(messages):
            self._table = SendTable(max(TABLE_SIZE, len(messages)), self._message_bytes)
        table, start = self._table, self._table.used
        table.append(messages)
        return Batch(table, start, table.used)


def join_neighbours(batches: Iterable[Batch]) -> list[Batch]:
    """The same messages in the same order, in as few batches as possible."""
    joined: list[Batch] = []
    for batch in batches:
        if joined and joined[-1].table is batch.table and joined[-1].stop == batch.start:
            joined[-1] = Batch(batch.table, joined[-1].start, batch.stop)
        else:
            joined.append(batch)
    return joined


class ReceivedMessages(NamedTuple):
    """Complete messages, each with one descriptor."""

    numbers: tuple[int, ...]
    descriptors: list[int]


class ReceiveTable:
    """Room for ``SLOTS`` messages, each with as many descriptors as the kernel passes."""

    def __init__(self) -> None:
        self._table = table = _Table(SLOTS, _CONTROL_BYTES)
        self._room = array.array("L", [_CONTROL_BYTES]) * SLOTS
        table.control_bytes[:] = self._room
        # The columns in the usual case: complete messages, nothing cut off, one descriptor each.
        self._usual = tuple(
            (column, array.array(kind, [value]) * SLOTS)
            for column, kind, value in (
                (table.lengths, "I", MESSAGE_BYTES),
                (table.flags, "i", _CLOSE_ON_EXEC),
                (table.control_bytes, "L", _RIGHTS.size),
                (table.rights_bytes, "L", _RIGHTS_BYTES),
                (table.kinds, "Q", int.from_bytes(_RIGHTS_KIND, sys.byteorder)),
            )
        )

    def receive(self, sock: int) -> ReceivedMessages | list[tuple[bytes, list[int], bool]]:
        """Receive what waits.

        Returns:
            Complete messages in the usual case; otherwise (bytes, descriptors, whether descriptors were cut off) for
            each read. No bytes are the end of the connection.

        Raises:
            OSError: ``BlockingIOError`` when nothing waits.
        """
        table = self._table
        while (count := _recvmmsg(sock, table.address, SLOTS, _CLOSE_ON_EXEC, None)) < 0:
            _raise_unless_interrupted()
        try:
            if all(column[:count] == usual[:count] for column, usual in self._usual):
                numbers = struct.unpack_from(f"<{count}q", table.data)
                return ReceivedMessages(numbers, table.descriptors[:count].tolist())
            return [self._piece(at) for at in range(count)]
        finally:
            table.control_bytes[:count] = self._room[:count]

    def _piece(self, at: int) -> tuple[bytes, list[int], bool]:
        table = self._table
        begin = at * MESSAGE_BYTES
        data = bytes(table.data[begin : begin + table.lengths[at]])
        begin = at * _CONTROL_BYTES
        control = table.control[begin : begin + table.control_bytes[at]]
        return data, _descriptors(control), bool(table.flags[at] & _CUT_OFF)


def _descriptors(control: memoryview) -> list[int]:
    """The descriptors in the control messages of one message (cmsg(3))."""
    found = array.array("i")
    while len(control) >= socket.CMSG_LEN(0):
        size_bytes, level, kind = struct.unpack_from("@Nii", control)
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = (size_bytes - socket.CMSG_LEN(0)) // found.itemsize * found.itemsize
            found.frombytes(control[socket.CMSG_LEN(0) : socket.CMSG_LEN(whole)])
        control = control[socket.CMSG_SPACE(size_bytes - socket.CMSG_LEN(0)) :]
    return list(found)


def _raise_unless_interrupted() -> None:
    number = ctypes.get_errno()
    if number != errno.EINTR:
        raise OSError(number, os.strerror(number))
