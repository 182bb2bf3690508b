"""What a run tells the world while it goes on: the only module that imports zmq.

The coordinator publishes snapshots on a socket in the run's private directory; the progress display is one
subscriber, another terminal may be a second. A snapshot is complete in itself, so one that is missed is made up
by the next; each is numbered, so that it is known how many were missed.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import msgspec
import zmq

from nodes.errors import UsageError

__all__ = ["Group", "Publisher", "Snapshot", "Subscriber"]

MESSAGE_BYTES_MAX = 1 << 20


class Group(msgspec.Struct, frozen=True):
    """The machines of one group together, since the start."""

    machines: int
    up: int
    rung: int
    delivered: int
    interrupts: int
    refused: int


class Snapshot(msgspec.Struct, frozen=True):
    """The state of a run. Times are nanoseconds of CLOCK_MONOTONIC on this host.

    ``heartbeats_late`` counts the times that a machine had not answered a ping when the next one was due.
    """

    number: int
    time_ns: int
    phase: str
    machines: int
    up: int
    start_ns: int | None
    stop_ns: int | None
    heartbeats_late: int
    groups: dict[str, Group]


class Publisher:
    """The coordinator's end. Never waits for a subscriber: what one does not take in time is lost to it alone."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"ipc://{path}"
        self._path = path
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 64)
        try:
            self._socket.bind(self.endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise UsageError(f"cannot publish on {self.endpoint}: {error}") from error
        self._encode = msgspec.msgpack.Encoder().encode
        self.published = 0

    def publish(self, snapshot: Snapshot) -> None:
        self._socket.send(self._encode(snapshot), zmq.NOBLOCK)
        self.published += 1

    def close(self) -> None:
        self._socket.close()
        self._context.term()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Subscriber:
    """Anybody's end. ``lost`` counts snapshots that never came, ``malformed`` frames that were none."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 64)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)
        self._decode = msgspec.msgpack.Decoder(Snapshot).decode
        self._last = -1
        self.lost = 0
        self.malformed = 0

    def receive(self, timeout_s: float) -> Snapshot | None:
        """The next snapshot, or None when none came in time."""
        if not self._socket.poll(round(timeout_s * 1000)):
            return None
        try:
            snapshot = self._decode(self._socket.recv())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.malformed += 1
            return None
        if self._last >= 0:
            self.lost += max(0, snapshot.number - self._last - 1)
        self._last = snapshot.number
        return snapshot

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
