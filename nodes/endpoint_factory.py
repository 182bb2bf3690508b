"""The choice of a machine's `Endpoint`: that of QEMU 1.1, that of ivshmem v2, or that of today for all others."""

from __future__ import annotations

from nodes.device.qemu_1_1.endpoint import Qemu11Endpoint
from nodes.device.v2.device import IvshmemV2
from nodes.device.v2.endpoint import EndpointV2
from nodes.endpoint import Endpoint, EndpointHooks
from nodes.peer_table import PeerTable
from nodes.vm import Vm


def make_endpoint(vm: Vm, peers: PeerTable, hooks: EndpointHooks) -> Endpoint:
    """Make the endpoint for this machine's device.

    Args:
        vm: the machine.
        peers: the table of a machine that is not of 2012; one of 2012 has a table of its own.
        hooks: what is done with descriptors.
    """
    if isinstance(vm.device, IvshmemV2):
        return EndpointV2(vm, peers, hooks)
    if vm.device.profile.client != "2012":
        return Endpoint(vm, peers, hooks)
    return Qemu11Endpoint(vm, hooks)
