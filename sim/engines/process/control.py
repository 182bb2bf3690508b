"""Between the coordinator and one worker: a few small messages, framed by the kernel (SOCK_SEQPACKET).

A worker speaks no ZeroMQ: a context costs each of them 0.7 MiB, two threads and seven descriptors, and would
share its processor with the guest. What leaves the run goes through ``sim.telemetry``.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = [
    "Act",
    "Control",
    "Expect",
    "Failed",
    "Known",
    "Leave",
    "Migrate",
    "Moved",
    "Moving",
    "Order",
    "Ping",
    "Proceed",
    "Ready",
    "Start",
    "Stayed",
    "Stop",
    "Stopped",
    "Warned",
]

TEXT_MAX = 16_384
MESSAGE_BYTES_MAX = 65_536


class Expect(msgspec.Struct, tag=True, frozen=True):
    """To the worker, once the server has let it in: of each of its devices, how many eventfds its greeting names."""

    eventfds: tuple[int, ...]


class Known(msgspec.Struct, tag=True, frozen=True):
    """To the worker: these machines (indices) have these IDs now, in the first domain that it shares with them.

    ``anew``: and no others have any.
    """

    peers: dict[int, int]
    anew: bool = False


class Start(msgspec.Struct, tag=True, frozen=True):
    """To the worker: begin the program at ``start_ns``; at ``stop_ns`` do as for Stop, without being told again.

    ``joined_ns`` is when a machine has come that was not there at ``start_ns``; 0 for the others.
    """

    start_ns: int
    stop_ns: int
    joined_ns: int = 0


class Stop(msgspec.Struct, tag=True, frozen=True):
    """To the worker: end the program, leave what is pending where it is, say Stopped."""


class Leave(msgspec.Struct, tag=True, frozen=True):
    """To the worker: end the program, disconnect, say Stopped and end."""


class Act(msgspec.Struct, tag=True, frozen=True):
    """To the worker: carry out an action of the timeline that needs nothing of the coordinator.

    ``do`` and ``arguments`` are the name and the own keys of a `topologies.actions.WorkerAction`. The message is not
    that struct, because the language behind it would cost each worker memory.
    """

    do: str
    arguments: dict[str, Any]


class Migrate(msgspec.Struct, tag=True, frozen=True):
    """To the worker: go on in a fresh process, with a device in the ``domain`` whose server is at that path.

    An empty ``server``: the fresh process takes over the connection, and with it the ID. ``adopter`` is the process
    that it will belong to. ``fault`` is what is to go wrong: see `topologies.actions.Fault`.
    """

    server: str
    domain: int
    adopter: int
    fault: str = ""


class Proceed(msgspec.Struct, tag=True, frozen=True):
    """To the fresh process of a migration: it is known whose it is, so it may connect."""


class Ping(msgspec.Struct, tag=True, frozen=True):
    """To the worker: store your counts and this number, so that it is seen that you live."""

    number: int


class Ready(msgspec.Struct, tag=True, frozen=True):
    """From the worker: connected to everyone it should be; waiting for Start."""


class Stopped(msgspec.Struct, tag=True, frozen=True):
    """From the worker: it rings and drains no more, and its counts are final; what its program counted itself."""

    statistics: dict[str, int | float] = {}


class Moving(msgspec.Struct, tag=True, frozen=True):
    """From the fresh process of a migration: it has been born, and reads the orders from now on."""

    pid: int


class Stayed(msgspec.Struct, tag=True, frozen=True):
    """From the worker: the migration has come to nothing, and it goes on where it was; ``paused_ns`` it stood still."""

    reason: str
    paused_ns: int


class Moved(msgspec.Struct, tag=True, frozen=True):
    """From the fresh process: it is the machine now. ``downtime_ns`` from the pause to the program going on."""

    peer: int
    downtime_ns: int
    state_bytes: int
    memory_bytes: int
    pending_vectors: int


class Warned(msgspec.Struct, tag=True, frozen=True):
    """From the worker: what a real device would say on stderr."""

    text: str


class Failed(msgspec.Struct, tag=True, frozen=True):
    """From the worker: it cannot go on. ``whose`` is who should look: "program", "server" or "simulator"."""

    whose: str
    summary: str
    traceback: str = ""


Order = Expect | Known | Start | Stop | Leave | Act | Migrate | Proceed | Ping
Report = Ready | Stopped | Moving | Stayed | Moved | Warned | Failed

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
    """One end of the pair."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock

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
        """What comes next, a warning of what is no message; None when nothing waits. Raises ``EOFError`` at the end."""
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
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Warned(f"{len(data)} bytes on the control socket are no message of ours: {error}")

    def close(self) -> None:
        self.socket.close()
