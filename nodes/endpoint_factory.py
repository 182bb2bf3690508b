"""The choice of a machine's `Endpoint`: that of QEMU 1.1, that of ivshmem v2, or that of today for all others."""

from __future__ import annotations

from nodes.device.qemu_1_1.endpoint import Qemu11Endpoint
from nodes.device.v2.device import IvshmemV2
from nodes.device.v2.endpoint import EndpointV2
from nodes.endpoint import Endpoint, EndpointHooks
from nodes.peer_table import PeerTable
from nodes.vm import Vm


def make_endpoint(vm: Vm, peers: PeerTable, hooks: EndpointHooks) -> Endpoint:
    """The endpoint for this machine's device; that of 2012 has a table of its own in the place of ``peers``."""
    if isinstance(vm.device, IvshmemV2):
        return EndpointV2(vm, peers, hooks)
    if vm.device.profile.client != "2012":
        return Endpoint(vm, peers, hooks)
    return Qemu11Endpoint(vm, hooks)
