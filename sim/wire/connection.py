"""A machine's connection to a server: the socket, and the handling of the descriptors that arrive on it."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from nodes.device.v2.device import IvshmemV2
from nodes.endpoint import EndpointHooks
from nodes.endpoint_factory import make_endpoint
from nodes.errors import HostError, UsageError
from nodes.peer_table import PeerTable
from nodes.vm import Vm
from nodes.wire.client import is_framed
from nodes.wire.v2.protocol import HEADER_BYTES
from sim.kernel.channel import Channel, credentials_of
from sim.kernel.eventfd import EventFd, rung
from sim.kernel.memory import map_region, release_mapping
from sim.kernel.mmsg import ReceivedMessages, ReceiveTable
from sim.kernel.sections import map_sections


def connect(path: str | os.PathLike[str], what: str = "server") -> socket.socket:
    """A socket that is connected to the server on ``path``.

    Raises:
        UsageError: no server listens there.
        HostError: this process has no descriptor left for a socket.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise HostError(f"no descriptor for a connection to {path}: {error.strerror}") from error
        raise UsageError(f"no {what} listens on {path}: {error.strerror}") from error
    return sock


def place_memory(vm: Vm, peer: int, descriptor: int) -> None:
    """Map the memory that a server sent, with the rights that the machine's device has, and give it to the machine.

    The descriptor stays the caller's.

    Raises:
        RemoteProtocolError: it is no memory that the device can have.
    """
    device = vm.device
    if not isinstance(device, IvshmemV2):
        vm.place(peer, memoryview(map_region(descriptor)))
        return
    layout = device.layout_of(os.fstat(descriptor).st_size)
    device.set_sections(sections := map_sections(descriptor, layout, peer))
    vm.place(peer, sections.memory)


def release_memory(vm: Vm) -> None:
    """Release the memory of a machine that is unplugged, unless parts of it are still used."""
    sections = vm.device.sections
    for view in (vm.guest.memory,) if sections is None else sections.release():
        release_mapping(view)


class Connection:
    """Owns the socket to the server and every descriptor that comes over it.

    Args:
        sock: the socket, connected to the server.
        vm: the machine that is connected.
        on_own: ``on_own(descriptor)`` is called with each eventfd of the machine's own as it comes, to be waited for.
        on_own_gone: ``on_own_gone(descriptor)`` is called before such an eventfd is closed while the machine runs.
        warn: ``warn(text)`` is called with what is odd and changes nothing.
        on_memory: ``on_memory(peer, descriptor)`` puts the memory in its place. By default it is mapped and given to
            the machine, whose driver then starts.
        trusted: a process ID. If that process listens, as the kernel reports it, what it sends as eventfds is not
            examined.
        table: room for what is received together, as of `Channel`.
    """

    def __init__(
        self,
        sock: socket.socket,
        vm: Vm,
        *,
        on_own: Callable[[int], None],
        on_own_gone: Callable[[int], None] = lambda descriptor: None,
        warn: Callable[[str], object] = lambda text: None,
        on_memory: Callable[[int, int], None] | None = None,
        trusted: int | None = None,
        table: ReceiveTable | None = None,
    ) -> None:
        self._pieces: deque[tuple[bytes, list[int]]] = deque()  # received and not looked at yet
        self._trusted = credentials_of(sock).pid == trusted
        self._channel = Channel(sock, table)
        self._on_own, self._on_own_gone, self._warn, self._on_memory = on_own, on_own_gone, warn, on_memory
        self.use(vm)

    def use(self, vm: Vm, adapt: Callable[[int], Vm] | None = None) -> None:
        """Connect this machine from now on; nothing has been read yet. ``adapt`` is as of `EndpointHooks`."""
        machine = vm

        def place(peer: int, descriptor: int) -> None:
            place_memory(machine, peer, descriptor)

        def adapted(vectors: int) -> Vm:
            nonlocal machine
            assert adapt is not None
            machine = adapt(vectors)
            return machine

        self.endpoint = make_endpoint(
            vm,
            PeerTable(os.close),
            EndpointHooks(
                place=self._on_memory or place,
                adopt=self._adopt,
                adopt_all=self._adopt_all,
                release=os.close,
                on_own=self._on_own,
                on_own_gone=self._on_own_gone,
                warn=self._warn,
                duplicate=_duplicate,
                size_bytes=lambda descriptor: os.fstat(descriptor).st_size,
                adapt=None if adapt is None else adapted,
                rung=rung,
            ),
        )
        self.own = self.endpoint.own
        """The descriptors of the machine's own eventfds, and their vectors."""

    def is_framed(self) -> bool:
        """Whether the server speaks ivshmem v2, as its first eight bytes say; they are not read."""
        try:
            waiting = self._channel.socket.recv(HEADER_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, ConnectionError):
            return False
        return len(waiting) == HEADER_BYTES and is_framed(int.from_bytes(waiting, "little", signed=True))

    def fileno(self) -> int:
        return self._channel.fileno()

    def read(self) -> bool:
        """Take in everything that the server has said so far; returns False when it has closed the connection.

        Raises:
            RemoteProtocolError: the server says what a server may not say, or leaves within its greeting.
        """
        while True:
            while self._pieces:
                data, descriptors = self._pieces.popleft()
                if not data:
                    self.endpoint.end()
                    return False
                self.endpoint.receive(data, descriptors)
            arrived = self._receive()
            if arrived is None:
                return True
            if isinstance(arrived, ReceivedMessages):
                self.endpoint.receive_vectors(*arrived)
            else:
                self._pieces.extend(arrived)

    def _receive(self) -> ReceivedMessages | list[tuple[bytes, list[int]]] | None:
        """One message until the greeting is over and between the pieces of one, then as many as there are."""
        if self.endpoint.takes_many:
            return self._channel.receive_many()
        received = self._channel.receive(self.endpoint.missing_bytes)
        return None if received is None else [received]

    def _adopt(self, descriptor: int) -> None:
        if not self._trusted:
            EventFd.adopt(descriptor)
        elif os.get_blocking(descriptor):  # a peer cleared the flag, which belongs to what all share
            os.set_blocking(descriptor, False)

    def _adopt_all(self, descriptors: Sequence[int]) -> bool:
        return self._trusted and not any(map(os.get_blocking, descriptors))

    def close(self) -> None:
        self.endpoint.close()
        for _, descriptors in self._pieces:
            for descriptor in descriptors:
                os.close(descriptor)
        self._pieces.clear()
        self._channel.close()


def _duplicate(descriptor: int) -> int | None:
    """Another descriptor for the same thing; None when this process has none left."""
    try:
        return os.dup(descriptor)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return None
