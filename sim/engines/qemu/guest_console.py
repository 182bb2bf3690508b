"""The console of a guest: every byte goes to a file, every line to those that watch it."""

from __future__ import annotations

import contextlib
import re
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sim.engines.qemu.received_lines import ReceivedLines
from sim.kernel.loop import Loop

LINE_BYTES_MAX = 4096
LAST_LINES = 8
FILE_BYTES_MAX = 64 << 20
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
"""Terminal escapes and control characters, which firmware prints."""


class GuestConsole:
    """Owns this process's end of each connection to the console, and the file ``path``.

    A guest that migrates has another connection afterwards (`connect`), and one console.

    Args:
        on_line: called with each line without its end, terminal escapes and control characters.
    """

    def __init__(self, loop: Loop, path: Path, on_line: Callable[[str], None]) -> None:
        self._loop, self._on_line = loop, on_line
        self._file: BinaryIO | None = open(path, "ab", buffering=0)  # noqa: SIM115  (close() closes it)
        self._room_bytes = FILE_BYTES_MAX
        self._sockets: list[socket.socket] = []
        self._lines = ReceivedLines(self._keep, LINE_BYTES_MAX)
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        """The last lines that are not empty."""

    def connect(self) -> socket.socket:
        """Connect a QEMU; returns its end, which belongs to the caller."""
        near, far = socket.socketpair()
        near.setblocking(False)
        self._sockets.append(near)
        self._loop.add(near, self.read)
        return far

    @property
    def last_words(self) -> str:
        return "; its last lines: " + " | ".join(self.lines) if self.lines else "; its console is empty"

    def read(self) -> None:
        """Take in all that the guest has written, where it was first and where it is now."""
        for sock in list(self._sockets):
            self._read(sock)

    def _read(self, sock: socket.socket) -> None:
        try:
            for line in self._lines.read(sock):
                self._take(line)
        except EOFError:
            self._forget(sock)

    def write(self, text: str) -> None:
        """Type something; what the guest does not take at once is dropped."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.send(text.encode())

    def _forget(self, sock: socket.socket) -> None:
        if sock in self._sockets:  # a line may have led to `close`
            self._loop.remove(sock)
            self._sockets.remove(sock)
            sock.close()

    def close(self) -> None:
        for sock in list(self._sockets):
            self._forget(sock)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, data: bytes) -> None:
        """Write to the file. A guest that prints without an end, or a full disk, costs lines and not the run."""
        if self._file is not None and self._room_bytes > 0:
            with contextlib.suppress(OSError):
                self._file.write(data[: self._room_bytes])
            self._room_bytes -= len(data)

    def _take(self, line: bytes) -> None:
        text = _CONTROL.sub("", line[:LINE_BYTES_MAX].decode(errors="replace")).rstrip()
        if text:
            self.lines.append(text)
            self._on_line(text)
