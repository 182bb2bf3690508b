"""What the commands of `ivsim attach` share: one peer, its loop, the output, and access to the shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from nodes.errors import GuestError, UsageError
from sim.kernel.loop import Loop
from sim.kernel.memory import check_mapped
from sim.views.units import counted
from sim.wire.attachment import Attachment


class AttachSession:
    """The loop and the peer, which attaches when a command first needs it, and the callbacks of the current command.

    ``on_interrupt`` is called for each interrupt, ``on_news`` with lines for the user, ``on_return`` after a reconnect.
    """

    def __init__(self, path: Path, vectors: int, reconnect: bool) -> None:
        self.path, self.vectors, self.reconnect = path, vectors, reconnect
        self.loop = Loop()
        self.on_interrupt: Callable[[int, int, int], object] = lambda time_ns, vector, doorbells: None
        self.on_news: Callable[[str], object] = lambda text: click.echo(text, err=True)
        self.on_return: Callable[[], object] = lambda: self.on_news(self.greeting())
        self.began_ns = time.monotonic_ns()
        self._attachment: Attachment | None = None
        self._own_id_printed = False

    @property
    def attachment(self) -> Attachment:
        """The peer, once it knows all others. Raises ``GuestError`` while it waits for a server that has ended."""
        return self.attach_until(None)

    def attach_until(self, deadline_ns: int | None) -> Attachment:
        """The peer, as ``attachment``; raises ``GuestError`` too when there is no server by then."""
        if self._attachment is None:
            self._attachment = Attachment(
                self.loop,
                self.path,
                vectors=self.vectors,
                reconnect=self.reconnect,
                on_interrupt=self._pass_interrupt,
                on_change=lambda change: self._pass_news(str(change)),
                say=self._pass_news,
                on_return=self._return,
            )
            if not self._attachment.meet(deadline_ns):
                raise GuestError(f"not connected in time: no server at {self.path}")
        elif not self._attachment.met:
            raise GuestError(f"not connected: waiting for a server at {self.path}")
        return self._attachment

    def begin(self) -> None:
        self.print_own_id(f"{self.greeting()}; `help` tells the commands")

    def print_own_id(self, text: str | None = None) -> None:
        """Print the own ID, once: other peers need it to ring this one."""
        if not self._own_id_printed:
            self._own_id_printed = True
            self.on_news(text or self.greeting())

    def greeting(self) -> str:
        """The own ID, the memory and the other peers, in a line."""
        peer = self.attachment
        return (
            f"peer {peer.peer} of {self.path}: {counted(peer.own_vectors, 'vector')}, "
            f"{len(peer.memory)} bytes of memory, "
            f"{counted(len(peer.peers.keys() - {peer.peer}), 'other')}, dialect {dialect_of(peer)}"
        )

    def describe(self, time_ns: int, vector: int, doorbells: int) -> str:
        """An interrupt in a line, with the seconds since this command began."""
        coalesced = f" ({doorbells} doorbells)" if doorbells > 1 else ""
        return f"{(time_ns - self.began_ns) / 1e9:.6f} interrupt vector {vector}{coalesced}"

    # The callbacks of the current command, not those at the time when this peer attached.

    def _pass_interrupt(self, time_ns: int, vector: int, doorbells: int) -> None:
        self.on_interrupt(time_ns, vector, doorbells)

    def _pass_news(self, text: str) -> None:
        self.on_news(text)

    def _return(self) -> None:
        self.on_return()

    def close(self) -> None:
        if self._attachment is not None:
            self._attachment.close()
        self.loop.close()


def dialect_of(peer: Attachment) -> str:
    return peer.dialect.name if peer.dialect else "unknown"


def part_of(memory: memoryview, offset: int, length: int) -> memoryview:
    """A part of the memory that may be touched."""
    check_mapped(memory)
    if length == 0 or offset + length > len(memory):
        raise UsageError(
            f"expected 1 byte or more within the memory's {len(memory)} ({len(memory):#x}), "
            f"got {length} at offset {offset:#x}"
        )
    return memory[offset : offset + length]


def writable_part(attachment: Attachment, offset: int, length: int) -> memoryview:
    """A part of the memory that may be written; a peer of ivshmem v2 may not write everywhere.

    Raises:
        ForbiddenStoreError: it is another's section, or the State Table.
    """
    part = part_of(attachment.memory, offset, length)
    return part if attachment.sections is None else attachment.sections.writable(offset, length)


def dump(data: bytes, offset: int) -> Iterator[str]:
    """16 bytes a line, as `hexdump -C` shows them; repeated lines are one asterisk."""
    previous, starred = None, False
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        if row == previous and at + 16 < len(data):
            if not starred:
                yield "*"
            starred = True
            continue
        previous, starred = row, False
        halves = "  ".join(row[half : half + 8].hex(" ") for half in (0, 8))
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{offset + at:08x}  {halves:48}  |{text}|"
