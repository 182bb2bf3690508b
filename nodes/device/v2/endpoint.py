"""The endpoint of a machine with a device of ivshmem v2: it applies to the machine what `FramedClient` reads."""

from __future__ import annotations

from nodes.device.v2.device import IvshmemV2
from nodes.endpoint import Endpoint, EndpointHooks
from nodes.peer_table import Line, PeerTable
from nodes.vm import Vm
from nodes.wire.client import Event
from nodes.wire.v2.client import FramedClient, Initialized


class EndpointV2(Endpoint):
    """As `Endpoint`, for a server that speaks ivshmem v2. The arguments are those of `Endpoint`."""

    takes_many = False

    def __init__(self, vm: Vm, peers: PeerTable, hooks: EndpointHooks) -> None:
        super().__init__(vm, peers, hooks)
        self._client = FramedClient()

    @property
    def is_set_up(self) -> bool:
        return super().is_set_up and self._vm.device.memory is not None

    def _count_rung(self) -> dict[int, int]:
        return {vector: count for line, vector in self.own.items() if (count := self._hooks.rung(line))}

    def _take(self, event: Event[Line]) -> None:
        if not isinstance(event, Initialized):
            super()._take(event)
            return
        try:
            if self._hooks.adapt is not None:
                self._vm = self._hooks.adapt(event.numbers.vectors)
                self._vm.use_peers(self._peers)
            device = self._vm.device
            assert isinstance(device, IvshmemV2)
            device.initialize(event.numbers)
            device.rung = self._count_rung
            self._hooks.place(event.peer, event.descriptor)
        finally:
            self._release(event.descriptor)
