"""Lines from a descriptor, as they come: standard input beside everything else that is waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from nodes.errors import UsageError
from sim.kernel.loop import Loop

__all__ = ["Lines"]

READ_BYTES = 65536


class Lines:
    """Calls ``take`` with each line of ``descriptor``, without its end, and with None when there are no more.

    The descriptor stays the caller's, and blocking: it is read when there is something, no sooner. The order of
    things is kept even where all lines are there already, in a file: one line for each turn of the loop. The loop
    raises ``UsageError`` for what cannot be read.
    """

    def __init__(self, loop: Loop, descriptor: int, take: Callable[[str | None], None]) -> None:
        self._loop, self._descriptor, self._take = loop, descriptor, take
        self._pending = b""
        self._ended = False
        self._at_once = False
        self._resume()

    def close(self) -> None:
        """Take no more."""
        if not self._ended:
            self._ended = True
            self._loop.remove(self._descriptor)

    def _resume(self) -> None:
        if not self._at_once and b"\n" not in self._pending:
            try:
                self._loop.add(self._descriptor, self._step)
                return
            except PermissionError:  # what epoll refuses, as files and /dev/null, is always readable
                self._at_once = True
        self._loop.at(time.monotonic_ns(), self._step)  # not 0: after whatever else is due, too

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
            self._loop.remove(self._descriptor)  # until this one has been dealt with
            self._pending = rest
            self._take(_text(line))
            if not self._ended:
                self._resume()
        elif self._at_once:
            self._resume()


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
