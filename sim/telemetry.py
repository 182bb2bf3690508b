"""What a run tells the world while it goes on: the only module that imports zmq.

The coordinator publishes snapshots on a socket in the run's private directory; the progress display is one
subscriber, another terminal may be a second. A snapshot is complete in itself, so one that is missed is made up
by the next; each is numbered, so that it is known how many were missed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec
import zmq

from nodes.errors import UsageError

__all__ = [
    "SOCKET",
    "Found",
    "Group",
    "Happened",
    "Publisher",
    "Snapshot",
    "Subscriber",
    "following",
    "places",
    "running",
]

MESSAGE_BYTES_MAX = 1 << 20
SOCKET = "telemetry.zmq"
"""What the socket is called, in the private directory of a run (``ivsim-*``)."""
POLL_S = 0.1
LISTENS = 0x10000  # __SO_ACCEPTCON, in the flags of /proc/net/unix


class Group(msgspec.Struct, frozen=True):
    """The machines of one group together, since the start."""

    machines: int
    up: int
    rung: int
    delivered: int
    interrupts: int
    refused: int


class Happened(msgspec.Struct, frozen=True):
    """An event of the run, in one line."""

    time_ns: int
    kind: str
    text: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """The state of a run. Times are nanoseconds of CLOCK_MONOTONIC on this host.

    ``heartbeats_late`` counts the times that a machine had not answered a ping when the next one was due.
    What has a default is not told by every version: ``title`` and ``path`` of the run, ``happened`` (the latest
    events, oldest first), ``latency_ns`` (percentiles of delivery in the last moments, by name).
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
    title: str = ""
    path: str = ""
    happened: tuple[Happened, ...] = ()
    latency_ns: dict[str, int] = {}


class Found(NamedTuple):
    """A run of this user that goes on: where it publishes, since when (seconds since 1970), and its socket's inode."""

    path: Path
    since_s: float
    inode: int

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.path}"

    def held_by(self, pid: int) -> bool:
        """Whether that process has the socket."""
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}") == f"socket:[{self.inode}]":
                        return True
        return False


def places() -> list[Path]:
    """Where runs make their private directories."""
    named = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    return [Path(path) for path in dict.fromkeys(named) if path]


def running(candidates: Iterable[Path] | None = None) -> list[Found]:
    """The sockets at which somebody publishes now, the latest first.

    ``candidates`` are files; by default those in the :func:`places`. Only what belongs to this user counts, and what
    a living process listens at: looking connects to nothing, so that no run is disturbed.
    """
    if candidates is None:
        candidates = [path for place in places() for path in place.glob(f"ivsim-*/{SOCKET}")]
    listening = _listening()
    found = {}
    for path in candidates:
        with contextlib.suppress(OSError):
            whole = path.resolve()
            status = whole.lstat()
            own = stat.S_ISSOCK(status.st_mode) and status.st_uid == os.getuid()
            if own and str(whole) in listening:
                found[whole] = Found(whole, status.st_mtime, listening[str(whole)])
    return sorted(found.values(), key=lambda each: -each.since_s)


def _listening() -> dict[str, int]:
    """The unix sockets of this host that are listened at: path to inode."""
    found = {}
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return {}
    for line in lines:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & LISTENS:
            found[fields[7]] = int(fields[6])
    return found


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
    """Anybody's end. ``lost`` counts snapshots that never came, or came as no snapshot: the next one's number tells."""

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

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


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
