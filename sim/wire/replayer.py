"""Replays the server's side of a recorded connection to a client under test, with real descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nodes.errors import HostError, RemoteProtocolError, RunError
from nodes.wire.analyzer import explain
from nodes.wire.capture import Bytes, Closes, Entry, Kind, SentMessage
from nodes.wire.protocol import RawMessage
from nodes.wire.v2.protocol import FrameKind
from sim.kernel.channel import Channel, Outbox
from sim.kernel.closeable import Closeable, closing
from sim.kernel.eventfd import EventFd
from sim.kernel.loop import Loop
from sim.wire.listener import Listener

QUEUE_MAX = 1 << 20  # reached only by stepping on while the client does not read
READ_BYTES = 4096
READS_MAX = 64
RETRY_NS = 2_000_000
SHM_DIRECTORY = "/dev/shm"


@dataclass(frozen=True)
class Played:
    """The result. ``rung``: (peer, vector) -> how often the client rang it, without its own vectors."""

    sent: int
    total: int
    rung: dict[tuple[int, int], int]

    @property
    def complete(self) -> bool:
        return self.sent == self.total


class Replayer(Closeable):
    """Waits on ``listener`` for one client, and replays ``entries`` (of one connection) to it.

    ``speed`` divides the recorded times; 0 sends everything at once. With ``stepwise`` only ``step`` sends.
    ``tell(time_ns, text)`` is called for each event, with the time since the client connected. ``done`` becomes true
    when the client has left, or the recorded server has closed. A context manager.
    """

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        entries: Sequence[Entry],
        *,
        speed: float = 1.0,
        stepwise: bool = False,
        tell: Callable[[int, str], object] = lambda time_ns, text: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._loop, self._listener, self._tell, self._clock = loop, listener, tell, clock
        self._speed, self._stepwise = speed, stepwise
        self._recorded_ns = entries[0].time_ns
        self._peer = explain(entries[0].connection, entries).peer
        self._entries = [entry for entry in entries if entry.side == "server"]
        self._next = 0  # the first entry that is not in the outbox yet
        self._unsent = 0  # how many entries wait in the outbox
        self._start_ns = 0
        self._client: Channel | None = None
        self._outbox: Outbox | None = None
        self._numbered: dict[int, EventFd] = {}  # by the kernel's number in the recording
        self._vectors: dict[int, list[EventFd]] = {}
        self._stack = contextlib.ExitStack()
        self.done = False
        loop.add(listener, self._accept)

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def upcoming(self) -> Entry | None:
        """The entry that is sent next."""
        return self._entries[self._next] if self._next < len(self._entries) else None

    def _elapsed_ns(self) -> int:
        return self._clock() - self._start_ns

    def _accept(self) -> None:
        try:
            sock = self._listener.accept()
        except OSError as error:
            raise HostError(f"no descriptor for the client: {error.strerror}") from error
        if sock is None:
            return
        self._loop.remove(self._listener)
        self._client = Channel(sock)
        self._stack.callback(self._client.close)
        self._outbox = Outbox(sock, QUEUE_MAX)
        self._start_ns = self._clock()
        self._tell(0, "client connected")
        self._loop.add(self._client, self._read)
        if not self._stepwise:
            self._play()

    def _play(self) -> None:
        """Send the entries that are due, and schedule the next."""
        while not self.done and (entry := self.upcoming):
            if self._unsent:  # the client does not read yet
                self._loop.at(self._clock() + RETRY_NS, self._play)
                return
            if self._speed:
                due_ns = self._start_ns + round((entry.time_ns - self._recorded_ns) / self._speed)
                if due_ns > self._clock():
                    self._loop.at(due_ns, self._play)
                    return
            self.step()

    def step(self) -> None:
        """Send the next message now; after the last one, or without a client, do nothing."""
        entry = self.upcoming
        if entry is None or self.done or self._outbox is None:
            return
        match entry.act:
            case SentMessage(number, kinds):
                data, peer = entry.act.encode(), _peer_of(number, entry.act.body)
                room = self._outbox.put(RawMessage.of(data, self._make_all(peer, kinds)))
            case Bytes(data, kinds):
                room = self._outbox.put(RawMessage.of(data, self._make_all(None, kinds)))
            case _:
                room = True  # Closes: takes effect when all before it has been sent
        if not room:
            raise RunError(f"{QUEUE_MAX} messages wait for the client, which does not read")
        self._next += 1
        self._flush()

    def _flush(self) -> None:
        if self.done or self._outbox is None or self._client is None:
            return
        try:
            sent = self._outbox.flush()
        except OSError:
            self._unsent = len(self._outbox)
            self._read()  # which finds the end
            return
        self._unsent = len(self._outbox)
        if not sent:
            self._loop.at(self._clock() + RETRY_NS, self._flush)
        elif self._next and isinstance(self._entries[self._next - 1].act, Closes):
            self._tell(self._elapsed_ns(), "the recorded server closed, and so the connection was closed")
            self._finish()

    def _read(self) -> None:
        assert self._client is not None
        for _ in range(READS_MAX):
            if self.done:
                return
            try:
                received = self._client.receive(READ_BYTES)
            except RemoteProtocolError as error:
                raise RunError(str(error)) from error
            if received is None:
                return
            data, descriptors = received
            for descriptor in descriptors:
                os.close(descriptor)
            if data:
                brought = f" with {len(descriptors)} descriptors" if descriptors else ""
                shown = data[:32].hex() + ("..." if len(data) > 32 else "")
                self._tell(self._elapsed_ns(), f"client sent {len(data)} bytes{brought}: {shown}")
            else:
                sent, total = self._next - self._unsent, len(self._entries)
                self._tell(self._elapsed_ns(), f"client closed, after {sent} of {total}")
                self._finish()

    def _finish(self) -> None:
        self.done = True
        if self._client is not None and self._client.fileno() >= 0:
            self._loop.remove(self._client)
            self._client.close()

    def result(self) -> Played:
        """The number of messages sent, and the client's doorbells; reading the counters empties them."""
        rung = {
            (peer, vector): count
            for peer, eventfds in self._vectors.items()
            if peer != self._peer
            for vector, eventfd in enumerate(eventfds)
            if (count := _take(eventfd))
        }
        return Played(self._next - self._unsent, len(self._entries), rung)

    def close(self) -> None:
        self._finish()
        self._loop.remove(self._listener)
        self._stack.close()

    def _make_all(self, number: int | None, kinds: Sequence[Kind]) -> tuple[int, ...]:
        """Descriptors of the recorded kinds, kept until the end."""
        if (
            number in self._vectors and not kinds
        ):  # the peer has left: the kernel may have reused the numbers of its eventfds
            gone = self._vectors[number]
            self._numbered = {at: eventfd for at, eventfd in self._numbered.items() if eventfd not in gone}
        try:
            return tuple(self._make(number, kind) for kind in kinds)
        except OSError as error:
            raise HostError(f"cannot make a descriptor to send ({' '.join(map(str, kinds))}): {error}") from error

    def _make(self, number: int | None, kind: Kind) -> int:
        if kind.name != "eventfd":
            descriptor = _open(kind)
            self._stack.callback(os.close, descriptor)
            return descriptor
        eventfd = self._numbered.get(kind.number) if kind.number is not None else None
        if eventfd is None:
            eventfd = EventFd.create()
            self._stack.callback(eventfd.close)
            if kind.number is not None:
                self._numbered[kind.number] = eventfd
        if number is not None:
            self._vectors.setdefault(number, []).append(eventfd)
        return eventfd.descriptor


