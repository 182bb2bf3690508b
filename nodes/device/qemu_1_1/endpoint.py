"""The endpoint of a machine with the device of 2012: it applies to the machine what `Qemu11Client` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nodes.device.profile import Quirk
from nodes.device.qemu_1_1.client import Qemu11Client
from nodes.endpoint import Endpoint, EndpointHooks
from nodes.errors import RemoteProtocolError
from nodes.peer_table import Line, PeerTable
from nodes.vm import Vm
from nodes.wire.protocol import LEGACY, MESSAGE_BYTES, Dialect


class Qemu11Endpoint(Endpoint):
    """As `Endpoint`, with the client of 2012 and its defects.

    A defect that ends the real process raises `ModelledFault` or `DeviceExitError` from `receive`: the machine ends
    with those words. The descriptors that the device loses stay open until `close`, as a process's until its end.

    Args:
        vm: the machine; its peers are in a table of its own, whose lines belong to the client.
        hooks: what is done with descriptors.
    """

    def __init__(self, vm: Vm, hooks: EndpointHooks) -> None:
        super().__init__(vm, PeerTable(), hooks)
        self._system = _System(vm, self.own, hooks)
        self._seed = Qemu11Client(vm.device, self._system, lines=self._system)
        self._closed = False

    @property
    def peer(self) -> int | None:
        return self._vm.device.peer

    @property
    def is_set_up(self) -> bool:
        return self._vm.device.peer is not None and self._vm.device.memory is not None

    @property
    def dialect(self) -> Dialect | None:
        """The client knows one dialect, and takes every other one for that."""
        return LEGACY

    @property
    def awaited(self) -> str:
        return "its ID" if self.peer is None else "the shared memory"

    @property
    def missing_bytes(self) -> int:
        """The client always reads 8 bytes."""
        return MESSAGE_BYTES

    def receive(self, data: bytes, descriptors: Sequence[Line] = ()) -> None:
        self._hear(lambda: self._seed.read(data, descriptors))

    def receive_vectors(self, numbers: Sequence[int], lines: Sequence[Line]) -> None:
        for number, line in zip(numbers, lines, strict=True):
            self._hear(partial(self._seed.receive, number, line))

    def end(self) -> None:
        """The device ignores it (ivshmem_event); a machine that is not set up yet would wait for ever."""
        self._seed.server_closed()
        if not self.is_set_up:
            raise RemoteProtocolError(f"the server closed the connection before it sent {self.awaited}")

    def close(self) -> None:
        if self._closed:
            return  # a machine that was unplugged closes its connection once more at its end
        self._closed = True
        self._peers.clear()
        self.own.clear()
        for descriptor in (*self._seed.held(), *self._system.lost):
            if descriptor not in self._system.foreign:
                self._release(descriptor)
        self._system.lost.clear()

    def _hear(self, message: Callable[[], None]) -> None:
        """Take one message; then tell the guest of a new ID, and report warnings of the device."""
        before = self._vm.device.peer
        try:
            message()
        finally:
            self.heard = self._seed.eventfds
        peer = self._vm.device.peer
        if self.is_set_up and peer is not None and peer != before:
            self._vm.guest.place(peer, self._vm.guest.memory)
        self._vm.settle()


class _System:
    """The `Host` and the `Lines` of the client: this process and this machine.

    ``lost`` are descriptors that the device forgets; ``foreign`` are descriptors that were no eventfds and are closed.
    """

    def __init__(self, vm: Vm, own: dict[Line, int], hooks: EndpointHooks) -> None:
        self._vm, self._own, self._hooks = vm, own, hooks
        self.size_bytes = hooks.size_bytes
        self.lost: list[Line] = []
        self.foreign: set[Line] = set()

    def duplicate(self, descriptor: Line) -> Line | None:
        copy = self._hooks.duplicate(descriptor)
        if copy is None or self._vm.device.profile.has(Quirk.DESCRIPTOR_LEAK):
            self.lost.append(descriptor)
        return copy

    def close(self, descriptor: Line) -> None:
        if self._own.pop(descriptor, None) is not None:
            self._hooks.on_own_gone(descriptor)
        self._hooks.release(descriptor)

    def map(self, descriptor: Line, size_bytes: int) -> memoryview | None:
        peer = self._vm.device.peer
        if peer is None:
            raise RemoteProtocolError("server sent the shared memory before an ID")
        try:
            self._hooks.place(peer, descriptor)
        except OSError:
            return None
        return self._vm.device.memory

    def watch(self, vector: int, descriptor: Line) -> bool:
        self._take(descriptor)
        self._own[descriptor] = vector
        try:
            self._hooks.on_own(descriptor)
        except OSError:
            return False
        return True

    def bind(self, address: int, value: int, descriptor: Line) -> bool:
        """No machine of a run has the property ioeventfd."""
        return False

    def unbind(self, address: int, value: int, descriptor: Line) -> None:
        """Nothing is bound."""

    def connect(self, peer: int, vector: int, line: Line) -> bool:
        self._take(line)
        return self._vm.connect(peer, vector, line)

    def disconnect(self, peer: int) -> None:
        self._vm.disconnect(peer)

    def _take(self, descriptor: Line) -> None:
        try:
            self._hooks.adopt(descriptor)
        except RemoteProtocolError:
            self.foreign.add(descriptor)
            raise
