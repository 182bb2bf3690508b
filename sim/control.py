"""Between the coordinator and one worker: a few small messages, framed by the kernel (SOCK_SEQPACKET).

A worker speaks no ZeroMQ: a context costs each of them 0.7 MiB, two threads and seven descriptors, and would
share its processor with the guest. What leaves the run goes through ``sim.telemetry``.
"""

from __future__ import annotations

import contextlib
import socket

import msgspec

__all__ = ["Control", "Failed", "Ping", "Ready", "Start", "Stop", "Stopped", "Warned"]

TEXT_MAX = 16_384


class Start(msgspec.Struct, tag=True, frozen=True):
    """To the worker: begin the program at this time."""

    start_ns: int


class Stop(msgspec.Struct, tag=True, frozen=True):
    """To the worker: end the program, leave what is pending where it is, say Stopped."""


class Ping(msgspec.Struct, tag=True, frozen=True):
    """To the worker: store your counts and this number, so that it is seen that you live."""

    number: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """From the worker: connected to everyone it should be; waiting for Start."""


class Stopped(msgspec.Struct, tag=True, frozen=True):
    """From the worker: it rings and drains no more, and its counts are final."""


class Warned(msgspec.Struct, tag=True, frozen=True):
    """From the worker: what a real device would say on stderr."""

    text: str


class Failed(msgspec.Struct, tag=True, frozen=True):
    """From the worker: it cannot go on. ``whose`` is who should look: "program", "server" or "simulator"."""

    whose: str
    summary: str
    traceback: str = ""


Order = Start | Stop | Ping
Report = Ready | Stopped | Warned | Failed


class Control:
    """One end of the pair. ``receive`` gives None when nothing waits, and raises ``EOFError`` at the end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Order | Report).decode

    @classmethod
    def pair(cls) -> tuple[Control, socket.socket]:
        """The coordinator's end, and the socket that is the worker's."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        return cls(ours), theirs

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Order | Report) -> bool:
        """Send now; False when the other side has gone or has left too much unread."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            return self.socket.send(self._encode(message), socket.MSG_NOSIGNAL) > 0
        return False

    def receive(self) -> Order | Report | None:
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return None
        except ConnectionError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return self._decode(data)

    def close(self) -> None:
        self.socket.close()
