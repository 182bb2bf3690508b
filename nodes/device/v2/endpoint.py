"""The endpoint of a machine with a device of ivshmem v2: it applies to the machine what `FramedClient` reads."""

from __future__ import annotations

from collections.abc import Sequence

from nodes.device.v2.device import IvshmemV2
from nodes.endpoint import Endpoint, EndpointHooks
from nodes.peer_table import Line, PeerTable
from nodes.vm import Vm
from nodes.wire.client import Ignored, PeerLeft, VectorConnected
from nodes.wire.protocol import Dialect
from nodes.wire.v2.client import FramedClient, FramedEvent, Initialized
from nodes.wire.v2.protocol import V2


class EndpointV2(Endpoint):
    """As `Endpoint`, for a server that speaks ivshmem v2. The arguments are those of `Endpoint`."""

    takes_many = False

    def __init__(self, vm: Vm, peers: PeerTable, hooks: EndpointHooks) -> None:
        super().__init__(vm, peers, hooks)
        self._framed: FramedClient[Line] = FramedClient()

    @property
    def peer(self) -> int | None:
        return self._framed.peer

    @property
    def is_set_up(self) -> bool:
        return self._framed.numbers is not None and self._vm.device.memory is not None

    @property
    def dialect(self) -> Dialect | None:
        return V2

    @property
    def awaited(self) -> str:
        return "INIT"

    @property
    def missing_bytes(self) -> int:
        return self._framed.missing_bytes

    def receive(self, data: bytes, descriptors: Sequence[Line] = ()) -> None:
        for event in self._framed.receive(data, descriptors):
            self._apply(event)

    def end(self) -> None:
        self._framed.end()

    def close(self) -> None:
        super().close()
        for descriptor in self._framed.unclaimed():
            self._release(descriptor)

    def _count_rung(self) -> dict[int, int]:
        return {vector: count for line, vector in self.own.items() if (count := self._hooks.rung(line))}

    def _apply(self, event: FramedEvent[Line]) -> None:
        match event:
            case Initialized(peer, numbers, memory):
                try:
                    if self._hooks.adapt is not None:
                        self._vm = self._hooks.adapt(numbers.vectors)
                        self._vm.use_peers(self._peers)
                    device = self._vm.device
                    assert isinstance(device, IvshmemV2)
                    device.initialize(numbers)
                    device.rung = self._count_rung
                    self._hooks.place(peer, memory)
                finally:
                    self._release(memory)
            case VectorConnected(peer, vector, line):
                self._connect(peer, vector, line)
            case PeerLeft(peer):
                self._vm.disconnect(peer)
            case Ignored():
                self._take(event)
