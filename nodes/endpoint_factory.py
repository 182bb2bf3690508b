"""The choice of a machine's `Endpoint`: that of QEMU 1.1, that of ivshmem v2, or that of today for all others."""

from __future__ import annotations

from collections.abc import Callable

from nodes.device.qemu_1_1.endpoint import Qemu11Endpoint
from nodes.device.v2.device import IvshmemV2
from nodes.device.v2.endpoint import EndpointV2
from nodes.endpoint import Endpoint
from nodes.peer_table import Line, PeerTable
from nodes.vm import Vm

__all__ = ["make_endpoint"]


def make_endpoint(
    vm: Vm,
    peers: PeerTable,
    *,
    place: Callable[[int, Line], object],
    adopt: Callable[[Line], object] = lambda line: None,
    release: Callable[[Line], object] = lambda line: None,
    on_own: Callable[[Line], object] = lambda line: None,
    on_own_gone: Callable[[Line], object] = lambda line: None,
    warn: Callable[[str], object] = lambda text: None,
    duplicate: Callable[[Line], Line | None] = lambda line: line,
    size_bytes: Callable[[Line], int] | None = None,
    adapt: Callable[[int], Vm] | None = None,
    rung: Callable[[Line], int] = lambda line: 0,
) -> Endpoint:
    """Make the endpoint for this machine's device.

    Args:
        vm: the machine.
        peers: the table of a machine that is not of 2012; one of 2012 has a table of its own.
        place, adopt, release, on_own, warn: as of `Endpoint`.
        on_own_gone: as of `Qemu11Endpoint`.
        duplicate: as of `Qemu11Endpoint`; by default the same number, where descriptors are plain numbers.
        adapt, rung: as of `EndpointV2`.
        size_bytes: as of `Qemu11Endpoint`; by default every memory is large enough.
    """
    if isinstance(vm.device, IvshmemV2):
        return EndpointV2(
            vm, peers, place=place, adopt=adopt, release=release, on_own=on_own, warn=warn, adapt=adapt, rung=rung
        )
    if vm.device.profile.client != "2012":
        return Endpoint(vm, peers, place=place, adopt=adopt, release=release, on_own=on_own, warn=warn)
    return Qemu11Endpoint(
        vm,
        place=place,
        adopt=adopt,
        release=release,
        on_own=on_own,
        on_own_gone=on_own_gone,
        warn=warn,
        duplicate=duplicate,
        size_bytes=size_bytes or (lambda descriptor: 1 << 62),
    )
