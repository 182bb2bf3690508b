"""Lines from a descriptor as they arrive, for a loop: standard input beside sockets and timers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from nodes.errors import UsageError
from sim.kernel.loop import Loop

READ_BYTES = 65536


class LineReader:
    """Calls ``take`` with each line of ``descriptor``, without its end, and with None at the end of the input.

    The descriptor stays the caller's, and blocking: it is read only when it is readable. Each turn of the loop takes
    one line, so that other events keep their order even when all lines are there already, in a file. The loop raises
    ``UsageError`` when the descriptor cannot be read.
    """

    def __init__(self, loop: Loop, descriptor: int, take: Callable[[str | None], None]) -> None:
        self._loop, self._descriptor, self._take = loop, descriptor, take
        self._pending = b""
        self._ended = False
        self._at_once = False
        self._resume()

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._loop.remove(self._descriptor)

    def _resume(self) -> None:
        if not self._at_once and b"\n" not in self._pending:
            try:
                self._loop.add(self._descriptor, self._step)
                return
            except PermissionError:  # files and /dev/null: epoll refuses them, and they are always readable
                self._at_once = True
        self._loop.at(time.monotonic_ns(), self._step)  # not 0: other timers that are due come first

    def _step(self) -> None:
        if self._ended:
            return
        if b"\n" not in self._pending:
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except OSError as error:
                raise UsageError(f"cannot read lines from standard input: {error.strerror}") from error
            self._pending += data
            if not data:
                last, self._pending = self._pending, b""
                if last:
                    self._take(_text(last))
                if not self._ended:
                    self.close()
                    self._take(None)
                return
        line, newline, rest = self._pending.partition(b"\n")
        if newline:
            self._loop.remove(self._descriptor)  # until this line has been taken
            self._pending = rest
            self._take(_text(line))
            if not self._ended:
                self._resume()
        elif self._at_once:
            self._resume()


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
