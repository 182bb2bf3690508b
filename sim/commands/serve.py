"""`ivsim serve`: the coordinator's server alone, for whoever speaks the protocol."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import click

__all__ = ["serve"]

SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
SIZE_MIN = 4096
SIZE_MAX = 1 << 40
VECTORS_MAX = 2048


def _size_bytes(_context: click.Context, _option: click.Parameter, given: str) -> int:
    """Bytes, with K, M or G; rounded up to a power of two, as ivshmem-server does."""
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)", given, re.IGNORECASE)
    size_bytes = int(match[1]) * SUFFIXES[match[2].upper()] if match else 0
    if not SIZE_MIN <= size_bytes <= SIZE_MAX:
        raise click.BadParameter(f"expected {SIZE_MIN} bytes to 1024 G, as in 65536, 64K, 4M or 1G, got {given!r}")
    return 1 << (size_bytes - 1).bit_length()


@click.command("serve", short_help="Run an ivshmem server, as ivshmem-server does.")
@click.option(
    "-F",
    "--foreground",
    is_flag=True,
    help="Stay in the foreground (it always does; for ivshmem-server's users).",
)
@click.option(
    "-S",
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    default=Path("/tmp/ivshmem_socket"),
    show_default=True,
    help="The socket that clients connect to; made with mode 0600.",
)
@click.option(
    "-M", "--memory-name", default="ivshmem", show_default=True, help="The POSIX name of the shared memory."
)
@click.option(
    "-l",
    "--length",
    "size_bytes",
    callback=_size_bytes,
    default="4M",
    show_default=True,
    help="Its size, rounded up to a power of two.",
)
@click.option(
    "-n",
    "--vectors",
    type=click.IntRange(1, VECTORS_MAX),
    default=1,
    show_default=True,
    help="Eventfds of each client.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say who comes and goes, on standard error.")
def serve(
    foreground: bool, path: Path, memory_name: str, size_bytes: int, vectors: int, verbose: bool
) -> None:
    """Serve one shared memory to all who connect: real QEMUs, simulated machines, any client of protocol 0.

    SIGTERM or Ctrl-C ends it and removes its socket and its memory.
    """
    from sim.loop import Loop
    from sim.memory import Region
    from sim.server import IvshmemServer, Peer
    from sim.signals import ENDING, signals_ignored

    def say(text: str) -> None:
        if verbose:
            click.echo(text, err=True)

    def joined(peer: Peer) -> None:
        say(f"peer {peer.peer} joined (pid {peer.pid}, uid {peer.uid})")

    def left(peer: Peer, reason: str) -> None:
        say(f"peer {peer.peer} left: {reason}")

    if not re.fullmatch(r"/?[A-Za-z0-9_.-]{1,200}", memory_name):
        raise click.BadParameter(f"expected a name without slashes, got {memory_name!r}", param_hint="-M")
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    read_end, write_end = socket.socketpair()
    with read_end, write_end:
        write_end.setblocking(False)
        signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
        loop = Loop()
        with signals_ignored():  # the standard library's tracker of shared memory is started here
            region = Region.create(size_bytes, name=memory_name.lstrip("/"))
        for number in ENDING:
            signal.signal(number, lambda *_: None)
        try:
            with IvshmemServer(loop, path, region.descriptor, vectors=vectors, on_join=joined, on_leave=left):
                loop.add(read_end, end)
                click.echo(
                    f"serving {size_bytes} bytes ({memory_name}) and {vectors} vectors at {path}", err=True
                )
                while not ended:
                    loop.step()
        finally:
            region.close()
            loop.close()
