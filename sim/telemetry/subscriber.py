"""Reading the snapshots of a run: the only module that imports zmq."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import msgspec

from sim.kernel.closeable import Closeable
from sim.telemetry.snapshot import Snapshot

MESSAGE_BYTES_MAX = 1 << 20
POLL_S = 0.1


class Subscriber(Closeable):
    """The reader's end. ``lost`` counts missing and malformed snapshots, by the gaps in their numbers."""

    def __init__(self, endpoint: str) -> None:
        import zmq

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

    def receive(self, timeout_s: float) -> Snapshot | None:
        """The next snapshot; None when none came in time, or what came is none."""
        if not self._socket.poll(round(timeout_s * 1000)):
            return None
        try:
            snapshot = self._decode(self._socket.recv())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if self._last >= 0:
            self.lost += max(0, snapshot.number - self._last - 1)
        self._last = snapshot.number
        return snapshot

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@contextlib.contextmanager
def following(endpoint: str, take: Callable[[Snapshot, int], object]) -> Iterator[None]:
    """Hand ``take`` every snapshot and how many never came, until this is left.

    In a thread of its own, so that nothing it does delays the coordinator. What has come by the end is still handed
    on: the last one says how the run ended.
    """
    done = threading.Event()

    def follow() -> None:
        with Subscriber(endpoint) as subscriber:
            while True:
                last = done.is_set()
                snapshot = subscriber.receive(0 if last else POLL_S)
                if snapshot is not None:
                    take(snapshot, subscriber.lost)
                elif last:
                    return

    thread = threading.Thread(target=follow, name="ivsim telemetry")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
