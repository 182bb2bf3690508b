"""Between the coordinator and one worker: a few small messages, framed by the kernel (SOCK_SEQPACKET).

A worker speaks no ZeroMQ: a context costs each of them 0.7 MiB, two threads and seven descriptors, and would
share its processor with the guest. What leaves the run goes through ``sim.telemetry``.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import msgspec

__all__ = ["Control", "Failed", "Ping", "Ready", "Start", "Stop", "Stopped", "Warned"]

TEXT_MAX = 16_384
MESSAGE_BYTES_MAX = 65_536


class Start(msgspec.Struct, tag=True, frozen=True):
    """To the worker: begin the program at ``start_ns``; at ``stop_ns`` do as for Stop, without being told again."""

    start_ns: int
    stop_ns: int


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

# Made once, before workers are forked: what they need of msgspec is then shared.
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Order | Report] = msgspec.msgpack.Decoder(Order | Report).decode


def _clip(text: str, kept: slice) -> str:
    """As much of a text as a message has room for, and nothing that has no encoding."""
    return text.encode(errors="backslashreplace")[kept].decode(errors="ignore")


def _fit(message: Order | Report) -> Order | Report:
    match message:
        case Failed(whose, summary, trace):
            return Failed(whose, _clip(summary, slice(TEXT_MAX)), _clip(trace, slice(-TEXT_MAX, None)))
        case Warned(text):
            return Warned(_clip(text, slice(TEXT_MAX)))
    return message


class Control:
    """One end of the pair. ``receive`` gives None when nothing waits, and raises ``EOFError`` at the end.

    What is neither an order nor a report is skipped, and counted in ``malformed``.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.malformed = 0

    @classmethod
    def pair(cls) -> tuple[Control, socket.socket]:
        """The coordinator's end, and the socket that is the worker's."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        return cls(ours), theirs

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Order | Report) -> bool:
        """Send now; False when the other side has gone or has left too much unread. Long texts are cut."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            return self.socket.send(_encode(_fit(message)), socket.MSG_NOSIGNAL) > 0
        return False

    def receive(self) -> Order | Report | None:
        while True:
            try:
                data = self.socket.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return None
            except ConnectionError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            try:
                return _decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self.malformed += 1

    def close(self) -> None:
        self.socket.close()
