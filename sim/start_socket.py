"""The start of a run, held by another process: `ivsim run --start-fd`."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from contextlib import AbstractContextManager

from nodes.errors import UsageError

READY = b"ready\n"
GO = b"go\n"


class StartSocket:
    """A connected socket: `READY` is sent when all machines are, and a line from the other end starts them.

    The end of the connection before that calls the start off.
    """

    def __init__(self, descriptor: int) -> None:
        """Take the descriptor, and close it in the end. Raises ``UsageError`` if it is no socket."""
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                raise UsageError(f"descriptor {descriptor}: expected a connected socket")
        except OSError as error:
            raise UsageError(f"descriptor {descriptor}: {error.strerror}") from None
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._socket.set_inheritable(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def tell_ready(self) -> None:
        with contextlib.suppress(OSError):  # the other end is gone: it reads as the end of the connection
            self._socket.send(READY)

    def is_open(self) -> bool:
        try:
            return bool(self._socket.recv(len(GO)))
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()


def start_gate(descriptor: int | None) -> AbstractContextManager[StartSocket | None]:
    """The gate of a run whose start is held by the other end of a socket; None where none is."""
    return contextlib.nullcontext() if descriptor is None else contextlib.closing(StartSocket(descriptor))
