"""The coordinator's end of the telemetry: a publisher as ZeroMQ's subscribers know it, bounded in time and memory.

It speaks ZMTP 3.0 (rfc.zeromq.org/spec/23, mechanism NULL, socket type PUB), so that any SUB socket of ZeroMQ can
connect. ZeroMQ's own PUB socket is not used: it reads and stores every subscription, on the publisher's thread, for as
long as subscriptions come. Measured with libzmq 4.3.5: eight subscribers that flood a run of 2.5 s with new
subscriptions keep it from ending for more than 60 s, at 1.5 to 2.5 GB.

Here each subscriber gets every snapshot, and what it sends is counted and thrown away: subscribers filter for
themselves (ZeroMQ's SUB does). One that sends more than a subscription takes, or is over the limit, is disconnected.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import msgspec

from nodes.errors import UsageError
from sim.kernel.closeable import Closeable
from sim.telemetry.snapshot import Snapshot

SUBSCRIBERS_MAX = 16
RECEIVED_BYTES_MAX = 4096
"""The most that one subscriber may send: its greeting (64 bytes), its READY command, and its subscriptions."""

GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes((3, 0)) + b"NULL".ljust(20, b"\0") + bytes(32)
COMMAND, LONG = 0x04, 0x02
_READY = b"\x05READY" + b"\x0bSocket-Type" + (3).to_bytes(4, "big") + b"PUB"
READY = bytes((COMMAND, len(_READY))) + _READY
SHORT_BYTES_MAX = 255


class Publisher(Closeable):
    """Publishes snapshots at a socket. Does nothing between calls, and no call waits for a subscriber.

    A call of `publish` accepts at most ``SUBSCRIBERS_MAX`` connections, reads at most ``RECEIVED_BYTES_MAX`` bytes from
    each subscriber over its whole life, and writes at most one snapshot to each. A subscriber that has not read the
    snapshot before misses this one.
    """

    def __init__(self, path: Path) -> None:
        """Listen at ``path``. Raises ``UsageError`` when no socket can be made there."""
        self.endpoint = f"ipc://{path}"
        self.published = 0
        self._path = path
        self._encode = msgspec.msgpack.Encoder().encode
        self._subscribers: list[_Subscriber] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            self._listener.bind(str(path))
            self._listener.listen(SUBSCRIBERS_MAX)
        except OSError as error:
            self._listener.close()
            raise UsageError(f"cannot publish on {self.endpoint}: {error}") from error

    def publish(self, snapshot: Snapshot) -> None:
        """Send a snapshot to every subscriber that can take it now."""
        self.send(self._encode(snapshot))
        self.published += 1

    def send(self, message: bytes) -> None:
        """Send one message to every subscriber that can take it now."""
        self._accept()
        if len(message) <= SHORT_BYTES_MAX:
            frame = bytes((0, len(message))) + message
        else:
            frame = bytes((LONG,)) + len(message).to_bytes(8, "big") + message
        for subscriber in [subscriber for subscriber in self._subscribers if not subscriber.send(frame)]:
            self._subscribers.remove(subscriber)
            subscriber.close()

    def close(self) -> None:
        """Disconnect all subscribers and remove the socket. They can still read what was sent."""
        for subscriber in self._subscribers:
            subscriber.close()
        self._subscribers.clear()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        """Accept those that wait, but no more than the backlog at once; those over the limit are disconnected."""
        for _ in range(SUBSCRIBERS_MAX):
            try:
                connection, _ = self._listener.accept()
            except OSError:  # none waits, or there is no descriptor for it
                return
            if len(self._subscribers) < SUBSCRIBERS_MAX:
                self._subscribers.append(_Subscriber(connection))
            else:
                connection.close()


class _Subscriber:
    """One connection. ``send`` returns False when it is to be closed."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._received = b""
        self._unsent = memoryview(GREETING + READY)

    def send(self, frame: bytes) -> bool:
        try:
            self._receive()
            self._flush()
            if not self._unsent and self._is_ready():
                self._unsent = memoryview(frame)
                self._flush()
        except OSError:  # it has gone, or it has sent too much
            return False
        return True

    def close(self) -> None:
        self._connection.close()

    def _receive(self) -> None:
        """Take what has come. Raises ``ConnectionError`` for the end and for too much."""
        with contextlib.suppress(BlockingIOError):
            # Room for one byte too many: a subscriber at the limit is heard when it ends or sends more.
            data = self._connection.recv(RECEIVED_BYTES_MAX + 1 - len(self._received))
            self._received += data
            if not data or len(self._received) > RECEIVED_BYTES_MAX:
                raise ConnectionError

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._connection.send(self._unsent) :]

    def _is_ready(self) -> bool:
        """Whether its greeting and its READY command have come: before that, no message may be sent."""
        head = self._received[len(GREETING) : len(GREETING) + 2]
        return len(head) == 2 and len(self._received) >= len(GREETING) + len(head) + head[1]
