"""The monitor (QMP) of a QEMU with a guest, for a process that must not wait for its answers."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from sim.engines.qemu.hearing import Asking
from sim.kernel.loop import Loop

__all__ = ["GuestMonitor"]

READ_BYTES = 1 << 16


class GuestMonitor:
    """Owns both ends of the connection until `start`; ``far`` is QEMU's."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._socket, self.far = socket.socketpair()
        self._socket.setblocking(False)
        self._begun = b""
        self._waiting: deque[Callable[[Any], None]] = deque()
        """What is told the result of each command that has not been answered, the oldest first."""

    def start(self) -> None:
        """QEMU has its end."""
        self.far.close()
        self._loop.add(self._socket, self._read)
        self.command("qmp_capabilities")

    def command(self, name: str, then: Callable[[Any], None] = lambda result: None, **arguments: Any) -> None:
        """Give a command; ``then`` is told its result, None for one that failed."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"execute": name, "arguments": arguments}).encode())
            self._waiting.append(then)

    def ask(self, asking: Asking, then: Callable[[Any], None]) -> None:
        """Give the commands that a generator yields; ``then`` is told what it returns.

        A generator whose command fails is closed, and ``then`` is told nothing.
        """

        def go_on(result: Any) -> None:
            try:
                name, arguments = asking.send(result)
            except StopIteration as end:
                then(end.value)
                return
            self.command(name, lambda answer: asking.close() if answer is None else go_on(answer), **arguments)

        go_on(None)

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove(self._socket)
            return
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "return" in answer or "error" in answer:
                self._waiting.popleft()(answer.get("return"))

    def close(self) -> None:
        self._loop.remove(self._socket)
        self._socket.close()
        self.far.close()
