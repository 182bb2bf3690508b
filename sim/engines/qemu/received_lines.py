"""Lines from non-blocking sockets, received in pieces of any size."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

READ_BYTES = 1 << 16


class ReceivedLines:
    """Splits what is received into lines.

    Args:
        on_data: called with every piece before its lines are yielded.
        line_bytes_max: a line that is longer is yielded before its end.
    """

    def __init__(self, on_data: Callable[[bytes], None] = lambda data: None, line_bytes_max: int = 1 << 30) -> None:
        self._on_data, self._line_bytes_max = on_data, line_bytes_max
        self._begun = b""

    def read(self, sock: socket.socket) -> Iterator[bytes]:
        """Yield all complete lines that have come, without their ends.

        Raises:
            EOFError: the connection has ended.
        """
        while True:
            try:
                data = sock.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                raise EOFError
            self._on_data(data)
            *lines, self._begun = (self._begun + data).split(b"\n")
            if len(self._begun) > self._line_bytes_max:
                lines.append(self._begun)
                self._begun = b""
            yield from lines
