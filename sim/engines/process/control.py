"""Between the coordinator and one worker: a few small messages, framed by the kernel (SOCK_SEQPACKET).

A worker speaks no ZeroMQ: a context costs each of them 0.7 MiB, two threads and seven descriptors, and would share
its processor with the guest. What leaves the run goes through ``sim.telemetry``.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import msgspec

from sim.engines import messages
from sim.engines.messages import Failed, Warned
from sim.engines.shared.failures import TEXT_MAX

MESSAGE_BYTES_MAX = 65_536


class Forked(msgspec.Struct, tag=True, frozen=True):
    """From a new process, at the start of a machine or in a migration: it exists, and waits for Proceed."""

    pid: int


class Hosted(msgspec.Struct, tag=True, frozen=True):
    """From the worker: its machine is in a process of its own, a QEMU, which is stalled and measured as the machine.

    One that is not ``ours`` is not ended. One that ``stands_by`` was started for a migration: the machine is not in it.
    """

    pid: int
    ours: bool = True
    stands_by: bool = False


class Proceed(msgspec.Struct, tag=True, frozen=True):
    """To a new process: the coordinator knows which machine it is, so it may connect."""


class Continue(msgspec.Struct, tag=True, frozen=True):
    """To the worker: continue in a new process, with a device in the ``domain`` whose server is at that path.

    With an empty ``server`` the new process takes over the connection, and with it the ID. ``fault`` as in
    `sim.engines.messages.Migrate`.
    """

    server: str
    domain: int
    fault: str = ""


ToWorker = (
    messages.Expect
    | messages.PeerIds
    | messages.Start
    | messages.Stop
    | messages.Leave
    | messages.Act
    | messages.Ping
    | Continue
    | Proceed
)
FromWorker = Forked | Hosted | messages.Ready | messages.Stopped | messages.Stayed | messages.Moved | Warned | Failed

# Made once, before workers are forked: they share what it needs of msgspec.
_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], ToWorker | FromWorker] = msgspec.msgpack.Decoder(ToWorker | FromWorker).decode


def _clip(text: str, kept: slice) -> str:
    """As much of a text as fits into a message, without what has no encoding."""
    return text.encode(errors="backslashreplace")[kept].decode(errors="ignore")


def _fit(message: ToWorker | FromWorker) -> ToWorker | FromWorker:
    match message:
        case Failed(at_fault, summary, trace):
            return Failed(at_fault, _clip(summary, slice(TEXT_MAX)), _clip(trace, slice(-TEXT_MAX, None)))
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

    def send(self, message: ToWorker | FromWorker) -> bool:
        """Send now; False when the other side has gone or does not read. Long texts are cut."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            return self.socket.send(_encode(_fit(message)), socket.MSG_NOSIGNAL) > 0
        return False

    def receive(self) -> ToWorker | FromWorker | None:
        """The next message, a Warned about what is none; None when nothing waits. Raises ``EOFError`` at the end."""
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