def _peer_of(number: int, body: bytes) -> int | None:
    """The peer that a message is about: of ivshmem v2, EVENT_FD and PEER_GONE name it first."""
    if not body:
        return number
    return (
        int.from_bytes(body[:4], "little")
        if number & 0xFFFF_FFFF in (FrameKind.EVENT_FD, FrameKind.PEER_GONE)
        else None
    )


def _take(eventfd: EventFd) -> int:
    os.set_blocking(eventfd.descriptor, False)  # QEMU clears the flag, which belongs to what all processes share
    return eventfd.take()


def _open(kind: Kind) -> int:
    """A new descriptor of this kind; /dev/null for kinds that cannot be made here, such as a block device."""
    match kind.name:
        case "memfd" | "shm" | "file":
            return _open_sized(kind)
        case "socket":
            near, far = socket.socketpair()
            near.close()
            return far.detach()
        case "pipe":
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            os.close(write_end)
            return read_end
        case "directory":
            return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        case _:
            return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _open_sized(kind: Kind) -> int:
    if kind.name == "memfd":
        descriptor = os.memfd_create("ivshmem", os.MFD_CLOEXEC)
    else:
        directory = SHM_DIRECTORY if kind.name == "shm" else tempfile.gettempdir()
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with closing(descriptor):
        os.ftruncate(descriptor, kind.size_bytes)
        # F_DUPFD would share the mode in which the file was opened.
        return os.open(f"/proc/self/fd/{descriptor}", (os.O_RDONLY if kind.read_only else os.O_RDWR) | os.O_CLOEXEC)
