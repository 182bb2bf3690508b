"""`ivsim ethernet`: a network interface of this host at one end of Ethernet over ivshmem v2."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from sim.commands.options import socket_option


@click.command("ethernet")
@socket_option("The socket of a server of ivshmem v2 with 2 peers, output sections and the protocol 1.")
@click.option("--tap", "name", required=True, metavar="NAME", help="The TAP interface; it is made if there is none.")
def ethernet(path: Path, name: str) -> None:
    """Join an Ethernet over ivshmem v2 as one of its two peers, and pass its frames to and from a TAP interface.

    The other peer is a guest with such a network device, or another `ivsim ethernet`. Set the addresses of the
    interface yourself (`ip address add 10.0.0.1/24 dev NAME`, `ip link set NAME up`); Ctrl-C ends it. It needs
    CAP_NET_ADMIN, or an interface made for this user.
    """
    from sim.kernel.loop import Loop, ended_by_signal
    from sim.kernel.tap import Tap
    from sim.wire.ethernet_bridge import EthernetBridge

    with contextlib.ExitStack() as stack:
        tap = stack.enter_context(contextlib.closing(Tap(name)))
        loop = stack.enter_context(contextlib.closing(Loop()))
        ended = stack.enter_context(ended_by_signal(loop))
        bridge = stack.enter_context(
            EthernetBridge(loop, path, tap, say=lambda text: click.echo(f"{name}: {text}", err=True))
        )
        while not ended():
            loop.step()
        click.echo(f"{name}: {bridge.sent} frames sent, {bridge.received} received, {bridge.dropped} dropped", err=True)
