"""The monitor (QMP) of a QEMU with a guest, for a process that must not wait for its answers."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from sim.engines.qemu.msix_state import QmpCommands
from sim.engines.qemu.received_lines import ReceivedLines
from sim.kernel.channel import send_descriptors
from sim.kernel.loop import Loop

OnEvent = Callable[[str, dict[str, Any], int], None]
"""Is told the name and the data of an event, and when it was: nanoseconds of the host's real time."""


class GuestMonitor:
    """Owns both ends of the connection until `start`; ``far`` is QEMU's.

    Args:
        on_event: called with each event.
    """

    def __init__(self, loop: Loop, on_event: OnEvent) -> None:
        self._loop, self.on_event = loop, on_event
        self._socket, self.far = socket.socketpair()
        self._socket.setblocking(False)
        self._lines = ReceivedLines()
        self._shut_down_by = ""
        self._waiting: deque[tuple[Callable[[Any], None], Callable[[str], None]]] = deque()
        """What is told the result or the error of each command that has not been answered, the oldest first."""

    def start(self, then: Callable[[Any], None] = lambda result: None) -> None:
        """QEMU has its end; ``then`` is told once it answers, which it does when all its devices are made."""
        self.far.close()
        self._loop.add(self._socket, self._read)
        self.command("qmp_capabilities", then)

    def command(
        self,
        name: str,
        then: Callable[[Any], None] = lambda result: None,
        failed: Callable[[str], None] = lambda error: None,
        **arguments: Any,
    ) -> None:
        """Give a command; ``then`` is told its result, or ``failed`` why it failed, in QEMU's words."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"execute": name, "arguments": arguments}).encode())
            self._waiting.append((then, failed))

    def give_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor, which it knows by this name from now on (QMP, getfd)."""
        with contextlib.suppress(OSError):
            order = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode()
            send_descriptors(self._socket, order, (descriptor,))
            self._waiting.append((lambda result: None, lambda error: None))

    def ask(self, commands: QmpCommands, then: Callable[[Any], None]) -> None:
        """Give the commands that a generator yields; ``then`` is told what it returns.

        A generator whose command fails is closed, and ``then`` is told nothing.
        """

        def go_on(result: Any) -> None:
            try:
                name, arguments = commands.send(result)
            except StopIteration as end:
                then(end.value)
                return
            self.command(name, go_on, lambda _error: commands.close(), **arguments)

        go_on(None)

    def shut_down_by(self) -> str:
        """Why a QEMU that has ended was told to, other than by its guest (QMP, ShutdownCause); "" if it was not."""
        with contextlib.suppress(EOFError):
            for line in self._lines.read(self._socket):
                self._note_shutdown(json.loads(line))
        return self._shut_down_by

    def _note_shutdown(self, answer: dict[str, Any]) -> None:
        if answer.get("event") == "SHUTDOWN" and not answer["data"]["guest"]:
            self._shut_down_by = answer["data"].get("reason", "not by its guest")  # which QEMU tells since 4.0

    def _read(self) -> None:
        try:
            for line in self._lines.read(self._socket):
                self._take(json.loads(line))
        except EOFError:
            self._loop.remove(self._socket)

    def _take(self, answer: dict[str, Any]) -> None:
        self._note_shutdown(answer)
        if "event" in answer:
            moment = answer["timestamp"]
            at_ns = (moment["seconds"] * 1_000_000 + moment["microseconds"]) * 1_000
            self.on_event(answer["event"], answer.get("data", {}), at_ns)
        elif "return" in answer or "error" in answer:
            then, failed = self._waiting.popleft()
            if "return" in answer:
                then(answer["return"])
            else:
                failed(str(answer["error"].get("desc", answer["error"])))

    def close(self) -> None:
        self._loop.remove(self._socket)
        self._socket.close()
        self.far.close()
