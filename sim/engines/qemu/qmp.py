"""QMP, QEMU's monitor in JSON, over a connection whose answers the caller waits for."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from typing import Any, Self

from nodes.errors import QemuError
from sim.kernel.channel import send_descriptors
from sim.kernel.closeable import Closeable
from sim.kernel.waiting import Patience
from sim.wire.connection import connect

TIMEOUT_SECONDS, LOOK_SECONDS = 60.0, 1.0


class BrokenConnectionError(QemuError):
    """A connection to QEMU has ended, or nothing came over it in time."""


class LineConnection:
    """One end of a line protocol over a socket; owns the socket."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.settimeout(LOOK_SECONDS)
        self._socket = sock
        self._name = name
        self._received = b""

    def send(self, text: str, descriptor: int | None = None) -> None:
        """Send a text, and a descriptor, if there is one, with its first byte."""
        try:
            if descriptor is None:
                self._socket.sendall(text.encode())
            else:
                send_descriptors(self._socket, text.encode(), (descriptor,))
        except OSError as error:
            raise BrokenConnectionError(f"QEMU's {self._name} connection broke: {error}") from error

    def line(self) -> str:
        """The next line.

        Raises:
            QemuError: none came in time, or the other side is gone.
        """
        patience = Patience(TIMEOUT_SECONDS)
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError as error:
                if patience.is_over():
                    raise BrokenConnectionError(
                        f"QEMU does not answer ({self._name}) for {TIMEOUT_SECONDS:g} s"
                    ) from error
                continue
            except OSError as error:
                raise BrokenConnectionError(f"QEMU does not answer ({self._name}): {error}") from error
            if not data:
                raise BrokenConnectionError(f"QEMU closed its {self._name} connection")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        self._socket.close()


class Qmp(Closeable):
    """One connection; owns the socket. ``seen`` counts each event that has come and was not waited for."""

    def __init__(self, sock: socket.socket) -> None:
        self._lines = LineConnection(sock, "QMP")
        self.seen: Counter[str] = Counter()

    @classmethod
    def connect(cls, path: str | os.PathLike[str]) -> Self:
        """Connect to an external QEMU, on the socket that its `-qmp` or `-mon` option names.

        Raises:
            UsageError: nothing listens on the path.
            QemuError: it is no QMP monitor, or another client has it.
        """
        connection = cls(connect(path, "QMP monitor"))
        try:
            if not connection.negotiate():
                raise QemuError(f"what listens on {path} is no QMP monitor")
        except BaseException:
            connection.close()
            raise
        return connection

    def negotiate(self) -> bool:
        """Begin the dialog; returns whether the other side is a QMP monitor."""
        if "QMP" not in json.loads(self._lines.line()):
            return False
        self.execute("qmp_capabilities")
        return True

    def execute(self, name: str, **arguments: Any) -> Any:
        """Run a command; returns its result.

        Raises:
            QemuError: QEMU refused it, in its words.
        """
        return self._run(name, arguments)

    def give_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor, which it knows by this name from now on (QMP, getfd)."""
        self._run("getfd", {"fdname": name}, descriptor)

    def wait_for(self, event: str) -> None:
        """Return once QEMU has sent this event, which then counts as seen."""
        while not self.seen.pop(event, 0):
            self._answer()

    def _run(self, command: str, arguments: dict[str, Any], descriptor: int | None = None) -> Any:
        self._lines.send(json.dumps({"execute": command, "arguments": arguments}) + "\n", descriptor)
        while "event" in (answer := self._answer()):
            pass
        if "error" in answer:
            raise QemuError(f"QMP {command}: {answer['error'].get('desc', answer['error'])}")
        return answer.get("return")

    def _answer(self) -> Any:
        answer = json.loads(self._lines.line())
        if "event" in answer:
            self.seen[answer["event"]] += 1
        return answer

    def close(self) -> None:
        self._lines.close()
